"""What the golden model works out from memory and keeps: weights and parameters, until their bytes change."""

import numpy as np
import pytest

from tilewright_hw.arch import REGISTERS, AcceleratorConfig, Instruction, Op, assemble
from tilewright_hw.arch.isa import Dest, LoadDest, LoadFormat, Scale, Source, WeightFormat
from tilewright_sim.golden import GoldenDevice, memory
from tilewright_sim.golden.memory import Kept, Memory
from tilewright_sim.golden.tiles import NibbleRows

CONFIG = AcceleratorConfig()
SIZE, PROGRAM = 1 << 16, 0xC000
DATA, DATA_END, RESULT = 0x1000, 0x3000, 0x8000
END = Instruction(Op.END)


def test_memory_notes_what_is_written():
    m = Memory(1 << 20)
    assert m.last_write(0, 1 << 20) == 0
    m.write(0x5010, np.arange(3, dtype=np.uint8))
    first = m.last_write(0x5010, 0x5013)
    assert first > 0
    assert m.last_write(0, 0x5000) == m.last_write(0x6000, 1 << 20) == 0
    m.writable(0x7FFF, 0x8001)[0x8000] = 9
    assert m.last_write(0x7000, 0x7001) == m.last_write(0x8FFF, 0x9000) == m.last_write(0, 1 << 20) > first
    assert m.last_write(0x5000, 0x5001) == first
    assert m.bytes[0x5012], m.bytes[0x8000] == (2, 9)
    with pytest.raises(ValueError, match="read-only"):
        m.bytes[0] = 1


def test_kept_from_the_second_use_on_until_bytes_change(monkeypatch):
    m = Memory(1 << 16)
    made = []

    def make():
        made.append(m.bytes[0x2000:0x2004].copy())
        return made[-1]

    kept = Kept(m, 0x2000, 0x2004)
    assert [kept.get(make) is kept.get(make) for _ in range(2)] == [False, True]
    assert (len(made), m.kept) == (2, 4)
    m.write(0x3000, np.ones(8, np.uint8))
    assert kept.get(make) is made[1]
    m.write(0x2003, np.ones(1, np.uint8))
    assert kept.get(make).tolist() == [0, 0, 0, 1]
    assert m.kept == 0, "what has just changed is not kept"
    monkeypatch.setattr(memory, "KEPT_BYTES", 3)
    assert kept.get(make) is not kept.get(make)
    monkeypatch.undo()
    assert kept.get(make) is kept.get(make)
    assert m.kept == 4
    del kept
    assert m.kept == 0


def results(n):
    """Return instructions that store accumulator rows 0 and 1 at RESULT."""
    raw = {"n": n * CONFIG.cols, "m": 2, "h": 1, "limit": 999, "source": Source.ACC, "dest": Dest.STORE_RAW}
    store = {"offset": RESULT, "element": 2, "n": n * CONFIG.cols, "m": 2, "h": 1, "run": n * CONFIG.cols}
    return [
        Instruction(Op.VECTOR, raw | {"src_m": 1, "src_n": 2}),
        Instruction(Op.STORE, store | {"stride_m": 4 * n * CONFIG.cols}),
    ]


def product(n, **matmul):
    """Return a MATMUL of two rows of 64 inputs with n tiles, and what stores it."""
    f = {"k": 4, "n": n, "groups": 1, "rows_outer": 2, "rows_inner": 1, "act_outer": 4} | matmul
    load = {"offset": 0, "bytes": 128, "count": 1, "dest": LoadDest.ACT}
    return [Instruction(Op.LOAD, load), Instruction(Op.MATMUL, f), *results(n)]


def int8_weights():
    return [Instruction(Op.WEIGHT, {"offset": DATA, "bytes": 0x800, "count": 1}), *product(2)]


def int8_weights_in_runs():
    runs = {"offset": DATA, "bytes": 0x400, "count": 2, "stride": 0x1400}
    return [Instruction(Op.WEIGHT, runs), *product(2)]


def int4_weights():
    size = NibbleRows.run_bytes(CONFIG, 64)
    f = {"offset": DATA, "bytes": size, "count": 2, "stride": size, "format": WeightFormat.INT4, "rows": 64}
    return [Instruction(Op.WEIGHT, f), *product(2)]


def transposed_tiles():
    f = {"offset": DATA, "bytes": 0x800, "count": 1, "dest": LoadDest.STREAM, "transpose": 1}
    return [Instruction(Op.LOAD, f), *product(2, stream=1)]


def tiles_of_which_two_products_take_half_each():
    half = product(1, accumulate=1)
    return [Instruction(Op.WEIGHT, {"offset": DATA, "bytes": 0x800, "count": 1}), *product(1), *half]


def parameters(load_format=LoadFormat.BF16):
    n = 256 if load_format is LoadFormat.FP32 else 512
    load = {"count": 1, "dest": LoadDest.PARAM, "format": load_format, "offset": DATA, "bytes": 0x400}
    row = {"count": 1, "dest": LoadDest.ROW, "format": LoadFormat.FP32, "offset": 0, "bytes": 4 * n}
    vector = {"n": n, "m": 1, "h": 1, "limit": 999, "source": Source.ROW, "param": 1, "dest": Dest.STORE_FP32}
    store = {"offset": RESULT, "element": 2, "n": n, "m": 1, "h": 1, "run": n}
    return [
        Instruction(Op.LOAD, load),
        Instruction(Op.LOAD, row),
        Instruction(Op.VECTOR, vector),
        Instruction(Op.STORE, store),
    ]


def parameters_float32():
    return parameters(LoadFormat.FP32)


PROGRAMS = [
    int8_weights,
    int8_weights_in_runs,
    int4_weights,
    transposed_tiles,
    tiles_of_which_two_products_take_half_each,
    parameters,
    parameters_float32,
]
programs = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)


def device(image):
    d = GoldenDevice(CONFIG)
    d.allocate(SIZE)
    d.write_memory(0, image)
    d.write_register(REGISTERS["PROGRAM_LO"].address, PROGRAM)
    return d


def run(d):
    d.write_register(REGISTERS["CONTROL"].address, 1)
    d.wait(1000)
    return d.read_memory(RESULT, 0x800).tobytes()


def image_with(program, seed):
    """Return a whole memory: random bytes, in either float format near one, and the program."""
    image = np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)
    image[1::2] = 0x3F
    code = np.frombuffer(assemble([*program, END]), np.uint8)
    image[PROGRAM : PROGRAM + code.size] = code
    return image


@programs
def test_a_host_write_into_what_is_kept_is_seen(program):
    image = image_with(program(), seed=1)
    d = device(image)
    first = run(d)
    assert first == run(d) == run(d)
    if program is not tiles_of_which_two_products_take_half_each:
        assert d.memory.kept > 0, "nothing was kept: the test tests nothing"
    for address in (DATA + 1, DATA + 0x3FF, DATA + 0x1A1):
        before = run(d)
        image[address] ^= 1
        d.write_memory(address, image[address : address + 1])
        after = run(d)
        assert after == run(d) == run(device(image))
        assert after != before, hex(address)


def change(source):
    """Return instructions that store 16 bytes, made of the floats at `source`, into what the programs use."""
    load = {"offset": source, "bytes": 64, "count": 1, "dest": LoadDest.ROW, "format": LoadFormat.FP32}
    scaled = {"n": 16, "m": 1, "h": 1, "limit": 99, "source": Source.ROW, "scale": Scale.CONST, "const1": 0x42C80000}
    store = {"offset": DATA + 0x40, "element": 0, "n": 16, "m": 1, "h": 1, "run": 16}
    return [
        Instruction(Op.LOAD, load),
        Instruction(Op.VECTOR, scaled | {"dest": Dest.STORE_INT8}),
        Instruction(Op.STORE, store),
    ]


@programs
def test_a_store_into_what_is_kept_is_seen(program):
    """The same instructions again and again in one program, with STOREs into their bytes between them."""
    image = image_with([*program(), *change(0x200), *program(), *change(0x600), *program()], seed=2)
    d = device(image)
    got = {run(d) for _ in range(3)}
    left = d.read_memory(0, SIZE)
    assert (left[DATA + 0x40 : DATA + 0x50] != image[DATA + 0x40 : DATA + 0x50]).any()
    last = image_with(program(), seed=2)
    last[DATA:DATA_END] = left[DATA:DATA_END]
    assert got == {run(device(last))}


@programs
def test_another_program_at_the_same_place_is_seen(program):
    image = image_with(program(), seed=3)
    d = device(image)
    for _ in range(3):
        run(d)
    other = image_with(int8_weights() if program is not int8_weights else int4_weights(), seed=3)
    d.write_memory(PROGRAM, other[PROGRAM : PROGRAM + 1024])
    d.write_memory(RESULT, other[RESULT : RESULT + 0x800])
    assert run(d) == run(device(other))
