from __future__ import annotations

import numpy as np
import pytest
from streams import simulate

from tilewright_hw.gateware.accumulator import Accumulators


def wrap(values):
    return (values + 2**31) % 2**32 - 2**31


def random_rows(rng, dut, count, share, bank):
    """Return [(cycle, bank, addr, overwrite, sums)], no accumulator twice within RECURRENCE cycles."""
    rows, cycle, recent = [], 0, []
    while len(rows) < count:
        cycle += 1
        if rng.random() > share:
            continue
        addr = int(rng.integers(dut.depth))
        b = int(rng.integers(2)) if bank is None else bank
        if any(then > cycle - dut.RECURRENCE and key == (b, addr) for then, key in recent):
            continue
        recent = [*recent[-4:], (cycle, (b, addr))]
        low, high = -(1 << dut.width - 1), (1 << dut.width - 1) - 1
        sums = rng.integers(low, high + 1, dut.cols)
        rows.append((cycle, b, addr, bool(rng.random() < 0.2), sums))
    return rows


def feed(dut, rows):
    """Return a testbench that plays rows, and the list where it puts the cycles of done."""
    at = {row[0]: row for row in rows}
    done = []

    async def bench(ctx):
        for cycle in range(rows[-1][0] + dut.DONE_LATENCY + 1):
            row = at.get(cycle)
            ctx.set(dut.valid, row is not None)
            ctx.set(dut.last, row is not None)
            if row:
                ctx.set(dut.bank, row[1])
                ctx.set(dut.addr, row[2])
                ctx.set(dut.overwrite, row[3])
            sums = [int(at[cycle - 1 - c][4][c]) if cycle - 1 - c in at else 0 for c in range(dut.cols)]
            ctx.set(dut.i_sums, sums)
            if ctx.get(dut.done):
                done.append(cycle)
            await ctx.tick()
        ctx.set(dut.valid, 0)

    return bench, done


async def read(ctx, dut, bank, addr):
    ctx.set(dut.read_en, 1)
    ctx.set(dut.read_bank, bank)
    ctx.set(dut.read_addr, addr)
    await ctx.tick()
    ctx.set(dut.read_en, 0)
    return list(ctx.get(dut.read_data))


@pytest.mark.parametrize(("cols", "depth", "width"), [(1, 2, 20), (4, 8, 18), (7, 16, 32)])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_random_rows_into_both_banks(cols, depth, width, share):
    rng = np.random.default_rng([cols, depth, int(share * 10)])
    dut = Accumulators(cols=cols, depth=depth, width=width)
    rows = random_rows(rng, dut, 300, share, None)
    expected = np.zeros((2, depth, cols), dtype=np.int64)
    for _, bank, addr, overwrite, sums in rows:
        expected[bank, addr] = wrap(sums + (0 if overwrite else expected[bank, addr]))
    play, done = feed(dut, rows)

    async def bench(ctx):
        await play(ctx)
        for bank in range(2):
            for addr in range(depth):
                assert await read(ctx, dut, bank, addr) == expected[bank, addr].tolist()

    simulate(dut, bench)
    assert done == [row[0] + dut.DONE_LATENCY for row in rows]


def test_row_can_be_read_when_done_is_high():
    dut = Accumulators(cols=5, depth=4, width=20)
    play, done = feed(dut, [(1, 1, 2, True, np.arange(5))])

    async def bench(ctx):
        await play(ctx)

    async def check(ctx):
        while not ctx.get(dut.done):
            await ctx.tick()
        assert await read(ctx, dut, 1, 2) == [0, 1, 2, 3, 4]

    simulate(dut, bench, check)
    assert done == [1 + dut.DONE_LATENCY]


def test_one_bank_is_read_while_the_other_accumulates():
    rng = np.random.default_rng(5)
    dut = Accumulators(cols=4, depth=8, width=18)
    before = [(1 + i, 0, i, True, rng.integers(-100, 100, 4)) for i in range(8)]
    rows = random_rows(rng, dut, 100, 1.0, 1)
    fill, _ = feed(dut, before)
    play, _ = feed(dut, rows)
    reads = []

    async def bench(ctx):
        await fill(ctx)
        await play(ctx)

    async def reader(ctx):
        await ctx.tick().repeat(before[-1][0] + dut.DONE_LATENCY + 1)
        for i in range(80):
            reads.append((i % 8, await read(ctx, dut, 0, i % 8)))

    simulate(dut, bench, reader)
    for addr, word in reads:
        assert word == before[addr][4].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 12}, "depth must be a power of two, not 12"),
        ({"width": 33}, "width must be at most 32, not 33"),
        ({"cols": "4"}, "cols must be an integer, not '4'"),
    ],
)
def test_bad_parameters(change, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        Accumulators(**{"cols": 4, "depth": 16, "width": 20, **change})
