"""The read side of memory, burst by burst: who may ask, when the data comes, and when its room is free again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from tilewright.perf.matrix import Matrix
from tilewright.perf.timing import (
    FIFO_LATENCY,
    LOAD_COMMANDS,
    LOADS_BEFORE_WEIGHT,
    RUN_LATENCY,
    SPLIT_LATENCY,
    Fields,
    largest_burst,
    load_beat,
    load_room,
    weight_beat,
    weight_window,
)
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import LoadDest, Unit
from tilewright_hw.arch.memory_model import MemoryModel

NEVER = 1 << 60
Taken = tuple[int, int, int, float]
"""A burst: number of its first beat and of the one past it, cycle in which the first was taken, cycles between."""


@dataclass
class Burst:
    """A burst that is offered from cycle `offered` on."""

    offered: int
    beats: int
    end: bool


class Bursts:
    """Strided commands as bursts: a run generator, and behind it a splitter that holds one run.

    Parameters
    ----------
    bus_bytes, beats : int
        Bytes of a beat, beats of the longest burst.
    """

    def __init__(self, bus_bytes: int, beats: int) -> None:
        self.bus_bytes = bus_bytes
        self.block = beats * bus_bytes
        self.head: Burst | None = None
        self.free = 0
        """First cycle in which another command may be taken; NEVER while that is not known."""
        self._runs = 0
        self._run_offered = 0
        self._last_run = False
        self._at = self._left = self._start = 0
        self._fields: Fields = {}

    def take(self, cycle: int, start: int, fields: Fields) -> None:
        """Take a command whose first run begins at byte address `start`."""
        self._fields, self._start, self._runs = fields, start, fields["count"]
        self._run_offered = cycle + RUN_LATENCY
        self.free = NEVER
        if self.head is None:
            self._next_run(self._run_offered)

    def _next_run(self, cycle: int) -> None:
        """Give the splitter the run that is offered, in a cycle in which it is free."""
        self._at, self._left = self._start, self._fields["bytes"]
        self._start += self._fields["stride"]
        self._runs -= 1
        self._run_offered = cycle + 1
        self._last_run = self._runs == 0
        if self._last_run:
            self.free = cycle
        self._cut(cycle + SPLIT_LATENCY)

    def _cut(self, cycle: int) -> None:
        last = min(self._at // self.block * self.block + self.block, self._at + self._left)
        beats = -(-last // self.bus_bytes) - self._at // self.bus_bytes
        self._left -= last - self._at
        self._at = last
        self.head = Burst(cycle, beats, self._last_run and not self._left)

    def issued(self, cycle: int) -> None:
        """Go on to the next burst: the one at the head went in this cycle."""
        if self._left:
            self._cut(cycle + SPLIT_LATENCY)
        elif self._runs:
            self._next_run(max(cycle, self._run_offered))
        else:
            self.head = None


class Reads:
    """The read channel and its three users.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    memory : MemoryModel
        Timing of the memory; stalls are taken at their mean.
    matrix : Matrix
        Takes the tiles.
    done : callable
        Called with (is_load, cycle) when a WEIGHT or LOAD completes.
    fetched : callable
        Called with the cycle in which a fetch went, and those in which its first and last beat are written.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        memory: MemoryModel,
        matrix: Matrix,
        done: Callable[[bool, int], None],
        fetched: Callable[[int, int, int], None],
    ) -> None:
        self.config, self.matrix, self._done, self._fetched = config, matrix, done, fetched
        self.tile_beats = config.tile_bytes // config.bus_bytes
        self.weight_room = config.weight_fifo_bytes // config.tile_bytes * self.tile_beats
        self.stream_room = config.stream_fifo_bytes // config.tile_bytes * self.tile_beats
        self.load_room = load_room(config)
        self.window = weight_window(config)
        self.weights = Bursts(config.bus_bytes, largest_burst(config.burst_beats, self.weight_room))
        self.loads = Bursts(config.bus_bytes, largest_burst(config.burst_beats, min(self.stream_room, self.load_room)))
        self._weight_service = weight_beat(config)
        # Fetch requests: offered to the arbiter, and one behind that.
        self.fetch_offered = NEVER
        self.fetch_beats = 0
        # Memory
        rate = min(memory.bandwidth, 1 - memory.stall)
        self._period: float | int = 1 if rate >= 1 else 1 / rate
        self._latency = memory.latency + (0 if memory.stall == 0 else round(memory.stall / (1 - memory.stall)))
        self._next_beat: float | int = 0
        self._ends: deque[int] = deque(maxlen=config.reads_in_flight)  # last beats taken of the latest bursts
        self._last_issue = -1
        self._streak, self._load_went = 0, -1
        self._weight_not_before = 0
        # Beats asked for, and when those that came were taken
        self._weight_asked = self._load_asked = self._stream_asked = 0
        self._weight_taken: deque[Taken] = deque()
        self._load_taken: deque[Taken] = deque()
        self._weight_in_tile = self._stream_in_tile = 0
        self._eligible: list[int | None] = [None, None]
        # Data side of LOADs
        self._commands: deque[Fields] = deque()  # those whose data has not all been asked for
        self._load_tags: deque[bool] = deque()
        self._sink_ready = self._sink_last = 0
        self._finished: list[int] = []
        self._taken_loads = 0
        self.beats = self.busy = 0
        self._busy_until = 0

    def load_free(self) -> int:
        """Return the first cycle in which a LOAD may be taken."""
        index = self._taken_loads - (LOAD_COMMANDS + 1)
        if index < 0:
            return self.loads.free
        if index >= len(self._finished):
            return NEVER
        return max(self.loads.free, self._finished[index] + 1)

    def take_weight(self, cycle: int, start: int, fields: Fields) -> None:
        """Take a WEIGHT that begins at byte address `start`."""
        self.weights.take(cycle, start, fields)
        self._eligible[0] = None

    def take_load(self, cycle: int, start: int, fields: Fields) -> None:
        """Take a LOAD that begins at byte address `start`."""
        self._taken_loads += 1
        self._commands.append(fields)
        self._load_tags.append(fields["dest"] == LoadDest.STREAM)
        self.loads.take(cycle, start, fields)
        self._eligible[1] = None

    def next_issue(self) -> int:
        """Return the cycle of the next burst as far as is known now."""
        soonest = self.fetch_offered
        for source in (0, 1):
            if (cycle := self._when(source)) < soonest:
                soonest = cycle
        return soonest if soonest == NEVER else max(soonest, self._open())

    def _open(self) -> int:
        """Return the first cycle in which another burst may go."""
        cycle = self._last_issue + 1
        if len(self._ends) == self.config.reads_in_flight:
            cycle = max(cycle, self._ends[0] + 1)
        return cycle

    def _when(self, source: int) -> int:
        known = self._eligible[source]
        if known is None or known == NEVER:
            known = self._load_when() if source else self._weight_when()
            self._eligible[source] = known
        return max(known, self._weight_not_before) if source == 0 else known

    def _weight_when(self) -> int:
        head = self.weights.head
        if head is None:
            return NEVER
        wanted = self._weight_asked + head.beats
        room = _tiles_back(wanted - self.weight_room, self.tile_beats, self.matrix.pops[0])
        came = _beats_back(wanted - self.window, self._weight_taken)
        return min(max(head.offered, room, came) + 1, NEVER)

    def _load_when(self) -> int:
        head = self.loads.head
        if head is None:
            return NEVER
        room = _beats_back(self._load_asked + head.beats - self.load_room, self._load_taken)
        if self._load_tags[0]:
            wanted = self._stream_asked + head.beats
            room = max(room, _tiles_back(wanted - self.stream_room, self.tile_beats, self.matrix.pops[1]))
        return min(max(head.offered, room) + 1, NEVER)

    def issue(self, cycle: int) -> Unit | None:
        """Choose in this cycle, which `next_issue` gave; return which unit's burst went, if any."""
        weight, load = self._when(0) <= cycle, self._when(1) <= cycle
        if self.fetch_offered <= cycle:
            taken, step = self._send(cycle, self.fetch_beats, 1)
            self.fetch_offered = NEVER
            self._fetched(cycle, taken, ceil(taken + (self.fetch_beats - 1) * step))
            return None
        if load and not (weight and self._streak == LOADS_BEFORE_WEIGHT):
            if weight:
                self._streak += 1
            self._load_went = cycle
            self._send_load(cycle)
            return Unit.LOAD
        head = self.loads.head
        next_load = (
            self._load_went == cycle - 1
            and head is not None
            and head.offered <= cycle
            and self._streak != LOADS_BEFORE_WEIGHT
        )
        if next_load:  # the next load is still being checked: weights let it go first
            self._weight_not_before = cycle + 1
            return None
        self._streak = 0
        self._send_weight(cycle)
        return Unit.WEIGHT

    def _send(self, cycle: int, beats: int, service: int) -> tuple[int, float]:
        """Ask for a burst; return the cycle in which its first beat is taken, and the cycles between beats."""
        first = max(cycle + 1 + self._latency, self._next_beat)
        step = max(service, self._period)
        self._next_beat = first + beats * step
        taken = ceil(first) + service
        last = ceil(first + (beats - 1) * step) + service
        self._last_issue = cycle
        self._ends.append(last)
        self.beats += beats
        self.busy += last - max(self._busy_until, cycle)
        self._busy_until = last
        return taken, step

    def _send_weight(self, cycle: int) -> None:
        head = self.weights.head
        assert head is not None
        service, late = self._weight_service
        taken, step = self._send(cycle, head.beats, service)
        self._weight_taken.append((self._weight_asked, self._weight_asked + head.beats, taken, step))
        self._weight_asked += head.beats
        self._weight_in_tile = _whole_tiles(
            self._weight_in_tile, head.beats, self.tile_beats, taken + late + 1, step, self.matrix.available[0]
        )
        if head.end:
            self._done(False, ceil(taken + (head.beats - 1) * step) + 1)
        self.weights.issued(cycle)
        self._eligible[0] = None
        self.matrix.advance()

    def _send_load(self, cycle: int) -> None:
        head, fields = self.loads.head, self._commands[0]
        assert head is not None
        service, late = load_beat(self.config, fields)
        taken, step = self._send(cycle, head.beats, 1)
        step = max(step, service)
        # Through the load FIFO into the converter.
        first = max(taken + FIFO_LATENCY, self._sink_last + 1, self._sink_ready) + service - 1
        last = ceil(first + (head.beats - 1) * step)
        self._load_taken.append((self._load_asked, self._load_asked + head.beats, first, step))
        self._load_asked += head.beats
        self._sink_last = last
        if fields["dest"] == LoadDest.STREAM:
            self._stream_asked += head.beats
            self._stream_in_tile = _whole_tiles(
                self._stream_in_tile, head.beats, self.tile_beats, first + late + 1, step, self.matrix.available[1]
            )
        if head.end:
            finished = last + late
            self._finished.append(finished)
            self._sink_ready = finished + 1
            self._commands.popleft()
            self._load_tags.popleft()
            self._done(True, finished + 1)
        self.loads.issued(cycle)
        self._eligible[1] = None
        self.matrix.advance()


def _tiles_back(missing: int, tile_beats: int, pops: list[int]) -> int:
    """Return the cycle from which the room of so many beats has been given back; 0 if none is missing."""
    if missing <= 0:
        return 0
    count = -(-missing // tile_beats)
    return pops[count - 1] + 1 if count <= len(pops) else NEVER


def _beats_back(missing: int, taken: deque[Taken]) -> int:
    """Return the cycle from which so many beats have been taken; 0 if none need be. Forgets bursts before them."""
    if missing <= 0:
        return 0
    while len(taken) > 1 and taken[0][1] < missing:
        taken.popleft()
    begin, past, first, step = taken[0]
    if past < missing:
        return NEVER
    return ceil(first + (missing - 1 - begin) * step) + 1


def _whole_tiles(partial: int, beats: int, tile_beats: int, first: int, step: float, available: list[int]) -> int:
    """Note the tiles that a burst completes, whose first beat makes a tile available in `first`; return what is left.

    `partial` is the number of beats of a tile that came before the burst.
    """
    beat = tile_beats - partial - 1
    while beat < beats:
        available.append(ceil(first + beat * step))
        beat += tile_beats
    return (partial + beats) % tile_beats
