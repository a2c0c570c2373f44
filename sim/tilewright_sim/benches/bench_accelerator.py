"""The whole accelerator at its ports, with cocotbext-axi on the other side: a program's memory against GoldenDevice.

Every channel pauses at random; reads and writes outside memory are answered with SLVERR; reset falls in the middle.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiResp
from numpy.typing import NDArray

from tilewright_hw.arch import REGISTERS, AcceleratorConfig, ErrorCode, Instruction, Op, Unit, assemble
from tilewright_hw.arch.isa import BYTES, UNIT_OF, Add, Dest, Element, Func, LoadDest, Mul, Reduce, Scale, Source
from tilewright_hw.arch.registers import IDENTITY, VERSION
from tilewright_sim.benches.axi import AxiLiteRules, AxiRules, read_memory, registers_master, write_memory
from tilewright_sim.benches.testbench import generator, parameters, pulse_reset, start_clock
from tilewright_sim.golden import GoldenDevice
from tilewright_sim.golden.tiles import NibbleRows

CONFIG = AcceleratorConfig.resolve(parameters()["config"])
SIZE = 1 << 15
PROGRAM, DATA, TABLES, RESULT = 0x0000, 0x1000, 0x5000, 0x6000
BASES = {"BASE3_LO": RESULT, "BASE5_LO": TABLES}
"""Base registers of `patched`; the others are 0."""


class System:
    """The accelerator with memory and host.

    Parameters
    ----------
    dut : handle
        The design.
    rng : random.Random
        For the pauses.
    share : float
        Share of the time in which each channel pauses.
    """

    def __init__(self, dut: Any, rng: random.Random, share: float) -> None:
        self.dut = dut
        self.memory = bytearray(SIZE)
        read_memory(dut, "m_axi", self.memory, rng, share)
        write_memory(dut, "m_axi", self.memory, rng, share)
        self.host = registers_master(dut, "s_axil", rng, share)
        self.checker = AxiRules(
            dut,
            "m_axi",
            bus_bytes=CONFIG.bus_bytes,
            beats=CONFIG.burst_beats,
            reads=CONFIG.reads_in_flight,
            writes=CONFIG.writes_in_flight,
        )
        self.host_rules = AxiLiteRules(dut, "s_axil")

    @classmethod
    async def started(cls, dut: Any, rng: random.Random, share: float = 0.0) -> System:
        """Return a system that has been reset."""
        start_clock(dut)
        system = cls(dut, rng, share)
        await system.reset()
        return system

    async def reset(self, cycles: int = 2) -> None:
        """Reset the accelerator and the bus."""
        await pulse_reset(self.dut, cycles)
        self.checker.reset()
        self.host_rules.reset()
        await RisingEdge(self.dut.clk)

    async def get(self, name: str) -> int:
        """Read a register."""
        return int(await self.host.read_dword(REGISTERS[name].address))

    async def put(self, **values: int) -> None:
        """Write registers, in order."""
        for name, value in values.items():
            answer = await self.host.write(REGISTERS[name].address, value.to_bytes(4, "little"))
            wanted = AxiResp.SLVERR if REGISTERS[name].access == "ro" else AxiResp.OKAY
            assert answer.resp == wanted, f"{name}: {answer}"

    async def start(self, image: NDArray[np.uint8], **registers: int) -> None:
        """Put a program and its data into memory, write registers, and start."""
        self.memory[:] = image.tobytes()
        self.checker.count.clear()
        await self.put(**registers, PROGRAM_LO=PROGRAM, IRQ_ENABLE=3, IRQ_STATUS=3, CONTROL=1)

    async def cut_short(self, image: NDArray[np.uint8], cycles: int) -> None:
        """Start a program, and reset for one cycle after so many."""
        await self.start(image)
        await ClockCycles(self.dut.clk, cycles)
        await self.reset(1)

    async def interrupt(self, limit: int = 30_000) -> None:
        """Wait for the interrupt."""
        for _ in range(limit):
            await RisingEdge(self.dut.clk)
            if self.dut.irq.value:
                return
        raise AssertionError(f"no interrupt within {limit} cycles")

    async def run(self, image: NDArray[np.uint8], **registers: int) -> None:
        """Run a program to its end, and compare memory with the golden device's."""
        wanted = golden_memory(image, registers)  # first, as it says what is wrong with a program that may not run
        await self.start(image, **registers)
        await self.interrupt()
        assert await self.get("STATUS") == 2
        assert await self.get("IRQ_STATUS") == 1
        await self.check_counters(image)
        self.checker.assert_quiet()
        self.host_rules.assert_quiet()
        got = np.frombuffer(bytes(self.memory), np.uint8)
        different = np.flatnonzero(got != wanted)
        assert different.size == 0, f"{different.size} bytes differ, the first at {different[0]:#x}"
        await self.put(IRQ_STATUS=1)
        await ClockCycles(self.dut.clk, 2)
        assert not self.dut.irq.value

    async def check_counters(self, image: NDArray[np.uint8]) -> None:
        """Compare the numbers of instructions and beats, and see which units worked."""
        codes = image[PROGRAM::BYTES].tolist()
        codes = codes[: codes.index(Op.END) + 1]
        assert await self.get("COUNT_INSTRUCTIONS") == len(codes)
        cycles, used = await self.get("COUNT_CYCLES"), {UNIT_OF[Op(code)] for code in codes if Op(code) in UNIT_OF}
        for unit in Unit:
            busy = await self.get(f"COUNT_{unit.name}_BUSY")
            assert 0 < busy < cycles if unit in used else busy == 0, f"{unit.name} was busy for {busy} of {cycles}"
        beats = self.checker.count
        assert (await self.get("COUNT_READ_BEATS"), await self.get("COUNT_WRITE_BEATS")) == (beats["r"], beats["w"])
        for name in ("READ_IDLE", "FETCH_BEATS", "ARRAY_ROWS"):
            count = await self.get(f"COUNT_{name}")
            assert 0 < count < cycles, f"COUNT_{name} is {count} of {cycles} cycles"


def golden_memory(image: NDArray[np.uint8], registers: Mapping[str, int]) -> NDArray[np.uint8]:
    """Return memory after the golden device, with these registers, has run the program in it."""
    device = GoldenDevice(CONFIG, check=True)
    device.allocate(SIZE)
    device.write_memory(0, image)
    for name, value in {**registers, "PROGRAM_LO": PROGRAM, "CONTROL": 1}.items():
        device.write_register(REGISTERS[name].address, value)
    device.wait(10_000)
    assert device.read_register(REGISTERS["STATUS"].address) == 2
    return device.read_memory(0, SIZE)


def up(size: int) -> int:
    """Return a size rounded up to whole bus words."""
    return -(-size // CONFIG.bus_bytes) * CONFIG.bus_bytes


def rows_by_tiles(m: int, k: int = 1, **fields: int) -> dict[str, int]:
    """Return the fields of a MATMUL of m rows of k activation words with k tiles, one column of them if not told."""
    return {"k": k, "n": 1, "groups": 1, "rows_outer": m, "rows_inner": 1, "act_outer": k, **fields}


def sums(m: int, n: int, **fields: int) -> dict[str, int]:
    """Return the fields of a VECTOR that takes m rows of n accumulators, as a product leaves them."""
    return {"source": Source.ACC, "n": n, "m": m, "h": 1, "limit": n, "src_n": m, "src_m": 1, **fields}


def rows_of_words(m: int, n: int, at: int) -> dict[str, int]:
    """Return the fields of a STORE that writes m rows of n words, one after the other."""
    offset = RESULT + at
    return {"n": n, "m": m, "h": 1, "run": n, "stride_m": 4 * n, "element": Element.FP32, "offset": offset}


def stored_sums(m: int, n: int, at: int, *, bank: int = 0, wait: int = 1) -> list[Instruction]:
    """Return what stores m rows of n sums of a bank, once the product `wait` products ago is complete."""
    return [
        Instruction(Op.VECTOR, sums(m, n, bank=bank, dest=Dest.STORE_RAW), {Unit.MATRIX: wait}),
        Instruction(Op.STORE, rows_of_words(m, n, at)),
    ]


def product(m: int, k: int, n: int) -> list[Instruction]:
    """Return a program: random int8 from memory times random tiles, as int32 and as scaled floats to memory.

    The values are whatever lies in memory: every byte of DATA and after is random.
    """
    k_tiles, n_tiles = -(-k // CONFIG.rows), -(-n // CONFIG.cols)
    tiles, rows = k_tiles * n_tiles * CONFIG.tile_bytes, up(m * k_tiles * CONFIG.row_slot)
    return [
        Instruction(Op.WEIGHT, {"offset": DATA, "bytes": tiles, "count": 1}),
        Instruction(Op.LOAD, {"offset": DATA + 0x1000, "bytes": rows, "count": 1, "dest": LoadDest.ACT}),
        Instruction(Op.LOAD, {"offset": DATA + 0x2000, "bytes": up(4 * n), "count": 1, "dest": LoadDest.PARAM}),
        Instruction(Op.MATMUL, rows_by_tiles(m, k_tiles, n=n_tiles), {Unit.LOAD: 2}),
        *stored_sums(m, n, 0),
        Instruction(Op.VECTOR, sums(m, n, param=1, dest=Dest.STORE_FP32), {Unit.MATRIX: 1, Unit.LOAD: 1}),
        Instruction(Op.STORE, rows_of_words(m, n, 0x1000)),
    ]


def row_operations(n: int) -> list[Instruction]:
    """Return a program through every unit's other ways: int4 and transposed tiles, a table, rows, statistics, a second
    product of quantised rows, and all that it has made stored.

    Each VECTOR follows the one before in its unit; what others wait for is named.
    """
    rows, cols, lanes = CONFIG.rows, CONFIG.cols, CONFIG.lanes
    m, words, tiles = 3, -(-n // lanes), -(-n // cols)
    weights = {"format": 1, "rows": rows * tiles, "bytes": NibbleRows.run_bytes(CONFIG, rows * tiles), "count": 1}
    shape = {"n": n, "m": m, "h": 1, "limit": n, "src_m": words, "dst_m": words, "stat_m": 1, "red_m": 1}
    # Accumulators, scaled to come near one.
    acc = {**shape, "source": Source.ACC, "src_n": m, "src_m": 1, "scale": Scale.CONST, "const1": 0x3A800000}
    row = {**shape, "source": Source.ROW, "src": 3 * words, "const1": 0x3F800000, "const2": 0x3F80}
    entries = {"n": 1, "m": m, "h": 8}
    reductions = (Reduce.SUMSQ, Reduce.SUM, Reduce.VAR, Reduce.ARGMAX, Reduce.MAX)
    stored = (
        {"func": Func.SIGMOID, "mul": Mul.SELF},
        {"func": Func.TABLE},
        {"func": Func.EXP2, "add": Add.NEG_STAT_A, "stat": 40, "reduce": Reduce.EXPSUM, "red": 48},
        {"scale": Scale.NONE, "add": Add.ROTATE},
        {"param": 1},
    )

    def load(dest: LoadDest, at: int, size: int, **fields: int) -> Instruction:
        return Instruction(Op.LOAD, {"offset": DATA + at, "bytes": up(size), "count": 1, "dest": dest, **fields})

    def store(at: int, **fields: int) -> Instruction:
        return Instruction(Op.STORE, {"h": 1, "element": Element.FP32, "offset": RESULT + at, **fields})

    return [
        Instruction(Op.WEIGHT, {"offset": DATA, **weights}),
        load(LoadDest.TABLE, 0x800, 2048, dst=0x0214),
        load(LoadDest.ACT, 0x1000, m * CONFIG.row_slot),
        load(LoadDest.ROW, 0x2000, 4 * m * words * lanes),
        load(LoadDest.PARAM, 0x2800, 2 * n, format=1),
        Instruction(Op.MATMUL, rows_by_tiles(m, n=tiles), {Unit.LOAD: 3}),
        # Rows of the row buffer plus products; then what norms are made of.
        Instruction(
            Op.VECTOR,
            {**acc, "add": Add.ROW, "row_m": words, "dest": Dest.ROW, "dst": 3 * words, "reduce": Reduce.ABSMAX},
            {Unit.MATRIX: 1, Unit.LOAD: 1},
        ),
        *(Instruction(Op.VECTOR, {**row, "reduce": kind, "red": 8 * i}) for i, kind in enumerate(reductions, 1)),
        Instruction(Op.VECTOR, {**row, "src": 0, "reduce": Reduce.ARGMAX, "red": 56}),
        *(Instruction(Op.VECTOR, {**acc, **fields, "dest": Dest.STORE_FP32}) for fields in stored),
        *(store(0x200 * i, n=n, m=m, run=n, stride_m=4 * n) for i in range(len(stored))),
        Instruction(
            Op.VECTOR, {**entries, "limit": 1, "source": Source.STAT, "stat_m": 1, "stat_h": 8, "dest": Dest.STORE_RAW}
        ),
        store(0xC00, **entries, run=1, stride_m=32, stride_h=4),
        # Smaller elements.
        Instruction(Op.VECTOR, {**row, "scale": Scale.CONST, "const1": 0x42000000, "dest": Dest.STORE_INT8}),
        store(0x1000 + CONFIG.bus_bytes, n=n, m=m, run=n, stride_m=up(n) + CONFIG.bus_bytes, element=Element.INT8),
        Instruction(Op.VECTOR, {**row, "dest": Dest.STORE_BF16}),
        store(0x1400 + CONFIG.bus_bytes, n=n, m=m, run=n, stride_m=up(2 * n) + CONFIG.bus_bytes, element=Element.BF16),
        # Quantised rows times transposed tiles.
        Instruction(Op.VECTOR, {**row, "n": rows, "limit": rows, "dest": Dest.ACT, "dst": 8, "dst_m": 1}),
        load(LoadDest.STREAM, 0x3000, CONFIG.transposed_tile_bytes, transpose=1),
        Instruction(Op.MATMUL, rows_by_tiles(m, act=8, stream=1, bank=1), {Unit.VECTOR: 1}),
        *stored_sums(m, cols, 0xE00, bank=1),
    ]


def weights_ahead(m: int) -> list[Instruction]:
    """Return a program whose weights come far before they are used: the FIFO is full, and the queue before it too.

    The rows that the first ones are multiplied by are loaded after them: so these must leave the bus free.
    """
    tile, queue = CONFIG.tile_bytes, CONFIG.queue_depth + 5
    tiles = 3 * CONFIG.weight_fifo_bytes // tile
    rows, cols = up(m * tiles * CONFIG.row_slot), CONFIG.cols
    return [
        Instruction(Op.WEIGHT, {"offset": DATA, "bytes": tile, "count": tiles, "stride": CONFIG.bus_bytes}),
        Instruction(Op.LOAD, {"offset": DATA, "bytes": rows, "count": 1, "dest": LoadDest.ACT}),
        Instruction(Op.MATMUL, rows_by_tiles(m, tiles), {Unit.LOAD: 1}),
        *(Instruction(Op.WEIGHT, {"offset": DATA + 64 * i, "bytes": tile, "count": 1}) for i in range(queue)),
        # Of rows that are as far apart as the first ones.
        Instruction(Op.MATMUL, rows_by_tiles(m, queue, act_outer=tiles, bank=1)),
        *stored_sums(m, cols, 0, wait=2),
        *stored_sums(m, cols, 0x1000, bank=1),
    ]


def small_products(count: int) -> list[Instruction]:
    """Return a program of products of one row with one tile, one after the other."""
    rows = up(CONFIG.row_slot)
    return [
        Instruction(Op.LOAD, {"offset": DATA, "bytes": rows, "count": 1, "dest": LoadDest.ACT}),
        Instruction(Op.WEIGHT, {"offset": DATA, "bytes": CONFIG.tile_bytes, "count": count}),
        Instruction(Op.MATMUL, rows_by_tiles(1), {Unit.LOAD: 1}),
        *(Instruction(Op.MATMUL, rows_by_tiles(1)) for _ in range(count - 1)),
    ]


def patched(m: int, registers: int) -> list[Instruction]:
    """Return a program that stores where base registers and registers of its own say, which it loads twice."""
    cols = CONFIG.cols

    def stores(*registers: int) -> list[Instruction]:
        return [
            instruction
            for register in registers
            for instruction in (
                Instruction(Op.VECTOR, sums(m, cols, dest=Dest.STORE_RAW), {Unit.MATRIX: 1}),
                Instruction(
                    Op.STORE,
                    {**rows_of_words(m, cols, 0), "offset": 0, "base": 3},
                    patches=[("offset", register)],
                ),
            )
        ]

    return [
        Instruction(Op.LDREGS, {"base": 5, "count": registers}),
        Instruction(Op.WEIGHT, {"offset": DATA, "bytes": CONFIG.tile_bytes, "count": 1}),
        Instruction(Op.LOAD, {"offset": DATA, "bytes": up(m * CONFIG.row_slot), "count": 1, "dest": LoadDest.ACT}),
        Instruction(Op.MATMUL, rows_by_tiles(m), {Unit.LOAD: 1}),
        *stores(0, registers // 2, registers - 1),
        Instruction(Op.LDREGS, {"base": 5, "offset": 0x200, "count": 2}),
        *stores(0, 1),
    ]


def through_memory(m: int) -> list[Instruction]:
    """Return a program that makes weights and activations of one product those of the next, by way of memory."""
    rows, cols = CONFIG.rows, CONFIG.cols
    tile, slot = {"n": cols, "run": cols, "stride_m": CONFIG.col_slot}, CONFIG.row_slot
    bytes_ = {"h": 1, "element": Element.INT8}
    quantise = {"scale": Scale.CONST, "const1": 0x3C000000, "dest": Dest.STORE_INT8}
    weights = RESULT + 0x1000
    program = [
        Instruction(Op.WEIGHT, {"offset": DATA, "bytes": CONFIG.tile_bytes, "count": 1}),
        Instruction(Op.LOAD, {"offset": DATA + 0x800, "bytes": up(rows * slot), "count": 1, "dest": LoadDest.ACT}),
        Instruction(Op.MATMUL, rows_by_tiles(rows), {Unit.LOAD: 1}),
        Instruction(Op.VECTOR, {**sums(rows, cols), **quantise}, {Unit.MATRIX: 1}),
        Instruction(Op.STORE, {**bytes_, **tile, "m": rows, "offset": weights}),
    ]
    for bank in (1, 0):
        program += [
            Instruction(Op.WEIGHT, {"offset": weights, "bytes": CONFIG.tile_bytes, "count": 1}, {Unit.STORE: 1}),
            Instruction(
                Op.LOAD, {"offset": weights, "bytes": up(m * slot), "count": 1, "dest": LoadDest.ACT}, {Unit.STORE: 1}
            ),
            Instruction(Op.MATMUL, rows_by_tiles(m, bank=bank), {Unit.LOAD: 1, Unit.VECTOR: 1}),
            Instruction(Op.VECTOR, {**sums(m, cols), **quantise, "bank": bank}, {Unit.MATRIX: 1}),
            Instruction(Op.STORE, {**bytes_, **tile, "m": m, "offset": weights}, {Unit.WEIGHT: 1, Unit.LOAD: 1}),
            Instruction(Op.VECTOR, {**sums(m, cols), "bank": bank, "dest": Dest.STORE_RAW}),
            Instruction(Op.STORE, rows_of_words(m, cols, 0x1800 + 0x400 * bank)),
        ]
    return program


def many_bursts(tiles: int) -> list[Instruction]:
    """Return a program that reads each tile and each row by a burst of its own, more of them than any FIFO has room."""
    cols, rows = CONFIG.cols, up(CONFIG.row_slot)
    load = {"offset": DATA, "count": tiles, "stride": 64}
    return [
        Instruction(Op.LOAD, {**load, "bytes": rows, "dst_stride": 1, "dest": LoadDest.ACT}),
        Instruction(Op.WEIGHT, {**load, "bytes": CONFIG.tile_bytes}),
        Instruction(Op.MATMUL, rows_by_tiles(1, tiles), {Unit.LOAD: 1}),
        Instruction(Op.LOAD, {**load, "offset": DATA + 16, "bytes": CONFIG.tile_bytes, "dest": LoadDest.STREAM}),
        Instruction(Op.MATMUL, rows_by_tiles(1, tiles, stream=1, bank=1)),
        *stored_sums(1, cols, 0, wait=2),
        *stored_sums(1, cols, 0x1000, bank=1),
    ]


def image_of(rng: random.Random, program: Iterable[Instruction]) -> NDArray[np.uint8]:
    """Return memory with a program, and noise everywhere else."""
    image = np.frombuffer(rng.randbytes(SIZE), np.uint8).copy()
    code = assemble([*program, Instruction(Op.END)])
    assert PROGRAM + len(code) <= DATA
    image[PROGRAM : PROGRAM + len(code)] = np.frombuffer(code, np.uint8)
    return image


def image_of_rows(rng: random.Random, n: int) -> NDArray[np.uint8]:
    """Return memory with a program of row operations, with floats near one where it reads floats.

    The largest of them comes often, so that rows have more than one maximum.
    """
    image = image_of(rng, row_operations(n))
    floats = [rng.getrandbits(1) << 31 | rng.randint(120, 130) << 23 | rng.getrandbits(23) for _ in range(0x400)]
    floats = [130 << 23 | 0x7FFF00 if rng.random() < 0.25 else bits for bits in floats]
    image[DATA + 0x2000 : DATA + 0x3000] = np.array(floats, np.uint32).view(np.uint8)
    return image


@cocotb.test()
async def test_registers(dut: Any) -> None:
    rng = generator("registers")
    system = await System.started(dut, rng, 0.4)
    assert await system.get("IDENTITY") == IDENTITY
    assert await system.get("VERSION") == VERSION
    shape = CONFIG.rows | CONFIG.cols << 8 | CONFIG.lanes << 16 | CONFIG.bus_bytes << 24
    assert await system.get("SHAPE") == shape
    values = {name: rng.getrandbits(32) for name in REGISTERS if name.startswith(("BASE", "PROGRAM"))}
    values = {name: value & ~63 if name == "PROGRAM_LO" else value for name, value in values.items()}
    await system.put(**values, IDENTITY=0, IRQ_ENABLE=2)
    assert {name: await system.get(name) for name in values} == values
    assert await system.get("IDENTITY") == IDENTITY
    assert await system.get("IRQ_ENABLE") == 2
    answers = (await system.host.write(0xFF8, bytes(4)), await system.host.read(0xFF8, 4))
    assert [answer.resp for answer in answers] == [AxiResp.SLVERR] * 2, f"no register: {answers}"
    await system.reset()
    assert await system.get("BASE0_LO") == await system.get("IRQ_ENABLE") == await system.get("STATUS") == 0


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.3, 0.7])
async def test_products(dut: Any, share: float) -> None:
    rng = generator(f"products {share}")
    system = await System.started(dut, rng, share)
    rows, cols = CONFIG.rows, CONFIG.cols
    for m, k, n in ((1, rows, cols), (3, 2 * rows + 1, 2 * cols + 1), (2, 3, cols + 2)):
        await system.run(image_of(rng, product(m, k, n)))
        for unit in ("MATRIX", "VECTOR"):  # a product waits for its rows, what takes its results for them
            assert await system.get(f"COUNT_{unit}_WAIT_DEPENDENCY") > 0


@cocotb.test()
async def test_weights_far_ahead(dut: Any) -> None:
    rng = generator("weights ahead")
    system = await System.started(dut, rng)
    await system.run(image_of(rng, weights_ahead(4)))


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.4])
async def test_results_that_are_read_again(dut: Any, share: float) -> None:
    """What one product has stored is the next one's weights and activations."""
    rng = generator(f"read again {share}")
    system = await System.started(dut, rng, share)
    for m in (1, 3):
        await system.run(image_of(rng, through_memory(m)))


@cocotb.test()
async def test_many_bursts(dut: Any) -> None:
    rng = generator("bursts")
    system = await System.started(dut, rng, 0.1)
    await system.run(image_of(rng, many_bursts(250)))


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.4])
async def test_addresses_from_registers(dut: Any, share: float) -> None:
    """Base registers, registers loaded from memory, and instructions that wait for them."""
    rng = generator(f"registers {share}")
    system = await System.started(dut, rng, share)
    for registers in (5, 11):
        image = image_of(rng, patched(2, registers))
        places = np.array(rng.sample(range(0, RESULT // 3, 0x200), registers + 2), np.uint32)
        for at, offsets in ((0, places[:-2]), (0x200, places[-2:])):
            image[TABLES + at : TABLES + at + 4 * len(offsets)] = offsets.view(np.uint8)
        await system.run(image, **BASES)


ERRORS = {
    "read": (Instruction(Op.WEIGHT, {"offset": SIZE, "bytes": 64, "count": 1}), ErrorCode.READ_RESPONSE),
    "field": (Instruction(Op.MATMUL, {"k": 1}), ErrorCode.ILLEGAL_FIELD),
}


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.4])
async def test_row_operations(dut: Any, share: float) -> None:
    """Every unit's ways that products do not take."""
    rng = generator(f"row operations {share}")
    system = await System.started(dut, rng, share)
    for n in (2 * CONFIG.cols, CONFIG.cols + 2, CONFIG.cols):
        await system.run(image_of_rows(rng, n))


@cocotb.test()
@cocotb.parametrize(what=["read", "write", "field"])
async def test_errors(dut: Any, what: str) -> None:
    """An error stops the device and raises the interrupt, and stands until reset.

    Every read is answered. A write may stay announced without data: the STORE has been issued, and the VECTOR that
    would have fed it has not.
    """
    rng = generator(f"errors {what}")
    system = await System.started(dut, rng, 0.3)
    program = product(2, 5, 6)
    if what == "write":
        last = program[-1]
        program[-1], code = Instruction(last.op, {**last.fields, "offset": SIZE}), ErrorCode.WRITE_RESPONSE
    else:
        instruction, code = ERRORS[what]
        program.append(instruction)
    await system.start(image_of(rng, program))
    await system.interrupt()
    assert (await system.get("STATUS"), await system.get("ERROR")) == (4, code)
    assert await system.get("IRQ_STATUS") == 2
    await ClockCycles(dut.clk, 500)
    system.checker.assert_quiet(writes=False)
    await system.put(CONTROL=1)  # ignored while the error stands
    assert (await system.get("STATUS"), await system.get("ERROR")) == (4, code)
    await system.reset()
    assert (await system.get("STATUS"), await system.get("ERROR")) == (0, ErrorCode.NONE)
    assert not dut.irq.value
    await system.run(image_of(rng, product(2, 5, 6)))


@cocotb.test()
async def test_reset_in_the_middle(dut: Any) -> None:
    """Reset of one cycle, after any number of cycles; then the program runs as if nothing had been."""
    rng = generator("reset")
    system = await System.started(dut, rng, 0.2)
    for cycles in (1, 5, *(rng.randint(10, 600) for _ in range(8))):
        await system.cut_short(image_of(rng, product(3, 9, 9)), cycles)
        assert await system.get("STATUS") == 0
        await system.run(image_of(rng, product(2, 5, 6)))


@cocotb.test()
async def test_resets_at_any_moment(dut: Any) -> None:
    """Resets of one cycle: of a program that repeats itself, in each of its cycles; and at random ones of another.

    What follows needs to wait for a product, and ends when as many have ended as there were.
    """
    rng = generator("resets")
    system = await System.started(dut, rng, 0.0)
    moments = [(small_products(50), cycles) for cycles in range(400, 480)]
    moments += [(through_memory(1), rng.randint(50, 450)) for _ in range(20)]
    for program, cycles in moments:
        await system.cut_short(image_of(rng, program), cycles)
        await system.run(image_of(rng, product(1, 5, 3)))


@cocotb.test()
async def test_reset_among_row_operations(dut: Any) -> None:
    """The same where all units are at work: nothing of before may reach what comes after."""
    rng = generator("reset of rows")
    system = await System.started(dut, rng, 0.1)
    for _ in range(8):
        await system.cut_short(image_of_rows(rng, 2 * CONFIG.cols), rng.randint(100, 1500))
        await system.run(image_of_rows(rng, CONFIG.cols + 2))
