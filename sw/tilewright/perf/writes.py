"""The store stream and the store unit, piece by piece: from the vector unit's words to the write responses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from tilewright.perf.bursts import NEVER
from tilewright.perf.timing import (
    FIFO_LATENCY,
    ROW_LATENCY,
    RUN_WALK_LATENCY,
    STORE_DEPTH,
    STORE_FIFO,
    STORE_RUNS,
    Fields,
)
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.memory_model import MemoryModel


@dataclass(frozen=True)
class Words:
    """The words that a VECTOR stores.

    Parameters
    ----------
    rows, words : int
        Rows, and words of each.
    step, pause : int
        Cycles from word to word, and those more from row to row.
    delay : int
        From a word's issue to the FIFO.
    """

    rows: int
    words: int
    step: int
    pause: int
    delay: int


@dataclass
class _Vector:
    """The words of one VECTOR on their way: how many are issued, when the next may be, and cycles without room."""

    words: Words
    next: int
    finished: Callable[[int, int], None]
    last: int
    issued: int = 0
    waited: int = 0


@dataclass(frozen=True)
class _Run:
    """Contiguous elements: address, elements, and log2 of their bytes and of the elements that move at once."""

    at: int
    count: int
    size: int
    step: int
    row_end: bool
    end: bool


def _runs(start: int, fields: Fields, lanes: int, bus_bytes: int) -> Iterator[_Run]:
    """Yield the runs of a STORE, rows in their order (docs/architecture.md, STORE)."""
    n, rows, inner, run, size = (fields[name] for name in ("n", "m", "h", "run", "element"))
    most = min(lanes, bus_bytes >> size).bit_length() - 1
    step = min(most, (run & -run).bit_length() - 1)
    outer, to_wrap = start, fields["wrap_first"]
    for m in range(rows):
        if m:
            wraps = to_wrap == 1
            outer += fields["wrap_stride"] if wraps else fields["stride_m"]
            to_wrap = fields["wrap_period"] if wraps else to_wrap - 1
        for h in range(inner):
            row = outer + h * fields["stride_h"]
            for first in range(0, n, run):
                row_end = first + run >= n
                end = row_end and m == rows - 1 and h == inner - 1
                yield _Run(row + first // run * fields["stride_run"], min(run, n - first), size, step, row_end, end)


class Writes:
    """Times of the store stream, computed as far as the commands on both of its sides are known.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    memory : MemoryModel
        Timing of the memory; stalls are taken at their mean.
    free : callable
        Called with the first cycle in which another STORE may be taken.
    done : callable
        Called with the cycle in which a STORE completes.
    """

    def __init__(
        self, config: AcceleratorConfig, memory: MemoryModel, free: Callable[[int], None], done: Callable[[int], None]
    ) -> None:
        self.lanes, self.bus_bytes = config.lanes, config.bus_bytes
        self.block = config.burst_beats * config.bus_bytes
        self.limit = config.writes_in_flight
        self._free, self._done = free, done
        rate = memory.rate
        self._period: float = 1 if rate >= 1 else 1 / rate
        self._latency = memory.latency + (0 if memory.stall == 0 else round(memory.stall / (1 - memory.stall)))
        self.beats = 0
        # Words: cycles in which the vector unit's FIFO offers each, in which it left that, and the packer took it.
        self._vectors: deque[_Vector] = deque()
        self._offered: list[int] = []
        self._moved: list[int] = []
        self._taken: list[int] = []
        # Commands, their runs, and the cycles in which each run was walked and taken by the packer.
        self._commands: deque[tuple[int, Iterator[_Run]]] = deque()
        self._queue: deque[_Run] = deque()
        self._runs_taken: list[int] = []
        self._runs_read: list[int] = []
        # Bursts: cycles in which they were asked for and answered.
        self._asked: list[int] = []
        self._left_splitter = NEVER  # the burst that is to be asked for next left the splitter in this cycle
        self._answers: list[int] = []
        self._address_side, self._data_side = self._addresses(), self._data()

    def words(self, cycle: int, words: Words, finished: Callable[[int, int], None]) -> None:
        """Begin a VECTOR whose first word may be issued in `cycle`.

        `finished` is called with the cycle in which its last word is issued, and the cycles that it waited for room.
        """
        self._vectors.append(_Vector(words, cycle, finished, cycle - 1))
        self._advance()

    def take(self, cycle: int, start: int, fields: Fields) -> None:
        """Take a STORE whose first element goes to byte address `start`."""
        self._commands.append((cycle, _runs(start, fields, self.lanes, self.bus_bytes)))
        self._advance()

    def _advance(self) -> None:
        next(self._address_side)
        next(self._data_side)
        self._issue_words()

    def _issue_words(self) -> None:
        """Issue words, and move them to the store unit's FIFO, as far as the room behind them is known."""
        while self._issue_more() | self._move_more():
            pass

    def _issue_more(self) -> bool:
        """Issue words as far as it is known when those before them leave the first FIFO; return whether any were."""
        moved, offered = self._moved, self._offered
        before = len(offered)
        while self._vectors:
            vector = self._vectors[0]
            words = vector.words
            total = words.rows * words.words
            while vector.issued < total:
                index = len(offered)
                issue = vector.next
                if index >= STORE_DEPTH:
                    if index - STORE_DEPTH >= len(moved):
                        return len(offered) > before
                    issue = max(issue, moved[index - STORE_DEPTH] + 1)
                offered.append(issue + words.delay + FIFO_LATENCY)
                vector.issued += 1
                vector.waited += self._without_room(index, vector, issue)
                vector.next = issue + words.step
                if vector.issued % words.words == 0:
                    vector.next += words.pause
                vector.last = issue
            self._vectors.popleft()
            vector.finished(vector.last, vector.waited)
        return len(offered) > before

    def _move_more(self) -> bool:
        """Move words from the first FIFO to the second as far as its room is known; return whether any were."""
        moved, taken, offered = self._moved, self._taken, self._offered
        before = len(moved)
        while len(moved) < len(offered):
            index = len(moved)
            behind = index - (STORE_FIFO - 1)  # must have come to the second FIFO's output
            if behind > len(taken):
                break
            move = offered[index]
            if index and moved[-1] >= move:
                move = moved[-1] + 1
            if behind >= 0:
                out = moved[behind] + 1
                if behind and taken[behind - 1] > out:
                    out = taken[behind - 1]
                move = max(move, out + 1)
            moved.append(move)
        return len(moved) > before

    def _without_room(self, index: int, vector: _Vector, issue: int) -> int:
        """Return the cycles without room since the word before was issued."""
        if index < STORE_DEPTH:
            return 0
        return max(0, min(issue, self._moved[index - STORE_DEPTH] + 1) - vector.last - 1)

    def _run_out(self, number: int) -> int:
        """Return the cycle in which a run came to the output of the queue of runs."""
        out = self._runs_taken[number] + 1
        return max(out, self._runs_read[number - 1]) if number else out

    def _addresses(self) -> Iterator[None]:
        """Walk runs and ask for bursts as far ahead as the queues allow; yield where more must be known."""
        free = 0  # the splitter's
        while True:
            while not self._commands:
                self._go_ahead()
                yield
            offered, runs = self._commands.popleft()
            offered += ROW_LATENCY + RUN_WALK_LATENCY
            for run in runs:
                behind = len(self._runs_taken) - (STORE_RUNS - 1)
                while behind > len(self._runs_read):
                    self._go_ahead()
                    yield
                taken = max(offered, free)
                if behind >= 0:
                    taken = max(taken, self._run_out(behind) + 1)
                offered = taken + 1
                self._runs_taken.append(taken)
                self._queue.append(run)
                if run.end:
                    self._free(taken + 1)
                free = taken
                first, last = run.at // self.block, (run.at + (run.count << run.size) - 1) // self.block
                for _ in range(first, last + 1):
                    # A burst leaves the splitter for a place of its own, once the one before has gone from there.
                    while not self._go_ahead():
                        yield
                    free = max(free, self._asked[-1] if self._asked else 0) + 1
                    self._left_splitter = free

    def _go_ahead(self) -> bool:
        """Ask for the burst that has left the splitter, if it is known when; return whether there is none any more."""
        if self._left_splitter != NEVER:
            limited = len(self._asked) - self.limit
            if limited >= len(self._answers):
                return False
            went = self._left_splitter
            if limited >= 0:
                went = max(went, self._answers[limited] + 1)
            self._asked.append(went)
            self._left_splitter = NEVER
        return True

    def _data(self) -> Iterator[None]:
        """Move pieces into beats; yield where a run or a word must be known."""
        moved, taken, bus, block, lanes, period = (
            self._moved, self._taken, self.bus_bytes, self.block, self.lanes, self._period
        )  # fmt: skip
        go = written = answer = beat = -1
        next_beat: float = 0
        in_word = ready = 0
        while True:
            while not self._queue:
                next(self._address_side)
                if not self._queue:
                    yield
            run = self._queue.popleft()
            # The packer takes a run with the last piece of the one before.
            read = max(self._run_out(len(self._runs_read)) + 1, go)
            self._runs_read.append(read)
            next(self._address_side)  # it may have waited for this
            free = read + 1
            elements, left, at = 1 << run.step, run.count, run.at
            piece = elements << run.size
            new_burst = True
            while left > 0:
                if new_burst:
                    number = len(self._answers)
                    while number >= len(self._asked):
                        self._go_ahead()
                        next(self._address_side)
                        if number >= len(self._asked):
                            yield
                    permitted = self._asked[number] + 1
                    new_burst = False
                if not in_word:
                    word = len(taken)
                    while word >= len(moved):
                        self._issue_words()
                        if word >= len(moved):
                            yield
                    ready = moved[word] + FIFO_LATENCY
                    if word and taken[-1] >= ready:
                        ready = taken[-1] + 1
                go = max(free, ready, written)
                left -= elements
                at += piece
                in_word += elements
                if in_word >= lanes or (left <= 0 and run.row_end):
                    taken.append(go)
                    in_word = 0
                written = max(go + 1, permitted, beat)  # the register of beats is free again as its beat goes
                if left <= 0 or at % bus == 0:
                    beat = max(written + 1, ceil(next_beat))
                    next_beat = max(next_beat, beat) + period
                    self.beats += 1
                    if left <= 0 or at % block == 0:
                        answer = max(beat + self._latency, answer + 1)
                        self._answers.append(answer)
                        new_burst = True
                        if left <= 0 and run.end:
                            self._done(answer + 1)
            next(self._address_side)
