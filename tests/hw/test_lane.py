"""The vector unit's parts: a lane beside its tokens, rings, valid lanes, the buffers' memory."""

from __future__ import annotations

import itertools
import random

import f24
import pytest
from amaranth import Elaboratable, Module
from amaranth.lib import data
from amaranth.lib.wiring import Out
from streams import outlive_reset, simulate

from tilewright_hw.arch.isa import Func
from tilewright_hw.gateware.float import FloatToInt
from tilewright_hw.gateware.functions import LaneFunction
from tilewright_hw.gateware.lane import Lane, LanePath, TokenPath
from tilewright_hw.gateware.results import ValidLanes
from tilewright_hw.gateware.ring import Ring
from tilewright_hw.gateware.vector_memory import VectorMemory

SEED = 20261123
TOKEN = {"valid": 1, "row_end": 1, "outer_end": 1, "last": 1}
STAGES = ("acc", "mul1", "mul2", "add", "func", "mul3")


FUNCTIONS = {Func.EXP2: f24.exp2, Func.SIGMOID: f24.sigmoid, Func.TABLE: lambda x: 0}  # nothing was loaded


def lane_reference(path, high, acc, operand, scalar, param, stat, addend, factor):
    x = f24.encode(128 * high + acc) if path["acc"] else operand
    x = f24.mul(x, scalar) if path["mul1"] else x
    x = f24.mul(x, param) if path["mul2"] else x
    x3 = f24.add(x, stat or addend) if path["add"] else x
    x4 = FUNCTIONS[path["kind"]](x3) if path["func"] else x3
    return f24.mul(x4, x3 if path["own"] else factor) if path["mul3"] else x4


def random_choices(rng, used):
    """Return the rest of a path with these stages."""
    kind = rng.choice(list(FUNCTIONS))
    return {
        "own": used["mul3"] and not used["func"] and rng.randint(0, 1),
        "kind": kind,
        "table": used["func"] and kind == Func.TABLE,
        "wide": used["acc"] and rng.randint(0, 1),
        "quantise16": rng.randint(0, 1),
    }


class LaneWithTokens(Elaboratable):
    """A lane whose registers are loaded by the tokens of its own path; its operands stand still."""

    def __init__(self):
        self.lane, self.tokens = Lane(odd=False), TokenPath()

    def elaborate(self, platform):
        m = Module()
        m.submodules.lane, m.submodules.tokens = self.lane, self.tokens
        m.d.comb += [
            self.lane.path.eq(self.tokens.path),
            self.lane.load_x0.eq(self.tokens.x0.valid),
            self.lane.load_x3.eq(self.tokens.x3.valid),
            self.lane.load_x5.eq(self.tokens.x5.valid),
            self.lane.keep.eq(1),
            self.lane.align.eq(LaneFunction.ALIGN),
            self.lane.exponent.eq(LaneFunction.SIGMOID_EXPONENT),
        ]
        return m


def test_every_path():
    """Whatever stages are used, the token comes to x5 with the word, and once."""
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    dut = LaneWithTokens()
    lane, tokens = dut.lane, dut.tokens

    async def bench(ctx):
        for used in itertools.product((0, 1), repeat=len(STAGES)):
            path = dict(zip(STAGES, used, strict=True))
            path |= random_choices(rng, path)
            acc = rng.randrange(-(1 << 31), 1 << 31)
            high = path["wide"] and rng.randrange(-(1 << 31), 1 << 31)
            operands = [f24.random_f24(rng, 120, 132) for _ in range(6)]
            operands[rng.choice([3, 4])] = 0  # of stat and addend, one is used
            ctx.set(tokens.path, path)
            ctx.set(lane.acc, acc)
            ctx.set(lane.high, high)
            for name, value in zip(("operand", "scalar", "param", "stat", "addend", "factor"), operands, strict=True):
                ctx.set(getattr(lane, name), value)
            ctx.set(tokens.issue, TOKEN)
            await ctx.tick()
            ctx.set(tokens.issue, {})
            seen = 0
            while not ctx.get(tokens.x5.valid):
                await ctx.tick()
                seen += 1
                assert seen < 60, path
            await ctx.tick()
            want = lane_reference(path, high, acc, *operands)
            assert ctx.get(lane.x5) == want, path
            await ctx.tick().repeat(FloatToInt.LATENCY)
            assert ctx.get(lane.integer) == f24.f2i(want, 16383 if path["quantise16"] else 127)
            assert not ctx.get(tokens.x5.valid)

    simulate(dut, bench)


@pytest.mark.parametrize("transparent", [False, True])
def test_ring(transparent):
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    dut = Ring(8, depth=4, transparent=transparent)

    async def bench(ctx):
        waiting, shown = [], None
        for _ in range(500):
            put = len(waiting) < 4 and rng.random() < 0.6
            value = rng.getrandbits(8)
            take = bool(waiting or (put and transparent)) and rng.random() < 0.5
            ctx.set(dut.put, put)
            ctx.set(dut.put_data, value)
            ctx.set(dut.take, take)
            await ctx.tick()
            if put:
                waiting.append(value)
            if take:
                shown = waiting.pop(0)
            assert shown is None or ctx.get(dut.data) == shown

    simulate(dut, bench)


@pytest.mark.parametrize("depth", [0, 1, 6, "4"])
def test_ring_depth(depth):
    with pytest.raises(ValueError, match=f"^Ring depth must be a power of two of at least 2, not {depth!r}$"):
        Ring(8, depth=depth)


@pytest.mark.parametrize("lanes", [2, 8])
def test_valid_lanes(lanes):
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    dut = ValidLanes(lanes=lanes)

    async def bench(ctx):
        for _ in range(60):
            n, outer, inner = rng.randint(1, 4 * lanes), rng.randint(1, 4), rng.randint(1, 3)
            limit = rng.choice([0, 65535, rng.randint(0, n + 2)])
            causal = rng.randint(0, 1)
            words = -(-n // lanes) + rng.randint(0, 1)  # also padding
            for name, value in (("n", n), ("limit", limit), ("causal", causal), ("load", 1)):
                ctx.set(getattr(dut, name), value)
            await ctx.tick()
            for name in ("n", "limit", "causal", "load"):
                ctx.set(getattr(dut, name), 0)
            for m, h, w in itertools.product(range(outer), range(inner), range(words)):
                while rng.random() < 0.2:
                    ctx.set(dut.token, {})
                    await ctx.tick()
                row_end = w == words - 1
                ctx.set(dut.token, {"valid": 1, "row_end": row_end, "outer_end": row_end and h == inner - 1})
                await ctx.tick()
                bound = min(n, limit + m * causal)
                want = sum(1 << i for i in range(lanes) if w * lanes + i < bound)
                assert ctx.get(dut.keep) == want
            ctx.set(dut.token, {})

    simulate(dut, bench)


def test_memory_writes_before_loads():
    dut = VectorMemory(lanes=2, words=16)

    async def bench(ctx):
        ctx.set(dut.write_en, 1)
        ctx.set(dut.write, {"addr": 3, "data": [1, 2]})
        ctx.set(dut.i_load.payload, {"addr": 19, "data": [3, 4]})  # wraps to 3
        ctx.set(dut.i_load.valid, 1)
        assert not ctx.get(dut.i_load.ready)
        await ctx.tick()
        ctx.set(dut.write_en, 0)
        ctx.set(dut.en, 1)
        ctx.set(dut.addr, 3)
        assert ctx.get(dut.i_load.ready)
        await ctx.tick()
        ctx.set(dut.i_load.valid, 0)
        assert list(ctx.get(dut.early)) == [1, 2]
        await ctx.tick()
        ctx.set(dut.en, 0)
        assert list(ctx.get(dut.early)) == [3, 4]
        assert list(ctx.get(dut.data)) == [1, 2]
        await ctx.tick().repeat(3)
        assert list(ctx.get(dut.data)) == [3, 4]  # held

    simulate(dut, bench)


def test_no_token_outlives_a_reset():
    """What came out behind it would be taken for the next program's."""
    dut = TokenPath()
    stages = [getattr(dut.path, name) for name, _ in data.Layout.cast(LanePath) if name not in ("kind", "raw")]
    outputs = [getattr(dut, name).valid for name, member in dut.signature.members.items() if member.flow == Out]
    assert outlive_reset(dut, [(stage, 1) for stage in stages], [dut.issue.valid], outputs) == []
