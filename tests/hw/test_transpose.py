"""Transposer against NumPy: shapes of all kinds, random stalls, and a row in every cycle."""

from __future__ import annotations

import random

import numpy as np
import pytest
from streams import Stall, get, put, simulate

from tilewright_hw.gateware.transpose import Transposer

SHAPES = [(4, 4), (8, 16), (16, 8), (6, 10), (10, 6), (5, 2), (2, 5), (7, 8)]


def transpose(rows, cols, tiles, put_stall=None, get_stall=None):
    """Send tiles (tile, C, R) through a Transposer; check all that comes, and return the cycles of the rows out."""
    dut = Transposer(rows=rows, cols=cols, ends=2)
    items = [
        {"data": row.tolist(), "end": 1 + i % 3 if c == cols - 1 else 0}
        for i, tile in enumerate(tiles)
        for c, row in enumerate(tile)
    ]
    got, cycles = [], []

    async def send(ctx):
        await put(ctx, dut.i, items, put_stall)

    async def receive(ctx):
        got.extend(await get(ctx, dut.o, rows * len(tiles), get_stall))

    async def clock(ctx):
        async for *_, valid, ready in ctx.tick().sample(dut.o.valid, dut.o.ready):
            cycles.append(valid and ready)

    simulate(dut, send, receive, background=[clock])
    words = np.array([list(item.data) for item in got]).reshape(len(tiles), rows, cols)
    np.testing.assert_array_equal(words, tiles.transpose(0, 2, 1))
    assert [item.end for item in got] == [e for i in range(len(tiles)) for e in [0] * (rows - 1) + [1 + i % 3]]
    return np.flatnonzero(cycles)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize(("put_share", "get_share"), [(0.5, 0), (0, 0.5), (0.4, 0.4)])
def test_tiles_under_stalls(rows, cols, put_share, get_share):
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    tiles = np.random.default_rng(seed).integers(-128, 128, (8, cols, rows))
    transpose(rows, cols, tiles, Stall(seed, put_share), Stall(seed + 1, get_share))


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_tiles_follow_each_other_without_a_gap(rows, cols):
    """Each tile takes as many cycles as it has rows, going in or coming out, whichever are more."""
    tiles = np.random.default_rng(1).integers(-128, 128, (6, cols, rows))
    times = transpose(rows, cols, tiles)
    firsts = times[::rows]
    assert np.diff(firsts).tolist() == [max(rows, cols)] * 5
    assert firsts[0] == cols - 1 + Transposer.LATENCY


def test_bad_sizes():
    with pytest.raises(TypeError, match=r"^rows must be an integer of at least 2, not 1$"):
        Transposer(rows=1, cols=4)
