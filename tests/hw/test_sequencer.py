"""The sequencer against a reading of the instruction set: order, patches, dependencies, errors."""

import random
import re
import struct
from dataclasses import dataclass, field

import pytest
from amaranth.sim import Simulator

from tilewright_hw.arch import AcceleratorConfig, Instruction, Op, Unit, assemble
from tilewright_hw.arch.isa import BYTES, FIELDS, REG_COUNT, UNIT_OF, apply_patches
from tilewright_hw.arch.registers import ErrorCode
from tilewright_hw.gateware.sequencer import CommandQueue, Sequencer

PROGRAM = 0x1_0000_0F40  # three instructions before a 4 KiB border
TABLE = 0x3000
BASE = 5


def as_dict(command) -> dict[str, int]:
    return {name: command[name] for name, _ in command.shape()}


def config(**changes) -> AcceleratorConfig:
    small = dict(rows=4, cols=4, lanes=2, ingest=1, bus_bits=32, burst_beats=16, queue_depth=4)
    return AcceleratorConfig(**{**small, **changes})


@dataclass
class Bench:
    """A sequencer between a memory and five units that take their time."""

    config: AcceleratorConfig
    seed: int
    program: bytes
    table: list[int] = field(default_factory=lambda: [0] * REG_COUNT)
    latency: int = 5
    stall: float = 0.3
    work: int = 12
    rounds: int = 1
    """How often the program is started."""
    commands: list[tuple[Unit, int, dict[str, int]]] = field(default_factory=list)
    """What each unit took, with the number of the instruction."""
    faults: list[str] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)
    finished_at: int = 0
    cycle: int = 0

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.dut = Sequencer(self.config)
        self.completed = [0] * len(Unit)
        self.expected = self.expect()
        self.stop_at = None

    def expect(self):
        """The commands of each unit in order: operands, and what must have completed."""
        self.sent = [0] * len(Unit)
        self.registers = [0] * REG_COUNT
        expected = {unit: [] for unit in Unit}
        for _ in range(self.rounds):
            for place in range(len(self.program) // BYTES):
                if not self.expect_one(place, expected):
                    break
        return expected

    def expect_one(self, place, expected):
        """Do one instruction; False after the last."""
        raw = self.program[place * BYTES : (place + 1) * BYTES]
        words = struct.unpack("<16I", apply_patches(raw, self.registers))
        op = words[0] & 0xFF
        if op not in Op._value2member_map_ or op == Op.END:
            return False
        waits = [words[0] >> (8 + 4 * u) & 15 for u in Unit]
        fields = {f.name: words[f.word] >> f.lsb & f.mask for f in FIELDS[Op(op)]}
        if op == Op.LDREGS:
            self.registers[: fields["count"]] = self.table[: fields["count"]]
        if op in UNIT_OF:
            need = [self.sent[u] - k + 1 if k else 0 for u, k in enumerate(waits)]
            expected[UNIT_OF[Op(op)]].append((place, fields, need))
            self.sent[UNIT_OF[Op(op)]] += 1
        return True

    def byte(self, address):
        if PROGRAM <= address < PROGRAM + len(self.program):
            return self.program[address - PROGRAM]
        if TABLE <= address < TABLE + 4 * len(self.table):
            return struct.pack(f"<{len(self.table)}I", *self.table)[address - TABLE]
        return 0xEE

    async def memory(self, ctx):
        """Answer read requests in order, with a latency and gaps."""
        dut, size = self.dut, self.config.bus_bytes
        beats = []
        while True:
            ctx.set(dut.fetch.ready, self.random.random() >= self.stall)
            give = beats and beats[0][0] <= self.cycle and self.random.random() >= self.stall
            ctx.set(dut.i_fetch.valid, bool(give))
            if give:
                ctx.set(dut.i_fetch.payload, beats[0][1])
            asked, addr, count, taken = (
                await ctx.tick().sample(
                    dut.fetch.valid & dut.fetch.ready,
                    dut.fetch.p.addr,
                    dut.fetch.p.beats,
                    dut.i_fetch.ready,
                )
            )[2:]
            self.cycle += 1
            if give:
                if not taken:
                    self.faults.append("a fetched word was not taken")
                beats.pop(0)
            if asked:
                self.reads.append((addr, count))
                if (addr % 4096) + count * size > 4096:
                    self.faults.append(f"the request {addr:#x}, {count} crosses 4 KiB")
                for i in range(count):
                    word = bytes(self.byte(addr + i * size + b) for b in range(size))
                    beats.append((self.cycle + self.latency, int.from_bytes(word, "little")))

    def unit(self, unit):
        """Take commands, check them, and complete them in order."""

        async def process(ctx):
            port = getattr(self.dut, unit.name.lower())
            pending = []
            taken = 0
            while True:
                ctx.set(port.ready, len(pending) < 3 and self.random.random() >= self.stall)
                finish = pending and pending[0] <= self.cycle
                if finish:
                    pending.pop(0)
                    self.completed[unit] += 1
                ctx.set(self.dut.done[unit], bool(finish))
                valid, ready, payload = (await ctx.tick().sample(port.valid, port.ready, port.payload))[2:]
                if valid and ready:
                    self.take(unit, taken, as_dict(payload))
                    taken += 1
                    pending.append(self.cycle + self.random.randrange(self.work))

        return process

    def take(self, unit, number, fields):
        if number >= len(self.expected[unit]):
            self.faults.append(f"{unit.name} got a command too many")
            return
        place, wanted, need = self.expected[unit][number]
        self.commands.append((unit, place, fields))
        if fields != wanted:
            self.faults.append(f"{unit.name} {number} got {fields}, not {wanted}")
        for u in Unit:
            if self.completed[u] < need[u]:
                self.faults.append(f"{unit.name} {number} started with {self.completed[u]} of {need[u]} {u.name}")

    async def control(self, ctx):
        dut = self.dut
        ctx.set(dut.bases[BASE], TABLE - 0x1000)
        ctx.set(dut.program, PROGRAM)
        for _ in range(self.rounds):
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            begin, self.issued = self.cycle, 0
            while ctx.get(dut.busy):
                assert self.cycle < begin + 100_000, f"seed {self.seed}: still busy"
                if self.stop_at is not None and self.cycle - begin >= self.stop_at:
                    ctx.set(dut.stop, 1)
                finished, event = (await ctx.tick().sample(dut.finished, dut.issued))[2:]
                self.issued += event
                if finished:
                    self.finished_at = self.cycle - begin
                    if ctx.get(dut.busy):
                        self.faults.append("busy after the end")
        await ctx.tick().repeat(40)
        self.error = (ctx.get(dut.error_code), ctx.get(dut.pc))
        self.held = ctx.get(dut.held)

    def run(self):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(self.memory, background=True)
        for unit in Unit:
            simulator.add_testbench(self.unit(unit), background=True)
        simulator.add_testbench(self.control)
        simulator.run()
        assert self.faults == [], f"seed {self.seed}: {self.faults[0]}"
        if self.finished_at:
            assert self.completed == self.sent
        return self


def random_instruction(rng, patches=True):
    op = rng.choice([Op.WEIGHT, Op.LOAD, Op.MATMUL, Op.VECTOR, Op.STORE] * 4 + [Op.NOP, Op.LDREGS])
    values = {}
    for f in FIELDS[op]:
        value = rng.choice([rng.randrange(f.mask + 1), f.low, f.mask])
        values[f.name] = int(rng.choice(list(f.enum))) if f.enum else max(value, f.low)
    if op == Op.LDREGS:
        values = {"offset": 0x1000, "count": rng.choice([1, 5, 16, 17, 128]), "base": BASE}
    waits = {u: rng.randrange(1, 16) for u in Unit if rng.random() < 0.3}
    fields = []
    if patches and op in UNIT_OF and rng.random() < 0.5:
        checked = {f.word for f in FIELDS[op] if f.low or f.enum}  # these might become illegal
        free = [f.name for f in FIELDS[op] if f.lsb == 0 and f.word not in checked]
        fields = [(rng.choice(free), rng.randrange(REG_COUNT)) for _ in range(rng.randrange(1, 5))]
    return Instruction(op, values, waits, fields)


def random_program(seed, length, **kwargs):
    rng = random.Random(seed)
    return [random_instruction(rng, **kwargs) for _ in range(length)] + [Instruction(Op.END)]


@pytest.mark.parametrize(
    ("bus_bits", "burst_beats", "seed"),
    [(32, 16, 1), (32, 4, 2), (64, 32, 3), (128, 32, 4), (128, 1, 5), (512, 8, 6)],
)
def test_random_programs(bus_bits, burst_beats, seed):
    rows = 64 if bus_bits == 512 else 16
    made = config(bus_bits=bus_bits, burst_beats=burst_beats, rows=rows, cols=16,
                  weight_fifo_bytes=8192, stream_fifo_bytes=8192)  # fmt: skip
    rng = random.Random(seed)
    table = [rng.randrange(1 << 32) for _ in range(REG_COUNT)]
    length = 25 if bus_bits == 32 else 50
    program = random_program(seed, length)
    bench = Bench(made, seed, assemble(program) + bytes([255]) * 64, table,
                  latency=rng.choice([1, 20]), rounds=2)  # fmt: skip
    bench.run()
    assert bench.error == (0, length)
    assert bench.issued == length + 1
    assert bench.held == 0


def test_reading_ahead_stays_in_the_page_of_the_end():
    program = assemble([Instruction(Op.NOP)] * 2 + [Instruction(Op.END)])  # END is the page's last
    bench = Bench(config(), 0, program, stall=0.0).run()
    assert bench.finished_at
    assert max(addr + 4 * count for addr, count in bench.reads) == (PROGRAM | 0xFFF) + 1


@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("burst_beats", [1, 4, 16])
def test_an_end_comes_whole(before, burst_beats):
    # LDREGS stops the reading of instructions, perhaps in the middle of END.
    ldregs = Instruction(Op.LDREGS, {"offset": 0x1000, "base": BASE, "count": 1})
    program = [Instruction(Op.NOP)] * before + [ldregs, Instruction(Op.END)]
    bench = Bench(config(burst_beats=burst_beats), before, assemble(program), latency=1).run()
    assert bench.finished_at


@pytest.mark.parametrize(("bus_bits", "limit"), [(128, 6), (512, 3.1)])
def test_instructions_per_cycle(bus_bits, limit):
    rows = 64 if bus_bits == 512 else 16
    made = config(bus_bits=bus_bits, rows=rows, burst_beats=8, cols=16,
                  weight_fifo_bytes=8192, stream_fifo_bytes=8192)  # fmt: skip
    units = [Op.WEIGHT, Op.LOAD, Op.MATMUL, Op.VECTOR, Op.STORE]
    program = [Instruction(units[i % 5], {f.name: 1 for f in FIELDS[units[i % 5]]}) for i in range(100)]
    bench = Bench(made, 0, assemble([*program, Instruction(Op.END)]), stall=0.0, work=1, latency=2)
    bench.run()
    # 2 page borders' worth of start-up and the END's drain are not counted.
    assert bench.finished_at <= 100 * limit + 60


def test_a_command_may_wait_while_others_go_on_for_long():
    # The matrix unit's second command waits for its first, which takes longer than all others.
    class Slow(Bench):
        def unit(self, unit):
            if unit != Unit.MATRIX:
                return super().unit(unit)

            async def process(ctx):
                port = self.dut.matrix
                ctx.set(port.ready, 1)
                for number in range(2):
                    (payload,) = await ctx.tick().sample(port.payload).until(port.valid)
                    ctx.set(port.ready, 0)
                    self.take(unit, number, as_dict(payload))
                    await ctx.tick().repeat(2600 if number == 0 else 3)
                    ctx.set(self.dut.done[unit], 1)
                    self.completed[unit] += 1
                    await ctx.tick()
                    ctx.set(self.dut.done[unit], 0)
                    ctx.set(port.ready, 1)

            return process

    matmul = Instruction(Op.MATMUL, {"k": 1, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1})
    after = Instruction(Op.MATMUL, matmul.fields, {Unit.MATRIX: 1, Unit.STORE: 3})
    store = Instruction(Op.STORE, {"n": 1, "m": 1, "h": 1, "run": 1})
    made = config(bus_bits=128, rows=16, cols=16, weight_fifo_bytes=8192, stream_fifo_bytes=8192)
    program = assemble([matmul, store, after] + [store] * 400 + [Instruction(Op.END)])
    bench = Slow(made, 0, program, stall=0.0, work=1, latency=0).run()
    assert bench.finished_at
    # Issuing stops within two epochs, long before the counters could lap the waiting command.
    before = [unit for unit, _, _ in bench.commands].index(Unit.MATRIX, 1)
    assert 120 <= before <= 300


MATMUL = {"k": 1, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1}
ILLEGAL = [
    *[(Op.MATMUL, {**MATMUL, name: 0}) for name in MATMUL],
    (Op.VECTOR, {"n": 1, "m": 1, "h": 1, "reduce": 9}),
    (Op.VECTOR, {"n": 1, "m": 1, "h": 1, "reduce": 15}),
    (Op.VECTOR, {"n": 1, "m": 1, "h": 1, "dest": 8}),
    (Op.VECTOR, {"n": 1, "m": 1, "h": 1, "add": 6}),
    (Op.VECTOR, {"n": 1, "m": 1, "h": 1, "func": 4}),
    (Op.VECTOR, {"n": 1, "m": 1, "h": 1, "source": 3}),
    (Op.LOAD, {"bytes": 4, "count": 1, "dest": 5}),
    (Op.STORE, {"n": 1, "m": 1, "h": 1, "run": 1, "element": 3}),
    (Op.STORE, {"n": 1, "m": 1, "h": 1}),
    (Op.LDREGS, {"count": 0}),
    (Op.LDREGS, {"count": 129}),
    (Op.WEIGHT, {"bytes": 0, "count": 1}),
]


@pytest.mark.parametrize(("op", "values"), ILLEGAL)
def test_illegal_fields(op, values):
    good = Instruction(Op.MATMUL, MATMUL)
    program = assemble([good, good, Instruction(op, values), good, Instruction(Op.END)])
    bench = Bench(config(), 0, program)
    bench.expected[Unit.MATRIX] = bench.expected[Unit.MATRIX][:2]
    bench.run()
    assert bench.error == (ErrorCode.ILLEGAL_FIELD, 2)
    assert len(bench.commands) == 2
    assert bench.finished_at == 0


@pytest.mark.parametrize("opcode", [3, 15, 21, 0x92, 255])
def test_illegal_opcodes(opcode):
    good = assemble([Instruction(Op.MATMUL, MATMUL)])
    bench = Bench(config(), 0, good + bytes([opcode]) + bytes(63) + good)
    bench.run()
    assert bench.error == (ErrorCode.ILLEGAL_OPCODE, 1)
    assert [place for _, place, _ in bench.commands] == [0]


def test_a_patch_may_make_a_field_illegal():
    table = [0] * REG_COUNT
    table[9] = (1 << 32) - 7
    ldregs = Instruction(Op.LDREGS, {"offset": 0x1000, "base": BASE, "count": 10})
    weight = Instruction(Op.WEIGHT, {"bytes": 7, "count": 1}, patches=[("bytes", 9)])
    bench = Bench(config(), 0, assemble([ldregs, weight, Instruction(Op.END)]), table)
    bench.expected[Unit.WEIGHT] = []
    assert bench.run().error == (ErrorCode.ILLEGAL_FIELD, 1)


def test_stop_issues_nothing_more():
    program = [Instruction(Op.MATMUL, MATMUL)] * 40 + [Instruction(Op.END)]
    bench = Bench(config(), 3, assemble(program))
    bench.stop_at = 300
    bench.run()
    assert bench.finished_at == 0
    assert 0 < len(bench.commands) < 40
    assert bench.error[0] == ErrorCode.NONE  # whoever stops it knows why


def test_construction_errors():
    with pytest.raises(ValueError, match=re.escape("op must be an opcode with a unit, not <Op.END")):
        CommandQueue(Op.END, depth=4)
    with pytest.raises(ValueError, match="depth must be an integer of at least 2, not 1"):
        CommandQueue(Op.STORE, depth=1)
