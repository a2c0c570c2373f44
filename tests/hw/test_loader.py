from __future__ import annotations

import random

import numpy as np
import pytest
from amaranth.hdl import unsigned
from amaranth.lib import data
from streams import Stall, put, simulate

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.gateware.loader import TileFifo, TileLoader, rows_together

SHAPES = [(4, 4, 1, 1), (8, 3, 2, 1), (8, 3, 2, 2), (16, 2, 4, 4), (16, 2, 4, 2), (24, 2, 3, 2), (6, 10, 1, 1)]


def rows_of(tiles):
    return [row.tolist() for tile in tiles for row in tile]


def together(tiles, count):
    """Return the rows of tiles, `count` at a time."""
    rows = rows_of(tiles)
    return [rows[i : i + count] for i in range(0, len(rows), count)]


@pytest.mark.parametrize(("rows", "cols", "ingest", "count"), SHAPES)
@pytest.mark.parametrize("share", [0, 0.3])
def test_fifo_gives_whole_tiles_on_the_slope(rows, cols, ingest, count, share):
    """Rows are offered as early as they may be: none may overwrite what is still to be read."""
    rng = np.random.default_rng(rows)
    span, capacity = rows // ingest, 3
    tiles = rng.integers(-128, 128, (12, rows, cols))
    dut = TileFifo(rows=rows, cols=cols, ingest=ingest, tiles=capacity, count=count)
    seen, starts = {}, []
    stall = Stall(5, share)

    async def send(ctx):
        await put(ctx, dut.i, together(tiles, count), Stall(4, share))

    async def receive(ctx):
        cycle, may_start = 0, 0
        while not starts or len(starts) < len(tiles) or cycle < starts[-1] + rows + 2:
            start = cycle >= may_start and len(starts) < len(tiles) and ctx.get(dut.available)
            if start:
                starts.append(cycle)
                may_start = cycle + span + stall.cycles()
            ctx.set(dut.start, start)
            for g in range(ingest):
                if ctx.get(dut.o_valid) >> g & 1:
                    seen[cycle, g] = list(ctx.get(dut.o[g]))
            await ctx.tick()
            cycle += 1

    simulate(dut, send, receive)
    expected = {(start + 1 + r, r // span): tiles[t][r].tolist() for t, start in enumerate(starts) for r in range(rows)}
    assert seen == expected


@pytest.mark.parametrize(("ingest", "count"), [(2, 2), (4, 4), (4, 2)])
def test_fifo_frees_the_room_that_it_takes(ingest, count):
    """As many tiles can be taken as `free` says; and rows that come together leave at the full rate."""
    rows, capacity = 16, 6
    dut = TileFifo(rows=rows, cols=2, ingest=ingest, tiles=capacity, count=count)
    written, freed, starts = [0], [0], []

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        for cycle in range(30 * rows):
            start = cycle >= 20 * rows and ctx.get(dut.available) and cycle >= [-rows, *starts][-1] + rows // ingest
            ctx.set(dut.start, start)
            starts.extend([cycle] * start)
            if ctx.get(dut.i.ready):
                written[0] += count
            assert written[0] <= (capacity + freed[0]) * rows
            freed[0] += ctx.get(dut.free)
            await ctx.tick()

    simulate(dut, bench)
    if count == ingest:
        assert written[0] // rows >= capacity + freed[0] - 1
        assert min(np.diff(starts)) == max(np.diff(starts)) == rows // ingest


def test_fifo_room():
    """It takes its tiles and not a row more; a start makes room for one tile at once."""
    dut = TileFifo(rows=4, cols=2, ingest=1, tiles=3)

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        for row in range(12):
            assert ctx.get(dut.available) == (row >= 4)
            assert ctx.get(dut.i.ready)
            await ctx.tick()
        assert not ctx.get(dut.i.ready)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for _ in range(4):
            assert ctx.get(dut.i.ready)
            await ctx.tick()
        assert not ctx.get(dut.i.ready)

    simulate(dut, bench)


TAG = data.StructLayout({"stream": 1, "number": unsigned(8)})


def run_loader(ingest, choice, *, put_share=0.0, take_share=0.0, rows=8, cols=4, count=1):
    """Load tiles as `choice` says (True: stream FIFO); return cycles of loads, takes, pops and waits."""
    rng = np.random.default_rng(len(choice))
    tiles = rng.integers(-128, 128, (len(choice), rows, cols))
    dut = TileLoader(tile=TAG, rows=rows, cols=cols, ingest=ingest, weight_tiles=4, stream_tiles=4, count=count)
    loads, takes, pops, waits, seen = [], [], [0, 0], [], {}
    stall = Stall(7, take_share)

    async def weights(ctx):
        await put(ctx, dut.i_weight, together(tiles[~np.array(choice)], count), Stall(1, put_share))

    async def streamed(ctx):
        await put(ctx, dut.i_stream, rows_of(tiles[np.array(choice)]), Stall(2, put_share))

    async def wanted(ctx):
        await ctx.tick().repeat(1 if put_share else 10 * rows)
        items = [{"stream": int(c), "number": i} for i, c in enumerate(choice)]
        await put(ctx, dut.i, items)

    async def watch(ctx):
        cycle, idle = 0, stall.cycles()
        while len(takes) < len(choice) or cycle < loads[-1] + rows:
            valid = ctx.get(dut.o.valid)
            if valid and idle:
                idle -= 1
                valid = 0
            ctx.set(dut.o.ready, valid)
            if valid:
                assert ctx.get(dut.o.payload.number) == len(takes)
                assert ctx.get(dut.o.payload.stream) == choice[len(takes)]
                takes.append(cycle)
                idle = stall.cycles()
            if ctx.get(dut.load):
                loads.append(cycle)
            for g in range(ingest):
                seen[cycle, g] = list(ctx.get(dut.o_weights[g]))
            pops[0] += ctx.get(dut.weight_pop)
            pops[1] += ctx.get(dut.stream_pop)
            if ctx.get(dut.waiting):
                waits.append(cycle)
            await ctx.tick()
            cycle += 1

    simulate(dut, weights, streamed, wanted, watch)
    for t, load in enumerate(loads):
        for r in range(rows):
            assert seen[load + r, r * ingest // rows] == tiles[t][r].tolist()
    return loads, takes, pops, waits


@pytest.mark.parametrize("ingest", [1, 2])
def test_tiles_follow_each_other_at_the_rate_of_ingest(ingest):
    choice = [False, True, True, False] * 2
    loads, takes, pops, waits = run_loader(ingest, choice)
    assert np.diff(loads).tolist() == [8 // ingest] * 7
    assert takes == loads
    assert pops == [4, 4]
    assert not waits


@pytest.mark.parametrize(("ingest", "count"), [(1, 1), (2, 1), (2, 2)])
def test_random_stalls(ingest, count):
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    choice = [random.Random(seed + i).random() < 0.5 for i in range(30)]
    loads, takes, pops, waits = run_loader(ingest, choice, put_share=0.5, take_share=0.9, count=count)
    assert len(loads) == 30
    assert all(load > take for load, take in zip(loads[1:], takes, strict=False))
    assert min(np.diff(loads)) >= 8 // ingest
    assert pops == [choice.count(False), choice.count(True)]
    assert waits


def test_bad_parameters():
    with pytest.raises(ValueError, match=r"^ingest must divide rows \(8\), not 3$"):
        TileFifo(rows=8, cols=4, ingest=3, tiles=4)
    with pytest.raises(ValueError, match=r"^tiles must be at least 1, not 0$"):
        TileFifo(rows=8, cols=4, ingest=2, tiles=0)
    for count in (3, 4):
        with pytest.raises(
            ValueError, match=rf"^count must be a power of two of at most 2 that divides 4, not {count}$"
        ):
            TileFifo(rows=8, cols=4, ingest=2, tiles=4, count=count)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 2),
        ({"ingest": 4}, 2),
        ({"ingest": 4, "bus_bits": 256, "burst_beats": 32}, 4),
        ({"rows": 10, "cols": 12, "lanes": 2, "ingest": 2, "bus_bits": 64}, 1),
        ({"rows": 24, "lanes": 4, "ingest": 3}, 2),
    ],
)
def test_rows_that_come_together(fields, count):
    assert rows_together(AcceleratorConfig(**fields)) == count
