"""WidthConverter against slices of a byte string."""

from __future__ import annotations

import random

import pytest
from amaranth.hdl import Module, Signal
from streams import Stall, get, put, simulate

from tilewright_hw.gateware.width import WidthConverter


def reference(memory, slot, used):
    return [list(memory[i : i + used]) for i in range(0, len(memory), slot)]


def convert(dut, memory, put_stall=None, get_stall=None):
    """Return the words (as lists of byte values), their end marks, and the cycles taken."""
    words, marks, cycles = [], [], []
    beats = [
        {"data": int.from_bytes(memory[i : i + dut.bus_bytes], "little"), "end": i % 3}
        for i in range(0, len(memory), dut.bus_bytes)
    ]

    async def send(ctx):
        await put(ctx, dut.i, beats, put_stall)

    async def receive(ctx):
        for item in await get(ctx, dut.o, len(memory) // dut.slot, get_stall):
            words.append([byte & 255 for byte in item.data])
            marks.append(item.end)

    async def clock(ctx):
        while True:
            await ctx.tick()
            cycles.append(1)

    m = Module()
    m.submodules.dut = dut
    m.d.sync += Signal(name="unused").eq(1)  # a converter may have no register of its own
    simulate(m, send, receive, background=[clock])
    return words, marks, len(cycles)


SHAPES = [(4, 4, 4), (16, 16, 10), (64, 4, 4), (16, 8, 6), (4, 12, 10), (4, 32, 32), (8, 24, 17)]


@pytest.mark.parametrize(("bus_bytes", "slot", "used"), SHAPES)
@pytest.mark.parametrize(("put_share", "get_share"), [(0, 0), (0.5, 0), (0, 0.5), (0.4, 0.4)])
def test_slots_under_stalls(bus_bytes, slot, used, put_share, get_share):
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    memory = random.Random(seed).randbytes(max(slot, bus_bytes) * 30)
    dut = WidthConverter(bus_bytes=bus_bytes, slot=slot, used=used, ends=2)
    words, marks, _ = convert(dut, memory, Stall(seed, put_share), Stall(seed + 1, get_share))
    assert words == reference(memory, slot, used)
    for index, mark in enumerate(marks):  # a beat's mark leaves with the last word that it touches
        end = (index + 1) * slot
        assert mark == ((end - bus_bytes) % 3 if end % bus_bytes == 0 else 0)


@pytest.mark.parametrize(("bus_bytes", "slot", "used"), SHAPES)
def test_full_throughput(bus_bytes, slot, used):
    memory = bytes(max(slot, bus_bytes) * 40)
    _, _, cycles = convert(WidthConverter(bus_bytes=bus_bytes, slot=slot, used=used), memory)
    assert cycles <= len(memory) // min(slot, bus_bytes) + 1


@pytest.mark.parametrize(
    ("kind", "sizes", "text"),
    [
        (ValueError, (16, 12, 10), "slot must be a multiple or a divisor of 16, not 12"),
        (ValueError, (16, 8, 9), r"used must be at most the slot \(8\), not 9"),
        (ValueError, (16, 0, 9), "slot must be at least 1, not 0"),
    ],
)
def test_bad_sizes(kind, sizes, text):
    with pytest.raises(kind, match=f"^{text}$"):
        WidthConverter(bus_bytes=sizes[0], slot=sizes[1], used=sizes[2])
