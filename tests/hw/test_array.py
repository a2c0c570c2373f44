from __future__ import annotations

import numpy as np
import pytest
from amaranth.hdl import signed
from streams import simulate

from tilewright_hw.gateware.array import SystolicArray, sum_width


def schedule(rng, tiles, counts, span, gap):
    """Return the cycle of each tile's load, and of each of its rows, as early as the rules allow plus random gaps."""
    loads, starts = [], []
    load = free = 0
    for count in counts:
        load += rng.integers(0, gap + 1)
        loads.append(load)
        first = max(load + 1, free) + rng.integers(0, gap + 1)
        times = first + np.arange(count)
        if gap:
            times += np.cumsum(rng.integers(0, 2, count))
            first = times[0]
        starts.append(times)
        free = times[-1] + 1
        load = max(load + span, first)
    return loads, starts


def run_array(dut, tiles, activations, loads, starts):
    """Return what the array puts out, one matrix per tile, read at the stated latency."""
    span = dut.rows // dut.ingest
    weight_at = {(loads[t] + r, r // span): tiles[t][r] for t in range(len(tiles)) for r in range(dut.rows)}
    assert len(weight_at) == len(tiles) * dut.rows
    row_at = {int(time): (t, i) for t, times in enumerate(starts) for i, time in enumerate(times)}
    results = [np.full((len(times), dut.cols), 1 << 40) for times in starts]
    rng = np.random.default_rng(0)
    last = max(row_at) + dut.LATENCY + dut.cols

    async def bench(ctx):
        for cycle in range(last + 1):
            for g in range(dut.ingest):
                word = weight_at.get((cycle, g), rng.integers(-128, 128, dut.cols))
                ctx.set(dut.i_weights[g], word.tolist())
            ctx.set(dut.load, cycle in loads)
            t, i = row_at.get(cycle, (None, None))
            ctx.set(dut.valid, t is not None)
            ctx.set(dut.swap, i == 0)
            row = rng.integers(-128, 128, dut.rows) if t is None else activations[t][i]
            ctx.set(dut.i_x, row.tolist())
            assert ctx.get(dut.o_valid) == (cycle - dut.LATENCY in row_at)
            sums = ctx.get(dut.o_sums)
            for c in range(dut.cols):
                if (then := cycle - dut.LATENCY - c) in row_at:
                    results[row_at[then][0]][row_at[then][1], c] = sums[c]
            await ctx.tick()

    simulate(dut, bench)
    return results


SHAPES = [(4, 4, 1), (8, 8, 2), (8, 3, 1), (6, 10, 1), (16, 4, 4), (5, 7, 1), (1, 1, 1), (8, 4, 8)]


@pytest.mark.parametrize(("rows", "cols", "ingest"), SHAPES)
@pytest.mark.parametrize("gap", [0, 3])
def test_random_tiles(rows, cols, ingest, gap):
    rng = np.random.default_rng([rows, cols, ingest, gap])
    count = 8
    counts = rng.integers(1, 2 * rows + 1, count)
    tiles = rng.integers(-128, 128, (count, rows, cols))
    activations = [rng.integers(-128, 128, (n, rows)) for n in counts]
    loads, starts = schedule(rng, tiles, counts, rows // ingest, gap)
    results = run_array(SystolicArray(rows, cols, ingest), tiles, activations, loads, starts)
    for x, w, y in zip(activations, tiles, results, strict=True):
        np.testing.assert_array_equal(y, x @ w)


def test_rows_follow_each_other_without_a_bubble():
    """Tiles of rows/ingest rows keep every cycle busy: 10 tiles of 4 rows in 40 cycles."""
    rng = np.random.default_rng(1)
    counts = [4] * 10
    tiles = rng.integers(-128, 128, (10, 8, 8))
    activations = rng.integers(-128, 128, (10, 4, 8))
    loads, starts = schedule(rng, tiles, counts, 4, 0)
    assert starts[-1][-1] - starts[0][0] + 1 == 40
    results = run_array(SystolicArray(8, 8, 2), tiles, activations, loads, starts)
    np.testing.assert_array_equal(results, activations @ tiles)


def test_one_row_per_tile():
    """A matrix-vector product takes a tile every rows/ingest cycles."""
    rng = np.random.default_rng(2)
    tiles = rng.integers(-128, 128, (12, 8, 4))
    activations = rng.integers(-128, 128, (12, 1, 8))
    loads, starts = schedule(rng, tiles, [1] * 12, 4, 0)
    assert loads == list(range(0, 48, 4))
    results = run_array(SystolicArray(8, 4, 2), tiles, activations, loads, starts)
    np.testing.assert_array_equal(results, activations @ tiles)


@pytest.mark.parametrize("rows", [4, 8, 6])
def test_extremes_fit(rows):
    tiles = np.array([np.full((rows, 4), w) for w in (-128, 127, -128)])
    activations = np.array([np.full((2, rows), x) for x in (-128, -128, 127)])
    loads, starts = schedule(np.random.default_rng(3), tiles, [2] * 3, rows, 0)
    dut = SystolicArray(rows, 4, 1)
    results = run_array(dut, tiles, activations, loads, starts)
    np.testing.assert_array_equal(results, activations @ tiles)


def test_sum_width():
    assert [sum_width(n) for n in (1, 2, 3, 4, 16, 17, 128)] == [16, 17, 18, 18, 20, 21, 23]
    for n in range(1, 129):
        assert n * 2**14 < 1 << sum_width(n) - 1
    assert SystolicArray(16, 2).o_sums.shape().elem_shape == signed(20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 1), "rows must be at least 1, not 0"),
        ((4, 4.0, 1), "cols must be an integer, not 4.0"),
        ((8, 4, 3), r"ingest must divide rows \(8\), not 3"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        SystolicArray(*arguments)
