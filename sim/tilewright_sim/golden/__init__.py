"""The golden model: what the machine computes, in NumPy, written from docs/numerics.md and docs/architecture.md."""

from collections.abc import Callable
from typing import Any

from tilewright_sim.golden import formats, tables
from tilewright_sim.golden.blocks import (
    accumulators,
    act_buffer,
    skew,
    stream_buffer,
    stream_fifo,
    tile_fifo,
    width_converter,
)
from tilewright_sim.golden.device import GoldenDevice
from tilewright_sim.golden.functions import (
    argmax,
    dequantise,
    erf,
    gelu,
    gelu_tanh,
    layernorm,
    quantise_rows,
    rmsnorm,
    rope,
    sigmoid,
    silu,
    softmax,
    systolic_array,
    table,
    tanh,
)
from tilewright_sim.golden.hazards import HazardError
from tilewright_sim.golden.machine import Machine
from tilewright_sim.golden.matrix import MatmulStep
from tilewright_sim.golden.tables import exp2, recip, rsqrt
from tilewright_sim.golden.transfer import LoadStep, StoreStep
from tilewright_sim.golden.vector import VectorStep

__all__ = [
    "BLOCKS",
    "GoldenDevice",
    "HazardError",
    "accumulators",
    "act_buffer",
    "argmax",
    "dequantise",
    "erf",
    "exp2",
    "formats",
    "gelu",
    "gelu_tanh",
    "layernorm",
    "quantise_rows",
    "recip",
    "rmsnorm",
    "rope",
    "rsqrt",
    "sigmoid",
    "silu",
    "skew",
    "softmax",
    "stream_buffer",
    "stream_fifo",
    "systolic_array",
    "table",
    "tables",
    "tanh",
    "tile_fifo",
    "width_converter",
]

BLOCKS: dict[str, Callable[..., Any]] = {
    "Accelerator": GoldenDevice,
    "Accumulators": accumulators,
    "ActBuffer": act_buffer,
    "ControlRegisters": GoldenDevice,
    "MatrixUnit": MatmulStep,
    "MemoryReader": LoadStep,
    "Sequencer": Machine,
    "Skew": skew,
    "Softmax": softmax,
    "StoreUnit": StoreStep,
    "StreamBuffer": stream_buffer,
    "StreamFifo": stream_fifo,
    "SystolicArray": systolic_array,
    "TileFifo": tile_fifo,
    "VectorUnit": VectorStep,
    "WidthConverter": width_converter,
}
"""What the blocks of `tilewright_hw` do, by their names.

For most, a function of arrays of the same name (`SystolicArray`: `systolic_array`); for a unit that executes an
instruction, the class that does so in the golden device; for the registers and the whole, the device.
"""
