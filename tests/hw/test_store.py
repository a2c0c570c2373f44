"""StoreUnit against the equation of docs/architecture.md: random commands and stalls, errors, and throughput."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from axi_model import AxiMemory
from streams import Stall, put, simulate

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import Element
from tilewright_hw.gateware.store import StoreUnit

ORIGIN = 0x1_FFFF_8000
SIZE = 1 << 16
CONFIGS = {
    "default": AcceleratorConfig(),
    "tiny": AcceleratorConfig.preset("tiny"),
    "edge": AcceleratorConfig.preset("edge"),
    "odd": AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, burst_beats=1, writes_in_flight=2),
    "wide": AcceleratorConfig(rows=16, cols=4, lanes=2, bus_bits=512, burst_beats=64),
    "lanes": AcceleratorConfig(rows=16, cols=16, lanes=16, bus_bits=32, burst_beats=256),
}


@dataclass
class Command:
    n: int
    m: int = 1
    h: int = 1
    run: int = 1024  # in the tests below: one run per row, aligned to the bus word
    element: Element = Element.FP32
    offset: int = 0
    stride_m: int = 0
    stride_h: int = 0
    stride_run: int = 0
    wrap_first: int = 0
    wrap_period: int = 0
    wrap_stride: int = 0
    base: int = 2

    def addresses(self, base):
        """Return the address of every element, row after row."""
        outer, rows = 0, []
        for m in range(self.m):
            if m:
                past = m - self.wrap_first
                wraps = self.wrap_first and (past % self.wrap_period == 0 if self.wrap_period else past == 0)
                outer += self.wrap_stride if wraps and past >= 0 else self.stride_m
            for h in range(self.h):
                start = base + self.offset + outer + h * self.stride_h
                rows.append(
                    [
                        start + i // self.run * self.stride_run + i % self.run * (1 << self.element)
                        for i in range(self.n)
                    ]
                )
        return rows


@dataclass
class Bench:
    config: AcceleratorConfig
    commands: list[Command]
    latency: int = 3
    stall: float = 0.0
    seed: int = 0
    broken: range = range(0)
    wait_for_data: bool = False
    done: int = 0
    error: int = 0

    def __post_init__(self):
        rng = random.Random(self.seed)
        self.dut = StoreUnit(self.config)
        self.memory = AxiMemory(
            size=SIZE,
            bus_bytes=self.config.bus_bytes,
            origin=ORIGIN,
            latency=self.latency,
            stall=self.stall,
            seed=self.seed,
            burst_beats=self.config.burst_beats,
            limit=self.config.writes_in_flight,
            broken=self.broken,
            wait_for_data=self.wait_for_data,
        )
        self.bases = [ORIGIN + 4096 * i for i in range(8)]
        self.words, self.want, self.bytes = [], {}, []
        total, lanes = 0, self.config.lanes
        for c in self.commands:
            size = 1 << c.element
            for row in c.addresses(self.bases[c.base]):
                values = [rng.getrandbits(32) for _ in range(-(-c.n // lanes) * lanes)]
                self.words += [values[i : i + lanes] for i in range(0, len(values), lanes)]
                for addr, value in zip(row, values, strict=False):
                    for i in range(size):
                        self.want[addr + i] = value >> 8 * i & 255
            total += c.m * c.h * c.n * size
            self.bytes.append(total)

    def run(self, limit=20000):
        dut = self.dut

        async def finish(ctx):
            for _ in range(limit):
                *_, done = await ctx.tick().sample(dut.done)
                if done:
                    assert self.memory.bytes_answered >= self.bytes[self.done], "done came before the answers"
                    self.done += 1
                if self.done == len(self.commands):
                    break
            else:
                raise AssertionError(f"stuck: {self.done} done, {self.memory.bytes_written} bytes")
            await ctx.tick().repeat(self.latency + 5)
            assert ctx.get(dut.idle)
            self.error = ctx.get(dut.error)

        async def commands(ctx):
            for i, base in enumerate(self.bases):
                ctx.set(dut.bases[i], base)
            await put(ctx, dut.cmd, [vars(c) for c in self.commands], Stall(self.seed + 3, self.stall))

        async def data(ctx):
            await put(ctx, dut.i_data, self.words, Stall(self.seed + 4, self.stall))

        simulate(dut, finish, limit=2 * limit, background=[commands, data, self.memory.writes(dut.axi)])
        assert self.memory.written == self.want
        assert self.memory.bytes_written == self.bytes[-1]
        return self


def random_command(rng, config):
    element = rng.choice(list(Element))
    size, n = 1 << element, rng.choice([1, rng.randint(1, 8), rng.randint(1, 70)])
    run = rng.choice([1, 2, 4, 8, 16, rng.randint(1, 100), 65535, n])
    length = run * size
    unit = min(length & -length, config.bus_bytes)  # the alignment rule

    def aligned(most):
        return unit * rng.randint(0, most // unit)

    return Command(
        n, rng.randint(1, 5), rng.randint(1, 3), run, element, aligned(2000), aligned(2000), aligned(2000),
        aligned(200), rng.randint(0, 3), rng.randint(0, 3), aligned(4000), rng.randrange(8),
    )  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("latency", "stall"), [(1, 0), (20, 0.3), (3, 0.6)])
def test_random_commands(name, latency, stall):
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    rng = random.Random(seed)
    config = CONFIGS[name]
    Bench(config, [random_command(rng, config) for _ in range(6)], latency, stall, seed).run()


def test_error_response_is_sticky():
    commands = [Command(64, 2, stride_m=256), Command(16)]
    base = ORIGIN + 2 * 4096
    assert Bench(AcceleratorConfig(), commands).run().error == 0
    assert Bench(AcceleratorConfig(), commands, broken=range(base + 256, base + 260)).run().error == 1


# name: config, command, beats, cycles from the first beat to the last
RATES = {
    "fp32 rows": ("default", Command(96, 8, stride_m=384), 192, 191),
    "fp32 rows in memory apart": ("default", Command(64, 4, 3, stride_m=2048, stride_h=512), 192, 191),
    "bfloat16 rows": ("default", Command(96, 8, element=Element.BF16, stride_m=192), 96, 95),
    "int8 rows, half a beat from a word": ("default", Command(128, 8, element=Element.INT8, stride_m=128), 64, 126),
    "fp32, large bus": ("wide", Command(256, element=Element.FP32), 16, 120),
    "fp32, small bus": ("tiny", Command(100, 2, stride_m=400), 200, 199),
    "scattered bytes": ("default", Command(64, 2, run=1, element=Element.INT8, stride_run=16, stride_m=1), 128, 127),
    "scattered pairs": ("default", Command(96, run=2, element=Element.INT8, stride_run=64), 48, 47),
    "one element per row": ("default", Command(1, 8, 8, 1, Element.BF16, stride_m=64, stride_h=2), 64, 63),
}


@pytest.mark.parametrize("name", RATES)
def test_rates(name):
    config, command, beats, cycles = RATES[name]
    bench = Bench(CONFIGS[config], [command], latency=2).run()
    times = bench.memory.write_times
    assert len(times) == beats
    assert times[-1] - times[0] == cycles


def test_addresses_are_ahead_of_data_and_bursts_are_long():
    """Later bursts are asked for while the data of the first is still on its way."""
    bench = Bench(AcceleratorConfig(), [Command(512, base=0)], latency=40).run()
    memory = bench.memory
    assert memory.bursts == [(ORIGIN + 512 * i, 32) for i in range(4)]
    assert memory.address_times[3] < memory.write_times[0] + 4
    assert memory.write_times[-1] - memory.write_times[0] == 127


def test_next_command_follows_without_waiting_for_answers():
    commands = [Command(64, offset=1024 * i) for i in range(6)]
    times = Bench(AcceleratorConfig(), commands, latency=60).run().memory.write_times
    assert times[-1] - times[0] == 6 * 16 - 1


def test_slave_that_takes_addresses_after_it_sees_data():
    commands = [Command(200, 2, stride_m=1024), Command(16, 1, run=1, element=Element.INT8, stride_run=64)]
    assert Bench(AcceleratorConfig(), commands, stall=0.2, wait_for_data=True).run().error == 0
