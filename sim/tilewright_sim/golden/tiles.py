"""Weight tiles on their way to the array: how they lie in memory, and the FIFOs (docs/architecture.md).

Rows of tiles that lie in memory stay there until they are used: a model's weights are never held twice.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import AcceleratorConfig
from tilewright_sim.golden.state import Fault, Region

GROUP = 32
"""Inputs that share a group scale."""


class PlainRows:
    """Runs of rows of tiles, int8, each in `slot` bytes of memory.

    Parameters
    ----------
    region : Region
        Where they lie: runs of bytes.
    config : AcceleratorConfig
        For the shape of a row.
    """

    def __init__(self, region: Region, config: AcceleratorConfig) -> None:
        self.region = region
        self.slot, self.cols = config.col_slot, config.cols
        self.run_rows = region.length // self.slot
        self.rows = self.run_rows * region.loops[0][0]

    def unpack(self, memory: NDArray[np.uint8], first: int, rows: int) -> NDArray[np.int8]:
        """Return `rows` rows from row `first` on, (rows, C); not a copy where they lie in one piece."""
        lines = self.region.view(memory)
        if lines.shape[0] == 1:
            return lines.reshape(-1, self.slot)[first : first + rows, : self.cols].view(np.int8)
        begin, end = first // self.run_rows, -(-(first + rows) // self.run_rows)
        part = np.ascontiguousarray(lines[begin:end]).reshape(-1, self.slot)
        first -= begin * self.run_rows
        return part[first : first + rows, : self.cols].view(np.int8)


class NibbleRows:
    """Runs of rows of tiles in the int4 format: chunks of group scales g and of four-bit weights q.

    Parameters
    ----------
    region : Region
        Where they lie: runs of bytes.
    config : AcceleratorConfig
        For the shape of a row.
    run_rows : int
        Weight rows of a run.
    """

    def __init__(self, region: Region, config: AcceleratorConfig, run_rows: int) -> None:
        self.region, self.run_rows = region, run_rows
        self.cols, self.slot = config.cols, config.nibble_slot
        self.rows = run_rows * region.loops[0][0]
        row, per_chunk = np.arange(run_rows), GROUP * config.nibble_rows
        first = row // per_chunk * (per_chunk + config.nibble_rows)  # the chunk's first nibble row
        self.at_q = first + config.nibble_rows + row % per_chunk
        self.at_g = (first + row % per_chunk // GROUP)[::GROUP]

    @staticmethod
    def run_bytes(config: AcceleratorConfig, rows: int) -> int:
        """Return the bytes of a run of `rows` weight rows."""
        chunks = -(-rows // (GROUP * config.nibble_rows))
        used = (chunks * config.nibble_rows + rows) * config.nibble_slot
        return -(-used // config.bus_bytes) * config.bus_bytes

    def unpack(self, memory: NDArray[np.uint8], first: int, rows: int) -> NDArray[np.int8]:
        """Return `rows` rows g * q from row `first` on, (rows, C)."""
        begin, end = first // self.run_rows, -(-(first + rows) // self.run_rows)
        lines = np.ascontiguousarray(self.region.view(memory)[begin:end]).reshape(end - begin, -1, self.slot)
        used = -(-self.cols // 2)
        q = lines[:, self.at_q, :used].view(np.int8)
        g = lines[:, self.at_g, :used].view(np.int8)
        w = np.empty((*q.shape, 2), np.int8)
        for group in range(self.at_g.size):  # each row of g serves the 32 rows of its group
            part = slice(group * GROUP, (group + 1) * GROUP)
            scales = g[:, group, None]
            w[:, part, :, 0] = (q[:, part] << 4 >> 4) * (scales & 15)
            w[:, part, :, 1] = (q[:, part] >> 4) * (scales >> 4 & 15)
        first -= begin * self.run_rows
        return w.reshape(-1, 2 * used)[first : first + rows, : self.cols]


class TransposedRows:
    """Runs of tiles whose rows in memory are outputs: C rows of R inputs, each in `row_slot` bytes.

    Parameters
    ----------
    region : Region
        Where they lie: runs of whole tiles.
    config : AcceleratorConfig
        For the shape of a tile.
    """

    def __init__(self, region: Region, config: AcceleratorConfig) -> None:
        self.region = region
        self.shape = (config.rows, config.cols, config.row_slot)
        self.rows = region.loops[0][0] * region.length // config.transposed_tile_bytes * config.rows

    def unpack(self, memory: NDArray[np.uint8], first: int, rows: int) -> NDArray[np.int8]:
        """Return `rows` rows from row `first` on, (rows, C)."""
        inputs, outputs, slot = self.shape
        tiles = np.ascontiguousarray(self.region.view(memory)).reshape(-1, outputs, slot)[..., :inputs]
        return np.ascontiguousarray(tiles.transpose(0, 2, 1)).reshape(-1, outputs)[first : first + rows].view(np.int8)


StoredRows = PlainRows | NibbleRows | TransposedRows


@dataclass
class Piece:
    """Consecutive rows of tiles in a FIFO: `rows` of those `stored` in memory from `first` on, or a copy of them.

    `source` is the index of the instruction that pushed them.
    """

    stored: StoredRows
    first: int
    rows: int
    source: int
    data: NDArray[np.int8] | None = None
    last: bool = True
    """Whether nothing of what the same instruction pushed comes after it."""

    def unpack(self, memory: NDArray[np.uint8]) -> NDArray[np.int8]:
        """Return the rows, (rows, C)."""
        if self.data is not None:
            return self.data
        return self.stored.unpack(memory, self.first, self.rows)

    def split(self, rows: int) -> tuple[Piece, Piece]:
        """Return the first `rows` rows and the rest."""
        front, rest = self.data, self.data
        if self.data is not None:
            front, rest = self.data[:rows], self.data[rows:]
        return (
            replace(self, rows=rows, data=front, last=False),
            replace(self, first=self.first + rows, rows=self.rows - rows, data=rest),
        )


class TileFifo:
    """Rows of weight tiles, in order.

    They are not copied before they are used; `protect` copies those that are about to be overwritten.
    """

    def __init__(self) -> None:
        self.pieces: deque[Piece] = deque()
        self.rows = 0

    def push(self, piece: Piece) -> None:
        """Append rows."""
        self.pieces.append(piece)
        self.rows += piece.rows

    def pop(self, rows: int) -> list[Piece]:
        """Take rows from the front; Fault if there are too few."""
        if rows > self.rows:
            raise Fault(f"{rows} rows of tiles are asked of a FIFO that holds {self.rows}")
        self.rows -= rows
        taken = []
        while rows:
            piece = self.pieces.popleft()
            if piece.rows > rows:
                piece, rest = piece.split(rows)
                self.pieces.appendleft(rest)
            taken.append(piece)
            rows -= piece.rows
        return taken

    def protect(self, start: int, end: int, memory: NDArray[Any]) -> None:
        """Copy what waits in memory from `start` to `end`, before it is overwritten."""
        for piece in self.pieces:
            region = piece.stored.region
            if piece.data is None and region.start < end and start < region.end:
                piece.data = np.array(piece.unpack(memory))
