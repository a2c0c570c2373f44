"""`TileFifo`: whole tiles, row by row in, and out in the order and at the times in which the array wants their rows."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import cocotb

from tilewright_sim.benches.testbench import LockstepTestbench, generator, parameters

ROWS, COLS, INGEST, TILES, COUNT = (parameters()[name] for name in ("rows", "cols", "ingest", "tiles", "count"))
SPAN = ROWS // INGEST
FREE_AFTER = 0 if COUNT == 1 else (INGEST - 1) * SPAN
"""Cycles from `start` until the tile's room counts as free (the block's contract)."""


class TileModel:
    """Counts tiles and plays them back.

    Parameters
    ----------
    feed, take : float
        Share of the cycles in which rows come, and in which a tile that is there is started.
    """

    def __init__(self, feed: float, take: float) -> None:
        self._feed, self._take = feed, take
        self.started = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._cycle = 0
        self._rows: deque[int] = deque()  # taken, oldest first, not yet started
        self._whole = self._held = 0  # tiles that can be started; rooms that are not free
        self._part = 0  # rows taken of the tile that is coming in
        self._offer: list[int] | None = None
        self._playing: list[tuple[int, list[int]]] = []  # cycle of the start, rows
        self._last = -ROWS
        self._frees: set[int] = set()

    def drive(self, rng: random.Random) -> Mapping[str, int]:
        """Return rows, or noise, and a start where one is allowed."""
        if self._offer is None and rng.random() < self._feed:
            self._offer = [rng.getrandbits(8 * COLS) for _ in range(COUNT)]
        start = self._whole > 0 and self._cycle - self._last >= SPAN and rng.random() < self._take
        rows = self._offer or [rng.getrandbits(8 * COLS) for _ in range(COUNT)]
        vector = sum(row << 8 * COLS * i for i, row in enumerate(rows))
        return {"i_valid": self._offer is not None, "i_payload": vector, "start": start}

    def outputs(self, inputs: Mapping[str, int]) -> Mapping[str, Sequence[int | None]]:
        """Return what comes out in this cycle."""
        now = self._cycle
        ready = self._held != TILES
        outputs: dict[str, Sequence[int | None]] = {"i_ready": [ready], "available": [self._whole > 0]}
        if inputs["start"]:
            self.started += 1
            self._last = now
            self._playing.append((now, [self._rows.popleft() for _ in range(ROWS)]))
            self._frees.add(now + FREE_AFTER)
            self._whole -= 1
        valid: list[int] = [0] * INGEST
        data: list[int | None] = [None] * INGEST
        for begun, rows in self._playing:
            row = now - begun - 1
            if 0 <= row < ROWS:
                valid[row // SPAN], data[row // SPAN] = 1, rows[row]
        free = now in self._frees
        self._held -= free
        self._playing = [tile for tile in self._playing if now - tile[0] < ROWS]
        if self._offer is not None and ready:
            self._rows.extend(self._offer)
            self._part = (self._part + COUNT) % ROWS
            self._whole += self._part == 0
            self._held += self._part == 0
            self._offer = None
        self._cycle += 1
        return outputs | {"free": [int(free)], "o_valid": valid, "o": data}


@cocotb.test()
@cocotb.parametrize(feed=[0.4, 1.0], take=[0.05, 0.5, 1.0])
async def test_tiles(dut: Any, feed: float, take: float) -> None:
    model = TileModel(feed, take)
    bench = LockstepTestbench(dut, model, generator(f"tiles {feed} {take}"))
    await bench.start()
    await bench.run(500)
    assert model.started > 5


@cocotb.test()
async def test_reset_in_the_middle(dut: Any) -> None:
    model = TileModel(0.9, 0.6)
    bench = LockstepTestbench(dut, model, generator("reset"))
    await bench.start()
    for cycles in (7, 11, 30, 41, 58):
        await bench.run(cycles)
        await bench.reset(1)
    await bench.run(200)
