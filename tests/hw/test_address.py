"""The vector unit's loops and address generators, against the formulas of docs/architecture.md."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator

from tilewright_hw.gateware.address import AddressGenerator, RowLoops

SEED = 20261123


def tokens(words: int, m: int, h: int) -> list[tuple[int, int, int, tuple[int, int, int]]]:
    """Return (m, h, word, (row_end, outer_end, last)) of each token."""
    result = []
    for i in range(m):
        for j in range(h):
            for w in range(words):
                row = w == words - 1
                outer = row and j == h - 1
                result.append((i, j, w, (int(row), int(outer), int(outer and i == m - 1))))
    return result


def run(dut, testbench):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(testbench)
    sim.run()


def set_token(ctx, port, flags, valid=1):
    for name, value in zip(("row_end", "outer_end", "last"), flags, strict=True):
        ctx.set(getattr(port, name), value)
    ctx.set(port.valid, valid)


@pytest.mark.parametrize("subs", [1, 2, 3, 4])
def test_addresses(subs):
    rng = random.Random(SEED + subs)
    dut = AddressGenerator(subs=subs)

    async def testbench(ctx):
        for _ in range(12):
            shape = [rng.choice([1, 1, 2, 3, 5]) for _ in range(3)]
            base, step_m, step_h, step = (rng.randrange(1 << 16) for _ in range(4))
            used = rng.randint(1, subs)
            for name, value in (
                ("base", base),
                ("step_m", step_m),
                ("step_h", step_h),
                ("step", step),
                ("last_sub", used - 1),
                ("load", 1),
            ):
                ctx.set(getattr(dut, name), value)
            await ctx.tick()
            ctx.set(dut.load, 0)
            ctx.set(dut.base, 0)
            for m, h, w, flags in tokens(*shape):
                set_token(ctx, dut.token, flags, valid=0)
                while rng.random() < 0.3:
                    await ctx.tick()
                set_token(ctx, dut.token, flags)
                expected = (base + m * step_m + h * step_h + w // used * step) & 0xFFFF
                assert (ctx.get(dut.addr), ctx.get(dut.sub)) == (expected, w % used)
                await ctx.tick()
            ctx.set(dut.token.valid, 0)

    run(dut, testbench)


@pytest.mark.parametrize(("lanes", "parts"), [(2, 1), (2, 3), (4, 2), (16, 8)])
def test_loops(lanes, parts):
    rng = random.Random(SEED + lanes + parts)
    dut = RowLoops(lanes=lanes, parts=parts)

    async def testbench(ctx):
        for _ in range(25):
            n = rng.choice([1, lanes - 1, lanes, lanes + 1, rng.randint(1, 5 * lanes * parts)])
            m, h, pad = rng.choice([1, 2, 3]), rng.choice([1, 2, 4]), rng.randint(0, 1)
            unit = lanes * (parts if pad else 1)
            words = -(-n // unit) * unit // lanes
            for name, value in (("n", n), ("m", m), ("h", h), ("pad", pad), ("load", 1)):
                ctx.set(getattr(dut, name), value)
            await ctx.tick()
            for name in ("n", "m", "h", "pad", "load"):
                ctx.set(getattr(dut, name), 0)
            for *_, flags in tokens(words, m, h):
                while rng.random() < 0.2:
                    ctx.set(dut.advance, 0)
                    assert ctx.get(dut.active)
                    assert not ctx.get(dut.token.valid)
                    await ctx.tick()
                ctx.set(dut.advance, 1)
                assert ctx.get(dut.token.valid)
                t = dut.token
                assert tuple(ctx.get(x) for x in (t.row_end, t.outer_end, t.last)) == flags
                await ctx.tick()
            assert not ctx.get(dut.active)
            assert not ctx.get(dut.token.valid)

    run(dut, testbench)


def test_long_row():
    dut = RowLoops(lanes=2, parts=1)

    async def testbench(ctx):
        for name, value in (("n", 65535), ("m", 1), ("h", 1), ("load", 1), ("advance", 1)):
            ctx.set(getattr(dut, name), value)
        await ctx.tick()
        ctx.set(dut.load, 0)
        await ctx.tick().repeat(32767)
        assert ctx.get(dut.token.last)
        await ctx.tick()
        assert not ctx.get(dut.active)

    run(dut, testbench)


def test_wrong_parameters():
    with pytest.raises(TypeError, match=r"^AddressGenerator subs must be a positive integer, not 0$"):
        AddressGenerator(subs=0)
    with pytest.raises(TypeError, match=r"^RowLoops parts must be a positive integer, not 1\.5$"):
        RowLoops(lanes=2, parts=1.5)
    with pytest.raises(ValueError, match=r"^RowLoops lanes must be a power of two, not 6$"):
        RowLoops(lanes=6, parts=1)
