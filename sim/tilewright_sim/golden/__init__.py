"""The golden model: what the machine computes, in NumPy, written from docs/numerics.md and docs/architecture.md."""

from tilewright_sim.golden import formats, tables
from tilewright_sim.golden.device import GoldenDevice
from tilewright_sim.golden.hazards import HazardError

__all__ = ["GoldenDevice", "HazardError", "formats", "tables"]
