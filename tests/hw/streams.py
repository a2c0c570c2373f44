"""Drive and watch streams in Amaranth's simulator, with random stalls.

    async def send(ctx):
        await put(ctx, dut.i, items, Stall(seed, 0.3))

    simulate(dut, send, receive)

`pythonpath` in pyproject.toml lets every test write `from streams import get, put`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from amaranth import ResetInserter, Signal
from amaranth.sim import Simulator


class Stall:
    """Seeded random idle cycles: before each transfer, idle on with probability `share`."""

    def __init__(self, seed: int = 0, share: float = 0.0) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share must be from 0 to below 1, not {share!r}")
        self.share = share
        self._random = random.Random(seed)

    def cycles(self) -> int:
        """Return how many cycles to idle now."""
        count = 0
        while self.share and self._random.random() < self.share:
            count += 1
        return count


async def put(ctx, stream, items: Iterable[Any], stall: Stall | None = None) -> None:
    """Send every item, idling between them as `stall` says; leaves valid low."""
    stall = stall or Stall()
    for item in items:
        if idle := stall.cycles():
            ctx.set(stream.valid, 0)
            await ctx.tick().repeat(idle)
        ctx.set(stream.payload, item)
        ctx.set(stream.valid, 1)
        await ctx.tick().until(stream.ready)
    ctx.set(stream.valid, 0)


async def get(ctx, stream, count: int, stall: Stall | None = None) -> list[Any]:
    """Receive `count` items, idling between them as `stall` says; leaves ready low.

    A payload that changes or vanishes while it is offered and not taken fails an assertion.
    """
    stall = stall or Stall()
    items: list[Any] = []
    for _ in range(count):
        offered = None
        ctx.set(stream.ready, 0)
        for _ in range(stall.cycles()):
            *_, valid, payload = await ctx.tick().sample(stream.valid, stream.payload)
            assert offered is None or (valid and payload == offered), "stream changed its offer"
            offered = payload if valid else None
        ctx.set(stream.ready, 1)
        (payload,) = await ctx.tick().sample(stream.payload).until(stream.valid)
        assert offered is None or payload == offered, "stream changed its offer"
        items.append(payload)
    ctx.set(stream.ready, 0)
    return items


def simulate(dut, *testbenches, limit: int = 100_000, background: Iterable[Any] = ()) -> None:
    """Run the testbenches (coroutine functions of ctx) on `dut` until all have ended.

    `background` testbenches run beside them and do not keep the simulation going. More than `limit`
    cycles fail an assertion, so that a hang names itself.
    """
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for testbench in testbenches:
        sim.add_testbench(testbench)
    for testbench in background:
        sim.add_testbench(testbench, background=True)

    steps = 0
    while sim.advance():
        steps += 1
        assert steps < 2 * limit, f"still running after {limit} cycles"


def outlive_reset(dut, inputs, marks, outputs) -> list[tuple[int, int]]:
    """Fill a rigid pipeline, reset it for one cycle, and return (cycle, index) of the outputs that are 1 after that.

    `inputs` are pairs of a signal and its value, `marks` the bits that say that something enters. All outputs must be 1
    before the reset, so that something is everywhere.
    """
    reset, late = Signal(), []

    async def bench(ctx):
        for signal, value in inputs:
            ctx.set(signal, value)
        for mark in marks:
            ctx.set(mark, 1)
        await ctx.tick().repeat(60)
        assert all(ctx.get(output) for output in outputs)
        for mark in marks:
            ctx.set(mark, 0)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        for cycle in range(60):
            late.extend((cycle, index) for index, output in enumerate(outputs) if ctx.get(output))
            await ctx.tick()

    simulate(ResetInserter(reset)(dut), bench)
    return late
