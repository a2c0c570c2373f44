"""The machine: what it is (arch) and its gateware in Amaranth.

Every block can be used by itself, straight from here:

>>> from tilewright_hw import Softmax
>>> softmax = Softmax(lanes=4, max_length=64)
>>> softmax.lanes
4

The blocks are imported when they are first asked for: to import this package, or `tilewright_hw.arch`, needs no
Amaranth.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright_hw.arch.config import AcceleratorConfig
    from tilewright_hw.gateware.accumulator import Accumulators
    from tilewright_hw.gateware.array import SystolicArray
    from tilewright_hw.gateware.buffers import ActBuffer
    from tilewright_hw.gateware.fifo import StreamBuffer, StreamFifo
    from tilewright_hw.gateware.loader import TileFifo
    from tilewright_hw.gateware.matrix import MatrixUnit
    from tilewright_hw.gateware.reader import MemoryReader
    from tilewright_hw.gateware.registers import ControlRegisters
    from tilewright_hw.gateware.sequencer import Sequencer
    from tilewright_hw.gateware.skew import Skew
    from tilewright_hw.gateware.softmax import Softmax
    from tilewright_hw.gateware.store import StoreUnit
    from tilewright_hw.gateware.top import Accelerator
    from tilewright_hw.gateware.vector import VectorUnit
    from tilewright_hw.gateware.width import WidthConverter

__all__ = [
    "Accelerator",
    "AcceleratorConfig",
    "Accumulators",
    "ActBuffer",
    "ControlRegisters",
    "MatrixUnit",
    "MemoryReader",
    "Sequencer",
    "Skew",
    "Softmax",
    "StoreUnit",
    "StreamBuffer",
    "StreamFifo",
    "SystolicArray",
    "TileFifo",
    "VectorUnit",
    "WidthConverter",
]

_MODULES = {
    "Accelerator": "gateware.top",
    "AcceleratorConfig": "arch.config",
    "Accumulators": "gateware.accumulator",
    "ActBuffer": "gateware.buffers",
    "ControlRegisters": "gateware.registers",
    "MatrixUnit": "gateware.matrix",
    "MemoryReader": "gateware.reader",
    "Sequencer": "gateware.sequencer",
    "Skew": "gateware.skew",
    "Softmax": "gateware.softmax",
    "StoreUnit": "gateware.store",
    "StreamBuffer": "gateware.fifo",
    "StreamFifo": "gateware.fifo",
    "SystolicArray": "gateware.array",
    "TileFifo": "gateware.loader",
    "VectorUnit": "gateware.vector",
    "WidthConverter": "gateware.width",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
