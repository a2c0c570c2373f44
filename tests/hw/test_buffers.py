from __future__ import annotations

import numpy as np
import pytest
from streams import Stall, put, simulate

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.gateware.buffers import ActBuffer

CONFIGS = [
    AcceleratorConfig.preset("tiny"),
    AcceleratorConfig(rows=16, cols=8, lanes=4, act_words=64),
    AcceleratorConfig(rows=8, cols=8, lanes=8, ingest=1, act_words=64),
    AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, act_words=64),
]


async def read(ctx, dut, addr):
    ctx.set(dut.en, 1)
    ctx.set(dut.addr, addr)
    await ctx.tick()
    ctx.set(dut.en, 0)
    ctx.set(dut.addr, 0)
    return list(ctx.get(dut.data))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_loads_and_partial_writes(config):
    """Loads go to even words and writes to odd ones at the same time; all arrive."""
    rng = np.random.default_rng(config.rows)
    dut = ActBuffer(config)
    words, lanes, parts = 32, config.lanes, config.rows // config.lanes
    expected = rng.integers(-128, 128, (words, config.rows))

    async def load(ctx):
        items = [{"addr": a, "data": expected[a].tolist()} for a in range(0, words, 2)]
        await put(ctx, dut.i_load, items, Stall(1, 0.3))

    async def write(ctx):
        order = [(a, p) for a in range(1, words, 2) for p in range(parts)]
        rng.shuffle(order)
        stall = Stall(2, 0.4)
        for a, p in order:
            ctx.set(dut.write.en, 0)
            await ctx.tick().repeat(stall.cycles() + 1)
            ctx.set(dut.write.en, 1)
            ctx.set(dut.write.addr, a)
            ctx.set(dut.write.part, p)
            ctx.set(dut.write.data, expected[a, p * lanes : (p + 1) * lanes].tolist())
            await ctx.tick()
        ctx.set(dut.write.en, 0)

    async def fill(ctx):
        await write(ctx)
        await ctx.tick().repeat(100)
        for a in rng.permutation(words):
            assert await read(ctx, dut, int(a)) == expected[a].tolist()
            await ctx.tick()
            assert list(ctx.get(dut.data)) == expected[a].tolist()

    simulate(dut, load, fill)


def test_load_waits_while_a_write_is_there():
    dut = ActBuffer(CONFIGS[0])

    async def bench(ctx):
        ctx.set(dut.i_load.payload, {"addr": 3, "data": [1, 2, 3, 4]})
        ctx.set(dut.i_load.valid, 1)
        ctx.set(dut.write.en, 1)
        ctx.set(dut.write.addr, 3)
        ctx.set(dut.write.data, [9, 9])
        assert not ctx.get(dut.i_load.ready)
        await ctx.tick()
        ctx.set(dut.write.en, 0)
        ctx.set(dut.i_load.valid, 0)
        assert (await read(ctx, dut, 3))[:2] == [9, 9]
        ctx.set(dut.i_load.valid, 1)
        assert ctx.get(dut.i_load.ready)
        await ctx.tick()
        ctx.set(dut.i_load.valid, 0)
        assert await read(ctx, dut, 3) == [1, 2, 3, 4]

    simulate(dut, bench)


def test_config_is_checked():
    with pytest.raises(TypeError, match=r"^config must be an AcceleratorConfig, not 'tiny'$"):
        ActBuffer("tiny")
