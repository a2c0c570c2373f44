"""Where things lie in device memory, and how matrices are cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilewright.compiler.emit import Region
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_hw.arch.isa import BASES

ALIGN = 64
"""Every region starts on a multiple of this: the widest bus word, and an instruction."""
WINDOW = 1 << 32
"""Bytes that one base register reaches."""


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """Return the first multiple of b that is not below a."""
    return ceil_div(a, b) * b


@dataclass
class MemoryMap:
    """Hands out device memory from address 0 on. No region of up to 4 GiB crosses a 4 GiB boundary."""

    size: int = 0
    regions: dict[str, Region] = field(default_factory=dict)

    def add(self, name: str, size: int) -> Region:
        """Reserve `size` bytes under a name."""
        start = round_up(self.size, ALIGN)
        if size <= WINDOW and start // WINDOW != (start + max(size, 1) - 1) // WINDOW:
            start = round_up(start, WINDOW)
        if start + size > BASES * WINDOW:
            raise InputError(f"the memory image must be at most {BASES * WINDOW >> 30} GiB; {name} would end past it")
        region = Region("mem", start, size)
        self.regions[name] = region
        self.size = start + size
        return region


def address(at: int) -> dict[str, int]:
    """Return the operands (base register and offset) of a byte address; base register i holds i * 4 GiB."""
    return {"base": at // WINDOW, "offset": at % WINDOW}


@dataclass(frozen=True)
class TiledMatrix:
    """Geometry of an (n, k) matrix cut into R x C tiles, stored for n-tile, for k-tile."""

    n: int
    k: int
    config: AcceleratorConfig

    @property
    def n_tiles(self) -> int:
        """Tiles along the outputs."""
        return ceil_div(self.n, self.config.cols)

    @property
    def k_tiles(self) -> int:
        """Tiles along the reduction."""
        return ceil_div(self.k, self.config.rows)

    @property
    def column_bytes(self) -> int:
        """Bytes of one n-tile: its whole reduction."""
        return self.k_tiles * self.config.tile_bytes

    @property
    def bytes(self) -> int:
        """Bytes of the matrix."""
        return self.n_tiles * self.column_bytes


def pack_tiles(q: NDArray[np.int8], config: AcceleratorConfig) -> NDArray[np.uint8]:
    """Cut an int8 (n, k) matrix (outputs by inputs) into tiles; pad rows and columns are zero.

    Returns uint8 of shape (n_tiles, k_tiles, R, col_slot), the order in memory.
    """
    n, k = q.shape
    t = TiledMatrix(n, k, config)
    r, c = config.rows, config.cols
    padded = np.zeros((t.n_tiles * c, t.k_tiles * r), np.int8)
    padded[:n, :k] = q
    tiles = padded.reshape(t.n_tiles, c, t.k_tiles, r).transpose(0, 2, 3, 1)  # (nt, kt, R, C)
    out = np.zeros((t.n_tiles, t.k_tiles, r, config.col_slot), np.uint8)
    out[..., :c] = tiles.view(np.uint8)
    return out


def pack_activations(q: NDArray[np.int8], config: AcceleratorConfig) -> NDArray[np.uint8]:
    """Cut int8 (m, k) rows into activation words: uint8 (m, ceil(k/R), row_slot)."""
    m, k = q.shape
    words = ceil_div(k, config.rows)
    padded = np.zeros((m, words * config.rows), np.int8)
    padded[:, :k] = q
    out = np.zeros((m, words, config.row_slot), np.uint8)
    out[..., : config.rows] = padded.reshape(m, words, config.rows).view(np.uint8)
    return out


def pad_bytes(data: NDArray[np.uint8] | bytes, multiple: int) -> NDArray[np.uint8]:
    """Return the bytes, zero-padded to a multiple."""
    flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1)
    return np.concatenate([flat, np.zeros(-len(flat) % multiple, np.uint8)])
