"""The golden model: what the machine computes, in NumPy, written from docs/numerics.md and docs/architecture.md."""

from tilewright_sim.golden import formats, tables
from tilewright_sim.golden.device import GoldenDevice

__all__ = ["GoldenDevice", "formats", "tables"]
