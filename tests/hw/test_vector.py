"""VectorUnit: whole instructions against tests/hw/vector_model.py, which is written from the documents alone."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest
from amaranth.sim import Simulator
from streams import Stall, put
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
    random_segments,
    random_vector,
    seed_statistics,
    show,
    vector,
)

from tilewright_hw.arch import PRESETS, AcceleratorConfig
from tilewright_hw.arch.isa import Add, Dest, Func, Mul, Reduce, Scale, Source
from tilewright_hw.gateware.float import FloatAdd, FloatMul, FloatToInt, IntToFloat
from tilewright_hw.gateware.functions import LaneFunction
from tilewright_hw.gateware.reduce import RowScalar
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

    `stall` is the share of idle cycles of the loads and of the store stream's consumer.
    """

    def __init__(self, config: AcceleratorConfig, seed: int = 0, stall: float = 0.0):
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self.config, self.stall = config, stall
        self.dut = VectorUnit(config)
        self.model = Buffers(config)
        self.act: dict[int, list[int]] = {}
        self.store: list[list[int]] = []
        self.commands: list[dict[str, int]] = []
        self.cycle = 0
        self.accepted: list[int] = []
        self.finished: list[int] = []
        self.loads = {"row": [], "param": []}
        self.tables = []
        self.model.acc = {
            (bank, row): [random_integer(self.rng) for _ in range(config.cols)]
            for bank in range(2)
            for row in range(64)
        }

    def load(self, name: str, address: int, word: list[int]) -> None:
        """Have a word loaded beside the next instruction, which must not use it."""
        self.loads[name].append((address, word))

    def load_table(self) -> None:
        """Have a random table loaded beside the next instruction, which must not use it."""
        self.tables.append((random_segments(self.rng), self.rng.randint(12, 26), self.rng.randint(0, 24)))

    def run(self, *script, eager: bool = False) -> None:
        """Run: each step is an instruction, or a function called between instructions that may return one.

        With `eager`, all steps are instructions, each command is offered while the one before still runs, and what they
        did is compared at the end.
        """

        async def main(ctx):
            if eager:
                self.commands += script
                for name, loads in self.loads.items():
                    getattr(self.model, name).update(loads)
                for segments, *shifts in self.tables:
                    self.model.segments, self.model.shifts = segments, shifts
                for fields in script:
                    execute(fields, self.model)
                await self._wait(ctx, lambda: len(self.finished) == len(script), "not all done")
                await self._compare(ctx, 0, "eager")
                return
            for step in script:
                fields = step() if callable(step) else step
                if fields is not None:
                    await self._single(ctx, fields)

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        for background in (self._count, self._command, self._accumulators, self._activations, self._consume):
            sim.add_testbench(background, background=True)
        for name in self.loads:
            sim.add_testbench(partial(self._load, name=name), background=True)
        sim.add_testbench(self._load_table, background=True)
        sim.add_testbench(main)  # last: at a done, the others have seen what came with it
        sim.run()

    async def _count(self, ctx):
        async for *_, done in ctx.tick().sample(self.dut.done):
            if done:  # seen at the end of its cycle, in which activations may still be written
                self.finished.append(self.cycle)
            self.cycle += 1

    async def _command(self, ctx):
        cmd = self.dut.cmd
        while True:
            ctx.set(cmd.valid, bool(self.commands))
            if self.commands:
                ctx.set(cmd.payload, self.commands[0])
            *_, valid, ready = await ctx.tick().sample(cmd.valid, cmd.ready)
            if valid and ready:
                self.accepted.append(self.cycle)
                self.commands.pop(0)

    async def _single(self, ctx, fields):
        """Execute one instruction, and compare what it did with the model."""
        before, count = len(self.model.store), len(self.finished)
        execute(fields, self.model)
        self.commands.append(fields)
        await self._wait(ctx, lambda: len(self.finished) > count, f"never done: {show(fields)}")
        await self._compare(ctx, before, show(fields), raw=fields["dest"] == Dest.STORE_RAW and fields["n"])

    async def _wait(self, ctx, condition, text):
        start = self.cycle
        while not condition():
            assert self.cycle < start + 20000, text
            await ctx.tick()

    async def _compare(self, ctx, before, text, raw=0):
        """Compare activations, and the store stream's words from `before` on (with `raw`, that many of each row)."""
        assert self.act == self.model.act, text
        # What was pushed may still wait in the FIFO, and loads go on.
        await self._wait(ctx, lambda: len(self.store) >= len(self.model.store), f"words missing: {text}")
        await self._wait(ctx, lambda: not any(self.loads.values()) and not self.tables, "loads do not end")
        got, want = self.store[before:], self.model.store[before:]
        if raw:  # lanes past n are as they come
            got, want = self._cut(got, raw), self._cut(want, raw)
        assert got == want, text

    @property
    def latency(self) -> list[int]:
        """Cycles from each command's acceptance to its done."""
        return [b - a for a, b in zip(self.accepted, self.finished, strict=False)]

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

    async def _load_table(self, ctx):
        """Load tables as the reader does: one segment after another, LOAD's `dst` beside each."""
        stream, stall = self.dut.i_table, Stall(self.rng.random(), self.stall / 4)
        while True:
            if not self.tables:
                await ctx.tick()
                continue
            segments, a, b = self.tables[0]
            words = [
                {"data": v << 12 & 0xFFFFF000 | s & 0xFFF, "shifts": b << 8 | a, "last": j == 511}
                for j, (v, s) in enumerate(segments)
            ]
            await put(ctx, stream, words, stall)
            self.model.segments, self.model.shifts = segments, (a, b)
            self.tables.pop(0)

    def word(self, spread: int = 6) -> list[int]:
        return [random_float(self.rng, spread) for _ in range(self.config.lanes)]

    def fill(self):
        """Load the sources and all parameters."""
        for address in SOURCES:
            self.load("row", address, self.word())
        self.load("row", ONES, [fraction(1)] * self.config.lanes)
        for address in range(64):
            self.load("param", address, self.word())
        self.load_table()

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
        if f["func"] != Func.TABLE and rng.random() < 0.02:
            bench.load_table()
        return f

    checks = [bench.read_back(RESULTS), *bench.read_stat(range(64))]
    chunk = 15
    body = [s for _ in range(count // chunk) for s in [*[instruction] * chunk, *checks]]
    bench.run(bench.fill, bench.wait_loads, *seed_statistics(config), *body)
    return bench


@pytest.mark.parametrize(
    ("name", "stall", "count"),
    [
        ("4x4x2", 0.5, 40),
        ("12x20x4", 0.6, 15),
        pytest.param("8x8x4", 0.0, 60, marks=pytest.mark.slow),
        pytest.param("12x20x4", 0.6, 60, marks=pytest.mark.slow),
    ],
)
def test_random(name, stall, count):
    run_random(CONFIGS[name], count, SEED, stall)


def short_vector(rng, config):
    """Return a random instruction, often of few words, whose stored words have no lanes past n if they are raw."""
    f = random_vector(rng, config)
    if f["dest"] == Dest.STORE_RAW:
        f |= {"source": Source.ACC, "n": config.lanes * rng.randint(1, 3)}
    if rng.random() < 0.5:
        f |= {"m": 1, "h": 1, "n": min(f["n"], 2 * config.lanes)}
    return f


def test_random_eager():
    """The next command is taken with the last write of the one before; nothing of that one is left on the way."""
    config = CONFIGS["8x8x4"]
    bench = Bench(config, SEED)
    body = [short_vector(bench.rng, config) for _ in range(50)]
    bench.fill()
    loading = vector(m=200, h=10)  # runs until everything is loaded
    checks = [bench.read_back(RESULTS), *bench.read_stat(range(64))]
    bench.run(loading, *seed_statistics(config), *body, *checks, eager=True)
    taken = [b - a for a, b in zip(bench.accepted, bench.accepted[1:], strict=False)]
    assert taken == bench.latency[:-1]


def float32(x: float) -> int:
    return fraction(x) << 8


def rows(config, m, n, **fields):
    """Return an instruction on m contiguous rows of n elements; `src` and `dst` are the first words."""
    words = -(-n // config.lanes)
    units = {Dest.ACT: 1, Dest.ACT16: 2}.get(fields.get("dest"))
    dst_words = -(-n // config.rows) * units if units else words
    src_words = -(-n // config.cols) if fields["source"] == Source.ACC else words
    strides = {"src_m": src_words, "src_n": 1, "row_m": words, "dst_m": dst_words, "stat_m": 1, "red_m": 1}
    return vector(n=n, m=m, **strides | fields)


def layer(config):
    """Return the instructions of a layer in small: every kind of step that a decoder needs."""
    n, half = 6 * config.lanes - 2, 3 * config.lanes
    acc, row = Source.ACC, Source.ROW
    norm = {"const1": float32(1 / n), "const2": 0x3727}
    quantise = {"const1": float32(1 / 127), "reduce": Reduce.QSCALE}
    dequantise = {"source": acc, "scale": Scale.STAT_B, "param": 1}
    exponent = {"source": row, "add": Add.NEG_STAT_A, "func": Func.EXP2}
    steps = {
        "residual": rows(config, 3, n, **dequantise, add=Add.ROW, row=1, dest=Dest.ROW, dst=100, reduce=Reduce.ABSMAX),
        "sumsq": rows(config, 3, n, source=row, src=100, reduce=Reduce.SUMSQ, red=8, **norm),
        "mean": rows(config, 3, n, source=row, src=100, reduce=Reduce.SUM, red=12, **norm),
        "norm": rows(
            config, 3, n, source=row, src=100, stat=8, scale=Scale.STAT_A, param=1, dest=Dest.ROW, dst=130,
            red=16, **quantise,
        ),
        "to act": rows(config, 3, n, source=row, src=130, stat=16, scale=Scale.STAT_A, dest=Dest.ACT, dst=5),
        "rope": rows(
            config, 3, half, source=row, src=100, add=Add.ROTATE, par=2, par_m=3, dest=Dest.ROW, dst=160,
            scale16=1, red=20, **quantise,
        ),
        "store key": rows(config, 3, half, source=row, src=160, stat=20, scale=Scale.STAT_A, dest=Dest.STORE_INT8),
        "store scales": vector(m=3, source=Source.STAT, stat=20, stat_m=1, dest=Dest.STORE_BF16),
        "scores": rows(
            config, 3, half, **dequantise, stat=20, src=9, limit=5, causal=1, dest=Dest.ROW, dst=170,
            reduce=Reduce.MAX, red=24,
        ),
        "exp": rows(
            config, 3, half, **exponent, src=170, stat=24, limit=5, causal=1, dest=Dest.ROW, dst=170,
            reduce=Reduce.EXPSUM, red=28,
        ),
        "probabilities": rows(
            config, 3, half, source=row, src=170, stat=28, scale=Scale.STAT_A, param=1, par=7, dest=Dest.ROW, dst=180,
            limit=5, causal=1, red=32, **quantise,
        ),
        "silu": rows(
            config, 3, n, **dequantise, src=20, bank=1, stat=16, func=Func.SIGMOID, mul=Mul.SELF,
            dest=Dest.ROW, dst=190,
        ),
        "gate": rows(
            config, 3, n, **dequantise, src=2, stat=16, mul=Mul.ROW, row=190, dest=Dest.ROW, dst=220,
            red=36, **quantise,
        ),
        "heads": vector(
            n=half, m=2, h=3, source=acc, src_m=9, src_h=3, src_n=1, reduce=Reduce.QSCALE, reduce_outer=1,
            const1=float32(1 / 127), red=40, red_m=1,
        ),
        "logits": rows(config, 1, n, **dequantise, stat=16, dest=Dest.STORE_FP32),
        "centre": rows(
            config, 3, n, source=row, src=100, reduce=Reduce.VAR, red=44, dest=Dest.NONE, **norm,
        ),
        "layer norm": rows(
            config, 3, n, source=row, src=100, stat=44, scale=Scale.STAT_A, add=Add.STAT_B, mul=Mul.PARAM, par=4,
            dest=Dest.ROW, dst=130, red=16, **quantise | {"const1": float32(1 / 16383)},
        ),
        "to pairs": rows(config, 3, n, source=row, src=130, stat=16, scale=Scale.STAT_A, dest=Dest.ACT16, dst=20),
        "bias, table": rows(
            config, 3, n, source=acc, wide=1, src_n=2, scale=Scale.STAT_B, stat=16, add=Add.PARAM, func=Func.TABLE,
            dest=Dest.ROW, dst=190, mul=Mul.SELF,
        ),
        "token": rows(config, 3, n, source=row, src=190, reduce=Reduce.ARGMAX, red=48, const1=77 << 8),
        "token, on": rows(
            config, 3, n, source=row, src=100, reduce=Reduce.ARGMAX, merge=1, stat=48, red=48, const1=177 << 8,
        ),
        "store token": vector(m=3, source=Source.STAT, stat=48, stat_m=1, dest=Dest.STORE_RAW),
        "integers": rows(config, 3, n, source=acc, dest=Dest.STORE_RAW),
    }  # fmt: skip
    return steps


@pytest.mark.parametrize("name", ["4x4x2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("4x4x4", "8x16x8"))])
def test_layer(name):
    config = CONFIGS[name]
    bench = Bench(config, SEED, 0.2)
    checks = [bench.read_back(RESULTS), *bench.read_stat(range(64))]
    bench.run(bench.fill, bench.wait_loads, *seed_statistics(config), *layer(config).values(), *checks)


I2F, MUL, ADD, FUNC = 1 + IntToFloat.LATENCY, FloatMul.LATENCY, FloatAdd.LATENCY, LaneFunction.LATENCY
DEQUANTISE = {"source": Source.ACC, "scale": Scale.STAT_B, "param": 1, "dest": Dest.ROW, "dst": 200}
EXPONENTS = {"source": Source.ROW, "add": Add.NEG_STAT_A, "func": Func.EXP2, "reduce": Reduce.EXPSUM}
OVERHEAD = {
    "copy": ({"source": Source.ROW, "dest": Dest.ROW, "dst": 200}, 0),
    "raw": ({"source": Source.ACC, "dest": Dest.STORE_RAW}, -2),
    "quantise": ({"source": Source.ROW, "scale": Scale.STAT_A, "dest": Dest.ACT}, MUL + FloatToInt.LATENCY),
    "dequantise": (DEQUANTISE, I2F + 2 * MUL),
    "residual": (DEQUANTISE | {"add": Add.ROW}, I2F + 2 * MUL + ADD),
    "wide": (DEQUANTISE | {"wide": 1}, I2F + 2 * MUL + 1),
    "bias": (DEQUANTISE | {"param": 0, "add": Add.PARAM}, I2F + MUL + ADD),
    "table": (DEQUANTISE | {"func": Func.TABLE, "mul": Mul.SELF}, I2F + 3 * MUL + LaneFunction.TABLE_LATENCY),
    "quantise16": ({"source": Source.ROW, "scale": Scale.STAT_A, "dest": Dest.ACT16}, MUL + FloatToInt.LATENCY + 1),
    "argmax": (DEQUANTISE | {"reduce": Reduce.ARGMAX}, I2F + 2 * MUL + 3),
    "variance": (DEQUANTISE | {"reduce": Reduce.VAR}, I2F + 2 * MUL + 6 + RowScalar.latency(Reduce.VAR)),
    "max": (DEQUANTISE | {"reduce": Reduce.MAX}, I2F + 2 * MUL + 3),
    "exponents": (EXPONENTS, ADD + FUNC + 6 + RowScalar.latency(Reduce.EXPSUM)),
    "scale": (DEQUANTISE | {"reduce": Reduce.QSCALE}, I2F + 2 * MUL + 3 + RowScalar.latency(Reduce.QSCALE)),
    "silu": (DEQUANTISE | {"func": Func.SIGMOID, "mul": Mul.SELF}, I2F + 3 * MUL + FUNC),
}


@pytest.mark.parametrize(("n", "m"), [(24, 1), (1, 20), pytest.param(4, 20, marks=pytest.mark.slow)])
def test_cycles(n, m):
    """One word per cycle, rows of one word too; four cycles and the stages used are the way to done.

    Two cycles per word where two accumulator rows are read or two activation words written; one more per row of VAR.
    """
    config = CONFIGS["8x8x4"]
    bench = Bench(config, SEED)
    cases = [rows(config, m, n, **fields) for fields, _ in OVERHEAD.values()]
    bench.run(bench.fill, bench.wait_loads, *cases)
    for latency, case, (_, overhead) in zip(bench.latency[1:], cases, OVERHEAD.values(), strict=True):
        unit = config.rows if case["dest"] in (Dest.ACT, Dest.ACT16) else config.lanes
        words = m * -(-n // unit) * unit // config.lanes
        if case["wide"] or case["dest"] == Dest.ACT16:
            words = 2 * words - 1
        if case["reduce"] == Reduce.VAR:
            words += m - 1
        assert latency == words + 4 + overhead, show(case)


def test_store_stall():
    """A consumer that takes nothing for long loses nothing, and the unit says what it waits for."""
    bench = Bench(CONFIGS["8x8x4"], SEED)
    instruction = rows(bench.config, 6, 40, source=Source.ACC, dest=Dest.STORE_RAW)
    waited = []

    async def consume(ctx):
        stream = bench.dut.o_store
        await ctx.tick().repeat(100)
        waited.append(ctx.get(bench.dut.wait_store))
        assert not bench.latency
        ctx.set(stream.ready, 1)
        while True:
            *_, valid, word = await ctx.tick().sample(stream.valid, stream.payload)
            if valid:
                bench.store.append(list(word))

    bench._consume = consume
    bench.run(instruction)
    assert waited == [1]


def test_wrong_config():
    with pytest.raises(TypeError, match=r"^config must be an AcceleratorConfig, not 'tiny'$"):
        VectorUnit("tiny")
