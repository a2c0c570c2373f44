"""The golden model: what the machine computes, in NumPy, written from docs/numerics.md and docs/architecture.md."""

from tilewright_sim.golden import formats, tables
from tilewright_sim.golden.device import GoldenDevice
from tilewright_sim.golden.functions import (
    dequantise,
    quantise_rows,
    rmsnorm,
    rope,
    sigmoid,
    silu,
    softmax,
    systolic_array,
)
from tilewright_sim.golden.hazards import HazardError
from tilewright_sim.golden.tables import exp2, recip, rsqrt

__all__ = [
    "GoldenDevice",
    "HazardError",
    "dequantise",
    "exp2",
    "formats",
    "quantise_rows",
    "recip",
    "rmsnorm",
    "rope",
    "rsqrt",
    "sigmoid",
    "silu",
    "softmax",
    "systolic_array",
    "tables",
]
