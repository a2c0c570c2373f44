"""The cycle model: how long a program takes on a configuration with a memory, without running the gateware.

The units are state machines at the grain of bursts, tiles, rows and pieces, which follow the gateware's documented
latencies and flow control (docs/architecture.md and the docstrings of tilewright_hw.gateware). A program is read as the
sequencer reads it: from memory, with the registers that LDREGS finds there.
"""

from tilewright.perf.machine import Event
from tilewright.perf.predict import Prediction, predict

__all__ = ["Event", "Prediction", "predict"]
