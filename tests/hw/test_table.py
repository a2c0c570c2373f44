"""A table's way from LOAD's beats to the lanes' memories."""

from __future__ import annotations

import random

import pytest
from amaranth import Elaboratable, Module
from amaranth.lib.wiring import connect
from streams import Stall, put, simulate

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import LoadDest
from tilewright_hw.gateware.functions import LaneFunction
from tilewright_hw.gateware.layouts import TABLE_SEGMENTS
from tilewright_hw.gateware.load import LoadSink
from tilewright_hw.gateware.table import TableLoader

SEED = 20261124


class Path(Elaboratable):
    def __init__(self, config):
        self.sink, self.table = LoadSink(config), TableLoader()

    def elaborate(self, platform):
        m = Module()
        m.submodules.sink, m.submodules.table = self.sink, self.table
        connect(m, self.sink.o_table, self.table.i)
        return m


@pytest.mark.parametrize("bus_bits", [32, 128])
def test_load(bus_bits):
    """Two tables, the second in two runs; segments come in order, and the shifts are those of `dst`."""
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    config = AcceleratorConfig(bus_bits=bus_bits)
    dut = Path(config)
    loads = [(11, -128, 1), (31, 127, 2)]
    tables = [[rng.getrandbits(32) for _ in range(TABLE_SEGMENTS)] for _ in loads]
    per_beat = bus_bits // 32
    written, done = [], []

    async def beats(ctx):
        for words, (_, _, runs) in zip(tables, loads, strict=True):
            for first in range(0, TABLE_SEGMENTS, per_beat):
                after = first + per_beat
                ends = (after % (TABLE_SEGMENTS // runs) == 0) | (after == TABLE_SEGMENTS) << 1
                beat = sum(word << 32 * i for i, word in enumerate(words[first:after]))
                await put(ctx, dut.sink.i, [{"data": beat, "end": ends}], Stall(rng.random(), 0.2))
        await ctx.tick().repeat(4)
        ctx.set(dut.table.loaded, 1)
        await ctx.tick().repeat(2)
        assert ctx.get(dut.table.align) == LaneFunction.TABLE_ALIGN - loads[-1][0]
        assert ctx.get(dut.table.exponent) == LaneFunction.TABLE_EXPONENT - loads[-1][1]
        ctx.set(dut.table.loaded, 0)
        await ctx.tick().repeat(2)
        assert ctx.get(dut.table.align) == LaneFunction.ALIGN
        assert ctx.get(dut.table.exponent) == LaneFunction.SIGMOID_EXPONENT

    async def commands(ctx):
        targets = [{"dest": LoadDest.TABLE, "dst": a | (b & 255) << 8, "dst_stride": 7} for a, b, _ in loads]
        await put(ctx, dut.sink.cmd, targets)

    async def watch(ctx):
        write = dut.table.write
        async for *_, en, addr, value, step, end in ctx.tick().sample(
            write.en, write.addr, write.data.value, write.data.step, dut.sink.done
        ):
            if en:
                written.append((addr, (value & 0xFFFFF) << 12 | step & 0xFFF))
            done.append(end)

    simulate(dut, beats, commands, background=[watch])
    assert written == [place for words in tables for place in enumerate(words)]
    assert sum(done) == len(loads)
