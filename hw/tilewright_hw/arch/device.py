"""The Device protocol: what the runtime may ask of a golden model, a simulation or a board."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch.config import AcceleratorConfig


@runtime_checkable
class Device(Protocol):
    """An accelerator with its memory. Methods raise DeviceError when the device fails, InputError on bad arguments."""

    name: str
    """`golden`, `rtl`, ..."""
    config: AcceleratorConfig

    def allocate(self, size: int) -> None:
        """Give the device `size` bytes of zeroed memory from address 0 on, and reset it."""

    @property
    def memory_size(self) -> int:
        """Bytes of device memory."""

    def write_memory(self, address: int, data: bytes | NDArray[np.uint8]) -> None:
        """Write bytes at a byte address."""

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes from a byte address, as a copy."""

    def write_register(self, address: int, value: int) -> None:
        """Write a 32-bit control register (byte address, see registers.py)."""

    def read_register(self, address: int) -> int:
        """Read a 32-bit control register."""

    def wait(self, max_cycles: int) -> None:
        """Run until done or error; DeviceError if neither comes within `max_cycles`. Errors are left in STATUS."""

    def reset(self) -> None:
        """Reset registers and units; memory stays."""

    @property
    def seconds(self) -> float:
        """Host seconds spent executing since `allocate` (simulation alone)."""

    def close(self) -> None:
        """Release what the device holds."""
