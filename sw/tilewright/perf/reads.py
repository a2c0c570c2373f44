"""The read side of memory, burst by burst: who may ask, when the data comes, and when its room is free again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil

from tilewright.perf.arrivals import Arrival, InFlight, Tiles
from tilewright.perf.bursts import NEVER, Burst, Bursts, Room
from tilewright.perf.expand import Expander
from tilewright.perf.matrix import Matrix
from tilewright.perf.sink import Sink
from tilewright.perf.timing import (
    EXPANSION,
    LOADS_BEFORE_WEIGHT,
    WEIGHT_DONE,
    Fields,
    is_int4,
    largest_burst,
    load_room,
    stream_room,
    weight_beat,
    weight_room,
    weight_window,
)
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import LoadDest, Unit
from tilewright_hw.arch.memory_model import MemoryModel


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
        room = weight_room(config)
        self.weights = Bursts(config.bus_bytes, largest_burst(config.burst_beats, room // EXPANSION))
        self.loads = Bursts(
            config.bus_bytes, largest_burst(config.burst_beats, min(stream_room(config), load_room(config)))
        )
        self._expander = Expander(config, matrix.available[0])
        self._tiles = Tiles(config.tile_bytes // config.bus_bytes, matrix.available[0])
        self._weight_service, self._weight_late = weight_beat(config)
        self.sink = Sink(config, matrix.available[1])
        # Room and windows
        tile_beats = config.tile_bytes // config.bus_bytes
        self._transposed_beats = config.transposed_tile_bytes // config.bus_bytes
        self._stream_kinds: list[int] = []  # beats that the tiles of the stream FIFO give back
        pops, popped = matrix.pops, self._stream_kinds
        surplus = self._expander.surplus
        self._weight_room = Room(
            room,
            lambda i: (pops[0][i], tile_beats) if i < len(pops[0]) else None,
            lambda i: surplus[i] if i < len(surplus) else None,
        )
        self._stream_room = Room(stream_room(config), lambda i: (pops[1][i], popped[i]) if i < len(pops[1]) else None)
        self._window = InFlight(weight_window(config))
        self._load_fifo = InFlight(load_room(config))
        # Fetch requests: offered to the arbiter, and one behind that.
        self.fetch_offered = NEVER
        self.fetch_beats = 0
        # Memory
        rate = memory.rate
        self._period: float | int = 1 if rate >= 1 else 1 / rate
        self._latency = memory.latency + (0 if memory.stall == 0 else round(memory.stall / (1 - memory.stall)))
        self._next_beat: float | int = 0
        self._ends: deque[int] = deque(maxlen=config.reads_in_flight)  # last beats taken of the latest bursts
        self._last_issue = -1
        self._streak, self._load_went = 0, -1
        self._weight_not_before = 0
        self.beats = self.busy = 0
        self._busy_until = 0

    def load_free(self) -> int:
        """Return the first cycle in which a LOAD may be taken; NEVER if that is not known."""
        return max(self.loads.free, self.sink.free())

    def take_weight(self, cycle: int, start: int, fields: Fields) -> None:
        """Take a WEIGHT that begins at byte address `start`."""
        self.weights.take(cycle, start, fields)

    def take_load(self, cycle: int, start: int, fields: Fields) -> None:
        """Take a LOAD that begins at byte address `start`."""
        self.sink.take(cycle)
        if fields["dest"] == LoadDest.STREAM:
            transposed = bool(fields["transpose"])
            beats = self._transposed_beats if transposed else self.config.tile_bytes // self.config.bus_bytes
            tiles = fields["count"] * fields["bytes"] // self.config.bus_bytes // beats
            self._stream_kinds += [beats] * tiles
        self.loads.take(cycle, start, fields)

    def next_issue(self) -> int:
        """Return the cycle of the next burst as far as is known now."""
        soonest = min(self.fetch_offered, self._weight_when(), self._load_when())
        return soonest if soonest == NEVER else max(soonest, self._open())

    def _open(self) -> int:
        """Return the first cycle in which another burst may go."""
        cycle = self._last_issue + 1
        if len(self._ends) == self.config.reads_in_flight:
            cycle = max(cycle, self._ends[0] + 1)
        return cycle

    def _weight_when(self) -> int:
        head = self.weights.head
        if head is None:
            return NEVER
        ready = head.ready
        if ready == NEVER:
            room, came = self._weight_room.when(self._reserved(head)), self._window.when(head.beats)
            ready = max(head.offered, room, came)
            if ready < NEVER and self._weight_room.certain:
                head.ready = ready
        return min(max(ready + 1, self._weight_not_before), NEVER)

    @staticmethod
    def _reserved(head: Burst) -> int:
        """Return the room that a burst of weights takes: for int4 the most that it may become."""
        return EXPANSION * head.beats if is_int4(head.fields) else head.beats

    def _load_when(self) -> int:
        head = self.loads.head
        if head is None:
            return NEVER
        if head.ready == NEVER:
            room = self._load_fifo.when(head.beats)
            if head.fields["dest"] == LoadDest.STREAM:
                room = max(room, self._stream_room.when(head.beats))
            head.ready = min(max(head.offered, room), NEVER)
        return min(head.ready + 1, NEVER)

    def issue(self, cycle: int) -> Unit | None:
        """Choose in this cycle, which `next_issue` gave; return which unit's burst went, if any."""
        if self.fetch_offered <= cycle:
            first = self._send(cycle, self.fetch_beats, 1)
            self.fetch_offered = NEVER
            self._fetched(cycle, first, ceil(first + (self.fetch_beats - 1) * self._period))
            self._last_beat(ceil(first + (self.fetch_beats - 1) * self._period))
            return None
        weight, load = self._weight_when() <= cycle, self._load_when() <= cycle
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

    def _send(self, cycle: int, beats: int, service: int) -> int:
        """Ask for a burst; return the cycle in which its first beat is offered behind the data channel's register."""
        first = max(cycle + 1 + self._latency, self._next_beat)
        self._next_beat = first + beats * max(service, self._period)
        self._last_issue = cycle
        self.beats += beats
        self.busy -= max(self._busy_until, cycle)
        return ceil(first) + 1

    def _last_beat(self, taken: int) -> None:
        """Note when the last beat of the burst that was asked for is taken."""
        self._ends.append(taken)
        self._busy_until = taken
        self.busy += taken

    def _send_weight(self, cycle: int) -> None:
        head = self.weights.head
        assert head is not None
        self._weight_room.take(self._reserved(head))
        if is_int4(head.fields):
            first = self._send(cycle, head.beats, 1)
            arrival = self._expander.burst(first, head.beats, self._period, head.fields, run_end=head.run_end)
            self._next_beat = max(self._next_beat, arrival.last)
        else:
            arrival = self._int8(cycle, head)
        self._last_beat(arrival.last)
        self._window.add(arrival)
        if head.end:
            self._done(False, arrival.last + WEIGHT_DONE)
        self.weights.issued(cycle)
        self.matrix.advance()

    def _int8(self, cycle: int, head: Burst) -> Arrival:
        service, late = self._weight_service, self._weight_late
        first = self._send(cycle, head.beats, service)
        if not late and self._expander.last_rows >= first:  # rows of int4 go first
            self._next_beat += self._expander.last_rows + 1 - first
            first = self._expander.last_rows + 1
        arrival = Arrival(first + service - 1, head.beats, max(service, self._period))
        self._tiles.pieces(arrival, late + 1)
        return arrival

    def _send_load(self, cycle: int) -> None:
        head = self.loads.head
        assert head is not None
        first = self._send(cycle, head.beats, 1)
        if head.fields["dest"] == LoadDest.STREAM:
            self._stream_room.take(head.beats)
        self._last_beat(ceil(first + (head.beats - 1) * self._period))
        self._load_fifo.add(self.sink.burst(first, head.beats, self._period, head.fields, end=head.end))
        if head.end:
            self._done(True, self.sink.finished[-1] + 1)
        self.loads.issued(cycle)
        self.matrix.advance()
