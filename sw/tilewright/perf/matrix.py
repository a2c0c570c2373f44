"""The matrix unit, tile by tile: the loader starts tiles, the issuer streams their rows."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.perf.timing import STREAM_FREE, Fields, matmul_done, weight_free
from tilewright_hw.arch import AcceleratorConfig


class Matrix:
    """Start cycles of all tiles, computed as far as the tiles' arrivals are known.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    walker_free : callable
        Called with the first cycle in which another command may be taken.
    done : callable
        Called with the cycle in which a command completes.

    Attributes
    ----------
    available : two lists
        Cycles from which the tiles of the weight and of the stream FIFO may start, in order.
    pops : two lists
        Cycles in which the room of these tiles is given back.
    rows, wait_tile : int
        Counters.
    """

    def __init__(
        self, config: AcceleratorConfig, walker_free: Callable[[int], None], done: Callable[[int], None]
    ) -> None:
        self.span = config.rows // config.ingest
        self.latency = matmul_done(config)
        self._acc_rows = config.acc_rows
        self._walker_free, self._done = walker_free, done
        self.available: tuple[list[int], list[int]] = ([], [])
        self.pops: tuple[list[int], list[int]] = ([], [])
        self._free_after = (weight_free(config), STREAM_FREE)
        self.rows = self.wait_tile = 0
        self._fields: Fields = {}
        self._left = self._index = 0  # tiles of the command to be started, and the next one's place in it
        self._command_rows = 0
        self._fifo = 0
        self._offered = 0
        self._start = self._taken = self._last_row = -(1 << 30)
        # The accumulator behind those of the command before, and their bank.
        self._behind, self._bank = 0, -1

    def take(self, cycle: int, fields: Fields) -> None:
        """Take a MATMUL; only when the walker is free."""
        assert self._left == 0
        self._fields = fields
        self._left, self._index = fields["k"] * fields["n"] * fields["groups"], 0
        self._command_rows = fields["rows_outer"] * fields["rows_inner"] * (1 + fields["pair"])
        self._fifo = fields["stream"]
        self._offered = cycle + 1
        self.advance()

    def advance(self) -> None:
        """Start every tile whose arrival is known."""
        if not self._left:
            return
        available, pops = self.available[self._fifo], self.pops[self._fifo]
        free_after = self._free_after[self._fifo]
        rows, span, offered, left = self._command_rows, self.span, self._offered, self._left
        start, taken, last_row = self._start, self._taken, self._last_row
        count = min(left, len(available) - len(pops))
        index = self._index
        for arrival in available[len(pops) : len(pops) + count]:
            able = max(offered, start + span, taken + 1)
            start = able if able > arrival else arrival
            if start > able:
                self.wait_tile += max(0, start - max(able, last_row + 1))
            pops.append(start + free_after)
            taken = max(start + 1, last_row)  # the issuer takes it while the tile before issues its last row
            if taken < last_row + 2:
                taken = self._hold(taken, last_row, index)
            last_row = taken + rows
            offered = start + 1
            index += 1
        self._index = index
        self._start, self._taken, self._last_row = start, taken, last_row
        self._offered, self._left = offered, left - count
        self.rows += count * rows
        if not self._left:
            self._bank = self._fields["bank"]
            self._behind = self._fields["acc"] + self._fields["n"] * self._fields["groups"] * rows
            self._walker_free(start + 1)
            self._done(last_row + self.latency)

    def _hold(self, taken: int, last_row: int, index: int) -> int:
        """Return when the issuer takes tile `index` of the command.

        It could in cycle `taken`, less than three after the last row; but if it adds to accumulators that the last two
        rows may not have stored yet, it waits.
        """
        fields, rows = self._fields, self._command_rows
        fresh = index % fields["k"] == 0
        if (fresh and (index or not fields["accumulate"])) or (not index and fields["bank"] != self._bank):
            return taken
        start = fields["acc"] + index // fields["k"] * rows
        behind = fields["acc"] + ((index - 1) // fields["k"] + 1) * rows if index else self._behind
        # The register of accumulators stands at the last row in its cycle, and one further from then on.
        while taken < last_row + 2 and (behind - (taken == last_row) - start) % self._acc_rows <= 1:
            taken += 1
        return taken
