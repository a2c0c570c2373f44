"""The accelerator's Verilog with its hierarchy, and with the line of Python beside each statement."""

from __future__ import annotations

import re

from tilewright_hw.generate import TOP, run_yosys

__all__ = ["with_sources"]

# Processes stay processes, with their branches: these are the lines that run or do not. What Amaranth has no name for
# gets one that begins with an underscore, and Verilator counts no toggles of such.
_SCRIPT = f"""\
hierarchy -top {TOP}
proc -nomux -norom
memory_collect
write_verilog
"""

_TRIGGER = re.compile(r"^ *if \(\\\$auto\$verilog_backend\S* *\) begin end\n", re.M)
"""What makes a simulator with unknown values look at every process once."""


def with_sources(rtlil: str) -> str:
    """Return RTLIL as Verilog with attributes `src`, and without branches that are there for other simulators alone."""
    return _TRIGGER.sub("", run_yosys(rtlil, _SCRIPT))
