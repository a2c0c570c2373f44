"""Whole programs, made by hand, on the RTL and on the golden model: memory equal byte for byte."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from tilewright_hw.arch import AcceleratorConfig, DeviceError, ErrorCode, Instruction, Op, Unit, assemble
from tilewright_hw.arch.isa import Dest, Element, LoadDest, Source
from tilewright_hw.arch.memory_model import MemoryModel
from tilewright_hw.arch.registers import REGISTERS
from tilewright_sim.golden import GoldenDevice
from tilewright_sim.rtl import RtlDevice, Trace

TINY = AcceleratorConfig.preset("tiny")
ODD = AcceleratorConfig(
    rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, acc_rows=256, weight_fifo_bytes=2048,
    stream_fifo_bytes=1024, queue_depth=2, reads_in_flight=3, writes_in_flight=2, burst_beats=8,
)  # fmt: skip
PROGRAM, DATA = 0x1000, 0x8000
SIZE = 1 << 20


@dataclass
class Job:
    """A program and the memory that it works on."""

    config: AcceleratorConfig
    code: list[Instruction] = field(default_factory=list)
    memory: np.ndarray = field(default_factory=lambda: np.zeros(SIZE, np.uint8))
    free: int = DATA
    results: dict[str, tuple[int, tuple[int, int], np.dtype]] = field(default_factory=dict)

    def emit(self, op, waits=None, **values):
        self.code.append(Instruction(op, values, waits or {}))

    def place(self, data: np.ndarray) -> int:
        address = self.reserve(data.nbytes)
        self.memory[address : address + data.nbytes] = np.ascontiguousarray(data).view(np.uint8).ravel()
        return address

    def reserve(self, size: int) -> int:
        address = self.free
        self.free += -(-size // 64) * 64
        assert self.free <= SIZE
        return address

    def activations(self, a: np.ndarray) -> np.ndarray:
        """Return rows of K int8 as activation words in memory."""
        c = self.config
        words = -(-a.shape[1] // c.rows)
        image = np.zeros((a.shape[0], words, c.row_slot), np.int8)
        padded = np.pad(a, ((0, 0), (0, words * c.rows - a.shape[1])))
        image[:, :, : c.rows] = padded.reshape(a.shape[0], words, c.rows)
        return image

    def tiles(self, w: np.ndarray) -> np.ndarray:
        """Return K x N int8 as tiles, n outermost."""
        c = self.config
        kt, nt = -(-w.shape[0] // c.rows), -(-w.shape[1] // c.cols)
        padded = np.pad(w, ((0, kt * c.rows - w.shape[0]), (0, nt * c.cols - w.shape[1])))
        blocks = padded.reshape(kt, c.rows, nt, c.cols).transpose(2, 0, 1, 3)
        image = np.zeros((nt, kt, c.rows, c.col_slot), np.int8)
        image[..., : c.cols] = blocks
        return image

    def matmul(self, name, a, w, *, bank=0, act=0, stream=False, load_waits=None, waits=None):
        """Add a @ w, int32 into memory, by the five units."""
        c = self.config
        (m, k), n = a.shape, w.shape[1]
        kt, nt = -(-k // c.rows), -(-n // c.cols)
        image, tiles = self.activations(a), self.tiles(w)
        out = self.reserve(m * n * 4)
        self.results[name] = (out, (m, n), np.dtype(np.int32))
        pad = -image.nbytes % c.bus_bytes
        source = self.place(np.concatenate([image.ravel(), np.zeros(pad, np.int8)]))
        if stream:
            self.emit(Op.LOAD, offset=self.place(tiles), bytes=tiles.nbytes, count=1,
                      dest=LoadDest.STREAM)  # fmt: skip
        else:
            self.emit(Op.WEIGHT, offset=self.place(tiles), bytes=tiles.nbytes, count=1)
        self.emit(Op.LOAD, load_waits, offset=source, bytes=image.nbytes + pad, count=1,
                  dest=LoadDest.ACT, dst=act)  # fmt: skip
        self.emit(Op.MATMUL, {Unit.LOAD: 1, **(waits or {})}, k=kt, n=nt, groups=1, rows_outer=m,
                  rows_inner=1, act=act, act_outer=kt, bank=bank, stream=stream)  # fmt: skip
        self.emit(Op.VECTOR, {Unit.MATRIX: 1}, source=Source.ACC, n=n, m=m, h=1, limit=n, bank=bank,
                  src_n=m, src_m=1, dest=Dest.STORE_RAW)  # fmt: skip
        self.emit(Op.STORE, offset=out, n=n, m=m, h=1, run=n, stride_m=4 * n, element=Element.FP32)

    def result(self, device, name):
        address, shape, dtype = self.results[name]
        size = int(np.prod(shape)) * dtype.itemsize
        return device.read_memory(address, size).view(dtype).reshape(shape)


def start(device, job):
    """Load a job into a device, and start it."""
    program = assemble([*job.code, Instruction(Op.END)])
    assert PROGRAM + len(program) <= DATA
    device.allocate(SIZE)
    device.write_memory(0, job.memory)
    device.write_memory(PROGRAM, program)
    put(device, PROGRAM_LO=PROGRAM, IRQ_ENABLE=3, IRQ_STATUS=3, CONTROL=1)


def put(device, **registers):
    for name, value in registers.items():
        device.write_register(REGISTERS[name].address, value)


def get(device, name):
    return device.read_register(REGISTERS[name].address)


def run(device, job, limit=2_000_000):
    """Run a job and return the memory after it."""
    start(device, job)
    device.wait(limit)
    assert get(device, "STATUS") == 2
    return device.read_memory(0, SIZE)


def compare(job, memory=None):
    """Run on both devices and compare; return the RTL's."""
    golden, rtl = GoldenDevice(job.config, check=True), RtlDevice(job.config, memory)
    rtl.check_outputs()
    wanted, got = run(golden, job), run(rtl, job)
    different = np.flatnonzero(wanted != got)
    assert different.size == 0, f"{different.size} bytes differ, the first at {different[0]:#x}"
    assert get(rtl, "COUNT_INSTRUCTIONS") == get(golden, "COUNT_INSTRUCTIONS")
    return rtl


def int8(rng, *shape):
    return rng.integers(-128, 128, shape, np.int8)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 10, 9), (5, 4, 30), (2, 33, 3)])
@pytest.mark.parametrize("memory", [MemoryModel(), MemoryModel(stall=0.3, seed=5)], ids=str)
def test_one_product(shape, memory):
    rng = np.random.default_rng(sum(shape))
    m, k, n = shape
    a, w = int8(rng, m, k), int8(rng, k, n)
    job = Job(TINY)
    job.matmul("y", a, w)
    rtl = compare(job, memory)
    np.testing.assert_array_equal(job.result(rtl, "y"), a.astype(np.int32) @ w.astype(np.int32))


@pytest.mark.parametrize("config", [TINY, ODD], ids=lambda c: c.name)
@pytest.mark.parametrize("seed", range(4))
def test_products_overlap(config, seed):
    """Two banks and two halves of the activation buffer, in turn; tiles from either FIFO."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    memory = MemoryModel(latency=int(rng.integers(1, 60)), stall=0.2 * (seed % 2), seed=seed)
    job = Job(config)
    wanted, rows = {}, 0
    for i in range(10):
        m, k, n = (int(rng.integers(1, limit)) for limit in (10, 25, 25))
        a, w = int8(rng, m, k), int8(rng, k, n)
        again = i >= 2  # the buffers were in use before
        job.matmul(
            f"y{i}", a, w, bank=i % 2, act=64 * (i % 2), stream=bool(rng.integers(2)),
            load_waits={Unit.MATRIX: 2} if again else {}, waits={Unit.VECTOR: 2} if again else {},
        )  # fmt: skip
        wanted[f"y{i}"] = a.astype(np.int32) @ w.astype(np.int32)
        rows += m * -(-k // config.rows) * -(-n // config.cols)
    rtl = compare(job, memory)
    for name, value in wanted.items():
        np.testing.assert_array_equal(job.result(rtl, name), value)
    assert get(rtl, "COUNT_ARRAY_ROWS") == rows
    assert get(rtl, "COUNT_WRITE_BEATS") >= sum(v.nbytes for v in wanted.values()) // 4
    assert get(rtl, "COUNT_CYCLES") > rows


def product():
    rng = np.random.default_rng(9)
    job = Job(TINY)
    job.matmul("y", int8(rng, 4, 9), int8(rng, 9, 12))
    return job


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        (Instruction(Op.MATMUL, {"k": 1}), ErrorCode.ILLEGAL_FIELD),
        (Instruction(Op.WEIGHT, {"offset": SIZE, "bytes": 64, "count": 1}), ErrorCode.READ_RESPONSE),
        (Instruction(Op.LDREGS, {"offset": SIZE, "count": 3}), ErrorCode.READ_RESPONSE),
    ],
    ids=lambda value: value.name if isinstance(value, ErrorCode) else value.op.name,
)
def test_errors_stop_the_device(instruction, code):
    job = product()
    job.code.append(instruction)
    job.matmul("z", np.ones((2, 4), np.int8), np.ones((4, 4), np.int8))
    golden, rtl = GoldenDevice(TINY), RtlDevice(TINY)
    for device in (golden, rtl):
        start(device, job)
        device.wait(100_000)
        assert (get(device, "STATUS"), get(device, "ERROR")) == (4, code)
        put(device, CONTROL=1)  # ignored until reset
        device.wait(100_000)
        assert (get(device, "STATUS"), get(device, "ERROR")) == (4, code)
        device.reset()
        run(device, product())


def test_writes_outside_memory_stop_the_device():
    job = product()
    job.code[-1] = Instruction(Op.STORE, {**job.code[-1].fields, "offset": SIZE})
    for device in (GoldenDevice(TINY), RtlDevice(TINY)):
        start(device, job)
        device.wait(100_000)
        assert (get(device, "STATUS"), get(device, "ERROR")) == (4, ErrorCode.WRITE_RESPONSE)


def test_a_program_may_end_with_memory():
    job = Job(TINY)
    for device in (GoldenDevice(TINY), RtlDevice(TINY)):
        start(device, job)
        device.wait(10_000)
        device.write_memory(SIZE - 64, assemble([Instruction(Op.END)]))
        put(device, PROGRAM_LO=SIZE - 64, CONTROL=1)
        device.wait(10_000)
        assert get(device, "STATUS") == 2


@pytest.mark.parametrize("cycles", [30, 90, 170, 333])
def test_reset_in_the_middle(cycles, tmp_path):
    job = product()
    wanted = run(GoldenDevice(TINY), job)
    # Only the build for waves has the reset logic; without, the simulation begins anew.
    trace = Trace(path=tmp_path / "reset.vcd", last=20)
    rtl = RtlDevice(TINY, MemoryModel(stall=0.2, seed=cycles), trace)
    start(rtl, job)
    with pytest.raises(DeviceError, match="did not finish"):
        rtl.wait(cycles)
    rtl.reset()
    assert get(rtl, "STATUS") == 0
    put(rtl, PROGRAM_LO=PROGRAM, IRQ_ENABLE=3, CONTROL=1)
    rtl.wait(100_000)
    np.testing.assert_array_equal(rtl.read_memory(0, SIZE), wanted)


def test_a_program_runs_again():
    job = product()
    rtl = RtlDevice(TINY)
    wanted = run(rtl, job)
    cycles = get(rtl, "COUNT_CYCLES")
    address, shape, _ = job.results["y"]
    for _ in range(3):
        rtl.write_memory(address, np.zeros(4 * shape[0] * shape[1], np.uint8))
        put(rtl, IRQ_STATUS=3, CONTROL=1)
        rtl.wait(100_000)
        np.testing.assert_array_equal(rtl.read_memory(0, SIZE), wanted)
        assert get(rtl, "COUNT_CYCLES") == cycles
