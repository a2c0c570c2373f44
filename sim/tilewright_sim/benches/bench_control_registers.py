"""`ControlRegisters` at its AXI4-Lite port, against the register map: values, strobes, start, errors, counters."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge
from cocotbext.axi import AxiResp

from tilewright_hw.arch import REGISTERS, AcceleratorConfig, ErrorCode
from tilewright_hw.arch.isa import BASES
from tilewright_hw.arch.registers import COUNTERS, IDENTITY, VERSION
from tilewright_sim.benches.axi import AxiLiteRules, registers_master
from tilewright_sim.benches.testbench import generator, parameters, pauses, pulse_reset, start_clock

CONFIG = AcceleratorConfig.from_dict(parameters())
SETTABLE = [name for name, register in REGISTERS.items() if register.access == "rw"]
EVENTS = [name for name, _ in COUNTERS if name != "CYCLES"]
BY_HAND = ("awvalid", "awaddr", "wvalid", "wdata", "wstrb", "bready", "arvalid", "araddr", "rready")
INPUTS = ("busy", "finished", "error_code", "pc", "read_error", "write_error", "events")


def constants() -> dict[str, int]:
    """Return what the registers read that say what the accelerator is."""
    logs = [size.bit_length() - 1 for size in (CONFIG.acc_rows, CONFIG.act_words, CONFIG.row_words, CONFIG.param_words)]
    return {
        "IDENTITY": IDENTITY,
        "VERSION": VERSION,
        "SHAPE": CONFIG.rows | CONFIG.cols << 8 | CONFIG.lanes << 16 | CONFIG.bus_bytes << 24,
        "CAPACITY": sum(log << 8 * i for i, log in enumerate(logs)),
        "CAPACITY2": CONFIG.stat_entries.bit_length() - 1 | CONFIG.ingest << 8,
    }


class Host:
    """A host at the registers, and the wires of the rest of the accelerator.

    Parameters
    ----------
    dut : handle
        The design.
    rng : random.Random
        For the pauses.
    share : float or None
        Share of the time in which each channel pauses; None: the test drives the bus by hand until `attach`.
    """

    def __init__(self, dut: Any, rng: random.Random, share: float | None) -> None:
        self.dut, self._rng = dut, rng
        if share is None:
            for name in BY_HAND:
                getattr(dut, f"bus_{name}").value = 0
        else:
            self.attach(share)
        self.rules = AxiLiteRules(dut, "bus")
        self.starts = 0
        cocotb.start_soon(self._count_starts())

    def attach(self, share: float = 0.0) -> None:
        """Put a master on the bus."""
        self.master = registers_master(self.dut, "bus", self._rng, share)

    @classmethod
    async def started(cls, dut: Any, rng: random.Random, share: float | None = 0.0) -> Host:
        """Return a host at registers that have been reset."""
        for name in INPUTS:
            getattr(dut, name).value = 0
        start_clock(dut)
        host = cls(dut, rng, share)
        await host.reset()
        return host

    async def reset(self, cycles: int = 2) -> None:
        """Reset, in the middle of work too."""
        await pulse_reset(self.dut, cycles)
        self.rules.reset()
        await RisingEdge(self.dut.clk)

    async def _count_starts(self) -> None:
        while True:
            await RisingEdge(self.dut.clk)
            self.starts += int(self.dut.start.value) and not int(self.dut.rst.value)

    async def get(self, name: str) -> int:
        """Read a register."""
        return int(await self.master.read_dword(REGISTERS[name].address))

    async def put(self, name: str, value: int) -> None:
        """Write a register."""
        await self.master.write_dword(REGISTERS[name].address, value)

    async def pulse(self, name: str, value: int = 1) -> None:
        """Set an input for one cycle."""
        getattr(self.dut, name).value = value
        await RisingEdge(self.dut.clk)
        getattr(self.dut, name).value = 0

    async def status(self) -> dict[str, int]:
        """Return what says how the program is."""
        return {name: await self.get(name) for name in ("STATUS", "ERROR", "ERROR_PC", "IRQ_STATUS")}


def outputs(dut: Any) -> dict[str, int]:
    """Return the settings as the rest of the accelerator sees them."""
    program, bases = int(dut.program.value), int(dut.bases.value)
    values = {"PROGRAM_LO": program & 0xFFFFFFFF, "PROGRAM_HI": program >> 32}
    for i in range(BASES):
        base = bases >> 64 * i
        values |= {f"BASE{i}_LO": base & 0xFFFFFFFF, f"BASE{i}_HI": base >> 32 & 0xFFFFFFFF}
    return values


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.5])
async def test_every_register(dut: Any, share: float) -> None:
    """What can be set can be read back and goes to the outputs; byte by byte too; nothing else is changed by it."""
    rng = generator(f"registers {share}")
    host = await Host.started(dut, rng, share)
    model = {name: 0 for name in REGISTERS} | constants()
    assert {name: await host.get(name) for name in REGISTERS} == model
    for value in (0xFFFFFFFF, 0, 0xA5C3963C):
        for name in SETTABLE:
            await host.put(name, value)
            model[name] = value & (3 if name == "IRQ_ENABLE" else 0xFFFFFFFF)
            assert await host.get(name) == model[name], name
        assert outputs(dut) == {name: model[name] for name in outputs(dut)}
    for name in SETTABLE * 2:
        value, first, count = rng.getrandbits(32), rng.randrange(4), rng.randint(1, 4)
        data = value.to_bytes(4, "little")[first : first + count]
        await host.master.write(REGISTERS[name].address + first, data)
        old = bytearray(model[name].to_bytes(4, "little"))
        old[first : first + len(data)] = data
        model[name] = int.from_bytes(old, "little") & (3 if name == "IRQ_ENABLE" else 0xFFFFFFFF)
        assert await host.get(name) == model[name], name
    assert outputs(dut) == {name: model[name] for name in outputs(dut)}
    assert {name: await host.get(name) for name in REGISTERS} == model
    host.rules.assert_quiet()
    await host.reset(1)
    assert outputs(dut) == dict.fromkeys(outputs(dut), 0)
    assert await host.get("IRQ_ENABLE") == 0


@cocotb.test()
async def test_unknown_addresses_and_read_only_registers_are_errors(dut: Any) -> None:
    rng = generator("addresses")
    host = await Host.started(dut, rng, 0.2)
    known = {register.address: register for register in REGISTERS.values()}
    for address in (*range(0, 0x200, 4), 0x800, 0xFFC):
        register = known.get(address)
        answer = await host.master.read(address, 4)
        assert (answer.resp == AxiResp.OKAY) == (register is not None), hex(address)
        if register is None:
            assert answer.data == bytes(4), hex(address)
        written = await host.master.write(address, bytes(4))
        assert (written.resp == AxiResp.OKAY) == (register is not None and register.access != "ro"), hex(address)
    assert host.starts == 0
    assert {name: await host.get(name) for name in constants()} == constants()


@cocotb.test()
@cocotb.parametrize(first=["address", "data", "both"])
async def test_address_and_data_in_any_order(dut: Any, first: str) -> None:
    """By hand: a write takes effect once both are there, once, and is answered until the answer is taken."""
    host = await Host.started(dut, generator(f"order {first}"), None)
    edge = FallingEdge(dut.clk)
    dut.bus_bready.value = 0
    await edge
    for value in (0x1234567, 0x89ABCDE):
        dut.bus_awaddr.value, dut.bus_wdata.value, dut.bus_wstrb.value = 0x040, value, 15
        dut.bus_awvalid.value, dut.bus_wvalid.value = first != "data", first != "address"
        await edge
        dut.bus_awvalid.value, dut.bus_wvalid.value = first == "data", first == "address"
        await edge
        dut.bus_awvalid.value = dut.bus_wvalid.value = 0
        for _ in range(4):
            await edge
        assert dut.bus_bvalid.value
        assert int(dut.program.value) == value
        dut.bus_bready.value = 1
        await edge
        dut.bus_bready.value = 0
        assert not dut.bus_bvalid.value
    host.rules.assert_quiet()


@cocotb.test()
async def test_one_answer_for_each_of_many_requests(dut: Any) -> None:
    """By hand: requests come without a pause while answers are taken now and then."""
    rng = generator("requests")
    host = await Host.started(dut, rng, None)
    wait, asked, got = pauses(rng, 0.6), 0, []
    addresses = [rng.choice((0x000, 0x004, 0x008, 0x00C, 0x010)) for _ in range(30)]
    dut.bus_arvalid.value, dut.bus_araddr.value = 1, addresses[0]
    for _ in range(600):
        dut.bus_rready.value = not next(wait)
        await RisingEdge(dut.clk)
        if dut.bus_rvalid.value and dut.bus_rready.value:
            got.append(int(dut.bus_rdata.value))
        if dut.bus_arvalid.value and dut.bus_arready.value:
            asked += 1
            dut.bus_arvalid.value = asked < len(addresses)
            dut.bus_araddr.value = addresses[min(asked, len(addresses) - 1)]
    by_address = {REGISTERS[name].address: value for name, value in constants().items()}
    assert got == [by_address[address] for address in addresses]
    host.rules.assert_quiet()


@cocotb.test()
async def test_start_done_and_interrupts(dut: Any) -> None:
    rng = generator("start")
    host = await Host.started(dut, rng, 0.2)
    await host.put("CONTROL", 0xFFFFFFFE)
    await host.master.write(REGISTERS["CONTROL"].address + 1, b"\x01")
    assert host.starts == 0
    for enable in (0, 1, 2, 3):
        await host.put("IRQ_ENABLE", enable)
        await host.put("CONTROL", 1)
        dut.busy.value = 1
        started = host.starts
        assert started == enable + 1
        await host.put("CONTROL", 1)  # ignored while busy
        assert await host.get("STATUS") == 1
        await host.pulse("finished")
        dut.busy.value = 0
        await ClockCycles(dut.clk, 2)
        assert int(dut.irq.value) == enable & 1
        assert await host.status() == {"STATUS": 2, "ERROR": 0, "ERROR_PC": 0, "IRQ_STATUS": 1}
        await host.put("IRQ_STATUS", 2)  # not this bit
        await host.master.write(REGISTERS["IRQ_STATUS"].address + 1, b"\x01")  # nor this byte
        assert await host.get("IRQ_STATUS") == 1
        await host.put("IRQ_STATUS", 1)
        assert (await host.get("IRQ_STATUS"), int(dut.irq.value), host.starts) == (0, 0, started)
        assert await host.get("STATUS") == 2


ERRORS: dict[str, tuple[dict[str, int], ErrorCode]] = {
    "opcode": ({"error_code": ErrorCode.ILLEGAL_OPCODE}, ErrorCode.ILLEGAL_OPCODE),
    "field": ({"error_code": ErrorCode.ILLEGAL_FIELD}, ErrorCode.ILLEGAL_FIELD),
    "read": ({"read_error": 1}, ErrorCode.READ_RESPONSE),
    "write": ({"write_error": 1}, ErrorCode.WRITE_RESPONSE),
    "both": ({"read_error": 1, "write_error": 1}, ErrorCode.READ_RESPONSE),
    "all": ({"error_code": 2, "read_error": 1, "write_error": 1}, ErrorCode.ILLEGAL_FIELD),
}


@cocotb.test()
@cocotb.parametrize(what=list(ERRORS))
async def test_the_first_error_stands(dut: Any, what: str) -> None:
    rng = generator(f"error {what}")
    host = await Host.started(dut, rng)
    inputs, code = ERRORS[what]
    pc = rng.getrandbits(32)
    dut.pc.value = pc
    await host.put("IRQ_ENABLE", 2)
    assert not dut.stop.value
    for name, value in inputs.items():
        getattr(dut, name).value = value
    await ClockCycles(dut.clk, 3)
    assert int(dut.stop.value) == (inputs.keys() != {"error_code"})
    dut.pc.value = pc ^ 1
    dut.write_error.value = 1  # another one later
    wanted = {"STATUS": 4, "ERROR": code, "ERROR_PC": pc, "IRQ_STATUS": 2}
    assert await host.status() == wanted
    assert dut.irq.value
    await host.put("IRQ_STATUS", 2)
    assert await host.status() == wanted | {"IRQ_STATUS": 0}
    assert not dut.irq.value
    await host.put("CONTROL", 1)
    assert host.starts == 0
    for name in (*inputs, "write_error"):
        getattr(dut, name).value = 0
    await host.reset(1)
    assert await host.status() == {"STATUS": 0, "ERROR": 0, "ERROR_PC": 0, "IRQ_STATUS": 0}
    await host.put("CONTROL", 1)
    assert host.starts == 1


@cocotb.test()
async def test_counters(dut: Any) -> None:
    """Each counts its own event, while a program runs, and begins at 0 with each start."""
    rng = generator("counters")
    host = await Host.started(dut, rng)
    for run in range(3):
        dut.events.value = (1 << len(EVENTS)) - 1  # not counted: nothing runs
        await host.put("CONTROL", 1)
        dut.events.value = 0
        dut.busy.value = 1
        counts, cycles = [0] * len(EVENTS), rng.randint(200, 400)
        for _ in range(cycles):
            events = rng.getrandbits(len(EVENTS)) | rng.getrandbits(len(EVENTS)) << 1 & (1 << len(EVENTS)) - 1
            dut.events.value = events
            counts = [count + (events >> i & 1) for i, count in enumerate(counts)]
            await RisingEdge(dut.clk)
        dut.busy.value = 0
        await RisingEdge(dut.clk)  # the inputs of the last cycle have been seen
        dut.events.value = 0
        wanted = {f"COUNT_{name}": count for name, count in zip(EVENTS, counts, strict=True)}
        got = {name: await host.get(name) for name in wanted}
        assert got == wanted, f"run {run}"
        assert await host.get("COUNT_CYCLES") == cycles
    await host.reset()
    assert await host.get("COUNT_CYCLES") == 0


@cocotb.test()
async def test_counters_are_reset_with_what_is_on_its_way_to_them(dut: Any) -> None:
    host = await Host.started(dut, generator("counters in reset"))
    await host.put("CONTROL", 1)
    dut.busy.value, dut.events.value = 1, (1 << len(EVENTS)) - 1
    await ClockCycles(dut.clk, 20)
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    dut.rst.value = dut.busy.value = dut.events.value = 0
    await ClockCycles(dut.clk, 5)
    assert not any([await host.get(f"COUNT_{name}") for name, _ in COUNTERS])


@cocotb.test()
async def test_counters_carry(dut: Any) -> None:
    """All bits of a counter count: 2^16 and a few cycles, and the adder's carry from there on is one like it."""
    host = await Host.started(dut, generator("carry"))
    await host.put("CONTROL", 1)
    dut.busy.value, dut.events.value = 1, (1 << len(EVENTS)) - 1
    await ClockCycles(dut.clk, 4321)
    dut.busy.value = 0
    await ClockCycles(dut.clk, 2)
    counts = {name: await host.get(f"COUNT_{name}") for name, _ in COUNTERS}
    assert counts == dict.fromkeys(counts, counts["CYCLES"])
    assert counts["CYCLES"] == 4321


@cocotb.test()
@cocotb.parametrize(cycles=[1, 2, 3, 4])
async def test_reset_in_the_middle_of_an_access(dut: Any, cycles: int) -> None:
    """What was asked for before is not answered after."""
    rng = generator(f"reset {cycles}")
    host = await Host.started(dut, rng, None)
    edge = FallingEdge(dut.clk)
    await edge
    dut.bus_bready.value = dut.bus_rready.value = 0
    dut.bus_araddr.value = dut.bus_awaddr.value = 0x040
    dut.bus_wdata.value, dut.bus_wstrb.value = 77, 15
    dut.bus_arvalid.value = dut.bus_awvalid.value = 1
    dut.bus_wvalid.value = cycles % 2
    for _ in range(cycles):
        await edge
    dut.bus_arvalid.value = dut.bus_awvalid.value = dut.bus_wvalid.value = 0
    await host.reset(1)
    dut.bus_bready.value = dut.bus_rready.value = 1
    for _ in range(5):
        await edge
        assert not dut.bus_rvalid.value
        assert not dut.bus_bvalid.value
    host.attach()
    assert await host.get("PROGRAM_LO") == 0
    await host.put("PROGRAM_LO", 78)
    assert await host.get("PROGRAM_LO") == 78
    assert host.starts == 0
