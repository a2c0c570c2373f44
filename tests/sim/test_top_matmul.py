"""Whole programs, made by hand, on the RTL and on the golden model: memory equal byte for byte."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from tilewright_hw.arch import AcceleratorConfig, Instruction, Op, Unit, assemble
from tilewright_hw.arch.isa import Dest, Element, LoadDest, Source
from tilewright_hw.arch.memory_model import MemoryModel
from tilewright_hw.arch.registers import REGISTERS
from tilewright_sim.golden import GoldenDevice
from tilewright_sim.rtl import RtlDevice

TINY = AcceleratorConfig.preset("tiny")
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

    def matmul(self, name, a, w, *, bank=0, act=0, stream=False, waits=None):
        """Add a @ w, int32 into memory; return the distances that the next one on this bank waits for."""
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
        self.emit(Op.LOAD, waits, offset=source, bytes=image.nbytes + pad, count=1,
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


def run(device, job, limit=2_000_000):
    """Run a job and return the memory after it."""
    program = assemble([*job.code, Instruction(Op.END)])
    assert PROGRAM + len(program) <= DATA
    device.allocate(SIZE)
    device.write_memory(0, job.memory)
    device.write_memory(PROGRAM, program)
    for name, value in {"PROGRAM_LO": PROGRAM, "IRQ_ENABLE": 3, "IRQ_STATUS": 3, "CONTROL": 1}.items():
        device.write_register(REGISTERS[name].address, value)
    device.wait(limit)
    assert device.read_register(REGISTERS["STATUS"].address) == 2
    return device.read_memory(0, SIZE)


def compare(job, memory=None):
    golden, rtl = GoldenDevice(job.config), RtlDevice(job.config, memory)
    rtl.check_outputs()
    wanted, got = run(golden, job), run(rtl, job)
    different = np.flatnonzero(wanted != got)
    assert different.size == 0, f"{different.size} bytes differ, the first at {different[0]:#x}"
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
