"""Blocks as functions: the RTL in Amaranth's simulator, with the signature of the golden function and a stall seed."""

import random

import numpy as np
from amaranth import ClockDomain, Module
from streams import Stall, get, put, simulate

from tilewright_hw import (
    Accumulators,
    ActBuffer,
    Skew,
    Softmax,
    StreamBuffer,
    StreamFifo,
    SystolicArray,
    TileFifo,
    WidthConverter,
)
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


def rtl_stream_fifo(items, *, width, depth, stall=None):
    """Return the items (unsigned, of `width` bits) as they leave the FIFO; `stall` as for `rtl_softmax`."""
    return _pass_through(StreamFifo(width, depth), items, stall)


def rtl_stream_buffer(items, *, width, stall=None):
    """Return the items (unsigned, of `width` bits) as they leave the buffer."""
    return _pass_through(StreamBuffer(width), items, stall)


def _pass_through(dut, items, stall):
    items, share, out = np.asarray(items), 0.0 if stall is None else 0.4, []

    async def send(ctx):
        await put(ctx, dut.i, items.tolist(), Stall(stall or 0, share))

    async def receive(ctx):
        out.extend(await get(ctx, dut.o, len(items), Stall((stall or 0) + 1, share)))

    simulate(dut, send, receive)
    return np.array(out, items.dtype)


def rtl_width_converter(beats, slot, used, *, stall=None):
    """Return the words of beats of bytes (n, bus_bytes), as `golden.width_converter` does."""
    beats = np.asarray(beats, np.uint8)
    bus_bytes = beats.shape[1]
    dut, share, out = WidthConverter(bus_bytes=bus_bytes, slot=slot, used=used), 0.0 if stall is None else 0.4, []

    async def send(ctx):
        words = [{"data": int.from_bytes(row.tobytes(), "little")} for row in beats]
        await put(ctx, dut.i, words, Stall(stall or 0, share))

    async def receive(ctx):
        for word in await get(ctx, dut.o, beats.size // slot, Stall((stall or 0) + 1, share)):
            out.append([word.data[k] for k in range(used)])

    top = Module()
    top.domains.sync = ClockDomain()  # a converter whose slot is a beat has no register
    top.submodules.dut = dut
    simulate(top, send, receive)
    return np.array(out, np.int8).view(np.uint8).reshape(-1, used)


def rtl_skew(x, step=1, *, width, stall=None):
    """Return rows (n, count) of unsigned numbers of `width` bits as they leave the skew, as `golden.skew` does.

    `stall` seeds random cycles in which nothing enters; as the lanes are still where nothing was valid, they are left
    out of the result, which is the same.
    """
    x = np.asarray(x)
    (n, count), rng = x.shape, random.Random(stall)
    dut = Skew(width, count, step)
    enter = np.cumsum([0] + [1 + (rng.randrange(3) if stall is not None else 0) for _ in range(n - 1)])
    entries = {int(cycle): row for row, cycle in enumerate(enter)}
    y = np.zeros((n + dut.latency, count), x.dtype)

    async def bench(ctx):
        for now in range(int(enter[-1]) + dut.latency + 1):
            row = entries.get(now)
            ctx.set(dut.valid, row is not None)
            ctx.set(dut.i, x[row].tolist() if row is not None else [rng.getrandbits(width) for _ in range(count)])
            for k in range(count):
                if (then := entries.get(now - k * step)) is not None:
                    y[then + k * step, k] = ctx.get(dut.o)[k]
            await ctx.tick()

    simulate(dut, bench)
    return y


def rtl_tile_fifo(rows, tile_rows, *, ingest, tiles, count=1, stall=None):
    """Return the tiles that rows (n, cols) make, as `golden.tile_fifo` does; n is a multiple of `count`."""
    rows = np.asarray(rows)
    n, cols = rows.shape
    whole, span, share = n // tile_rows, tile_rows // ingest, 0.0 if stall is None else 0.4
    dut = TileFifo(rows=tile_rows, cols=cols, ingest=ingest, tiles=tiles, count=count)
    y, rng = np.zeros((whole, tile_rows, cols), np.int8), random.Random(stall)

    async def send(ctx):
        await put(ctx, dut.i, rows.reshape(-1, count, cols).tolist(), Stall(stall or 0, share))

    async def receive(ctx):
        starts, now, pause = [], 0, 0
        while len(starts) < whole or now <= starts[-1] + tile_rows:
            start = ctx.get(dut.available) and len(starts) < whole and not pause
            ctx.set(dut.start, start)
            if start:
                starts.append(now)
            pause = span - 1 + (rng.randrange(5) if stall is not None else 0) if start else max(0, pause - 1)
            for tile, then in enumerate(starts):
                if 0 <= (r := now - then - 1) < tile_rows:
                    assert ctx.get(dut.o_valid) >> r // span & 1
                    y[tile, r] = list(ctx.get(dut.o[r // span]))
            await ctx.tick()
            now += 1

    simulate(dut, send, receive)
    return y


def rtl_accumulators(sums, bank, addr, overwrite, *, depth, width, stall=None):
    """Return both banks after the rows of sums, as `golden.accumulators` does.

    A row waits until its accumulator may come again; `stall` seeds further random cycles in which nothing comes.
    """
    sums, (n, cols), rng = np.asarray(sums), np.shape(sums), random.Random(stall)
    dut = Accumulators(cols=cols, depth=depth, width=width)
    entries, last, now = {}, {}, 0
    for row in range(n):
        place = int(bank[row]), int(addr[row])
        now = max(now, last.get(place, -dut.RECURRENCE) + dut.RECURRENCE)
        entries[now] = row
        last[place] = now
        now += 1 + (rng.randrange(3) if stall is not None else 0)
    y = np.zeros((2, depth, cols), np.int32)

    async def bench(ctx):
        for cycle in range(now + dut.DONE_LATENCY + 1):
            row = entries.get(cycle)
            ctx.set(dut.valid, row is not None)
            if row is not None:
                for port, values in ((dut.bank, bank), (dut.addr, addr), (dut.overwrite, overwrite)):
                    ctx.set(port, int(values[row]))
            late = [entries.get(cycle - 1 - c) for c in range(cols)]
            ctx.set(dut.i_sums, [0 if row is None else int(sums[row, c]) for c, row in enumerate(late)])
            await ctx.tick()
        for b, a in last:
            for port, value in ((dut.read_en, 1), (dut.read_bank, b), (dut.read_addr, a)):
                ctx.set(port, value)
            await ctx.tick()
            y[b, a] = list(ctx.get(dut.read_data))

    simulate(dut, bench)
    return y


def rtl_act_buffer(writes, *, config, words, stall=None):
    """Return the first `words` words after writes (addr, part or None, int8), as `golden.act_buffer` does.

    Whole words come by the stream, parts by the port of the vector unit; one write after the other.
    """
    dut, rng = ActBuffer(config), random.Random(stall)
    y = np.zeros((words, config.rows), np.int8)

    async def bench(ctx):
        for addr, part, values in writes:
            word = {"addr": addr, "data": np.asarray(values).tolist()}
            if part is None:
                await put(ctx, dut.i_load, [word])
            else:
                for name, value in (word | {"part": part, "en": 1}).items():
                    ctx.set(getattr(dut.write, name), value)
                await ctx.tick()
                ctx.set(dut.write.en, 0)
            await ctx.tick().repeat(1 + (rng.randrange(3) if stall is not None else 0))
        ctx.set(dut.en, 1)
        for addr in range(words):
            ctx.set(dut.addr, addr)
            await ctx.tick()
            y[addr] = list(ctx.get(dut.data))

    simulate(dut, bench)
    return y
