"""Device memory."""

from __future__ import annotations

import mmap

import numpy as np

from tilewright_hw.arch import InputError


class Memory:
    """Zeroed bytes that cost nothing until they are written.

    Parameters
    ----------
    size : int
        Bytes.
    """

    def __init__(self, size: int) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(f"memory size must be a non-negative integer, not {size!r}")
        self.size = size
        try:
            self.bytes = np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)[:size]
        except (OSError, OverflowError, ValueError) as e:
            raise InputError(f"cannot allocate {size} bytes of device memory: {e}") from e
