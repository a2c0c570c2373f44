from __future__ import annotations

import random

import pytest
from amaranth.hdl import signed
from streams import Stall, get, put, simulate

from tilewright_hw.gateware.fifo import ReadyBuffer, StreamBuffer, StreamFifo
from tilewright_hw.gateware.layouts import bytes_word


def pass_through(dut, items, put_stall=None, get_stall=None):
    received = []
    times = []

    async def send(ctx):
        await put(ctx, dut.i, items, put_stall)

    async def receive(ctx):
        received.extend(await get(ctx, dut.o, len(items), get_stall))

    async def clock(ctx):
        cycle = 0
        while True:
            await ctx.tick()
            cycle += 1
            times[:] = [cycle]

    simulate(dut, send, receive, background=[clock])
    return received, times[0]


@pytest.mark.parametrize("depth", [2, 3, 4, 7, 16])
@pytest.mark.parametrize(("put_share", "get_share"), [(0, 0.5), (0.5, 0), (0.4, 0.4)])
def test_fifo_keeps_order_under_stalls(depth, put_share, get_share):
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    items = [random.Random(seed).randrange(-128, 128) for _ in range(200)]
    dut = StreamFifo(signed(8), depth)
    received, _ = pass_through(dut, items, Stall(seed, put_share), Stall(seed + 1, get_share))
    assert received == items


@pytest.mark.parametrize("kind", [StreamBuffer, ReadyBuffer])
@pytest.mark.parametrize("share", [0, 0.3, 0.6])
def test_buffer_keeps_order_under_stalls(kind, share):
    items = [[i % 100, -i % 100, i % 7] for i in range(200)]
    received, _ = pass_through(kind(bytes_word(3)), items, Stall(1, share), Stall(2, 0.6 - share))
    assert [list(word) for word in received] == items


@pytest.mark.parametrize(
    "dut",
    [StreamFifo(8, 3), StreamFifo(8, 16), StreamBuffer(8), ReadyBuffer(8)],
    ids=["fifo of 3", "fifo of 16", "buffer", "ready buffer"],
)
def test_one_item_per_cycle_and_stated_latency(dut):
    items = list(range(100))
    received, cycles = pass_through(dut, items)
    assert received == items
    assert cycles == len(items) + dut.LATENCY


def test_level_and_capacity():
    dut = StreamFifo(8, 5)

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        for expected in range(6):
            assert ctx.get(dut.level) == expected
            assert ctx.get(dut.i.ready) == (expected < 5)
            await ctx.tick()
        ctx.set(dut.i.valid, 0)
        ctx.set(dut.o.ready, 1)
        for expected in range(5, -1, -1):
            assert ctx.get(dut.level) == expected
            assert ctx.get(dut.o.valid) == (expected > 0)
            await ctx.tick()

    simulate(dut, bench)


def test_ready_of_the_buffer_is_registered():
    dut = StreamBuffer(8)

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        await ctx.tick().repeat(3)
        assert not ctx.get(dut.i.ready)
        ctx.set(dut.o.ready, 1)
        assert not ctx.get(dut.i.ready)
        await ctx.tick()
        assert ctx.get(dut.i.ready)

    simulate(dut, bench)


@pytest.mark.parametrize(("depth", "kind"), [(1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_depth(depth, kind):
    with pytest.raises(kind, match=rf"^depth must be .*, not {depth!r}$"):
        StreamFifo(8, depth)


def test_ready_of_a_ready_buffer_is_a_register():
    dut = ReadyBuffer(8)

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload, 7)
        assert ctx.get(dut.o.valid)  # an item passes in its own cycle
        assert ctx.get(dut.o.payload) == 7
        await ctx.tick()  # it was taken and is held
        ctx.set(dut.i.payload, 9)
        assert ctx.get(dut.o.payload) == 7
        for ready in (0, 1):
            ctx.set(dut.o.ready, ready)
            assert not ctx.get(dut.i.ready)
        await ctx.tick()
        assert ctx.get(dut.o.payload) == 9
        for ready in (0, 1):
            ctx.set(dut.o.ready, ready)
            assert ctx.get(dut.i.ready)

    simulate(dut, bench)
