"""Blocks as functions: the RTL in Amaranth's simulator, with the signature of the golden function and a stall seed."""

import random

import numpy as np
from streams import Stall, get, put, simulate

from tilewright_hw import Softmax, SystolicArray
from tilewright_sim.golden import formats


def rtl_softmax(x, *, lanes, stall=None):
    """Return the softmax of each row of x (float64, rounded to F24), as `golden.softmax` does.

    `stall` seeds random idle cycles on both streams; None: none.
    """
    x = formats.round_f24(np.asarray(x, np.float64))
    rows = x.reshape(-1, x.shape[-1])
    length, words = x.shape[-1], -(-x.shape[-1] // lanes)
    bits = np.zeros((len(rows), words * lanes), np.int64)
    bits[:, :length] = formats.store_fp32(rows) >> 8
    keep = (1 << lanes) - 1 >> words * lanes - length
    items = [
        {"data": row[lanes * i : lanes * (i + 1)].tolist(), "keep": keep, "last": i == words - 1}
        for row in bits
        for i in range(words)
    ]
    dut = Softmax(lanes=lanes, max_length=length)
    share = 0.0 if stall is None else 0.4
    out = []

    async def send(ctx):
        await put(ctx, dut.i, items, Stall(stall or 0, share))

    async def receive(ctx):
        for word in await get(ctx, dut.o, len(items), Stall((stall or 0) + 1, share)):
            out.extend(word.data[lane] for lane in range(lanes))

    simulate(dut, send, receive)
    p = np.array(out, np.uint32).reshape(bits.shape)[:, :length]
    return formats.load_fp32(p << np.uint32(8)).reshape(x.shape)


def rtl_systolic_array(a, w, *, rows, cols, ingest=1, stall=None):
    """Return a (M, K) @ w (K, N), int8, as `golden.systolic_array` does: tile by tile, the parts added up here.

    `stall` seeds random cycles in which nothing enters; None: none.
    """
    (m, k), n = a.shape, w.shape[1]
    k_tiles, n_tiles = -(-k // rows), -(-n // cols)
    a = np.pad(a, ((0, 0), (0, k_tiles * rows - k)))
    w = np.pad(w, ((0, k_tiles * rows - k), (0, n_tiles * cols - n)))
    places = [(i, j) for j in range(n_tiles) for i in range(k_tiles)]
    dut = SystolicArray(rows, cols, ingest)
    span, rng = rows // ingest, random.Random(stall)
    weights, starts, entries = {}, set(), {}
    cycle = 0
    for tile, (i, j) in enumerate(places):
        starts.add(cycle)
        for r in range(rows):
            weights[cycle + r, r // span] = w[i * rows + r, j * cols : (j + 1) * cols]
        enter = cycle
        for row in range(m):
            enter += 1 + (rng.randrange(3) if stall is not None else 0)
            entries[enter] = tile, row, a[row, i * rows : (i + 1) * rows]
        # The next tile may enter when this one has been swapped in and its own last row has entered.
        cycle = max(enter, cycle + span)
    sums = np.zeros((len(places), m, cols), np.int64)

    async def bench(ctx):
        for now in range(cycle + rows + cols + dut.LATENCY + 1):
            for group in range(ingest):
                ctx.set(dut.i_weights[group], np.asarray(weights.get((now, group), np.zeros(cols, int))).tolist())
            tile, row, x = entries.get(now, (None, None, np.zeros(rows, int)))
            ctx.set(dut.load, now in starts)
            ctx.set(dut.valid, tile is not None)
            ctx.set(dut.swap, row == 0)
            ctx.set(dut.i_x, x.tolist())
            for c in range(cols):
                if (then := now - dut.LATENCY - c) in entries:
                    tile, row, _ = entries[then]
                    sums[tile, row, c] = ctx.get(dut.o_sums)[c]
            await ctx.tick()

    simulate(dut, bench)
    parts = sums.reshape(n_tiles, k_tiles, m, cols).sum(axis=1)
    return parts.transpose(1, 0, 2).reshape(m, n_tiles * cols)[:, :n].astype(np.int32)
