"""`Skew`: lane k comes k * step cycles later, and nothing moves that is not valid."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import cocotb

from tilewright_sim.benches.testbench import LockstepTestbench, generator, pack, parameters, unpack

WIDTH, COUNT, STEP = (parameters()[name] for name in ("shape", "count", "step"))


class SkewModel:
    """o[k] in cycle t + k * step is i[k] of cycle t, if that was valid; else it stands still (but for lane 0).

    Parameters
    ----------
    share : float
        Share of the cycles that are valid.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.reset()

    def reset(self) -> None:
        """Forget what is on its way."""
        self._past: deque[list[int] | None] = deque([None] * (COUNT * STEP + 1), maxlen=COUNT * STEP + 1)
        self._last: list[int | None] = [None] * COUNT

    def drive(self, rng: random.Random) -> Mapping[str, int]:
        """Return lanes, valid or not."""
        lanes = [rng.choice((0, -1, rng.getrandbits(WIDTH))) for _ in range(COUNT)]
        return {"valid": rng.random() < self._share, "i": pack(lanes, WIDTH)}

    def outputs(self, inputs: Mapping[str, int]) -> Mapping[str, Sequence[int | None]]:
        """Return the lanes that are there now."""
        self._past.appendleft(unpack(inputs["i"], WIDTH, COUNT) if inputs["valid"] else None)
        sources = [self._past[k * STEP] for k in range(COUNT)]
        self._last = [lanes[k] if lanes else self._last[k] for k, lanes in enumerate(sources)]
        return {"o": [None if k == 0 and not sources[0] else value for k, value in enumerate(self._last)]}


@cocotb.test()
@cocotb.parametrize(share=[0.1, 0.5, 1.0])
async def test_lanes(dut: Any, share: float) -> None:
    bench = LockstepTestbench(dut, SkewModel(share), generator(f"lanes {share}"))
    await bench.start()
    await bench.run(400)


@cocotb.test()
async def test_after_a_reset_nothing_moves(dut: Any) -> None:
    """What was on its way is dropped: without valid, no lane but the first changes any more."""
    rng = generator("still")
    bench = LockstepTestbench(dut, SkewModel(1.0), rng)
    await bench.start()
    await bench.run(30)
    await bench.reset(1)
    dut.valid.value = 0
    bench.model = SkewModel(0.0)
    await bench.run_quietly(1)
    before = int(dut.o.value) >> WIDTH
    for _ in range(COUNT * STEP):
        await bench.run_quietly(1)
        assert int(dut.o.value) >> WIDTH == before


@cocotb.test()
async def test_reset_in_the_middle(dut: Any) -> None:
    rng = generator("reset")
    bench = LockstepTestbench(dut, SkewModel(0.7), rng)
    await bench.start()
    for cycles in (1, 5, 17, 40):
        await bench.run(cycles + 3)
        await bench.reset(1)
    await bench.run(50)
