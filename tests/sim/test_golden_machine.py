"""Random instructions on the golden machine, against an interpreter that goes element by element."""

import copy
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from golden_reference import Reference, bits24

from tilewright_hw.arch import PRESETS, AcceleratorConfig, Instruction, Op, assemble
from tilewright_hw.arch.isa import (
    FIELDS,
    Add,
    Dest,
    Func,
    LoadDest,
    LoadFormat,
    Mul,
    Reduce,
    Scale,
    Source,
    WeightFormat,
)
from tilewright_sim.golden import formats
from tilewright_sim.golden.machine import Machine
from tilewright_sim.golden.memory import Memory
from tilewright_sim.golden.state import field_bits

CONFIGS = [
    AcceleratorConfig(),
    PRESETS["tiny"],
    AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1),
]
MEMORY = 1 << 15
PROGRAM = MEMORY - 64 * 64
DATA = MEMORY // 2
"""Instructions read below, and write from here on."""
SMALL = {"acc_rows": 64, "act_words": 256, "row_words": 256, "param_words": 64, "stat_entries": 64}
"""The reference's buffers are lists: the smallest that are legal."""

configs = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
seeds = pytest.mark.parametrize("seed", range(4))


def floats(rng, shape):
    """F24 values: near one, some zeros, some far."""
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-3, 4, shape))
    x[rng.random(shape) < 0.1] = 0
    return formats.round_f24(x)


class Bench:
    """A machine and the reference, in the same random state."""

    def __init__(self, config, seed):
        self.config = config = AcceleratorConfig.from_dict({**config.to_dict(), **SMALL})
        rng = np.random.default_rng(seed)
        self.random = random.Random(seed)
        self.machine = Machine(config, Memory(MEMORY))
        memory = rng.integers(0, 256, MEMORY).astype(np.uint8)
        # float32 that are neither huge nor tiny, here and there
        sane = floats(rng, (MEMORY // 4,)).astype(np.float32).view(np.uint8).reshape(-1, 4)
        keep = rng.random(MEMORY // 4) < 0.8
        memory.reshape(-1, 4)[keep] = sane[keep]
        self.machine.memory.write(0, memory)
        buffers = self.machine.buffers
        buffers.act[:] = rng.integers(-128, 128, buffers.act.shape)
        buffers.row[:] = floats(rng, buffers.row.shape)
        buffers.param[:] = floats(rng, buffers.param.shape)
        buffers.stat[:] = floats(rng, buffers.stat.shape)
        for acc in (buffers.acc0, buffers.acc1):
            acc[:] = rng.integers(-(2**31), 2**31, acc.shape) >> rng.integers(0, 31, acc.shape)
        self.reference = Reference(config, self.machine.memory.bytes)
        self.copy_buffers()

    def copy_buffers(self):
        buffers, reference = self.machine.buffers, self.reference
        reference.act = buffers.act.tolist()
        reference.row = [[Fraction(x) for x in word] for word in buffers.row.tolist()]
        reference.param = [[Fraction(x) for x in word] for word in buffers.param.tolist()]
        reference.acc = [buffers.acc0.tolist(), buffers.acc1.tolist()]
        reference.stat = [(Fraction(a), Fraction(b)) for a, b in buffers.stat.tolist()]

    def run(self, *program):
        """Execute (op, fields) pairs on both, and compare all that they hold."""
        listing = [Instruction(op, {k: int(v) for k, v in f.items()}) for op, f in program]
        code = assemble([*listing, Instruction(Op.END)])
        self.machine.memory.write(PROGRAM, np.frombuffer(code, np.uint8))
        self.reference.memory[PROGRAM : PROGRAM + len(code)] = code
        self.machine.run(PROGRAM)
        for op, fields in program:
            f = dict.fromkeys((field.name for field in FIELDS[op]), 0) | fields
            getattr(self.reference, op.name.lower())(f)
        self.compare()

    def compare(self):
        buffers, reference = self.machine.buffers, self.reference
        assert buffers.act.tolist() == reference.act
        assert buffers.acc0.tolist() == reference.acc[0]
        assert buffers.acc1.tolist() == reference.acc[1]
        assert buffers.table.reshape(-1).tolist() == reference.table
        assert buffers.stat[:, 0].tolist() == [a for a, _ in reference.stat]
        assert field_bits(buffers.stat[:, 1]).tolist() == [bits24(b) for _, b in reference.stat]
        for name in ("row", "param"):
            got = getattr(buffers, name).tolist()
            for i, (a, b) in enumerate(zip(got, getattr(reference, name), strict=True)):
                assert list(a) == list(b), f"{name} {i}"
        assert self.machine.memory.bytes.tobytes() == bytes(reference.memory)


def load_fields(bench, dest):
    rng, config = bench.random, bench.config
    bus = config.bus_bytes
    unit = bus
    transpose = rng.randint(0, 1) if dest == LoadDest.STREAM else 0
    if transpose:
        unit = math.lcm(bus, config.transposed_tile_bytes)
    elif dest in (None, LoadDest.STREAM):
        unit = max(bus, config.tile_bytes)
    elif dest == LoadDest.ACT:
        unit = max(bus, config.row_slot)
    size = unit * rng.randint(1, 3)
    count = rng.randint(1, 3)
    stride = rng.choice([size, size + bus, size + 4 * bus, 0])
    offset = bus * rng.randint(0, (DATA - count * max(size, stride)) // bus)
    f = {"offset": offset, "bytes": size, "count": count, "stride": stride}
    if dest is None:
        return f
    f |= {"dest": dest, "format": rng.choice(list(LoadFormat)), "transpose": transpose}
    elements = size // (2 if f["format"] else 4)
    words = -(-elements // config.lanes) if dest != LoadDest.ACT else size // config.row_slot
    f |= {"dst": rng.randint(0, 4), "dst_stride": rng.choice([words, words + 1, max(words - 1, 0)])}
    return f


@configs
@seeds
@pytest.mark.parametrize("dest", [LoadDest.ACT, LoadDest.ROW, LoadDest.PARAM])
def test_load(config, seed, dest):
    bench = Bench(config, seed)
    for _ in range(4):
        bench.run((Op.LOAD, load_fields(bench, dest)))


def table_fields(bench):
    """Return a LOAD of a table of small numbers, which lie in one piece, or every other half."""
    rng = bench.random
    count = rng.choice([1, 2, 4])
    f = {"bytes": 2048 // count, "count": count, "stride": rng.choice([1, 2]) * 2048 // count, "dest": LoadDest.TABLE}
    f["offset"] = bench.config.bus_bytes * rng.randint(0, 64)
    shift = rng.randint(-20, 20)
    return f | {"dst": rng.randint(0, 31) | (shift & 255) << 8}


@configs
def test_load_table(config):
    bench = Bench(config, 7)
    for i in range(6):
        x = {"n": 19, "m": 2, "h": 1, "limit": 65535, "source": Source.ROW, "src": 9 * i, "src_m": 20, "dst": 110}
        vector = x | {"dst_m": 20, "dest": Dest.ROW, "func": Func.TABLE, "mul": [Mul.NONE, Mul.SELF][i % 2]}
        bench.run((Op.LOAD, table_fields(bench)), (Op.VECTOR, vector))


def int4_fields(bench):
    """Return a WEIGHT of int4 weights: runs that end within a group, a chunk or a bus word, or with it."""
    rng, config = bench.random, bench.config
    k = rng.randint(1, 1 + 40 * config.nibble_rows // config.rows)
    rows, s, slot = k * config.rows, config.nibble_rows, config.nibble_slot
    size = -(-rows // (32 * s)) * s * slot + rows * slot
    size = -(-size // config.bus_bytes) * config.bus_bytes
    count = rng.randint(1, 3)
    stride = size + config.bus_bytes * rng.randint(0, 3)
    f = {"format": WeightFormat.INT4, "rows": rows, "bytes": size, "count": count, "stride": stride}
    return f | {"offset": config.bus_bytes * rng.randint(0, 100)}


def tiles_of(f, config):
    """Return how many tiles a load pushes."""
    if f.get("format") and "dest" not in f:
        return f["count"] * f["rows"] // config.rows
    size = config.transposed_tile_bytes if f.get("transpose") else config.tile_bytes
    return f["count"] * (f["bytes"] // size)


def matmul_program(bench, stream):
    """Return loads that fill a FIFO and the MATMULs that empty it."""
    rng, config = bench.random, bench.config
    dest = LoadDest.STREAM if stream else None
    loads = [
        load_fields(bench, dest) if stream or rng.randint(0, 1) else int4_fields(bench)
        for _ in range(rng.randint(1, 2))
    ]
    tiles = sum(tiles_of(f, config) for f in loads)
    program = [(Op.LOAD if stream else Op.WEIGHT, f) for f in loads]
    while tiles:
        k = rng.randint(1, min(3, tiles))
        n = rng.randint(1, min(3, tiles // k))
        groups = rng.randint(1, min(2, tiles // (k * n)))
        tiles -= k * n * groups
        f = {"k": k, "n": n, "groups": groups, "stream": stream, "bank": rng.randint(0, 1)}
        f |= {"accumulate": rng.randint(0, 1), "acc": rng.randint(0, 9)}
        f |= {"rows_outer": rng.randint(1, 2), "rows_inner": rng.randint(1, 2)}
        f |= {"act": rng.randint(0, 9), "pair": rng.randint(0, 1)}
        f |= {name: rng.randint(0, 9) for name in ("act_group", "act_outer", "act_inner")}
        program.append((Op.MATMUL, f))
    return program


@configs
@seeds
@pytest.mark.parametrize("stream", [0, 1])
def test_matmul(config, seed, stream):
    bench = Bench(config, seed)
    for _ in range(3):
        bench.run(*matmul_program(bench, stream))


def test_long_matmul_is_exact_and_wraps():
    """Longer than float32 is exact for, at the largest magnitudes, accumulated until the sums wrap."""
    config = PRESETS["large"]
    k = 40  # 1280 inputs
    machine = Machine(config, Memory(1 << 20))
    weights = np.full((k, config.rows, config.col_slot), -128, np.int8)
    weights[:, :, 1] = 127
    weights[3, 5, 1] = 126
    weights[:, :, 2] = np.random.default_rng(2).integers(120, 128, (k, config.rows))
    act = np.random.default_rng(3).integers(120, 128, (k, config.rows))
    machine.memory.write(0, weights.view(np.uint8).reshape(-1))
    machine.buffers.act[:k], machine.buffers.act[k : 2 * k] = -128, act
    matmul = {"k": k, "n": 1, "groups": 1, "rows_outer": 2, "rows_inner": 1}
    matmul |= {"act_outer": k, "accumulate": 1}
    times = 110
    program = []
    for _ in range(times):
        program += [
            Instruction(Op.WEIGHT, {"offset": 0, "bytes": weights.size, "count": 1}),
            Instruction(Op.MATMUL, matmul),
        ]
    code = assemble([*program, Instruction(Op.END)])
    machine.memory.write(1 << 19, np.frombuffer(code, np.uint8))
    machine.run(1 << 19)
    wrapped = [(x * times + 2**31) % 2**32 - 2**31 for x in (2**14 * 1280, -128 * (127 * 1280 - 1))]
    assert machine.buffers.acc0[0, :2].tolist() == wrapped
    exact = int((act.astype(np.int64) * weights[:, :, 2]).sum())
    assert 2**24 < exact < 2**31 // 100
    assert machine.buffers.acc0[1, 2] == (exact * times + 2**31) % 2**32 - 2**31


def vector_fields(bench):
    """Return a random legal VECTOR; regions that it reads and writes are apart."""
    rng, config = bench.random, bench.config
    n, m, h = rng.randint(1, 2 * config.cols + 3), rng.randint(1, 3), rng.randint(1, 3)
    f = {"n": n, "m": m, "h": h, "limit": rng.choice([65535, rng.randint(0, n)])}
    f |= {"causal": rng.randint(0, 1), "bank": rng.randint(0, 1)}
    f["source"] = source = rng.choice(list(Source))
    f["dest"] = rng.choice(list(Dest))
    if f["dest"] == Dest.STORE_RAW and source == Source.ROW:
        f["source"] = source = Source.ACC
    if source == Source.STAT:
        f["n"] = n = 1
    if f["dest"] != Dest.STORE_RAW:
        f |= operations(bench, n, source)
    f |= {"reduce_outer": rng.randint(0, 1), "scale16": rng.randint(0, 1)}
    if f.get("reduce") == Reduce.VAR:
        f |= {"limit": 65535, "reduce_outer": 0}
    f |= addresses(bench, f)
    f["const1"] = rng.choice([0x3C010200, 0x3F800000, 0xBE123400, 0x3D4CCCFF])
    f["const2"] = rng.choice([0, 0x3727, 0x3F80])
    return f


def operations(bench, n, source):
    """Return random stages of a VECTOR that go together."""
    rng = bench.random
    f = {"scale": rng.choice(list(Scale)), "param": rng.randint(0, 1)}
    f["add"] = rng.choice([a for a in Add if a != Add.ROTATE or n % 2 == 0])
    f["func"], f["mul"], f["reduce"] = rng.choice(list(Func)), rng.choice(list(Mul)), rng.choice(list(Reduce))
    f["wide"] = rng.randint(0, 1) if source == Source.ACC else 0
    f["merge"] = rng.randint(0, 1) if f["reduce"] in (Reduce.MAX, Reduce.ARGMAX) else 0
    if f["add"] == Add.ROTATE:
        f["scale"] = f["param"] = 0
    if f["param"] and f["add"] == Add.PARAM:
        f[rng.choice(["param", "add"])] = 0
    if source == Source.ROW and f["add"] == Add.ROW:
        f["add"] = Add.NONE
    if f["mul"] == Mul.PARAM and (f["param"] or f["add"] in (Add.PARAM, Add.ROTATE)):
        f["mul"] = Mul.SELF
    if f["mul"] == Mul.ROW and (source == Source.ROW or f["add"] == Add.ROW):
        f["mul"] = Mul.SELF
    return f


def addresses(bench, f):
    rng, config = bench.random, bench.config
    words = -(-f["n"] // config.lanes)
    groups = -(-f["n"] // config.cols)
    f = {}
    apart = rng.choice([words, words + 1, 2 * words])
    if rng.random() < 0.5:
        f |= {"src": rng.randint(0, 3), "src_m": rng.randint(0, 4), "src_h": rng.randint(0, 4)}
        f |= {"src_n": rng.randint(0, 40 // groups)}
    f |= {"row": rng.randint(0, 40), "row_m": rng.randint(0, 9), "row_h": rng.randint(0, 9)}
    f |= {"par": rng.randint(0, 9), "par_m": rng.randint(0, 4), "par_h": rng.randint(0, 4)}
    # Sources of at most 40 + 2 * (9 + 9) + 18 words of the row buffer lie below the destination.
    f |= {"dst": 110, "dst_h": apart, "dst_m": rng.choice([3 * apart, 3 * apart + 2, words])}
    f |= {"stat": rng.randint(0, 3), "stat_m": rng.randint(0, 4), "stat_h": rng.randint(0, 4)}
    f |= {"red": 32, "red_m": rng.randint(0, 4), "red_h": rng.randint(0, 4)}
    return f


def store_fields(bench, f):
    """Return a STORE for what the VECTOR f leaves in the stream."""
    rng = bench.random
    element = {Dest.STORE_INT8: 0, Dest.STORE_BF16: 1}.get(f["dest"], 2)
    size = 1 << element
    run = rng.choice([f["n"], f["n"] + 3, 1, 2, 4])
    unit = min(bench.config.bus_bytes, run * size & -(run * size))
    s = {name: f[name] for name in ("n", "m", "h")} | {"element": element, "run": run}
    s["offset"] = DATA + unit * rng.randint(0, 20)
    for name in ("stride_m", "stride_h", "stride_run", "wrap_stride"):
        s[name] = unit * rng.randint(0, 200 // unit)
    return s | {"wrap_first": rng.randint(0, 2), "wrap_period": rng.randint(0, 2)}


def keep_below_exponent(bench, f):
    """Make field a of the entries that SUMSQ, SUM and VAR align to large enough, as a program does."""
    if f["source"] == Source.ACC and f["mul"] == Mul.SELF:
        f["mul"] = Mul.NONE
    if f["func"] == Func.TABLE:
        f["func"] = Func.NONE
    if f["scale"] == Scale.STAT_A:
        f["scale"] = Scale.STAT_B
    if f["add"] == Add.NEG_STAT_A:
        f["add"] = Add.NONE
    bench.machine.buffers.stat[:32, 0] = largest = 2.0 ** bench.random.randint(40, 60)
    bench.reference.stat[:32] = [(Fraction(largest), b) for _, b in bench.reference.stat[:32]]


@configs
@pytest.mark.parametrize("seed", range(8))
def test_vector_and_store(config, seed):
    bench = Bench(config, seed)
    for _ in range(6):
        f = vector_fields(bench)
        if f.get("reduce") in (Reduce.SUMSQ, Reduce.SUM, Reduce.VAR):
            keep_below_exponent(bench, f)
        program = [(Op.VECTOR, f)]
        if f["dest"] >= Dest.STORE_INT8:
            program.append((Op.STORE, store_fields(bench, f)))
        bench.run(*program)


@configs
def test_sums_use_all_their_bits(config):
    """SUMSQ, SUM and VAR of rows whose elements have the row's own largest exponent."""
    bench = Bench(config, 5)
    n = 3 * config.cols + 1
    f = {"n": n, "m": 2, "h": 2, "limit": 65535, "source": Source.ROW, "stat": 40, "red": 40}
    words = -(-n // config.lanes)
    f |= {"src_h": words, "src_m": 2 * words, "stat_m": 2, "stat_h": 1, "red_m": 2, "red_h": 1}
    f |= {"const1": 0x3C010200, "const2": 0x3727}
    for kind in (Reduce.SUMSQ, Reduce.SUM, Reduce.VAR):
        for outer in (0, 1) if kind != Reduce.VAR else (0,):
            measure = f | {"reduce": Reduce.ABSMAX, "reduce_outer": outer}
            bench.run((Op.VECTOR, measure), (Op.VECTOR, measure | {"reduce": kind}))


@configs
@pytest.mark.parametrize("kind", [Reduce.MAX, Reduce.ARGMAX])
def test_a_row_reduced_in_parts(config, kind):
    """Ties, parts without valid elements, and indices that begin anywhere; then the entries as they are."""
    bench = Bench(config, 8)
    n, words = 2 * config.lanes, 2
    bench.machine.buffers.row[:] = np.round(bench.machine.buffers.row)  # so that values meet again
    bench.copy_buffers()
    f = {"n": n, "m": 3, "h": 2, "source": Source.ROW, "src_m": 7, "src_h": words, "reduce": kind}
    f |= {"red": 40, "red_m": 2, "red_h": 1, "stat": 40, "stat_m": 2, "stat_h": 1}
    raw = {"n": 1, "m": 6, "h": 1, "source": Source.STAT, "dest": Dest.STORE_RAW, "stat": 40, "stat_m": 1}
    store = {"n": 1, "m": 6, "h": 1, "run": 1, "element": 2, "stride_m": 4, "offset": DATA}
    for first, limit in ((0, n), (n, n), (2 * n, 0), (2**24 - 3, 5)):
        part = f | {"const1": first << 8, "merge": int(first > 0), "limit": limit, "src": first // n % 64}
        bench.run((Op.VECTOR, part), (Op.VECTOR, raw), (Op.STORE, store))
    bench.run((Op.VECTOR, f | {"limit": 0, "const1": 0x12345600}), (Op.VECTOR, raw), (Op.STORE, store))


def test_vector_in_place():
    bench = Bench(CONFIGS[0], 3)
    f = {"n": 20, "m": 3, "h": 2, "limit": 65535, "source": Source.ROW, "func": Func.SIGMOID}
    f |= {"src": 5, "src_m": 8, "src_h": 3, "dst": 5, "dst_m": 8, "dst_h": 3, "dest": Dest.ROW}
    bench.run((Op.VECTOR, f))


def test_weights_that_are_overwritten_while_they_wait():
    bench = Bench(CONFIGS[0], 1)
    config = bench.config
    weight = (Op.WEIGHT, {"offset": 0, "bytes": 4 * config.tile_bytes, "count": 1})
    matmul = {"k": 2, "n": 2, "groups": 1, "rows_outer": 2, "rows_inner": 1, "act_outer": 2}
    store_raw = {"n": 16, "m": 1, "h": 1, "source": Source.ACC, "dest": Dest.STORE_RAW}
    store = {"n": 16, "m": 1, "h": 1, "element": 2, "run": 16}
    for target in (0, config.tile_bytes, 4 * config.tile_bytes - 64):
        # The stored words land in the weights: before they are fetched, and while they wait in the FIFO.
        bench.run(weight, (Op.MATMUL, matmul), (Op.VECTOR, store_raw), (Op.STORE, store | {"offset": target}))
        bench.run(
            weight, (Op.VECTOR, store_raw | {"src": 1}), (Op.STORE, store | {"offset": target}), (Op.MATMUL, matmul)
        )
        bench.run(weight, (Op.MATMUL, matmul))


def test_plans_hold_no_state():
    """The same instruction twice, with other data in between."""
    bench = Bench(CONFIGS[2], 2)
    program = matmul_program(bench, 0)
    bench.run(*copy.deepcopy(program))
    bench.machine.buffers.act[:] = 3
    bench.copy_buffers()
    bench.run(*program)
