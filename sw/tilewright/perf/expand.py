"""int4 weights beat by beat: when each is taken, which rows it gives, and what room it gives back."""

from __future__ import annotations

from tilewright.perf.arrivals import Arrival, Tiles
from tilewright.perf.timing import EXPANSION, GROUP, Fields, rows_together
from tilewright_hw.arch import AcceleratorConfig


class Expander:
    """Follows gateware/expand.py: units of scales, then of weights, of one or several beats.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    tiles : list
        Receives the cycles from which tiles may start.

    Attributes
    ----------
    surplus : list of (cycle, beats)
        Room that was reserved and is not needed, as it is given back.
    last_rows : int
        The latest cycle in which rows are given: int8 rows wait for them.
    """

    def __init__(self, config: AcceleratorConfig, tiles: list[int]) -> None:
        self._count = rows_together(config)
        self._unit_rows = config.nibble_rows
        self._unit_beats = max(1, config.nibble_slot // config.bus_bytes)
        self._room = self._unit_rows * config.col_slot // config.bus_bytes
        self._rows = Tiles(config.rows, tiles)
        self._place = self._beat = 0
        self.surplus: list[tuple[int, int]] = []
        self.last_rows = -1

    def burst(self, first: int, beats: int, period: float, fields: Fields, *, run_end: bool) -> Arrival:
        """Take a burst whose first beat is offered from cycle `first` on, and each other one when the bus brings it."""
        half = run_end and bool(fields["rows"] & (self._unit_rows // 2))
        times: list[int] = []
        came: float = first
        taken = first - 1
        for left in range(beats - 1, -1, -1):
            offered = max(taken + 1, -int(-came // 1))
            taken = self._take(offered, half=half and left == 0, end=run_end and left == 0)
            times.append(taken)
            came = max(came + period, taken + 1)
        return Arrival(times[0], beats, 1, times)

    def _take(self, offered: int, *, half: bool, end: bool) -> int:
        """Take a beat; return when."""
        self._beat += 1
        if self._beat < self._unit_beats:
            return offered
        # A unit of several beats is gathered first, and taken while the next beat comes.
        several = self._unit_beats > 1
        self._beat = 0
        scales = self._place == 0
        self._place = 0 if end or self._place == GROUP else self._place + 1
        steps = self._unit_rows // self._count
        if scales:
            self.surplus.append((offered + several, EXPANSION * self._unit_beats))
            return offered
        if half and steps > 1:
            steps //= 2
        room = self._room // 2 if half and self._unit_rows > 1 else self._room
        first_rows = offered + several + 1
        for step in range(steps):
            self._rows.add(self._count, first_rows + step + 1)
        self.last_rows = first_rows + steps - 1
        unit_taken = offered + several + steps - 1
        if back := EXPANSION * self._unit_beats - room:
            self.surplus.append((unit_taken, back))
        return offered if several else unit_taken
