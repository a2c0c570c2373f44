"""Weight tiles on their way to the array: how they lie in memory, and the FIFOs (docs/architecture.md).

Rows of tiles that lie in memory stay there until they are used. Then the array's product takes them as float32, and
those are kept until the bytes in memory change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import AcceleratorConfig
from tilewright_sim.golden.memory import Kept, Memory
from tilewright_sim.golden.state import Fault, Region

GROUP = 32
"""Inputs that share a group scale."""


class StoredRows(ABC):
    """Rows of tiles in memory, in some format.

    Parameters
    ----------
    memory : Memory
        Device memory.
    region : Region
        Where they lie: runs of bytes.
    rows : int
        How many they are.
    """

    def __init__(self, memory: Memory, region: Region, rows: int) -> None:
        self.memory, self.region, self.rows = memory, region, rows
        self._weights = Kept(memory, region.start, region.end)

    @abstractmethod
    def unpack(self, first: int, rows: int) -> NDArray[np.int8]:
        """Return `rows` rows from row `first` on, (rows, C); not a copy where they lie as they are."""

    def weights(self) -> NDArray[np.float32]:
        """Return all rows as float32, (rows, C), not to be changed."""
        return self._weights.get(lambda: self.unpack(0, self.rows).astype(np.float32))


class PlainRows(StoredRows):
    """Runs of rows of tiles, int8, each in `slot` bytes of memory."""

    def __init__(self, memory: Memory, region: Region, config: AcceleratorConfig) -> None:
        self.slot, self.cols = config.col_slot, config.cols
        self.run_rows = region.length // self.slot
        super().__init__(memory, region, self.run_rows * region.loops[0][0])

    def unpack(self, first: int, rows: int) -> NDArray[np.int8]:
        """Return `rows` rows from row `first` on."""
        lines = self.region.view(self.memory.bytes)
        if lines.shape[0] == 1:
            return lines.reshape(-1, self.slot)[first : first + rows, : self.cols].view(np.int8)
        begin, end = first // self.run_rows, -(-(first + rows) // self.run_rows)
        part = np.ascontiguousarray(lines[begin:end]).reshape(-1, self.slot)
        first -= begin * self.run_rows
        return part[first : first + rows, : self.cols].view(np.int8)


class NibbleRows(StoredRows):
    """Runs of rows of tiles in the int4 format, each of `run_rows`: chunks of group scales g and of weights q."""

    def __init__(self, memory: Memory, region: Region, config: AcceleratorConfig, run_rows: int) -> None:
        super().__init__(memory, region, run_rows * region.loops[0][0])
        self.run_rows = run_rows
        self.cols, self.slot = config.cols, config.nibble_slot
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

    def unpack(self, first: int, rows: int) -> NDArray[np.int8]:
        """Return `rows` rows g * q from row `first` on."""
        begin, end = first // self.run_rows, -(-(first + rows) // self.run_rows)
        lines = np.ascontiguousarray(self.region.view(self.memory.bytes)[begin:end]).reshape(end - begin, -1, self.slot)
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


class TransposedRows(StoredRows):
    """Runs of whole tiles whose rows in memory are outputs: C rows of R inputs, each in `row_slot` bytes."""

    def __init__(self, memory: Memory, region: Region, config: AcceleratorConfig) -> None:
        self.shape = (config.rows, config.cols, config.row_slot)
        tiles = region.loops[0][0] * region.length // config.transposed_tile_bytes
        super().__init__(memory, region, tiles * config.rows)

    def unpack(self, first: int, rows: int) -> NDArray[np.int8]:
        """Return `rows` rows from row `first` on."""
        inputs, outputs, slot = self.shape
        tiles = np.ascontiguousarray(self.region.view(self.memory.bytes)).reshape(-1, outputs, slot)[..., :inputs]
        return np.ascontiguousarray(tiles.transpose(0, 2, 1)).reshape(-1, outputs)[first : first + rows].view(np.int8)


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

    def unpack(self) -> NDArray[np.int8]:
        """Return the rows, (rows, C)."""
        return self.stored.unpack(self.first, self.rows) if self.data is None else self.data

    def protect(self) -> None:
        """Copy the rows, whose bytes in memory are about to be overwritten."""
        self.data = np.array(self.unpack())

    def weights(self) -> NDArray[np.float32]:
        """Return the rows as float32, (rows, C), not to be changed."""
        if self.data is None and self.rows == self.stored.rows:
            return self.stored.weights()
        return self.unpack().astype(np.float32)

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

    def protect(self, start: int, end: int) -> None:
        """Copy what waits in memory from `start` to `end`, before it is overwritten."""
        for piece in self.pieces:
            region = piece.stored.region
            if piece.data is None and region.start < end and start < region.end:
                piece.protect()
