"""A program whose result depends on timing is refused; what dependencies, units and FIFOs order is not."""

import re

import pytest

from tilewright_hw.arch import REGISTERS, AcceleratorConfig, Instruction, Op, Unit, assemble
from tilewright_hw.arch.isa import Add, Dest, Func, LoadDest, Mul, Reduce, Scale, Source
from tilewright_sim.golden import GoldenDevice, HazardError

CONFIG = AcceleratorConfig()
W, L, M, V, S = Unit
PROGRAM = 0x8000


def run(program):
    d = GoldenDevice(CONFIG, check=True)
    d.allocate(1 << 16)
    d.write_memory(PROGRAM, assemble([*program, Instruction(Op.END)]))
    d.write_register(REGISTERS["PROGRAM_LO"].address, PROGRAM)
    d.write_register(REGISTERS["CONTROL"].address, 1)
    d.wait(1000)
    assert d.last_error is None


def weight(at=0, tiles=1, **waits):
    return make(Op.WEIGHT, waits, offset=at, bytes=256 * tiles, count=1)


def load(dest, at=0, dst=0, size=256, **waits):
    return make(Op.LOAD, waits, offset=at, bytes=size, count=1, dest=dest, dst=dst)


def matmul(waits=(), **fields):
    base = {"k": 1, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1}
    return Instruction(Op.MATMUL, base | fields, dict(waits))


def vector(waits=(), **fields):
    base = {"n": 16, "m": 1, "h": 1, "limit": 99}
    return Instruction(Op.VECTOR, base | fields, dict(waits))


def store(waits=(), **fields):
    base = {"offset": 0x4000, "element": 2, "n": 16, "m": 1, "h": 1, "run": 16}
    return Instruction(Op.STORE, base | fields, dict(waits))


def make(op, waits, **fields):
    return Instruction(op, fields, {Unit[name.upper()]: k for name, k in waits.items()})


def layer():
    """A product, its quantised result fed to another, and a result stored: every wait in it is needed."""
    return [
        load(LoadDest.ACT),
        load(LoadDest.PARAM, 0x1000),
        weight(0x2000, 2),
        matmul({L: 2}, acc=0),
        vector({M: 1, L: 1}, source=Source.ACC, param=1, dest=Dest.ROW, reduce=Reduce.QSCALE, const1=0x3C010200),
        vector(source=Source.ROW, scale=Scale.STAT_A, dest=Dest.ACT, dst=0),
        matmul({V: 1}, acc=0),
        vector({M: 1}, source=Source.ACC, scale=Scale.STAT_B, dest=Dest.STORE_FP32),
        store(),
        load(LoadDest.ROW, 0x4000, size=64, store=1),
        vector({L: 1}, source=Source.ROW, dest=Dest.STORE_FP32),
        store(offset=0x5000),
    ]


def test_a_program_with_its_waits():
    run(layer())


WAITS = [(i, unit) for i, ins in enumerate(layer()) for unit in ins.waits]


@pytest.mark.parametrize(("index", "unit"), WAITS)
def test_every_wait_is_needed(index, unit):
    program = layer()
    ins = program[index]
    waits = {u: k for u, k in ins.waits.items() if u != unit}
    program[index] = Instruction(ins.op, ins.fields, waits)
    with pytest.raises(HazardError, match="on which it does not depend") as error:
        run(program)
    assert str(error.value).startswith(f"instruction {index} (")


@pytest.mark.parametrize(("index", "unit"), WAITS)
def test_every_distance_matters(index, unit):
    """One further back is not enough (where there is one)."""
    program = layer()
    ins = program[index]
    program[index] = Instruction(ins.op, ins.fields, {**ins.waits, unit: ins.waits[unit] + 1})
    with pytest.raises(HazardError):
        run(program)


ROW = {"source": Source.ROW, "dest": Dest.ROW}


def reads_while_written(waits):
    """VECTOR has read the row buffer before LOAD overwrites it."""
    return [
        load(LoadDest.ROW),
        vector({L: 1}, source=Source.ROW, dest=Dest.ACT),
        make(Op.LOAD, waits, offset=0, bytes=256, count=1, dest=LoadDest.ROW),
    ]


def test_write_after_read():
    run(reads_while_written({"vector": 1}))
    with pytest.raises(HazardError, match=r"writes the row buffer where it is read by instruction 1 \(VECTOR\)"):
        run(reads_while_written({}))


def test_write_after_write():
    program = [load(LoadDest.ROW), vector({L: 1}, **ROW), load(LoadDest.ROW, vector=1)]
    run(program)
    overwrite = [load(LoadDest.PARAM), load(LoadDest.ROW, dst=8)]
    overwrite.append(vector({L: 2}, source=Source.STAT, n=1, dest=Dest.ROW, dst=8))
    with pytest.raises(HazardError):
        run(overwrite)


def test_neighbouring_words_are_no_hazard():
    run([load(LoadDest.ROW), vector({L: 1}, **ROW), load(LoadDest.ROW, dst=8)])


def test_fifos_order_what_passes_through_them():
    """MATMUL has taken its tile, so the memory it came from may be overwritten; the STORE waits for MATMUL alone."""
    program = [
        load(LoadDest.ACT),
        weight(0),
        matmul({L: 1}),
        vector({M: 1}, source=Source.ACC, dest=Dest.STORE_RAW),
        store(offset=0, n=16),
    ]
    run(program)
    program[1:2] = [weight(0, 2)]  # half of it may not have been read yet
    program += [matmul({L: 1})]
    with pytest.raises(HazardError, match=r"writes memory where it is read by instruction 1 \(WEIGHT\)"):
        run(program)


def test_a_store_implies_that_its_rows_were_read():
    row = {"source": Source.ROW, "dest": Dest.STORE_FP32}
    program = [load(LoadDest.ROW), vector({L: 1}, **row), store(), load(LoadDest.ROW, store=1)]
    run(program)
    program[3] = load(LoadDest.ROW)
    with pytest.raises(HazardError):
        run(program)


def test_a_store_does_not_imply_its_rows_statistics():
    row = {"source": Source.ROW, "dest": Dest.STORE_FP32, "reduce": Reduce.ABSMAX}
    program = [load(LoadDest.ROW), vector({L: 1}, **row), store(), vector({S: 1}, n=1, source=Source.STAT)]
    run(program)  # the vector unit is in order with itself


def test_the_vector_unit_completes_one_before_the_next():
    """STORE has rows of the second VECTOR, so the first is complete, and MATMUL may read what it wrote."""
    program = [
        load(LoadDest.ROW),
        weight(),
        vector({L: 1}, source=Source.ROW, dest=Dest.ACT),
        vector({L: 1}, source=Source.ROW, dest=Dest.STORE_FP32),
        store(),
        matmul({S: 1}),
    ]
    run(program)
    program[2:4] = reversed(program[2:4])
    with pytest.raises(HazardError, match="reads the act buffer"):
        run(program)


def test_the_array_completes_in_order():
    """VECTOR waits for the second MATMUL alone; the first has taken what LOAD read, so STORE may overwrite it."""
    program = [
        load(LoadDest.ACT, 0x1000),
        load(LoadDest.STREAM, 0),
        weight(0x2000),
        matmul({L: 2}, stream=1),
        matmul(acc=1),
        vector({M: 1}, source=Source.ACC, src=1, dest=Dest.STORE_RAW),
        store(offset=0),
    ]
    run(program)


def test_a_chain_of_waits():
    """LOAD waits for STORE, which has VECTOR's rows; a MATMUL that takes LOAD's tile is after all of them."""
    program = [
        load(LoadDest.ROW),
        load(LoadDest.ACT),
        vector({L: 1}, source=Source.ROW, dest=Dest.STORE_FP32),
        store(offset=0x4000),
        load(LoadDest.STREAM, 0x4000, store=1),
        matmul({L: 2}, stream=1),
        load(LoadDest.ROW, matrix=1),
    ]
    run(program)


def test_memory_that_is_being_stored():
    program = [load(LoadDest.ROW), vector({L: 1}, source=Source.ROW, dest=Dest.STORE_FP32), store()]
    run([*program, load(LoadDest.PARAM, 0x4040)])
    with pytest.raises(HazardError, match=r"reads memory where it is written by instruction 2 \(STORE\)"):
        run([*program, load(LoadDest.PARAM, 0x4030, size=16)])
    with pytest.raises(HazardError, match="reads memory"):
        run([*program, Instruction(Op.LDREGS, {"offset": 0x4000, "count": 1})])
    run([*program, Instruction(Op.LDREGS, {"offset": 0x4000, "count": 1}, {S: 1})])
    run([*program, Instruction(Op.NOP, waits={S: 1}), load(LoadDest.PARAM, 0x4000)])


def test_strided_stores_are_compared_run_by_run():
    vectors = {"source": Source.ROW, "dest": Dest.STORE_FP32, "m": 4, "src_m": 2}
    program = [load(LoadDest.ROW, size=512), vector({L: 1}, **vectors), store(m=4, stride_m=128)]
    read = {"offset": 0x4040, "bytes": 64, "count": 3, "stride": 128, "dest": LoadDest.PARAM, "dst_stride": 2}
    run([*program, Instruction(Op.LOAD, read)])
    with pytest.raises(HazardError):
        run([*program, Instruction(Op.LOAD, read | {"stride": 192})])


def test_storing_into_the_program():
    program = [load(LoadDest.ROW), vector({L: 1}, source=Source.ROW, dest=Dest.STORE_FP32)]
    with pytest.raises(HazardError, match=r"reads memory where it is written by instruction 2"):
        run([*program, store(offset=PROGRAM + 64 * 3)])
    run([*program, store(offset=PROGRAM + 64 * 4)])


def test_undefined_words():
    with pytest.raises(HazardError, match="reads word 3 of the row buffer"):
        run([load(LoadDest.ROW, size=96), vector({L: 1}, source=Source.ROW, n=32)])
    # Words beyond the limit do not matter.
    run([load(LoadDest.ROW, size=96), vector({L: 1}, source=Source.ROW, n=32, limit=20)])
    with pytest.raises(HazardError, match="reads word 3 of the row buffer"):
        run([load(LoadDest.ROW, size=96), vector({L: 1}, source=Source.ROW, n=32, m=6, limit=20, causal=1)])
    with pytest.raises(HazardError, match="register 4 has not been loaded"):
        run([Instruction(Op.LDREGS, {"count": 4}), Instruction(Op.VECTOR, {"n": 1}, patches=(("n", 4),))])


def test_the_table_is_a_space_of_its_own():
    use = {"source": Source.ROW, "func": Func.TABLE}
    program = [load(LoadDest.ROW), load(LoadDest.TABLE, 0x1000, size=2048), vector({L: 1}, **use)]
    run(program)
    with pytest.raises(HazardError, match="reads the table buffer where it is written by instruction 1"):
        run([*program[:2], vector({L: 2}, **use)])
    with pytest.raises(HazardError, match="writes the table buffer where it is read by instruction 2"):
        run([*program, load(LoadDest.TABLE, 0x1000, size=2048)])
    run([*program, load(LoadDest.TABLE, 0x1000, size=2048, vector=1)])
    with pytest.raises(HazardError, match="reads word 0 of the table buffer, which was not written"):
        run([load(LoadDest.ROW), vector({L: 1}, **use)])


def test_pairs_are_two_words():
    """ACT16 writes both words of a pair, MATMUL reads both and writes two rows, and `wide` reads these."""
    act = {"source": Source.ROW, "dest": Dest.ACT16}
    wide = {"source": Source.ACC, "wide": 1, "dest": Dest.ROW}
    program = [load(LoadDest.ROW), weight(), vector({L: 1}, **act), matmul({V: 1}, pair=1), vector({M: 1}, **wide)]
    run(program)
    with pytest.raises(HazardError, match="reads the act buffer"):
        run([*program[:3], matmul(pair=1)])
    with pytest.raises(HazardError, match="reads the acc0 buffer"):
        run([*program[:4], vector(**wide)])
    with pytest.raises(HazardError, match="reads word 1 of the act buffer, which was not written"):
        run([*program[:2], vector({L: 1}, source=Source.ROW, dest=Dest.ACT), *program[3:]])
    with pytest.raises(HazardError, match="reads word 1 of the acc0 buffer, which was not written"):
        run([*program[:3], matmul({V: 1}), vector({M: 1}, **wide)])


def test_merge_reads_the_entry():
    part = {"source": Source.ROW, "reduce": Reduce.ARGMAX}
    run([load(LoadDest.ROW), vector({L: 1}, **part), vector(merge=1, **part)])
    with pytest.raises(HazardError, match="reads word 0 of the stat buffer, which was not written"):
        run([load(LoadDest.ROW), vector({L: 1}, merge=1, **part)])


@pytest.mark.parametrize("add", [Add.STAT_B, Add.NEG_STAT_A])
def test_the_adder_reads_the_entry(add):
    with pytest.raises(HazardError, match="reads word 0 of the stat buffer, which was not written"):
        run([load(LoadDest.ROW), vector({L: 1}, source=Source.ROW, add=add)])


@pytest.mark.parametrize("stage", [{"param": 1}, {"add": Add.PARAM}, {"mul": Mul.PARAM}])
def test_each_use_of_the_parameter_reads_it(stage):
    with pytest.raises(HazardError, match="reads word 0 of the param buffer, which was not written"):
        run([load(LoadDest.ROW), vector({L: 1}, source=Source.ROW, **stage)])


def test_message():
    program = layer()
    program[5:7] = [program[5], Instruction(Op.MATMUL, program[6].fields)]
    expected = (
        "instruction 6 (MATMUL k=1 n=1 groups=1 rows_outer=1 rows_inner=1): reads the act buffer where it is "
        "written by instruction 5 (VECTOR), on which it does not depend"
    )
    with pytest.raises(HazardError, match=f"^{re.escape(expected)}$"):
        run(program)
