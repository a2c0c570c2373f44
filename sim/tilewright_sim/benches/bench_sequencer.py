"""`Sequencer` against a reading of the instruction set: fetching, patches, order, dependencies, errors, END."""

from __future__ import annotations

import random
import struct
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge

from tilewright_hw.arch import AcceleratorConfig, ErrorCode, Instruction, Op, Unit, assemble
from tilewright_hw.arch.isa import BYTES, FIELDS, REG_COUNT, UNIT_OF, apply_patches
from tilewright_sim.benches.testbench import (
    Layout,
    Monitor,
    StreamSink,
    generator,
    pack,
    parameters,
    pauses,
    pulse_reset,
    start_clock,
)

CONFIG = AcceleratorConfig.from_dict(parameters())
BUS = CONFIG.bus_bytes
FETCH = Layout({"addr": 64, "beats": 16})
OPERANDS = {unit: Layout.operands(op) for op, unit in UNIT_OF.items()}
PROGRAM = 0x1_0000_0F40  # three instructions before a 4 KiB border
TABLE = 0x3000
BASE = 5
BASES = [0, 1 << 63, 2 << 60, 3, 4, TABLE - 0x100, 6, 7]
PATCHABLE = {op: [f.name for f in FIELDS[op] if not f.lsb and f.width == 32] for op in UNIT_OF}
"""Fields that fill a word: a patch never makes another field of theirs illegal."""


def random_instruction(rng: random.Random, issued: list[int]) -> Instruction:
    """Return an instruction that the sequencer accepts; dependencies only on what has been issued."""
    op = rng.choice([*UNIT_OF, *UNIT_OF, *UNIT_OF, Op.NOP, Op.LDREGS])
    fields = {}
    for f in FIELDS[op]:
        values = [int(e) for e in f.enum] if f.enum else [f.mask, f.low, rng.randint(f.low, f.mask)]
        fields[f.name] = rng.choice(values)
    if op is Op.LDREGS:
        fields = {"offset": 0x100 + 64 * rng.randrange(3), "count": rng.choice((1, 3, 16, 17, REG_COUNT)), "base": BASE}
    waits = {unit: rng.randint(1, min(15, issued[unit])) for unit in Unit if issued[unit] and rng.random() < 0.3}
    names = PATCHABLE.get(op, [])
    patches = (
        [(rng.choice(names), rng.randrange(REG_COUNT)) for _ in range(rng.choice((0, 0, 1, 2, 4)))] if names else []
    )
    if op in UNIT_OF:
        issued[UNIT_OF[op]] += 1
    return Instruction(op, fields, waits, patches)


def random_program(rng: random.Random, count: int) -> bytes:
    """Return a program that ends."""
    issued = [0] * len(Unit)
    return assemble([*(random_instruction(rng, issued) for _ in range(count)), Instruction(Op.END)])


class Model:
    """What a program asks of each unit, and what must have been completed before: read from the definition alone.

    Parameters
    ----------
    table : list of int
        The words from TABLE on.
    """

    def __init__(self, table: list[int]) -> None:
        self._table = table
        self.reset()

    def reset(self) -> None:
        """Forget the commands; the registers are not defined any more, and a program must load them first."""
        self.registers = [0] * REG_COUNT
        self.sent = [0] * len(Unit)
        self.commands: dict[Unit, deque[tuple[int, list[int]]]] = {unit: deque() for unit in Unit}

    def run(self, program: bytes) -> None:
        """Execute a program up to its END, or to where it is illegal."""
        for at in range(0, len(program), BYTES):
            words = struct.unpack("<16I", apply_patches(program[at : at + BYTES], self.registers))
            code = words[0] & 0xFF
            if code not in Op._value2member_map_ or code == Op.END:
                return
            op = Op(code)
            fields = {f.name: words[f.word] >> f.lsb & f.mask for f in FIELDS[op]}
            if any(fields[f.name] < f.low for f in FIELDS[op]):
                return
            if op is Op.LDREGS:
                first = (fields["offset"] - 0x100) // 4
                self.registers[: fields["count"]] = self._table[first : first + fields["count"]]
            if op in UNIT_OF:
                unit = UNIT_OF[op]
                distances = [words[0] >> 8 + 4 * u & 15 for u in Unit]
                needed = [self.sent[u] - k + 1 if k else 0 for u, k in enumerate(distances)]
                self.commands[unit].append((OPERANDS[unit].pack(fields), needed))
                self.sent[unit] += 1


class Bench:
    """The sequencer between a memory with a program and five units that take their time.

    Parameters
    ----------
    dut : handle
        The design.
    rng : random.Random
        For all that is random.
    share : float
        Share of the time in which each stream pauses.
    work : int
        Cycles that a command takes at most: more than an instruction takes to come, so that others wait for it.
    """

    def __init__(self, dut: Any, rng: random.Random, share: float, work: int = 150) -> None:
        self.dut, self.rng, self.share, self.work = dut, rng, share, work
        self.program = b""
        self.table = [rng.getrandbits(32) for _ in range(REG_COUNT + 64)]
        self.model = Model(self.table)
        self.completed = [0] * len(Unit)
        self.working: dict[Unit, deque[int]] = {unit: deque() for unit in Unit}
        self.beats: deque[tuple[int, int]] = deque()  # the cycle from which each may come
        self.reads: list[int] = []
        self.cycle = self.finished = self.issued = 0
        self._wait = pauses(rng, share)
        StreamSink(dut, "fetch", rng, share).start()
        Monitor.of_stream(dut, "fetch", self._saw_request).start()
        for unit in Unit:
            name = unit.name.lower()
            StreamSink(dut, name, rng, share).start()
            Monitor.of_stream(dut, name, self._saw_command(unit)).start()

    async def start(self) -> None:
        """Start the clock and reset."""
        dut = self.dut
        dut.start.value = dut.stop.value = dut.done.value = dut.i_fetch_valid.value = 0
        dut.program.value, dut.bases.value = PROGRAM, pack(BASES, 64)
        start_clock(dut)
        await pulse_reset(dut)
        cocotb.start_soon(self._run())

    def _byte(self, address: int) -> int:
        if PROGRAM <= address < PROGRAM + len(self.program):
            return self.program[address - PROGRAM]
        if TABLE <= address < TABLE + 4 * len(self.table):
            return self.table[(address - TABLE) // 4] >> 8 * (address % 4) & 255
        return 0xEE

    def _saw_request(self, item: int) -> None:
        fields = FETCH.unpack(item)
        address, count = fields["addr"], fields["beats"]
        assert address % 4096 + count * BUS <= 4096, f"the request {address:#x}, {count} crosses 4 KiB"
        assert 1 <= count <= CONFIG.burst_beats
        self.reads.append(address)
        for i in range(count):
            word = bytes(self._byte(address + i * BUS + b) for b in range(BUS))
            self.beats.append((self.cycle + self.rng.randint(1, 8), int.from_bytes(word, "little")))

    def _saw_command(self, unit: Unit) -> Any:
        def saw(item: int) -> None:
            queue = self.model.commands[unit]
            assert queue, f"{unit.name}: a command that the program does not have"
            wanted, needed = queue.popleft()
            assert item == wanted, f"{unit.name}: {OPERANDS[unit].unpack(item)}, not {OPERANDS[unit].unpack(wanted)}"
            for u in Unit:
                assert self.completed[u] >= needed[u], f"{unit.name} began before {u.name} had done what it waits for"
            self.working[unit].append(self.cycle + self.rng.randint(1, self.work))

        return saw

    async def _run(self) -> None:
        """Give data and completions, and watch `held`."""
        dut = self.dut
        while True:
            give = bool(self.beats) and self.beats[0][0] <= self.cycle and not next(self._wait)
            dut.i_fetch_valid.value = give
            dut.i_fetch_payload.value = self.beats.popleft()[1] if give else self.rng.getrandbits(8 * BUS)
            done = 0
            for unit in Unit:
                if self.working[unit] and self.working[unit][0] <= self.cycle:
                    self.working[unit].popleft()
                    done |= 1 << unit
            dut.done.value = done
            await RisingEdge(dut.clk)
            self.cycle += 1
            assert not give or dut.i_fetch_ready.value, "a fetched word was not taken"
            if dut.rst.value:  # what was asked for before is not answered
                self.beats.clear()
                for queue in self.working.values():
                    queue.clear()
                continue
            for unit in Unit:
                self.completed[unit] += done >> unit & 1
            self.finished += int(dut.finished.value)
            self.issued += int(dut.issued.value)

    async def begin(self, program: bytes) -> None:
        """Start a program, with what it asks for expected; `start` while busy is ignored."""
        self.program = program
        self.model.run(program)
        await self.pulse("start")

    async def pulse(self, name: str) -> None:
        """Set an input for one cycle."""
        getattr(self.dut, name).value = 1
        await RisingEdge(self.dut.clk)
        getattr(self.dut, name).value = 0

    async def finish(self, rounds: int = 1, limit: int = 60_000) -> None:
        """Wait for END, and see that everything was done before it."""
        before = self.finished
        for _ in range(limit):
            await RisingEdge(self.dut.clk)
            if self.finished > before:
                break
        else:
            raise AssertionError(f"no END within {limit} cycles")
        left = {unit.name: len(queue) for unit, queue in self.model.commands.items() if queue}
        assert not left, f"commands missing at the end: {left}"
        assert not any(self.working.values()), "END before all commands were done"
        assert not self.beats, "END before all that was asked for had come"
        await ClockCycles(self.dut.clk, 3)
        assert not self.dut.busy.value
        assert not self.dut.held.value
        assert not self.dut.error_code.value
        assert self.finished == before + rounds

    async def quiet(self, cycles: int) -> None:
        """Fail if a unit gets a command, or memory a request, within some cycles."""
        reads, working = len(self.reads), [len(queue) for queue in self.model.commands.values()]
        await ClockCycles(self.dut.clk, cycles)
        assert len(self.reads) == reads
        assert [len(queue) for queue in self.model.commands.values()] == working

    async def reset(self) -> None:
        """Reset in the middle of work, for one cycle."""
        await pulse_reset(self.dut, 1)
        self.model.reset()
        self.completed = [0] * len(Unit)
        await self.quiet(50)
        assert not self.dut.busy.value
        assert not self.dut.error_code.value
        assert not self.dut.held.value


LOAD_ALL = Instruction(Op.LDREGS, {"offset": 0x100, "count": REG_COUNT, "base": BASE})


def loaded(program: bytes) -> bytes:
    """Return a program that first loads all registers."""
    return LOAD_ALL.encode() + program


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.3, 0.7])
async def test_random_programs(dut: Any, share: float) -> None:
    """One after the other, without reset; `pc` and `issued` count the instructions."""
    rng = generator(f"programs {share}")
    bench = Bench(dut, rng, share)
    await bench.start()
    for count in (0, 1, 20, 40):
        program = loaded(random_program(rng, count))
        before = bench.issued
        await bench.begin(program)
        await bench.pulse("start")
        await bench.finish()
        assert int(dut.pc.value) == len(program) // BYTES - 1
        assert bench.issued == before + len(program) // BYTES
        last = (PROGRAM + len(program) - 1) // 4096
        assert max(bench.reads) // 4096 <= last, "a page after END's was touched"


def least(op: Op, waits: dict[Unit, int] | None = None) -> Instruction:
    """Return an instruction with the least that its fields may be."""
    return Instruction(op, {f.name: int(next(iter(f.enum))) if f.enum else f.low for f in FIELDS[op]}, waits or {})


@cocotb.test()
@cocotb.parametrize(unit=list(Unit))
async def test_a_full_queue_stops_the_sequencer_and_no_unit(dut: Any, unit: Unit) -> None:
    rng = generator(f"full {unit.name}")
    bench = Bench(dut, rng, 0.0, work=1)
    await bench.start()
    other = Unit.STORE if unit == Unit.MATRIX else Unit.MATRIX
    op_of = {of: op for op, of in UNIT_OF.items()}
    slow, waiting = least(op_of[other]), least(op_of[unit], {other: 1})
    bench.work = 1 << 30  # the first command takes until we say
    await bench.begin(assemble([slow, *[waiting] * (CONFIG.queue_depth + 3), slow, Instruction(Op.END)]))
    await ClockCycles(dut.clk, 500)
    bench.work = 1
    assert len(bench.model.commands[unit]) == CONFIG.queue_depth + 3, f"a {unit.name} did not wait"
    assert len(bench.model.commands[other]) == 1, f"the second {other.name} came past a full queue"
    assert int(dut.wait_dependency.value) == 1 << unit
    assert int(dut.held.value) == 1 << other
    bench.working[other].clear()
    bench.working[other].append(0)
    await bench.finish()


ILLEGAL = {
    "opcode": (bytes([77]) + bytes(BYTES - 1), ErrorCode.ILLEGAL_OPCODE),
    "zero": (Instruction(Op.MATMUL, {"k": 1}).encode(), ErrorCode.ILLEGAL_FIELD),
    "registers": (Instruction(Op.LDREGS, {"count": REG_COUNT + 1}).encode(), ErrorCode.ILLEGAL_FIELD),
    "enum": (
        Instruction(Op.LOAD, {"bytes": 64, "count": 1}).encode()[:22] + b"\x70" + bytes(41),
        ErrorCode.ILLEGAL_FIELD,
    ),
}


@cocotb.test()
@cocotb.parametrize(what=list(ILLEGAL))
async def test_illegal_instructions_stop_it(dut: Any, what: str) -> None:
    rng = generator(f"illegal {what}")
    bench = Bench(dut, rng, 0.2)
    await bench.start()
    bad, code = ILLEGAL[what]
    good = assemble([Instruction(Op.NOP), Instruction(Op.STORE, {"n": 1, "m": 1, "h": 1, "run": 1})])
    await bench.begin(good + bad + good + assemble([Instruction(Op.END)]))
    bench.model.commands[Unit.STORE] = deque(list(bench.model.commands[Unit.STORE])[:1])
    await ClockCycles(dut.clk, 400)
    assert int(dut.error_code.value) == code
    assert int(dut.pc.value) == 2
    assert not dut.busy.value
    assert not bench.finished
    await bench.pulse("start")  # ignored
    await bench.quiet(100)
    assert int(dut.error_code.value) == code
    await bench.reset()
    await bench.begin(loaded(random_program(rng, 10)))
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(cycles=[40, 150, 300])
async def test_stop(dut: Any, cycles: int) -> None:
    """An error elsewhere: nothing more is issued, and what was asked for is taken and dropped."""
    rng = generator(f"stop {cycles}")
    bench = Bench(dut, rng, 0.2)
    await bench.start()
    await bench.begin(loaded(random_program(rng, 60)))
    await ClockCycles(dut.clk, cycles)
    dut.stop.value = 1
    await ClockCycles(dut.clk, 60)
    assert not dut.busy.value
    await bench.quiet(500)
    assert not bench.beats
    dut.stop.value = 0
    await bench.quiet(60)
    await bench.reset()
    await bench.begin(loaded(random_program(rng, 10)))
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(cycles=[1, 5, 33, 80, 200, 420])
async def test_reset_in_the_middle(dut: Any, cycles: int) -> None:
    rng = generator(f"reset {cycles}")
    bench = Bench(dut, rng, 0.2)
    await bench.start()
    await bench.begin(loaded(random_program(rng, 60)))
    await ClockCycles(dut.clk, cycles)
    await bench.reset()
    await bench.begin(loaded(random_program(rng, 20)))
    await bench.finish()


@cocotb.test()
async def test_many_instructions(dut: Any) -> None:
    """More than the counters hold, of a unit that is fast beside one that is slow."""
    rng = generator("many")
    bench = Bench(dut, rng, 0.0, work=3)
    await bench.start()
    slow = Instruction(Op.STORE, {"n": 1, "m": 1, "h": 1, "run": 1}, {Unit.MATRIX: 1})
    matmul = Instruction(Op.MATMUL, dict.fromkeys(("k", "n", "groups", "rows_outer", "rows_inner"), 1))
    await bench.begin(assemble([*([matmul] * 8 + [slow]) * 140, Instruction(Op.END)]))
    await bench.finish()
