"""What the machine holds: its buffers, strided regions of them, and the store stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.registers import ErrorCode
from tilewright_sim.golden.formats import store_fp32

TABLE_WORDS = 512
"""Segments of the function TABLE."""
_BOX = np.uint64(0x7FF8000000000000)


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
        Buffer: `act`, `row`, `param`, `acc0`, `acc1`, `stat`, `table` or `memory`.
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

    @cached_property
    def end(self) -> int:
        """One past the last word."""
        return self.start + sum((count - 1) * stride for count, stride in self.loops) + self.length

    @cached_property
    def mapping(self) -> tuple[int, tuple[tuple[int, int], ...], int]:
        """What decides which word is reached when: loops of one round do not."""
        return self.start, tuple(loop for loop in self.loops if loop[0] > 1), self.length

    @cached_property
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


def boxed(index: NDArray[Any]) -> NDArray[np.float64]:
    """Return integers of 24 bits, which are no F24, as quiet NaNs whose payloads they are."""
    return (index.astype(np.uint64) | _BOX).view(np.float64)


def field_bits(b: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Return the 24 bits of fields b: of an F24, or of an integer that is `boxed`."""
    index = np.isnan(b)
    raw = np.ascontiguousarray(b).view(np.uint64) & np.uint64(0xFFFFFF)
    return np.where(index, raw.astype(np.uint32), store_fp32(np.where(index, 0.0, b)) >> np.uint32(8))


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
    stat : float64 (stat_entries, 2), fields a and b; an index in field b is held as `boxed` says
    table : uint32 (512, 1), the segments of the function TABLE
    shifts : list of int, its input and its output shift
    indexed : bool, whether an index was ever written to a field b
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.act = np.zeros((config.act_words, config.rows), np.int8)
        self.row = np.zeros((config.row_words, config.lanes))
        self.param = np.zeros((config.param_words, config.lanes))
        self.acc0 = np.zeros((config.acc_rows, config.cols), np.int32)
        self.acc1 = np.zeros((config.acc_rows, config.cols), np.int32)
        self.stat = np.zeros((config.stat_entries, 2))
        self.table = np.zeros((TABLE_WORDS, 1), np.uint32)
        self.shifts = [0, 0]
        self.indexed = False

    NAMES = ("act", "row", "param", "acc0", "acc1", "stat", "table")

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
