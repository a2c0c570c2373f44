"""The matrix unit, tile by tile: the loader starts tiles, the issuer streams their rows."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.perf.timing import Fields, matmul_done
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
        self._walker_free, self._done = walker_free, done
        self.available: tuple[list[int], list[int]] = ([], [])
        self.pops: tuple[list[int], list[int]] = ([], [])
        self.rows = self.wait_tile = 0
        self._left = 0
        self._command_rows = 0
        self._fifo = 0
        self._offered = 0
        self._start = self._taken = self._last_row = -(1 << 30)

    def take(self, cycle: int, fields: Fields) -> None:
        """Take a MATMUL; only when the walker is free."""
        assert self._left == 0
        self._left = fields["k"] * fields["n"] * fields["groups"]
        self._command_rows = fields["rows_outer"] * fields["rows_inner"]
        self._fifo = fields["stream"]
        self._offered = cycle + 1
        self.advance()

    def advance(self) -> None:
        """Start every tile whose arrival is known."""
        if not self._left:
            return
        available, pops = self.available[self._fifo], self.pops[self._fifo]
        rows, span, offered, left = self._command_rows, self.span, self._offered, self._left
        start, taken, last_row = self._start, self._taken, self._last_row
        count = min(left, len(available) - len(pops))
        for index in range(len(pops), len(pops) + count):
            able = max(offered, start + span, taken + 1)
            start = max(able, available[index])
            if start > able:
                self.wait_tile += max(0, start - max(able, last_row + 1))
            pops.append(start + 1)
            taken = max(start + 1, last_row)  # the issuer takes it while the tile before issues its last row
            last_row = taken + rows
            offered = start + 1
        self._start, self._taken, self._last_row = start, taken, last_row
        self._offered, self._left = offered, left - count
        self.rows += count * rows
        if not self._left:
            self._walker_free(start + 1)
            self._done(last_row + self.latency)
