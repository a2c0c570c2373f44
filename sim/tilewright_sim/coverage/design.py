"""The accelerator's Verilog with its hierarchy, and with the line of Python beside each statement."""

from __future__ import annotations

import re
from typing import Any

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.generate import TOP, GenerateError

__all__ = ["rtlil_with_sources", "with_sources"]

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


def rtlil_with_sources(config: AcceleratorConfig) -> str:
    """Return the accelerator's RTLIL, one module for each component, with source locations."""
    try:
        from amaranth.back import rtlil

        from tilewright_hw.gateware.top import Accelerator
    except ImportError as e:
        raise GenerateError("Amaranth is needed to make Verilog: run `pip install 'tilewright[rtl]'`") from e
    return str(rtlil.convert(Accelerator(config), name=TOP, emit_src=True))


def with_sources(rtlil: str) -> str:
    """Return RTLIL as Verilog with attributes `src`, and without branches that are there for other simulators alone."""
    from amaranth._toolchain.yosys import YosysError, find_yosys

    try:
        yosys: Any = find_yosys(lambda version: version >= (0, 40))
        text = str(yosys.run(["-q", "-"], f"read_rtlil <<rtlil\n{rtlil}\nrtlil\n{_SCRIPT}", ignore_warnings=True))
    except YosysError as e:
        raise GenerateError(f"Yosys failed: {e}") from e
    return _TRIGGER.sub("", text)
