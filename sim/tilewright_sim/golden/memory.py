"""Device memory, and the weights found in it."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import InputError

PAGE = 1 << 12
"""Bytes of a page of the map that says where cached weights lie."""


class Memory:
    """Zeroed bytes that cost nothing until they are written, and a cache of what was made of some of them.

    Parameters
    ----------
    size : int
        Bytes.
    cache_bytes : int
        Room for cached weights. What does not fit is worked out again at each use: weights are used in turn, so
        replacing old ones by new ones would only lose them all.
    """

    def __init__(self, size: int, cache_bytes: int = 1 << 29) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(f"memory size must be a non-negative integer, not {size!r}")
        self.size = size
        try:
            self.bytes = np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)[:size]
        except (OSError, OverflowError, ValueError) as e:
            raise InputError(f"cannot allocate {size} bytes of device memory: {e}") from e
        self._cache: dict[tuple[int, ...], tuple[int, int, NDArray[np.float32]]] = {}
        self._cache_room = cache_bytes
        self._cached_pages = np.zeros(-(-size // PAGE), np.bool_)

    def written(self, start: int, end: int) -> None:
        """Forget what was cached of bytes `start` to `end`, which are about to change."""
        if not self._cached_pages[start // PAGE : -(-end // PAGE)].any():
            return
        stale = [key for key, at in self._cache.items() if at[0] < end and start < at[1]]
        if not stale:
            return
        for key in stale:
            self._cache_room += self._cache.pop(key)[2].nbytes
        self._cached_pages[:] = False
        for first, last, _ in self._cache.values():
            self._cached_pages[first // PAGE : -(-last // PAGE)] = True

    def cached(
        self,
        start: int,
        size: int,
        shape: tuple[int, ...],
        make: Callable[[], NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        """Return what `make` makes of bytes start..start+size for a `shape`, from the cache where it is there."""
        key = (start, size, *shape)
        if key in self._cache:
            return self._cache[key][2]
        matrix = make()
        if matrix.nbytes <= self._cache_room:
            self._cache_room -= matrix.nbytes
            self._cache[key] = (start, start + size, matrix)
            self._cached_pages[start // PAGE : -(-(start + size) // PAGE)] = True
        return matrix
