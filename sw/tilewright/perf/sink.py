"""The data side of LOADs: from the beats of a burst to words that are written, and to tiles that are whole."""

from __future__ import annotations

from math import ceil

from tilewright.perf.arrivals import Arrival, Tiles
from tilewright.perf.bursts import NEVER
from tilewright.perf.timing import LOAD_COMMANDS, LOAD_LATENCY, Fields, load_beat
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import LoadDest


class Sink:
    """Follows gateware/load.py: a FIFO, converters, and one command at a time.

    Words for the row and the activation buffer are taken as they come: that they wait for the vector unit's own writes
    is not followed.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    tiles : list
        Receives the cycles from which the tiles of the stream FIFO may start.

    Attributes
    ----------
    finished : list of int
        Cycles in which the last words of LOADs were taken.
    """

    def __init__(self, config: AcceleratorConfig, tiles: list[int]) -> None:
        self.config = config
        self.finished: list[int] = []
        self._ready = self._last = 0
        self._tiles = Tiles(config.tile_bytes // config.bus_bytes, tiles)
        self._transposer = Transposer(config, tiles)
        # Commands on their way: when each was taken, and read from the queue's memory; when one left its register.
        self._pushed: list[int] = []
        self._read: list[int] = []
        self._left = 0

    def take(self, cycle: int) -> None:
        """Take a command into the queue."""
        self._pushed.append(cycle)

    def free(self) -> int:
        """Return the first cycle in which the queue has room for another command."""
        behind = len(self._pushed) - (LOAD_COMMANDS - 1)
        if behind < 0:
            return 0
        self._settle(behind)
        return self._read[behind] + 1 if behind < len(self._read) else NEVER

    def _settle(self, number: int) -> None:
        """Work out when commands up to a number are read: their memory is followed by a register and a buffer."""
        read, finished = self._read, self.finished
        while len(read) <= number:
            index = len(read)
            if index >= 3 and index - 3 >= len(finished):
                return
            if index >= 2:
                # The sink takes a command as the one before it ends; then the buffer takes the next.
                entered = max(self._left, finished[index - 3] if index >= 3 else 0)
                self._left = max(read[-1], entered) + 1
            elif index == 1:
                self._left = read[0] + 1
            read.append(max(self._pushed[index] + 1, self._left))

    def burst(self, first: int, beats: int, step: float, fields: Fields, *, end: bool) -> Arrival:
        """Take a burst whose first beat enters the FIFO in a cycle, and the others at the bus's rate.

        Returns when the beats leave the FIFO again. At the end of a command its completion is noted.
        """
        first = max(first + LOAD_LATENCY, self._last + 1, self._ready)
        service, late = load_beat(self.config, fields)
        if fields["dest"] == LoadDest.STREAM and fields["transpose"]:
            arrival, finished = self._transposer.burst(first, beats, step, service, late)
        else:
            arrival = Arrival(first + service - 1, beats, max(step, service))
            finished = arrival.last + late
            if fields["dest"] == LoadDest.STREAM:
                self._tiles.pieces(arrival, late + 1)
        self._last = arrival.last
        if end:
            self.finished.append(finished)
            self._ready = finished + 1
        return arrival


class Transposer:
    """Follows gateware/transpose.py row by row.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    tiles : list
        Receives the cycles from which tiles may start.
    """

    def __init__(self, config: AcceleratorConfig, tiles: list[int]) -> None:
        self._rows, self._cols = config.rows, config.cols
        self._beats = max(1, config.row_slot // config.bus_bytes)  # of a row
        self._tiles = tiles
        self._row = self._beat = 0
        self._whole = -(1 << 30)  # the last row of the tile before was written in this cycle
        self._written = -1
        self._taken = -1

    def burst(self, first: int, beats: int, step: float, service: int, late: int) -> tuple[Arrival, int]:
        """Take the beats of a burst as the FIFO offers them; return when it did, and when the last whole tile is out.

        A beat brings `service` rows, or is a part of one.
        """
        times: list[int] = []
        came: float = first
        for _ in range(beats):
            offered = max(ceil(came), times[-1] + 1 if times else 0)
            times.append(self._take(offered, service, late))
            came += step
        return Arrival(times[0], beats, 1, times), self._whole + self._rows + 1

    def _take(self, offered: int, rows: int, late: int) -> int:
        """Take a beat; return when."""
        if late:  # it is kept in the converter's register until all of its row are there
            taken = max(offered, self._taken)  # the row before has left that register
            self._beat += 1
            if self._beat == self._beats:
                self._beat = 0
                self._enter(taken + 1)
            return taken
        for _ in range(rows):
            offered = self._enter(offered) + 1
        return offered - 1

    def _enter(self, offered: int) -> int:
        """Take a row that is offered from a cycle on; return when.

        It is staged, and then written where the tile before, which is being read, has made room.
        """
        taken = self._taken = max(offered, self._written, self._taken + 1)
        last = self._row == self._cols - 1
        room = self._whole + (self._rows if last else 1 + min(self._row, self._rows - 1))
        self._written = max(taken + 1, room)
        self._row += 1
        if last:
            self._row = 0
            self._whole = self._written
            self._tiles.append(self._whole + self._rows + 2)
        return taken
