"""`Softmax` against `golden.softmax`, bit by bit: rows of every length, extremes, stalls, resets."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles

from tilewright_sim import golden
from tilewright_sim.benches.testbench import StreamTestbench, generator, pack, parameters, unpack
from tilewright_sim.golden import formats

LANES, LENGTH = parameters()["lanes"], parameters()["max_length"]
WORDS = max(2, -(-LENGTH // LANES))
F24 = 24


def bits(values: Iterable[float]) -> list[int]:
    """Return F24 values as they lie on the wires."""
    return [int(x) >> 8 for x in formats.store_fp32(np.array(list(values)))]


def floats(patterns: list[int]) -> Any:
    """Return the values of F24 bit patterns."""
    return formats.load_fp32(np.array(patterns, np.uint32) << np.uint32(8))


def words_of(row: list[float], rng: random.Random) -> list[int]:
    """Return a row as stream words; what the block must not look at is noise."""
    noise = [rng.uniform(-9.0, 9.0) for _ in range(-len(row) % LANES)]
    patterns = bits(formats.round_f24([*row, *noise]))
    words = []
    for start in range(0, len(patterns), LANES):
        last = start + LANES >= len(patterns)
        keep = (1 << LANES - len(noise)) - 1 if last else rng.getrandbits(LANES)
        words.append(pack(patterns[start : start + LANES], F24) | keep << LANES * F24 | last << LANES * (F24 + 1))
    return words


class SoftmaxModel:
    """Collects rows and answers each with its softmax; a row that is too long is cut."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the row that has begun."""
        self._words: list[int] = []

    def take(self, item: int) -> Iterable[int]:
        """Return a row's words once it is whole."""
        self._words.append(item)
        last = item >> LANES * (F24 + 1)
        if not last and len(self._words) < WORDS:
            return []
        everything = (1 << LANES) - 1
        keep = item >> LANES * F24 & everything if last else everything
        row = [x for word in self._words for x in unpack(word, F24, LANES)]
        row = row[: len(row) - LANES + keep.bit_length()]
        p = bits(golden.softmax(floats(row)))
        p += [0] * (len(self._words) * LANES - len(p))
        words = [pack(p[start : start + LANES], F24) | everything << LANES * F24 for start in range(0, len(p), LANES)]
        words[-1] = pack(p[-LANES:], F24) | keep << LANES * F24 | 1 << LANES * (F24 + 1)
        self._words = []
        return words


def random_row(rng: random.Random) -> list[float]:
    """Return scores of some spread, of a random length."""
    spread = rng.choice((0.0, 4 * formats.MIN, 0.01, 1.0, 8.0, 1e4, 1e38, formats.MAX))
    length = rng.choice((1, LENGTH, rng.randint(1, LENGTH)))
    return [rng.gauss(0, spread) if spread < 1e30 else rng.uniform(-spread, spread) for _ in range(length)]


EXTREMES = [
    [formats.MAX] * LENGTH,
    [-formats.MAX] * LENGTH,
    [formats.MAX, -formats.MAX],
    # Times log2(e) both are above what there is, and so the same; in each lane.
    *([0.75 * formats.MAX] * lane + [formats.MAX, 0.75 * formats.MAX] for lane in range(LANES)),
    [formats.MIN, -formats.MIN, 0.0],
    # Differences that are less than there is, and become 0.
    [(1 + i / 8) * formats.MIN for i in range(LENGTH)],
    [(LENGTH - i) / 8 * formats.MIN for i in range(LENGTH)],
    [0.0],
    [-25.0 / 1.4426950408889634, 0.0, -24.0],
]


@cocotb.test()
@cocotb.parametrize(idle=[0.0, 0.5], back_pressure=[0.0, 0.5])
async def test_rows(dut: Any, idle: float, back_pressure: float) -> None:
    rng = generator(f"rows {idle} {back_pressure}")
    bench = StreamTestbench(dut, SoftmaxModel(), rng, idle=idle, back_pressure=back_pressure)
    await bench.start()
    for row in [*EXTREMES, *(random_row(rng) for _ in range(40))]:
        bench.source.send(words_of(row, rng))
    await bench.finish()


@cocotb.test()
async def test_a_row_that_is_too_long_is_cut(dut: Any) -> None:
    rng = generator("long")
    bench = StreamTestbench(dut, SoftmaxModel(), rng, back_pressure=0.2)
    await bench.start()
    bench.source.send(words_of([rng.gauss(0, 2) for _ in range(2 * WORDS * LANES + 1)], rng))
    await bench.finish()
    assert bench.checker.checked == 2 * WORDS + 1


@cocotb.test()
@cocotb.parametrize(cycles=[3, 25, 60, 111])
async def test_reset_in_the_middle(dut: Any, cycles: int) -> None:
    rng = generator(f"reset {cycles}")
    bench = StreamTestbench(dut, SoftmaxModel(), rng, idle=0.2, back_pressure=0.3)
    await bench.start()
    for _ in range(20):
        bench.source.send(words_of(random_row(rng), rng))
    await ClockCycles(dut.clk, cycles)
    await bench.reset()
    for _ in range(10):
        bench.source.send(words_of(random_row(rng), rng))
    await bench.finish()


@cocotb.test()
async def test_resets_at_any_moment(dut: Any) -> None:
    rng = generator("resets")
    bench = StreamTestbench(dut, SoftmaxModel(), rng, back_pressure=0.1)
    await bench.start()
    for _ in range(60):
        for _ in range(12):
            bench.source.send(words_of(random_row(rng), rng))
        await ClockCycles(dut.clk, rng.randint(10, 90))
        await bench.reset()
    for _ in range(10):
        bench.source.send(words_of(random_row(rng), rng))
    await bench.finish()
