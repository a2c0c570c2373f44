"""The golden model: what the machine computes, in NumPy, written from docs/numerics.md and docs/architecture.md."""

from collections.abc import Callable
from typing import Any

from tilewright_sim.golden import formats, tables
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
    "softmax",
    "systolic_array",
    "table",
    "tables",
    "tanh",
]

BLOCKS: dict[str, Callable[..., Any]] = {
    "Accelerator": GoldenDevice,
    "MatrixUnit": MatmulStep,
    "MemoryReader": LoadStep,
    "Sequencer": Machine,
    "Softmax": softmax,
    "StoreUnit": StoreStep,
    "SystolicArray": systolic_array,
    "VectorUnit": VectorStep,
}
"""What the blocks of `tilewright_hw` compute, by their names.

Functions of arrays for the blocks that are one; for a unit of the accelerator, the class that executes its instruction.
Those not named here only move data.
"""
