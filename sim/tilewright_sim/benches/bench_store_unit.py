"""`StoreUnit` against `golden.BLOCKS["StoreUnit"]`: what it writes to memory, burst by burst, and when it says so."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge
from numpy.typing import NDArray

from tilewright_hw.arch import AcceleratorConfig, Op
from tilewright_hw.arch.isa import Element
from tilewright_sim.benches.axi import AxiRules, anywhere, write_memory
from tilewright_sim.benches.beside_golden import Fields, machine_with, mirror, send_accepted
from tilewright_sim.benches.testbench import (
    Layout,
    StreamSource,
    generator,
    pack,
    parameters,
    pulse_reset,
    start_clock,
)
from tilewright_sim.golden import BLOCKS
from tilewright_sim.golden.state import Fault, StoreRows

CONFIG = AcceleratorConfig.from_dict(parameters())
LANES, BUS = CONFIG.lanes, CONFIG.bus_bytes
COMMAND = Layout.operands(Op.STORE)
SIZE = 1 << 15
BASES = [0, 0x40, 0x1000 - 0x80, 0x2000, 0x3000, 0x4000, 0x5000 - max(0x20, BUS), SIZE]
"""The last is outside memory."""
ANSWER = 8
"""Cycles within which cocotbext-axi's memory answers a burst of one beat: that limits where few are in flight."""
TYPES: dict[Element, Any] = {Element.INT8: np.uint8, Element.BF16: np.uint16, Element.FP32: np.uint32}


def command(**fields: int) -> Fields:
    """Return the fields of a command that writes one element, but for what is given."""
    return {"n": 1, "m": 1, "h": 1, "run": 1024, "element": Element.FP32} | fields


def random_command(rng: random.Random) -> Fields:
    """Return a command of any shape; the golden machine may refuse it."""
    element = rng.choice(list(Element))
    run = rng.choice((1, 2, 3, 4, 6, 8, 16, 1024))
    unit = min(BUS, (run << element) & -(run << element))
    n = rng.choice((1, 2, 3, 5, 8, 16, 17, rng.randint(1, 40)))
    m = rng.randint(1, 5)
    row = n << element
    wrap = rng.choice((0, 0, 1, 2, 3))

    def stride(least: int) -> int:
        return -(-(least + rng.randrange(40)) // unit) * unit

    return command(
        element=element,
        n=n,
        m=m,
        h=rng.randint(1, 3),
        run=run,
        base=rng.randrange(7),
        offset=rng.randrange(0, 512) // unit * unit,
        stride_run=stride(run << element),
        stride_h=stride(2 * row),
        stride_m=stride(7 * row),
        wrap_first=wrap,
        wrap_period=rng.choice((0, 1, 2)) if wrap else 0,
        wrap_stride=stride(9 * row),
    )


class Bench:
    """The unit between a store stream and memory.

    Parameters
    ----------
    dut : handle
        The design.
    rng : random.Random
        For all that is random.
    share : float
        Share of the time in which each stream and channel pauses.
    """

    def __init__(self, dut: Any, rng: random.Random, share: float) -> None:
        self.dut, self.rng, self.share = dut, rng, share
        self.memory = bytearray(rng.randbytes(SIZE))
        self.machine = machine_with(CONFIG, self.memory, BASES)
        self.rules = AxiRules(dut, "axi", bus_bytes=BUS, beats=CONFIG.burst_beats, writes=CONFIG.writes_in_flight)
        self.at = anywhere(rng)
        write_memory(dut, "axi", self.memory, rng, share, self.at)
        self.commands = StreamSource(dut, "cmd", rng, share)
        self.data = StreamSource(dut, "i_data", rng, share)
        self.sent = self.done = self.beats = 0
        self._in_reset = False

    async def start(self) -> None:
        """Start the clock, reset, and begin."""
        self.dut.bases.value = pack([self.at + base for base in BASES], 64)
        start_clock(self.dut)
        await pulse_reset(self.dut)
        cocotb.start_soon(self._watch())
        self._begin()

    def _begin(self) -> None:
        self.commands.start()
        self.data.start()

    async def reset(self) -> None:
        """Reset in the middle of work: what was asked for may be written or not; nothing is after it."""
        self._in_reset = True
        for source in (self.commands, self.data):
            source.stop()
        await pulse_reset(self.dut, 1)
        self._in_reset = False
        self.rules.reset()
        self.sent = self.done = self.beats = 0
        await ClockCycles(self.dut.clk, 40)
        assert self.dut.idle.value
        assert not self.dut.error.value
        assert not self.rules.count
        assert not self.done
        mirror(self.machine, self.memory)
        self._begin()

    async def _watch(self) -> None:
        """Count `done` and `beat`; fail if the unit says that it is idle while something is not answered."""
        dut = self.dut
        while True:
            await RisingEdge(dut.clk)
            if dut.rst.value or self._in_reset:
                continue
            taken = bool(dut.axi_wvalid.value and dut.axi_wready.value)
            assert bool(dut.beat.value) == taken, "beat is not the transfer of a beat"
            self.done += int(dut.done.value)
            assert self.done <= self.sent, "done without a command"
            if dut.idle.value and self.done < self.sent:
                assert self.done + self.commands.pending >= self.sent, (
                    "idle, though a command was taken and is not done"
                )

    def send(self, f: Fields) -> bool:
        """Execute a command on the golden machine and have it and its rows sent; False where that refuses it."""
        words = f["m"] * f["h"] * -(-f["n"] // LANES)
        kind = TYPES[Element(f["element"])]
        values = np.frombuffer(self.rng.randbytes(words * LANES * kind().itemsize), kind).reshape(words, LANES)
        try:
            step = BLOCKS["StoreUnit"](self.machine, defaultdict(int, f))
        except Fault:
            return False
        if step.tangled:  # bytes that are written twice: the order of the bus's answers would count
            return False
        self.machine.store.chunks.append(StoreRows(values, f["element"], 0))
        step(self.machine)
        self._send(f, values)
        return True

    def send_outside(self, f: Fields) -> None:
        """Send a command whose memory is not there."""
        words = f["m"] * f["h"] * -(-f["n"] // LANES)
        self._send(f, np.zeros((words, LANES), np.uint32))

    def _send(self, f: Fields, values: NDArray[Any]) -> None:
        noise = 32 - 8 * values.itemsize  # the upper bits of an element do not count
        for word in values.tolist():
            self.data.send([pack((x | self.rng.getrandbits(noise) << 32 - noise if noise else x for x in word), 32)])
        self.commands.send([COMMAND.pack(f)])
        self.sent += 1

    async def finish(self, limit: int = 30_000) -> None:
        """Wait until all commands are done, and compare memory."""
        await self.wait(limit)
        got, wanted = np.frombuffer(bytes(self.memory), np.uint8), self.machine.memory.bytes
        different = np.flatnonzero(got != wanted)
        assert not different.size, f"{different.size} bytes differ, the first at {different[0]:#x}"
        assert not self.dut.error.value

    async def wait(self, limit: int = 30_000) -> None:
        """Wait until all commands are done; everything is answered by then."""
        for _ in range(limit):
            await RisingEdge(self.dut.clk)
            if self.done == self.sent:
                break
        else:
            raise AssertionError(f"{self.done} of {self.sent} commands were done within {limit} cycles")
        self.rules.assert_quiet()
        await ClockCycles(self.dut.clk, 3)
        assert self.dut.idle.value
        assert not self.data.pending


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.3, 0.7])
async def test_random_commands(dut: Any, share: float) -> None:
    rng = generator(f"commands {share}")
    bench = Bench(dut, rng, share)
    await bench.start()
    send_accepted(bench.send, lambda: random_command(rng), 30)
    await bench.finish()


@cocotb.test()
async def test_long_runs_across_pages(dut: Any) -> None:
    """Runs of many bursts, one of which ends at each multiple of 4 KiB."""
    rng = generator("pages")
    bench = Bench(dut, rng, 0.1)
    await bench.start()
    for base in (2, 6):
        for element, n in ((Element.FP32, 300), (Element.BF16, 301), (Element.INT8, 1003)):
            assert bench.send(command(element=element, n=n, run=n, base=base, offset=BUS))
    await bench.finish()


@cocotb.test()
async def test_a_beat_per_cycle(dut: Any) -> None:
    """Contiguous elements go as fast as the narrower of store words and beats allows, and as answers come."""
    rng = generator("throughput")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    n = 240
    assert bench.send(command(n=n, run=n))
    beats = 4 * n // BUS
    waits = beats * ANSWER // min(ANSWER, CONFIG.burst_beats * CONFIG.writes_in_flight)
    await bench.wait(max(waits, n // LANES) + 40)
    await bench.finish()


@cocotb.test()
async def test_data_before_its_command(dut: Any) -> None:
    """The store stream is taken ahead, as long as there is room."""
    rng = generator("ahead")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    f = command(n=3 * LANES, m=4, stride_m=16 * LANES)
    assert bench.send(f)
    bench.commands.stop()  # before it is offered
    bench.sent = 0
    await ClockCycles(dut.clk, 30)
    assert not bench.data.pending
    assert not bench.rules.count
    bench.sent = 1
    bench.commands.send([COMMAND.pack(f)])
    bench.commands.start()
    await bench.finish()


@cocotb.test()
async def test_an_error_stands_until_reset(dut: Any) -> None:
    rng = generator("error")
    bench = Bench(dut, rng, 0.2)
    await bench.start()
    assert bench.send(command(n=8, run=8))
    await bench.finish()
    bench.send_outside(command(n=4, run=4, base=7))
    await bench.wait()
    assert dut.error.value
    assert bench.send(command(n=8, run=8))
    await bench.wait()
    assert dut.error.value
    await bench.reset()
    assert bench.send(command(n=8, run=8))
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(cycles=[3, 9, 17, 28, 40, 77], share=[0.2, 0.7])
async def test_reset_in_the_middle(dut: Any, cycles: int, share: float) -> None:
    rng = generator(f"reset {cycles} {share}")
    bench = Bench(dut, rng, share)
    await bench.start()
    send_accepted(bench.send, lambda: random_command(rng), 6)
    await ClockCycles(dut.clk, cycles)
    await bench.reset()
    send_accepted(bench.send, lambda: random_command(rng), 6)
    await bench.finish()
