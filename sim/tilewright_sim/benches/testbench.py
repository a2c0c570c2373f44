"""What benches are made of: sources and sinks that pause at random, monitors, models and a checker.

A testbench only wires them. A monitor watches the input and hands what it saw to the model, the model tells the checker
what must come out, and a monitor of the output hands the checker what came:

    source --> i [block] o --> sink
               |         |
            monitor   monitor
               |         |
             model --> checker
"""

from __future__ import annotations

import json
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cocotb
from cocotb.clock import Clock
from cocotb.task import Task
from cocotb.triggers import ClockCycles, RisingEdge

from tilewright_hw.arch import Op
from tilewright_hw.arch.isa import FIELDS

PERIOD_NS = 10
"""The clock's period."""
QUIET = 100
"""Cycles without anything expected in which nothing may come."""


def parameters() -> dict[str, Any]:
    """Return the design's parameters."""
    values: dict[str, Any] = json.loads(os.environ["TILEWRIGHT_BENCH"])
    return values


def generator(name: str) -> random.Random:
    """Return a random generator for one test; it depends on the run's seed, which is printed."""
    seed = os.environ.get("COCOTB_RANDOM_SEED", "1")
    print(f"{name}: seed {seed}")
    return random.Random(f"{seed} {name}")


def pauses(rng: random.Random, share: float, longest: int = 6) -> Iterator[bool]:
    """Yield for each cycle whether to pause: runs of random length, `share` of them pauses."""
    while True:
        yield from [rng.random() < share] * rng.randint(1, longest)


def random_items(rng: random.Random, count: int, width: int) -> list[int]:
    """Return items of `width` bits: random ones and the extremes."""
    return [rng.choice((0, (1 << width) - 1, rng.getrandbits(width), rng.getrandbits(width))) for _ in range(count)]


def pack(values: Iterable[int], width: int) -> int:
    """Return values of `width` bits, negative ones too, as one vector, the first in the lowest bits."""
    mask = (1 << width) - 1
    return sum((int(value) & mask) << i * width for i, value in enumerate(values))


def unpack(vector: int, width: int, count: int, *, signed: bool = False) -> list[int]:
    """Return the values that lie in a vector."""
    mask, sign = (1 << width) - 1, (1 << width - 1) if signed else 0
    return [((vector >> i * width & mask) ^ sign) - sign for i in range(count)]


@dataclass(frozen=True)
class Layout:
    """A struct on the wires of one vector: fields of some bits each, the first in the lowest bits.

    Parameters
    ----------
    widths : mapping of str to int
        Bits of each field, in order.
    """

    widths: Mapping[str, int]

    @classmethod
    def operands(cls, op: Op) -> Layout:
        """Return the layout of an instruction's operands on a command stream."""
        return cls({field.name: field.width for field in FIELDS[op]})

    def pack(self, values: Mapping[str, int]) -> int:
        """Return the vector; what is not given is 0."""
        vector = at = 0
        for name, width in self.widths.items():
            vector |= (int(values.get(name, 0)) & (1 << width) - 1) << at
            at += width
        return vector

    def unpack(self, vector: int) -> dict[str, int]:
        """Return the fields of a vector, as unsigned numbers."""
        values = {}
        for name, width in self.widths.items():
            values[name] = vector & (1 << width) - 1
            vector >>= width
        return values


class StreamSource:
    """Sends what is in its queue, with random idle cycles; between items the payload is noise.

    Parameters
    ----------
    dut : handle
        The design.
    name : str
        Its stream: the signals are NAME_valid, NAME_ready and NAME_payload.
    rng : random.Random
        For idle cycles and noise.
    share : float
        Share of the time in which it idles.
    """

    def __init__(self, dut: Any, name: str, rng: random.Random, share: float) -> None:
        self._clock = dut.clk
        self._valid, self._ready = getattr(dut, f"{name}_valid"), getattr(dut, f"{name}_ready")
        self._payload = getattr(dut, f"{name}_payload")
        self._rng, self._pauses = rng, pauses(rng, share)
        self._queue: deque[int] = deque()
        self._offers = False
        self._task: Task[None] | None = None
        self._valid.value = 0

    def send(self, items: Iterable[int]) -> None:
        """Add items to the queue."""
        self._queue.extend(items)

    @property
    def pending(self) -> int:
        """Items that have not been taken."""
        return len(self._queue) + self._offers

    def start(self) -> None:
        """Begin to drive."""
        task: Task[None] = cocotb.start_soon(self._run())
        self._task = task

    def stop(self) -> None:
        """Drop everything, also an item on offer: for reset."""
        if self._task is not None:
            self._task.cancel()
        self._queue.clear()
        self._offers = False
        self._valid.value = 0

    async def _run(self) -> None:
        while True:
            while next(self._pauses) or not self._queue:
                self._valid.value = 0
                self._payload.value = self._rng.getrandbits(len(self._payload))
                await RisingEdge(self._clock)
            self._payload.value = self._queue.popleft()
            self._valid.value = self._offers = True
            await RisingEdge(self._clock)
            while not self._ready.value:
                await RisingEdge(self._clock)
            self._offers = False


class StreamSink:
    """Takes what comes, with random back-pressure; parameters as for `StreamSource`."""

    def __init__(self, dut: Any, name: str, rng: random.Random, share: float) -> None:
        self._clock, self._ready = dut.clk, getattr(dut, f"{name}_ready")
        self._pauses = pauses(rng, share)
        self._ready.value = 0

    def start(self) -> None:
        """Begin to take."""
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        while True:
            self._ready.value = not next(self._pauses)
            await RisingEdge(self._clock)


class Monitor:
    """Hands every transfer to `callback`, and fails if an offer is changed or withdrawn before it is taken.

    Parameters
    ----------
    dut : handle
        The design.
    valid, ready : str
        Its handshake.
    payload : sequence of str
        The signals that go with it; `callback` is given their values.
    callback : callable
        Called in the cycle of the transfer.
    offered : bool
        Call it in the first cycle of the offer instead.
    """

    def __init__(
        self,
        dut: Any,
        valid: str,
        ready: str,
        payload: Sequence[str],
        callback: Callable[..., None],
        *,
        offered: bool = False,
    ) -> None:
        self._offered = offered
        self._name, self._clock, self._reset = valid, dut.clk, dut.rst
        self._valid, self._ready = getattr(dut, valid), getattr(dut, ready)
        self._payload = [getattr(dut, name) for name in payload]
        self._callback = callback

    @classmethod
    def of_stream(cls, dut: Any, name: str, callback: Callable[[int], None], *, offered: bool = False) -> Monitor:
        """Return the monitor of NAME_valid, NAME_ready and NAME_payload."""
        return cls(dut, f"{name}_valid", f"{name}_ready", [f"{name}_payload"], callback, offered=offered)

    def start(self) -> None:
        """Begin to watch; with reset high."""
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        offered: list[int] | None = None
        while True:
            await RisingEdge(self._clock)
            if self._reset.value:
                offered = None
                continue
            if not self._valid.value:
                assert offered is None, f"{self._name} fell before its offer was taken"
                continue
            now = [int(signal.value) for signal in self._payload]  # fails where a bit is X
            assert offered in (None, now), f"{self._name}: the payload changed from {offered} to {now}"
            if offered is None and self._offered:
                self._callback(*now)
            offered = now
            if self._ready.value:
                offered = None
                if not self._offered:
                    self._callback(*now)


class Model(Protocol):
    """What a block does to its streams, transfer by transfer."""

    def take(self, item: int) -> Iterable[int]:
        """Return what must come out because of this item."""

    def reset(self) -> None:
        """Forget everything."""


class Passes:
    """The model of a block from which everything comes out as it went in."""

    def take(self, item: int) -> Iterable[int]:
        """Return the item."""
        return [item]

    def reset(self) -> None:
        """Nothing is kept here."""


class InOrderChecker:
    """Compares what comes with what is expected, in order.

    Parameters
    ----------
    name : str
        For the messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.checked = 0
        self._expected: deque[Any] = deque()

    def expect(self, item: Any) -> None:
        """Say what comes next."""
        self._expected.append(item)

    def receive(self, item: Any) -> None:
        """Compare with what comes next."""
        assert self._expected, f"{self.name}: {item!r} came and nothing was expected"
        wanted = self._expected.popleft()
        assert item == wanted, f"{self.name}: item {self.checked} is {item!r}, not {wanted!r}"
        self.checked += 1

    @property
    def missing(self) -> int:
        """Items that have not come yet."""
        return len(self._expected)

    def clear(self) -> None:
        """Expect nothing any more."""
        self._expected.clear()


MUTANT = "mutant"
"""The port of a design with planted bugs that says which of them is in force (0: none)."""

mutant_in_force = 0
"""What that port is to be."""


def start_clock(dut: Any) -> None:
    """Start the clock, with reset high."""
    dut.rst.value = 1
    if hasattr(dut, MUTANT):
        getattr(dut, MUTANT).value = mutant_in_force
    Clock(dut.clk, PERIOD_NS, unit="ns").start()


async def pulse_reset(dut: Any, cycles: int = 2) -> None:
    """Hold reset for some cycles; returns just after it has fallen."""
    dut.rst.value = 1
    await ClockCycles(dut.clk, cycles)
    dut.rst.value = 0


class CycleModel(Protocol):
    """A block in which nothing waits, cycle by cycle."""

    def drive(self, rng: random.Random) -> Mapping[str, int]:
        """Return this cycle's inputs, all of them."""

    def outputs(self, inputs: Mapping[str, int]) -> Mapping[str, Sequence[int | None]]:
        """Return this cycle's outputs, each as the values that lie in it (None: undefined), and go on by a cycle."""

    def reset(self) -> None:
        """Forget everything."""


class LockstepTestbench:
    """A block with rigid ports beside its model: every output is compared in every cycle in which it is defined.

    Parameters
    ----------
    dut : handle
        The design.
    model : CycleModel
        What it must do; it also makes up what goes in.
    rng : random.Random
        For the inputs.
    """

    def __init__(self, dut: Any, model: CycleModel, rng: random.Random) -> None:
        self.dut, self.model, self._rng = dut, model, rng
        self.checked = 0

    async def start(self) -> None:
        """Start the clock and reset."""
        start_clock(self.dut)
        await self.reset()

    async def reset(self, cycles: int = 1) -> None:
        """Reset, in the middle of work: what was inside is lost."""
        await pulse_reset(self.dut, cycles)
        self.model.reset()

    async def run(self, cycles: int) -> None:
        """Go on for some cycles; something must come out in them."""
        before = self.checked
        await self.run_quietly(cycles)
        assert self.checked > before, "nothing was compared"

    async def run_quietly(self, cycles: int) -> None:
        """Go on for some cycles, though nothing may come out."""
        dut = self.dut
        for _ in range(cycles):
            inputs = self.model.drive(self._rng)
            for name, value in inputs.items():
                getattr(dut, name).value = value
            await RisingEdge(dut.clk)
            for name, wanted in self.model.outputs(inputs).items():
                self._compare(name, wanted)

    def _compare(self, name: str, wanted: Sequence[int | None]) -> None:
        signal = getattr(self.dut, name)
        width = len(signal) // len(wanted)
        for place, value in enumerate(wanted):
            if value is None:
                continue
            got = int(signal.value) >> place * width & (1 << width) - 1
            assert got == value & (1 << width) - 1, f"{name}[{place}] is {got:#x}, not {value & (1 << width) - 1:#x}"
            self.checked += 1


class StreamTestbench:
    """A block with one input stream `i` and one output stream `o`, its model and random stalls on both sides.

    Parameters
    ----------
    dut : handle
        The design.
    model : Model
        What it must do.
    rng : random.Random
        For the stalls.
    idle, back_pressure : float
        Share of the time in which the source idles and in which the sink does not take.
    ahead : bool
        What comes of an item comes from the cycle on in which it is offered, not after it was taken.
    """

    def __init__(
        self,
        dut: Any,
        model: Model,
        rng: random.Random,
        *,
        idle: float = 0.0,
        back_pressure: float = 0.0,
        ahead: bool = False,
    ) -> None:
        self.dut, self.model = dut, model
        self.checker = InOrderChecker("o")
        self.source = StreamSource(dut, "i", rng, idle)
        self._others: tuple[StreamSink | Monitor, ...] = (
            StreamSink(dut, "o", rng, back_pressure),
            Monitor.of_stream(dut, "i", self._saw_input, offered=ahead),
            Monitor.of_stream(dut, "o", self.checker.receive),
        )

    def _saw_input(self, item: int) -> None:
        for wanted in self.model.take(item):
            self.checker.expect(wanted)

    async def start(self) -> None:
        """Start the clock, reset, and begin."""
        start_clock(self.dut)
        for part in self._others:
            part.start()
        await pulse_reset(self.dut)
        self.source.start()

    async def reset(self) -> None:
        """Reset in the middle of work, for one cycle: what was inside is lost, and nothing of it may come out."""
        self.source.stop()
        await pulse_reset(self.dut, 1)
        self.model.reset()
        self.checker.clear()
        await ClockCycles(self.dut.clk, QUIET)
        self.source.start()

    async def finish(self, limit: int = 100_000) -> None:
        """Wait until everything was sent and has come out, and no more comes for a while."""
        quiet = 0
        for _ in range(limit):
            await RisingEdge(self.dut.clk)
            quiet = 0 if self.source.pending or self.checker.missing else quiet + 1
            if quiet == QUIET:
                break
        assert quiet == QUIET, f"{self.checker.missing} items are missing after {limit} cycles"
        assert self.checker.checked, "nothing came out"
