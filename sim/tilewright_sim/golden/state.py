"""What the machine holds: its buffers, strided regions of them, and the FIFOs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.registers import ErrorCode


class Fault(Exception):
    """What is wrong with an instruction; the machine adds which one and raises DeviceError."""

    def __init__(self, cause: str, code: ErrorCode = ErrorCode.NONE) -> None:
        super().__init__(cause)
        self.code = code


@dataclass(frozen=True)
class Region:
    """Words of one buffer (or bytes of memory): nested loops around a run of consecutive ones.

    Parameters
    ----------
    name : str
        Buffer: `act`, `row`, `param`, `acc0`, `acc1`, `stat` or `memory`.
    start : int
        First word.
    loops : tuple of (count, stride)
        Outermost first; strides in words, not negative.
    length : int
        Words of a run.
    """

    name: str
    start: int
    loops: tuple[tuple[int, int], ...]
    length: int

    @property
    def end(self) -> int:
        """One past the last word."""
        return self.start + sum((count - 1) * stride for count, stride in self.loops) + self.length

    @property
    def mapping(self) -> tuple[int, tuple[tuple[int, int], ...], int]:
        """What decides which word is reached when: loops of one round do not."""
        return self.start, tuple(loop for loop in self.loops if loop[0] > 1), self.length

    @property
    def meets_itself(self) -> bool:
        """Whether some word may be reached twice."""
        extent = self.length
        for count, stride in sorted(self.loops, key=lambda loop: loop[1]):
            if count > 1:
                if stride < extent:
                    return True
                extent += (count - 1) * stride
        return False

    def overlaps(self, other: Region) -> bool:
        """Whether the two have a word in common."""
        if self.name != other.name or self.start >= other.end or other.start >= self.end:
            return False
        a, b = self.runs(), other.runs()
        starts = np.concatenate([a, b])
        ends = starts + np.repeat([self.length, other.length], [a.size, b.size])
        owner = np.repeat([0, 1], [a.size, b.size])
        order = np.argsort(starts, kind="stable")
        starts, ends, owner = starts[order], ends[order], owner[order]
        for mine in (0, 1):  # a run begins before an earlier run of the other region has ended
            reach = np.maximum.accumulate(np.where(owner == mine, ends, 0))
            if np.any((owner[1:] != mine) & (starts[1:] < reach[:-1])):
                return True
        return False

    def runs(self) -> NDArray[np.int64]:
        """Return the first word of every run, in loop order."""
        starts = np.array([self.start], dtype=np.int64)
        for count, stride in self.loops:
            starts = (starts[:, None] + np.arange(count) * stride).reshape(-1)
        return starts

    def view(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the region of an array of words (words, width), as (counts..., length * width), without a copy."""
        width = array[0].size
        word = width * array.itemsize
        return np.ndarray(
            (*(count for count, _ in self.loops), self.length * width),
            array.dtype,
            array,
            self.start * word,
            (*(stride * word for _, stride in self.loops), array.itemsize),
        )


class Buffers:
    """The machine's buffers; the first axis of each counts words.

    Parameters
    ----------
    config : AcceleratorConfig
        Sizes.

    Members
    -------
    act : int8 (act_words, R)
    row, param : float64 (words, L), F24 values
    acc0, acc1 : int32 (acc_rows, C), the two banks
    stat : float64 (stat_entries, 2), fields a and b
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.act = np.zeros((config.act_words, config.rows), np.int8)
        self.row = np.zeros((config.row_words, config.lanes))
        self.param = np.zeros((config.param_words, config.lanes))
        self.acc0 = np.zeros((config.acc_rows, config.cols), np.int32)
        self.acc1 = np.zeros((config.acc_rows, config.cols), np.int32)
        self.stat = np.zeros((config.stat_entries, 2))

    NAMES = ("act", "row", "param", "acc0", "acc1", "stat")

    def array(self, name: str) -> NDArray[Any]:
        """Return a buffer by its name."""
        array: NDArray[Any] = getattr(self, name)
        return array

    def check(self, region: Region, what: str) -> Region:
        """Return the region; Fault if it leaves its buffer."""
        words = self.array(region.name).shape[0]
        if region.end > words:
            raise Fault(f"{what} reaches word {region.end - 1} of the {region.name} buffer, which has {words}")
        return region


def put(view: NDArray[Any], values: NDArray[Any], region: Region) -> None:
    """Write values to a region's view; where rows overlap, the later one stays, as in the machine."""
    if not region.meets_itself:
        view[...] = values
        return
    for index in np.ndindex(view.shape[:-1]):
        view[index] = values[index]


@dataclass
class Piece:
    """Consecutive rows of tiles in a FIFO: still in memory at `address`, or copied to `data` (rows, slot).

    `source` is the index of the instruction that pushed them.
    """

    address: int
    rows: int
    source: int
    data: NDArray[np.int8] | None = None
    last: bool = True
    """Whether nothing of what the same instruction pushed comes after it."""


class TileFifo:
    """Rows of weight tiles, in order.

    Tiles that lie in one piece of memory are not copied before they are used, so that the weights of a layer can be
    recognised; `protect` copies those that are about to be overwritten.

    Parameters
    ----------
    slot : int
        Bytes in memory of one row.
    """

    def __init__(self, slot: int) -> None:
        self.slot = slot
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
            piece = self.pieces[0]
            if piece.rows <= rows:
                taken.append(self.pieces.popleft())
                rows -= piece.rows
                continue
            taken.append(self._split(piece, rows))
            rows = 0
        return taken

    def _split(self, piece: Piece, rows: int) -> Piece:
        """Take the first rows of the front piece."""
        if piece.data is not None:
            front = Piece(0, rows, piece.source, piece.data[:rows], last=False)
            self.pieces[0] = Piece(0, piece.rows - rows, piece.source, piece.data[rows:])
            return front
        front = Piece(piece.address, rows, piece.source, last=False)
        self.pieces[0] = Piece(piece.address + rows * self.slot, piece.rows - rows, piece.source)
        return front

    def protect(self, start: int, end: int, memory: NDArray[np.uint8]) -> None:
        """Copy what waits in memory from `start` to `end`, before it is overwritten."""
        for piece in self.pieces:
            size = piece.rows * self.slot
            if piece.data is None and piece.address < end and start < piece.address + size:
                raw = memory[piece.address : piece.address + size]
                piece.data = raw.view(np.int8).reshape(piece.rows, self.slot).copy()


@dataclass
class StoreRows:
    """Words in the store stream: (words, L) in the element's own type."""

    words: NDArray[Any]
    element: int
    source: int


class StoreFifo:
    """The store stream."""

    def __init__(self) -> None:
        self.chunks: deque[StoreRows] = deque()

    @property
    def words(self) -> int:
        """Words held."""
        return sum(chunk.words.shape[0] for chunk in self.chunks)

    def pop(self, words: int, element: int) -> tuple[NDArray[Any], list[tuple[int, bool]]]:
        """Take words of one element size, with the VECTOR instructions they came from and whether these are empty."""
        held = self.words
        if words > held:
            raise Fault(f"{words} words are asked of a store stream that holds {held}")
        parts: list[NDArray[Any]] = []
        sources = []
        while words:
            chunk = self.chunks[0]
            if chunk.element != element:
                raise Fault(f"the store stream holds elements of {1 << chunk.element} bytes, not {1 << element}")
            take = min(words, chunk.words.shape[0])
            parts.append(chunk.words[:take])
            chunk.words = chunk.words[take:]
            sources.append((chunk.source, chunk.words.shape[0] == 0))
            if not chunk.words.shape[0]:
                self.chunks.popleft()
            words -= take
        return _join(parts), sources


def _join(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
