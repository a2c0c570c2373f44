"""`WidthConverter`: beats become the bytes of slots, whichever is wider, with the marks of what ends where."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles

from tilewright_sim.benches.testbench import StreamTestbench, generator, parameters

BUS, SLOT, USED, ENDS = (parameters()[name] for name in ("bus_bytes", "slot", "used", "ends"))
BEATS = max(1, SLOT // BUS)
"""Beats of a slot."""
WORDS = max(1, BUS // SLOT)
"""Words of a beat."""
AHEAD = SLOT < BUS
"""A word is a part of the beat that is offered; the beat is taken with its last word."""


class ConverterModel:
    """Bytes in memory order, cut into slots; a word has the end marks of the beat with its last byte, and no others."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the slot that has begun."""
        self._bytes = b""

    def take(self, item: int) -> Iterable[int]:
        """Return the words that a beat completes."""
        ends = item >> 8 * BUS
        self._bytes += (item & (1 << 8 * BUS) - 1).to_bytes(BUS, "little")
        words = []
        while len(self._bytes) >= SLOT:
            slot, self._bytes = self._bytes[:USED], self._bytes[SLOT:]
            marks = 0 if self._bytes else ends
            words.append(int.from_bytes(slot, "little") | marks << 8 * USED)
        return words


def beats(count: int, rng: random.Random) -> list[int]:
    """Return random beats, whole slots of them."""
    width = 8 * BUS + ENDS
    return [
        rng.choice((rng.getrandbits(width), rng.getrandbits(width), (1 << width) - 1)) for _ in range(count * BEATS)
    ]


@cocotb.test()
@cocotb.parametrize(idle=[0.0, 0.5], back_pressure=[0.0, 0.5])
async def test_slots(dut: Any, idle: float, back_pressure: float) -> None:
    rng = generator(f"slots {idle} {back_pressure}")
    bench = StreamTestbench(dut, ConverterModel(), rng, idle=idle, back_pressure=back_pressure, ahead=AHEAD)
    await bench.start()
    bench.source.send(beats(120, rng))
    await bench.finish()
    assert bench.checker.checked == 120 * WORDS


@cocotb.test()
async def test_limited_by_the_narrower_side_alone(dut: Any) -> None:
    rng = generator("throughput")
    bench = StreamTestbench(dut, ConverterModel(), rng, ahead=AHEAD)
    await bench.start()
    bench.source.send(beats(60, rng))
    await ClockCycles(dut.clk, 60 * max(BEATS, WORDS) + 3)
    assert bench.checker.checked == 60 * WORDS


@cocotb.test()
@cocotb.parametrize(cycles=[3, 4, 6, 33])
async def test_reset_in_the_middle(dut: Any, cycles: int) -> None:
    rng = generator(f"reset {cycles}")
    bench = StreamTestbench(dut, ConverterModel(), rng, back_pressure=0.3, ahead=AHEAD)
    await bench.start()
    bench.source.send(beats(100, rng))
    await ClockCycles(dut.clk, cycles)
    await bench.reset()
    bench.source.send(beats(30, rng))
    await bench.finish()
