from __future__ import annotations

import random

import pytest
from amaranth.hdl import signed
from streams import simulate

from tilewright_hw.gateware.skew import Skew


@pytest.mark.parametrize(("width", "count", "step"), [(8, 2, 1), (5, 7, 1), (3, 4, 3), (8, 16, 2)])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_lane_k_is_k_steps_late(width, count, step, share):
    rng = random.Random(f"{width} {count} {step}")
    dut = Skew(signed(width), count, step)
    assert dut.latency == (count - 1) * step
    low, high = -(1 << width - 1), (1 << width - 1) - 1
    rows = [[rng.randint(low, high) for _ in range(count)] for _ in range(60)]
    valid = [rng.random() < share for _ in rows]
    compared = 0

    async def bench(ctx):
        nonlocal compared
        for t in range(len(rows)):
            ctx.set(dut.valid, valid[t])
            ctx.set(dut.i, rows[t])
            out = ctx.get(dut.o)
            for k in range(count):
                if (then := t - k * step) >= 0 and valid[then]:
                    assert out[k] == rows[then][k]
                    compared += 1
            await ctx.tick()

    simulate(dut, bench)
    assert compared > 10 * count


@pytest.mark.parametrize(("name", "value"), [("count", 0), ("step", -1), ("count", 2.5)])
def test_bad_parameters(name, value):
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must be (at least 1|an integer), not {value!r}$"):
        Skew(8, **{"count": 4, "step": 1, name: value})
