"""The control registers against the register map."""

import random

import pytest
from amaranth.sim import Simulator

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.registers import COUNTERS, IDENTITY, REGISTERS, VERSION, ErrorCode
from tilewright_hw.gateware.registers import ControlRegisters

OKAY, SLVERR = 0, 2
CONFIG = AcceleratorConfig(rows=8, cols=16, lanes=4, bus_bits=64, ingest=1, stat_entries=128)


class Master:
    """An AXI4-Lite master with random gaps, whose write address and data come in any order."""

    def __init__(self, dut, seed):
        self.bus = dut.bus
        self.random = random.Random(seed)
        self.held: dict[str, int] = {}

    async def send(self, ctx, name, after):
        for _ in range(after):
            await ctx.tick()
        ctx.set(getattr(self.bus, f"{name}valid"), 1)
        await ctx.tick().until(getattr(self.bus, f"{name}ready"))
        ctx.set(getattr(self.bus, f"{name}valid"), 0)

    async def write(self, ctx, address, value, strobe=15):
        bus = self.bus
        ctx.set(bus.awaddr, address)
        ctx.set(bus.wdata, value)
        ctx.set(bus.wstrb, strobe)
        wait = {"aw": self.random.randrange(4), "w": self.random.randrange(4)}
        # Both run until both are done; only one test bench may drive them.
        pending = dict(wait)
        ctx.set(bus.bready, 0)
        while pending:
            for name, left in pending.items():
                ctx.set(getattr(bus, f"{name}valid"), left <= 0)
            ready = (await ctx.tick().sample(bus.awready, bus.wready))[2:]
            for name, taken in zip(("aw", "w"), ready, strict=True):
                if name in pending:
                    if pending[name] <= 0 and taken:
                        del pending[name]
                        ctx.set(getattr(bus, f"{name}valid"), 0)
                    else:
                        pending[name] -= 1
        return (await self.answer(ctx, "b", bus.bresp))[0]

    async def read(self, ctx, address):
        ctx.set(self.bus.araddr, address)
        await self.send(ctx, "ar", self.random.randrange(3))
        return await self.answer(ctx, "r", self.bus.rresp, self.bus.rdata)

    async def answer(self, ctx, name, *payload):
        """Wait for an answer, let it wait, and see that it holds."""
        valid = getattr(self.bus, f"{name}valid")
        first = await ctx.tick().sample(*payload).until(valid)
        for _ in range(self.random.randrange(3)):
            now = await ctx.tick().sample(valid, *payload)
            assert tuple(now[2:]) == (1, *first)
        ctx.set(getattr(self.bus, f"{name}ready"), 1)
        await ctx.tick()
        ctx.set(getattr(self.bus, f"{name}ready"), 0)
        assert not ctx.get(valid)
        return first

    async def get(self, ctx, name):
        value, response = reversed(await self.read(ctx, REGISTERS[name].address))
        assert response == OKAY
        return value

    async def put(self, ctx, name, value):
        assert await self.write(ctx, REGISTERS[name].address, value) == OKAY


def simulate(bench, seed=1):
    dut = ControlRegisters(CONFIG)
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)

    async def run(ctx):
        await bench(ctx, dut, Master(dut, seed))

    simulator.add_testbench(run)
    simulator.run()


def test_identity():
    async def bench(ctx, dut, master):
        assert await master.get(ctx, "IDENTITY") == IDENTITY
        assert await master.get(ctx, "VERSION") == VERSION
        assert await master.get(ctx, "SHAPE") == 8 | 16 << 8 | 4 << 16 | 8 << 24
        assert await master.get(ctx, "CAPACITY") == 9 | 12 << 8 | 13 << 16 | 11 << 24
        assert await master.get(ctx, "CAPACITY2") == 7 | 1 << 8

    simulate(bench)


def test_every_address_answers_as_the_map_says():
    async def bench(ctx, dut, master):
        known = {r.address: r for r in REGISTERS.values()}
        for address in [*range(0, 0x180, 4), 0xFFC]:
            register = known.get(address)
            response, value = await master.read(ctx, address)
            assert response == (OKAY if register else SLVERR), hex(address)
            if not register:
                assert value == 0
            writable = register is not None and register.access != "ro"
            answer = await master.write(ctx, address, 0)
            assert answer == (OKAY if writable else SLVERR), hex(address)

    simulate(bench)


@pytest.mark.parametrize("seed", range(3))
def test_settings_hold_what_is_written(seed):
    async def bench(ctx, dut, master):
        rng = random.Random(seed)
        names = [r.name for r in REGISTERS.values() if r.access == "rw"]
        state = dict.fromkeys(names, 0)
        for _ in range(60):
            name = rng.choice(names)
            value, strobe = rng.randrange(1 << 32), rng.choice([15, 15, rng.randrange(16)])
            mask = sum(255 << 8 * i for i in range(4) if strobe >> i & 1)
            assert await master.write(ctx, REGISTERS[name].address, value, strobe) == OKAY
            state[name] = state[name] & ~mask | value & mask
            if name == "IRQ_ENABLE":
                state[name] &= 3
            name = rng.choice(names)
            assert await master.get(ctx, name) == state[name], f"seed {seed}: {name}"
        assert ctx.get(dut.program) == state["PROGRAM_LO"] | state["PROGRAM_HI"] << 32
        for i, base in enumerate(dut.bases):
            assert ctx.get(base) == state[f"BASE{i}_LO"] | state[f"BASE{i}_HI"] << 32

    simulate(bench, seed)


async def start(ctx, dut, master):
    """Write CONTROL; return how often `start` pulsed."""
    pulses = 0
    bus = dut.bus
    ctx.set(bus.awaddr, REGISTERS["CONTROL"].address)
    ctx.set(bus.wdata, 1)
    ctx.set(bus.wstrb, 15)
    ctx.set(bus.awvalid, 1)
    ctx.set(bus.wvalid, 1)
    ctx.set(bus.bready, 1)
    await ctx.tick()
    ctx.set(bus.awvalid, 0)
    ctx.set(bus.wvalid, 0)
    for _ in range(5):
        pulses += (await ctx.tick().sample(dut.start))[2]
    ctx.set(bus.bready, 0)
    return pulses


def test_start_done_interrupt():
    async def bench(ctx, dut, master):
        assert await start(ctx, dut, master) == 1
        ctx.set(dut.busy, 1)
        assert await start(ctx, dut, master) == 0
        assert await master.get(ctx, "STATUS") == 1
        ctx.set(dut.finished, 1)
        await ctx.tick()
        ctx.set(dut.finished, 0)
        ctx.set(dut.busy, 0)
        assert await master.get(ctx, "STATUS") == 2
        assert ctx.get(dut.irq) == 0
        await master.put(ctx, "IRQ_ENABLE", 2)
        assert ctx.get(dut.irq) == 0
        await master.put(ctx, "IRQ_ENABLE", 1)
        assert ctx.get(dut.irq) == 1
        await master.put(ctx, "IRQ_STATUS", 2)
        assert ctx.get(dut.irq) == 1
        await master.put(ctx, "IRQ_STATUS", 1)
        assert ctx.get(dut.irq) == 0
        assert await start(ctx, dut, master) == 1
        assert await master.get(ctx, "STATUS") == 0

    simulate(bench)


@pytest.mark.parametrize(
    ("port", "value", "code"),
    [
        ("error_code", 2, ErrorCode.ILLEGAL_FIELD),
        ("read_error", 1, ErrorCode.READ_RESPONSE),
        ("write_error", 1, ErrorCode.WRITE_RESPONSE),
    ],
)
def test_errors_stand_until_reset(port, value, code):
    async def bench(ctx, dut, master):
        await master.put(ctx, "IRQ_ENABLE", 2)
        ctx.set(dut.pc, 77)
        ctx.set(getattr(dut, port), value)
        await ctx.tick()
        assert ctx.get(dut.stop) == (port != "error_code")
        assert ctx.get(dut.irq) == 1
        ctx.set(dut.pc, 78)
        ctx.set(dut.error_code, 1)  # only the first error is told
        assert await master.get(ctx, "STATUS") == 4
        assert await master.get(ctx, "ERROR") == code
        assert await master.get(ctx, "ERROR_PC") == 77
        await master.put(ctx, "IRQ_STATUS", 3)
        assert ctx.get(dut.irq) == 0
        assert await start(ctx, dut, master) == 0
        assert await master.get(ctx, "STATUS") == 4

    simulate(bench)


def test_counters_count_while_busy():
    async def bench(ctx, dut, master):
        rng = random.Random(5)
        names = [name.lower() for name, _ in COUNTERS if name != "CYCLES"]
        for cycles in (50, 33):
            assert await start(ctx, dut, master) == 1
            counts = dict.fromkeys(names, 0)
            ctx.set(dut.busy, 1)
            for _ in range(cycles):
                for name in names:
                    event = rng.randrange(2)
                    ctx.set(dut.events[name], event)
                    counts[name] += event
                await ctx.tick()
            ctx.set(dut.busy, 0)
            await ctx.tick().repeat(7)
            assert await master.get(ctx, "COUNT_CYCLES") == cycles
            for name in names:
                assert await master.get(ctx, f"COUNT_{name.upper()}") == counts[name]

    simulate(bench)
