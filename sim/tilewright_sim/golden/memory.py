"""Device memory, and what is worked out from it and kept."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import InputError

_BLOCK_BITS = 12
"""Memory is asked for changes in blocks of so many address bits: a write to a block counts as one to all of it."""
KEPT_BYTES = 1 << 29
"""The most that is kept of what was worked out from one memory."""


def _anonymous(size: int) -> mmap.mmap:
    """Map zeros. Private ones: reading what was never written costs no memory either."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return mmap.mmap(-1, size, flags=flags)


class Memory:
    """Zeroed bytes that cost nothing until they are written.

    Parameters
    ----------
    size : int
        Bytes.

    Members
    -------
    bytes : uint8 (size,)
        All of memory, to read. It is written by `write` and through `writable` alone, which note that it has changed.
    kept : int
        Bytes that `Kept` values of this memory hold.
    """

    def __init__(self, size: int) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(f"memory size must be a non-negative integer, not {size!r}")
        self.size = size
        try:
            self._bytes = np.frombuffer(_anonymous(max(size, 1)), np.uint8)[:size]
        except (OSError, OverflowError, ValueError) as e:
            raise InputError(f"cannot allocate {size} bytes of device memory: {e}") from e
        self.bytes = self._bytes.view()
        self.bytes.flags.writeable = False
        self._writes = 0
        self._written = np.zeros((size >> _BLOCK_BITS) + 1, np.int64)  # of each block: the number of the last write
        self.kept = 0

    def write(self, start: int, data: NDArray[np.uint8]) -> None:
        """Write bytes from byte `start` on."""
        self.writable(start, start + data.size)[start : start + data.size] = data

    def writable(self, start: int, end: int) -> NDArray[np.uint8]:
        """Return all of memory for writing somewhere in bytes `start` to `end`, now and once."""
        self._writes += 1
        self._written[start >> _BLOCK_BITS : (end - 1 >> _BLOCK_BITS) + 1] = self._writes
        return self._bytes

    def last_write(self, start: int, end: int) -> int:
        """Return the number of the last write that may have changed bytes `start` to `end`; 0: none has."""
        written = self._written[start >> _BLOCK_BITS : (end - 1 >> _BLOCK_BITS) + 1]
        return int(written.item(written.argmax()))


class Kept:
    """An array that is worked out from bytes of memory, kept while these stay as they are.

    What is used once, or has changed by its next use, is not kept; nor is more than KEPT_BYTES of all.

    Parameters
    ----------
    memory : Memory
        Where the bytes are.
    start, end : int
        The first of them, and one past the last.
    """

    def __init__(self, memory: Memory, start: int, end: int) -> None:
        self._memory, self._start, self._end = memory, start, end
        self._value: NDArray[Any] | None = None
        self._as_of = -1

    def get(self, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array, which must not be changed; `make` works it out."""
        memory = self._memory
        now = memory.last_write(self._start, self._end)
        if self._as_of == now and self._value is not None:
            return self._value
        self._drop()
        value = make()
        if self._as_of == now and memory.kept + value.nbytes <= KEPT_BYTES:
            self._value = value
            memory.kept += value.nbytes
        self._as_of = now
        return value

    def _drop(self) -> None:
        if self._value is not None:
            self._memory.kept -= self._value.nbytes
            self._value = None

    def __del__(self) -> None:
        self._drop()
