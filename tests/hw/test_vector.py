"""VectorUnit: whole instructions against tests/hw/vector_model.py, which is written from the documents alone."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest
from amaranth.sim import Simulator
from streams import Stall
from vector_model import (
    LOADED,
    ONES,
    RESULTS,
    SOURCES,
    Buffers,
    execute,
    fraction,
    random_float,
    random_integer,
    random_vector,
    seed_statistics,
    show,
    vector,
)

from tilewright_hw.arch import PRESETS, AcceleratorConfig
from tilewright_hw.arch.isa import Add, Dest, Mul, Scale, Source
from tilewright_hw.gateware.vector import VectorUnit

SEED = 20261123
TINY = replace(PRESETS["tiny"], acc_rows=64, act_words=64, row_words=256, param_words=64, stat_entries=64)
CONFIGS = {
    "4x4x2": TINY,
    "8x8x4": replace(TINY, rows=8, cols=8, lanes=4),
    "12x20x4": replace(TINY, rows=12, cols=20, lanes=4),
    "4x4x4": replace(TINY, lanes=4),
    "8x16x8": replace(TINY, rows=8, cols=16, lanes=8),
}


class Bench:
    """A vector unit with memories around it, and the model beside it; every instruction is compared at its end.

    `latency` lists the cycles from the acceptance of each command to its done, `stall` the share of idle cycles of the
    loads and the store stream's consumer.
    """

    def __init__(self, config: AcceleratorConfig, seed: int = 0, stall: float = 0.0):
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self.config, self.stall = config, stall
        self.dut = VectorUnit(config)
        self.model = Buffers(config)
        self.act: dict[int, list[int]] = {}
        self.store: list[list[int]] = []
        self.latency: list[int] = []
        self.loads = {"row": [], "param": []}
        self.model.acc = {
            (bank, row): [random_integer(self.rng) for _ in range(config.cols)]
            for bank in range(2)
            for row in range(64)
        }

    def load(self, name: str, address: int, word: list[int]) -> None:
        """Have a word loaded beside the next instruction, which must not use it."""
        self.loads[name].append((address, word))

    def run(self, *script) -> None:
        """Run: each step is an instruction, or a function called between instructions."""

        async def main(ctx):
            for step in script:
                if callable(step):
                    step = step()
                if step is not None:
                    await self._execute(ctx, step)
            while any(self.loads.values()):
                await ctx.tick()

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        for background in (self._accumulators, self._activations, self._consume):
            sim.add_testbench(background, background=True)
        for name in self.loads:
            sim.add_testbench(partial(self._load, name=name), background=True)
        sim.add_testbench(main)  # last: at a done, the others have seen what came with it
        sim.run()

    async def _execute(self, ctx, fields):
        dut = self.dut
        ctx.set(dut.cmd.payload, fields)
        ctx.set(dut.cmd.valid, 1)
        await ctx.tick().until(dut.cmd.ready)
        ctx.set(dut.cmd.valid, 0)
        ctx.set(dut.cmd.payload, {})
        cycles = 0
        before = len(self.model.store)
        execute(fields, self.model)
        while not ctx.get(dut.done):
            await ctx.tick()
            cycles += 1
            assert cycles < 5000, f"never done: {show(fields)}"
        self.latency.append(cycles + 1)
        assert self.act == self.model.act, show(fields)
        # What was pushed may still wait in the FIFO when the instruction is done.
        while len(self.store) < len(self.model.store):
            await ctx.tick()
            cycles += 1
            assert cycles < 9000, f"words missing in the store stream: {show(fields)}"
        got, want = self.store[before:], self.model.store[before:]
        if fields["dest"] == Dest.STORE_RAW:  # lanes past n are as they come
            got, want = self._cut(got, fields["n"]), self._cut(want, fields["n"])
        assert got == want, show(fields)
        while any(self.loads.values()):
            await ctx.tick()

    def _cut(self, words, n):
        lanes = self.config.lanes
        per_row = -(-n // lanes)
        rows = [words[i : i + per_row] for i in range(0, len(words), per_row)]
        return [[x for word in row for x in word][:n] for row in rows]

    async def _accumulators(self, ctx):
        dut, zeros = self.dut, [0] * self.config.cols
        async for *_, en, bank, address in ctx.tick().sample(dut.acc_en, dut.acc_bank, dut.acc_addr):
            if en:
                ctx.set(dut.acc_data, self.model.acc.get((bank, address), zeros))
            else:
                ctx.set(dut.acc_data, [0x55555555] * self.config.cols)

    async def _activations(self, ctx):
        act, lanes = self.dut.act, self.config.lanes
        part = act.part if len(act.part) else 0
        async for *_, en, address, part, word in ctx.tick().sample(act.en, act.addr, act.part, act.data):
            if en:
                whole = self.act.setdefault(address, [None] * self.config.rows)
                whole[part * lanes : (part + 1) * lanes] = list(word)

    async def _consume(self, ctx):
        stream, stall = self.dut.o_store, Stall(self.rng.random(), self.stall)
        while True:
            ctx.set(stream.ready, not stall.cycles())
            *_, valid, ready, word = await ctx.tick().sample(stream.valid, stream.ready, stream.payload)
            if valid and ready:
                self.store.append(list(word))

    async def _load(self, ctx, name):
        stream = getattr(self.dut, f"i_{name}")
        memory = getattr(self.model, name)
        stall = Stall(self.rng.random(), self.stall)
        while True:
            if not self.loads[name]:
                await ctx.tick()
                continue
            for _ in range(stall.cycles()):
                await ctx.tick()
            address, word = self.loads[name][0]
            ctx.set(stream.payload, {"addr": address, "data": word})
            ctx.set(stream.valid, 1)
            await ctx.tick().until(stream.ready)
            ctx.set(stream.valid, 0)
            memory[address] = word
            self.loads[name].pop(0)

    def word(self, spread: int = 6) -> list[int]:
        return [random_float(self.rng, spread) for _ in range(self.config.lanes)]

    def fill(self):
        """Load the sources and all parameters."""
        for address in SOURCES:
            self.load("row", address, self.word())
        self.load("row", ONES, [fraction(1)] * self.config.lanes)
        for address in range(64):
            self.load("param", address, self.word())

    def wait_loads(self):
        """A short instruction that reads nothing loaded; the bench waits for all loads at its end."""
        return vector(source=Source.ACC)

    def read_back(self, rows: range):
        """Store a range of row-buffer words, so that they are compared."""
        n = len(rows) * self.config.lanes
        return vector(n=n, source=Source.ROW, src=rows.start, dest=Dest.STORE_FP32)

    def read_stat(self, entries: range):
        """Store both fields of a range of statistics entries."""
        every = {"m": len(entries), "stat": entries.start, "stat_m": 1, "dest": Dest.STORE_FP32}
        return [
            vector(source=Source.STAT, **every),
            vector(source=Source.ROW, src=ONES, scale=Scale.STAT_A, **every),
        ]


def run_random(config, count, seed, stall):
    bench = Bench(config, seed, stall)
    rng = bench.rng

    def instruction():
        f = random_vector(rng, config)
        reads = (f["source"] == Source.ROW and f["src"] < 64) or f["add"] == Add.ROW or f["mul"] == Mul.ROW
        if not reads:
            for address in rng.sample(LOADED, rng.randrange(8)):
                bench.load("row", address, bench.word(rng.choice([2, 6, 40])))
        return f

    checks = [bench.read_back(RESULTS), *bench.read_stat(range(64))]
    body = [instruction] * count
    chunk = 15
    body = [s for i in range(0, count, chunk) for s in [*body[i : i + chunk], *checks]]
    bench.run(bench.fill, bench.wait_loads, *seed_statistics(config), *body)
    return bench


@pytest.mark.parametrize(("name", "stall"), [("4x4x2", 0.5), ("8x8x4", 0.0), ("12x20x4", 0.6)])
def test_random(name, stall):
    run_random(CONFIGS[name], 60, SEED, stall)
