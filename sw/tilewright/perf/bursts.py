"""Strided commands as bursts, and the room that they need where their data goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tilewright.perf.timing import RUN_LATENCY, SPLIT_LATENCY, Fields

NEVER = 1 << 60
"""A cycle that is not known yet."""


@dataclass(slots=True)
class Burst:
    """A burst that is offered from cycle `offered` on; it may end its run, and with that its command."""

    offered: int
    beats: int
    fields: Fields
    run_end: bool
    end: bool
    ready: int = NEVER
    """From this cycle on its room is free; NEVER while that is not known."""


class Bursts:
    """The bursts of the commands of a unit: a run generator, one run that waits, and a splitter that holds one.

    Parameters
    ----------
    bus_bytes, beats : int
        Bytes of a beat, beats of the longest burst.

    Attributes
    ----------
    head : Burst or None
        The burst that is offered.
    free : int
        First cycle in which another command may be taken; NEVER while that is not known.
    """

    def __init__(self, bus_bytes: int, beats: int) -> None:
        self.bus_bytes = bus_bytes
        self.block = beats * bus_bytes
        self.head: Burst | None = None
        self.free = 0
        self._commands: deque[tuple[int, int, Fields]] = deque()  # first run offered, first byte, operands
        self._taken = -1  # the splitter took its run in this cycle
        self._entered = NEVER  # the next run leaves the generator in this cycle
        self._index = 0  # of the next run in its command
        self._at = self._left = 0
        self._last_run = False
        self._fields: Fields = {}

    def take(self, cycle: int, start: int, fields: Fields) -> None:
        """Take a command whose first run begins at byte address `start`."""
        self._commands.append((cycle + RUN_LATENCY, start, fields))
        self.free = NEVER
        if len(self._commands) == 1:
            self._enter(cycle + RUN_LATENCY)
            if self.head is None:
                self._next_run(self._entered)

    def _enter(self, offered: int) -> None:
        """Let the next run leave the generator: when the run before has gone from its place to the splitter."""
        self._entered = max(offered, self._taken + 1)
        if self._index == self._commands[0][2]["count"] - 1:
            self.free = self._entered

    def _next_run(self, cycle: int) -> None:
        """Give the splitter the next run, in a cycle in which it is free."""
        _, start, fields = self._commands[0]
        self._fields = fields
        self._at, self._left = start + self._index * fields["stride"], fields["bytes"]
        self._index += 1
        self._last_run = self._index == fields["count"]
        self._taken, offered = cycle, self._entered + 1
        if self._last_run:
            self._index = 0
            self._commands.popleft()
            offered = self._commands[0][0] if self._commands else NEVER
        if self._commands:
            self._enter(offered)
        self._cut(cycle + SPLIT_LATENCY)

    def _cut(self, cycle: int) -> None:
        last = min(self._at // self.block * self.block + self.block, self._at + self._left)
        beats = -(-last // self.bus_bytes) - self._at // self.bus_bytes
        self._left -= last - self._at
        self._at = last
        self.head = Burst(cycle, beats, self._fields, not self._left, self._last_run and not self._left)

    def issued(self, cycle: int) -> None:
        """Go on to the next burst: the one at the head went in this cycle."""
        if self._left:
            self._cut(cycle + SPLIT_LATENCY)
        elif self._commands:
            self._next_run(max(cycle, self._entered))
        else:
            self.head = None


Return = tuple[int, int]
"""Beats that come back: the cycle, and how many."""


class Room:
    """Beats of a FIFO that bursts take as they are asked for, and that come back later.

    Parameters
    ----------
    size : int
        Beats.
    sources : functions of an int
        Each returns what comes back as number i from there, or None if that is not known. The cycles of a source do
        not fall. Beats that come back in a cycle are seen in the next.

    Attributes
    ----------
    certain : bool
        What `when` returned last stays true: nothing that the first source does not know yet can come sooner.
    """

    def __init__(self, size: int, *sources: Callable[[int], Return | None]) -> None:
        self.free = size
        self._sources = sources
        self._next = [0] * len(sources)
        self.certain = True

    def when(self, beats: int) -> int:
        """Return the first cycle in which so many beats are free; NEVER if that is not known."""
        self.certain = True
        return 0 if self.free >= beats else self._wait(beats)[0]

    def take(self, beats: int) -> None:
        """Take beats, in a cycle in which they are free."""
        if self.free < beats:
            _, self.free, self._next = self._wait(beats)
        self.free -= beats

    def _wait(self, beats: int) -> tuple[int, int, list[int]]:
        """Return when so many beats are free, how many that are, and which come back next."""
        cycle, free, following = 0, self.free, self._next.copy()
        heads = [give(at) for give, at in zip(self._sources, following, strict=True)]
        while free < beats:
            source, soonest = -1, NEVER
            self.certain &= heads[0] is not None
            for index, head in enumerate(heads):
                if head is not None and head[0] < soonest:
                    source, soonest = index, head[0]
            if source < 0:
                return NEVER, free, following
            cycle = soonest + 1
            free += heads[source][1]  # type: ignore[index]
            following[source] += 1
            heads[source] = self._sources[source](following[source])
        return cycle, free, following
