"""Beats as they are taken, burst by burst: who waits for room waits for some of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil

from tilewright.perf.bursts import NEVER


@dataclass(slots=True)
class Arrival:
    """The beats of a burst as they are taken: beat i in ceil(first + i * step), or in `times[i]` where these differ."""

    first: int
    beats: int
    step: float = 1
    times: list[int] | None = None

    def at(self, beat: int) -> int:
        """Return the cycle in which a beat is taken."""
        return ceil(self.first + beat * self.step) if self.times is None else self.times[beat]

    @property
    def last(self) -> int:
        """The cycle in which the last beat is taken."""
        return self.at(self.beats - 1)


class InFlight:
    """Beats that were asked for and not yet taken, of which there may be `size` (a window, or a FIFO's room)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._asked = self._gone = 0  # beats asked for, and those of bursts that are forgotten
        self._bursts: deque[Arrival] = deque()

    def when(self, beats: int) -> int:
        """Return the first cycle in which so many more beats may be asked for; NEVER if that is not known."""
        missing = self._asked + beats - self.size
        if missing <= 0:
            return 0
        bursts = self._bursts
        while len(bursts) > 1 and self._gone + bursts[0].beats < missing:
            self._gone += bursts.popleft().beats
        beat = missing - 1 - self._gone
        return bursts[0].at(beat) + 1 if bursts and beat < bursts[0].beats else NEVER

    def add(self, arrival: Arrival) -> None:
        """Note a burst that is asked for."""
        self._asked += arrival.beats
        self._bursts.append(arrival)


class Tiles:
    """Tiles of `size` pieces each, of which pieces come one after another: where they are whole, in order."""

    def __init__(self, size: int, available: list[int]) -> None:
        self.size, self.available = size, available
        self._held = 0

    def pieces(self, arrival: Arrival, late: int) -> None:
        """Note a burst whose beats are a piece each; a tile is available `late` cycles after its last one."""
        beat = self.size - self._held - 1
        while beat < arrival.beats:
            self.available.append(arrival.at(beat) + late)
            beat += self.size
        self._held = (self._held + arrival.beats) % self.size

    def add(self, pieces: int, cycle: int) -> None:
        """Note pieces that complete a tile in a cycle, or do not; one tile at most."""
        self._held += pieces
        if self._held >= self.size:
            self._held -= self.size
            self.available.append(cycle)
