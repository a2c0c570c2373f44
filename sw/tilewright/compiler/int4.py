"""How weights of four bits lie in memory (docs/architecture.md, "Memory layout")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.compiler.layout import TiledMatrix, ceil_div, round_up
from tilewright.formats import GROUP
from tilewright_hw.arch import AcceleratorConfig


@dataclass(frozen=True)
class Int4Matrix(TiledMatrix):
    """Geometry of an (n, k) matrix in four bits: one run of nibble rows for each n-tile."""

    @property
    def rows(self) -> int:
        """Weight rows of a run: those of all its tiles."""
        return self.k_tiles * self.config.rows

    @property
    def chunks(self) -> int:
        """Chunks of a run; each begins with a bus word's worth of group scales."""
        return ceil_div(ceil_div(self.rows, GROUP), self.config.nibble_rows)

    @property
    def column_bytes(self) -> int:
        """Bytes of one n-tile."""
        rows = self.chunks * self.config.nibble_rows + self.rows
        return round_up(rows * self.config.nibble_slot, self.config.bus_bytes)


def _nibbles(values: NDArray[np.uint8], config: AcceleratorConfig) -> NDArray[np.uint8]:
    """Pack (..., C) values of four bits into nibble rows (..., nibble_slot): the first in the low half."""
    out = np.zeros((*values.shape[:-1], config.nibble_slot), np.uint8)
    low, high = values[..., ::2], values[..., 1::2]
    out[..., : low.shape[-1]] = low
    out[..., : high.shape[-1]] |= high << 4
    return out


def pack_int4(q: NDArray[np.int8], g: NDArray[np.uint8], config: AcceleratorConfig) -> NDArray[np.uint8]:
    """Pack (n, k) weights of -8..7 and (n, ceil(k / 32)) group scales of 0..15.

    Returns uint8 of shape (n_tiles, column_bytes), the order in memory; pad rows and columns are zero.
    """
    n, k = q.shape
    t = Int4Matrix(n, k, config)
    c, s = config.cols, config.nibble_rows
    weights = np.zeros((t.n_tiles * c, t.rows), np.uint8)
    weights[:n, :k] = q.view(np.uint8) & 15
    scales = np.zeros((t.n_tiles * c, t.chunks * s), np.uint8)
    scales[:n, : g.shape[1]] = g
    rows = _nibbles(weights.reshape(t.n_tiles, c, -1).transpose(0, 2, 1), config)  # (n-tile, row, slot)
    groups = _nibbles(scales.reshape(t.n_tiles, c, -1).transpose(0, 2, 1), config)
    out = np.zeros((t.n_tiles, t.column_bytes), np.uint8)
    at = 0
    for chunk in range(t.chunks):
        for part in (groups[:, chunk * s : (chunk + 1) * s], rows[:, chunk * s * GROUP : (chunk + 1) * s * GROUP]):
            flat = part.reshape(t.n_tiles, -1)
            out[:, at : at + flat.shape[1]] = flat
            at += flat.shape[1]
    return out
