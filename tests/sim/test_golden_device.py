"""The golden model as a device: registers, memory, errors, and what every illegal program is told."""

import re

import numpy as np
import pytest

from tilewright_hw.arch import (
    REGISTERS,
    AcceleratorConfig,
    Device,
    DeviceError,
    ErrorCode,
    InputError,
    Instruction,
    Op,
    Unit,
    assemble,
)
from tilewright_hw.arch.isa import Add, Dest, LoadDest, Mul, Reduce, Scale, Source, WeightFormat
from tilewright_sim.golden import GoldenDevice

CONFIG = AcceleratorConfig()
SIZE = 1 << 16
PROGRAM = 0x8000
END = Instruction(Op.END)


def device(program=(END,), config=CONFIG, **options):
    d = GoldenDevice(config, **options)
    d.allocate(SIZE)
    write_program(d, program)
    return d


def write_program(d, program):
    d.write_memory(PROGRAM, program if isinstance(program, bytes) else assemble(program))
    d.write_register(REGISTERS["PROGRAM_LO"].address, PROGRAM)


def register(d, name):
    return d.read_register(REGISTERS[name].address)


def run(d, limit=1000):
    d.write_register(REGISTERS["CONTROL"].address, 1)
    d.wait(limit)


def test_is_a_device():
    assert isinstance(GoldenDevice(CONFIG), Device)


@pytest.mark.parametrize("config", [CONFIG, AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1)])
def test_identification(config):
    d = GoldenDevice(config)
    assert register(d, "IDENTITY") == 0x54574C52
    shape = register(d, "SHAPE").to_bytes(4, "little")
    assert list(shape) == [config.rows, config.cols, config.lanes, config.bus_bytes]
    capacity = register(d, "CAPACITY").to_bytes(4, "little")
    sizes = [config.acc_rows, config.act_words, config.row_words, config.param_words]
    assert [1 << log for log in capacity] == sizes
    assert register(d, "CAPACITY2") & 255 == config.stat_entries.bit_length() - 1
    assert register(d, "CAPACITY2") >> 8 == config.ingest
    d.write_register(REGISTERS["IDENTITY"].address, 5)
    assert register(d, "IDENTITY") == 0x54574C52


def test_memory():
    d = device()
    assert d.memory_size == SIZE
    d.write_memory(5, b"abc")
    d.write_memory(SIZE - 2, np.array([1, 2], np.uint8))
    copy = d.read_memory(4, 5)
    assert copy.tobytes() == b"\0abc\0"
    copy[:] = 9
    assert d.read_memory(4, 5).tobytes() == b"\0abc\0"
    for address, size in ((SIZE - 1, 2), (-1, 1), (SIZE + 1, 0), (0, -1)):
        with pytest.raises(InputError, match="outside device memory"):
            d.read_memory(address, size)
    with pytest.raises(InputError, match="outside device memory"):
        d.write_memory(SIZE - 1, b"ab")
    with pytest.raises(InputError, match="must be bytes or an array of uint8, not of float64"):
        d.write_memory(0, np.zeros(2))


def test_memory_above_4_gib_costs_only_what_is_used():
    d = GoldenDevice(CONFIG)
    d.allocate(6 << 30)
    base = 5 << 30
    store = {"base": 3, "element": 0, "n": 16, "m": 1, "h": 1, "run": 16}
    vector = {"n": 16, "m": 1, "h": 1, "limit": 99, "source": Source.ROW, "dest": Dest.STORE_INT8}
    d.machine.buffers.row[0] = 3.0
    write_program(d, [Instruction(Op.VECTOR, vector), Instruction(Op.STORE, store), END])
    d.write_register(REGISTERS["BASE3_LO"].address, base & 0xFFFFFFFF)
    d.write_register(REGISTERS["BASE3_HI"].address, base >> 32)
    run(d)
    assert d.read_memory(base, 16).tolist() == [3] * 8 + [0] * 8
    d.close()


def test_start_status_and_interrupts():
    d = device([Instruction(Op.NOP), END])
    assert register(d, "STATUS") == 0
    d.wait(5)
    assert register(d, "STATUS") == 0, "nothing was started"
    d.write_register(REGISTERS["CONTROL"].address, 1)
    assert register(d, "STATUS") == 1
    d.wait(5)
    assert register(d, "STATUS") == 2
    assert register(d, "COUNT_INSTRUCTIONS") == 2
    assert register(d, "COUNT_CYCLES") == 0
    assert register(d, "IRQ_STATUS") == 1
    d.write_register(REGISTERS["IRQ_STATUS"].address, 1)
    assert register(d, "IRQ_STATUS") == 0
    assert d.seconds > 0
    with pytest.raises(InputError, match="no register at address"):
        d.read_register(0xFF0)
    with pytest.raises(InputError, match="holds 32 bits"):
        d.write_register(REGISTERS["PROGRAM_LO"].address, 1 << 32)


def test_registers_and_patches():
    """LDREGS reads the argument block; patches add registers modulo 2^32, and a loop count may come from one."""
    arguments = np.array([0xFFFFFFF0, 3], "<u4")
    store = {"offset": 0x110, "element": 0, "n": 8, "m": 1, "h": 1, "run": 8}
    vector = {"n": 5, "m": 1, "h": 1, "limit": 99, "source": Source.ROW, "dest": Dest.STORE_INT8}
    program = [
        Instruction(Op.LDREGS, {"offset": 0x40, "count": 2}),
        Instruction(Op.VECTOR, vector, patches=(("n", 1),)),
        Instruction(Op.STORE, store, patches=(("offset", 0),)),
        END,
    ]
    d = device(program)
    d.write_memory(0x40, arguments.view(np.uint8))
    d.machine.buffers.row[0] = np.arange(1, 9)
    run(d)
    assert d.read_memory(0x100, 9).tolist() == [*range(1, 9), 0]


def words(*values):
    return np.array(values, "<u4").tobytes()


WEIGHT = {"offset": 0, "bytes": 256, "count": 1}
MATMUL = {"k": 1, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1}
VECTOR = {"n": 8, "m": 1, "h": 1, "limit": 99, "source": Source.ROW}
STORE = {"offset": 0, "element": 0, "n": 8, "m": 1, "h": 1, "run": 8}
LOAD = {"offset": 0, "bytes": 64, "count": 1, "dest": LoadDest.ROW}

STOPS = [
    (words(7, *[0] * 15), ErrorCode.ILLEGAL_OPCODE, "unknown opcode 7"),
    (Instruction(Op.VECTOR, VECTOR | {"n": 0}), ErrorCode.ILLEGAL_FIELD, "n must be at least 1"),
    (Instruction(Op.WEIGHT, WEIGHT | {"count": 0}), ErrorCode.ILLEGAL_FIELD, "count must be at least 1"),
    (Instruction(Op.STORE, STORE | {"run": 0}), ErrorCode.ILLEGAL_FIELD, "run must be at least 1"),
    (Instruction(Op.LDREGS, {}), ErrorCode.ILLEGAL_FIELD, "count must be at least 1"),
    (Instruction(Op.VECTOR, VECTOR | {"reduce": 9}), ErrorCode.ILLEGAL_FIELD, "reduce has no value 9"),
    (Instruction(Op.WEIGHT, WEIGHT | {"offset": SIZE - 128}), ErrorCode.READ_RESPONSE, "outside memory"),
    (Instruction(Op.LOAD, LOAD | {"offset": SIZE}), ErrorCode.READ_RESPONSE, "outside memory"),
    (Instruction(Op.LDREGS, {"offset": SIZE, "count": 1}), ErrorCode.READ_RESPONSE, "outside memory"),
]
VECTOR_STORE = Instruction(Op.VECTOR, VECTOR | {"dest": Dest.STORE_INT8})


@pytest.mark.parametrize(("bad", "code", "message"), STOPS)
def test_what_the_accelerator_stops_for(bad, code, message):
    code_of = bad if isinstance(bad, bytes) else bad.encode()
    d = device(assemble([Instruction(Op.NOP)]) + code_of + assemble([END]))
    run(d)
    assert register(d, "STATUS") == 4
    assert register(d, "ERROR") == code
    assert register(d, "ERROR_PC") == 1
    assert register(d, "IRQ_STATUS") == 2
    assert message in str(d.last_error)
    assert d.last_error.code == code
    run(d)
    assert register(d, "STATUS") == 4, "an error stays until reset"
    d.reset()
    write_program(d, [END])
    run(d)
    assert register(d, "STATUS") == 2


def test_store_outside_memory():
    d = device([VECTOR_STORE, Instruction(Op.STORE, STORE | {"offset": SIZE - 4}), END])
    run(d)
    assert register(d, "ERROR") == ErrorCode.WRITE_RESPONSE


def test_program_that_leaves_memory():
    d = device([Instruction(Op.NOP)])
    d.write_memory(SIZE - 64, assemble([Instruction(Op.NOP)]))
    d.write_register(REGISTERS["PROGRAM_LO"].address, SIZE - 64)
    run(d)
    assert register(d, "ERROR") == ErrorCode.READ_RESPONSE


REFUSED = [
    ([Instruction(Op.MATMUL, MATMUL)], "weight FIFO: 16 rows of tiles are asked of a FIFO that holds 0"),
    (
        [Instruction(Op.WEIGHT, WEIGHT), Instruction(Op.MATMUL, MATMUL | {"k": 2})],
        "weight FIFO: 32 rows of tiles are asked of a FIFO that holds 16",
    ),
    ([Instruction(Op.WEIGHT, WEIGHT)], "the weight FIFO still holds 16 rows"),
    ([Instruction(Op.LOAD, WEIGHT)], "the stream FIFO still holds 16 rows"),
    ([VECTOR_STORE], "the store stream still holds 1 words"),
    ([Instruction(Op.STORE, STORE)], "store stream: 1 words are asked of a store stream that holds 0"),
    (
        [VECTOR_STORE, Instruction(Op.STORE, STORE | {"element": 2})],
        "the store stream holds elements of 1 bytes, not 4",
    ),
    (
        [VECTOR_STORE, Instruction(Op.STORE, STORE | {"offset": 4})],
        "runs of 8 bytes must start at multiples of 8",
    ),
    (
        [VECTOR_STORE, Instruction(Op.STORE, STORE | {"run": 4, "stride_run": 6})],
        "runs of 4 bytes must start at multiples of 4",
    ),
    ([Instruction(Op.WEIGHT, WEIGHT | {"offset": 8})], "the address must be a multiple of 16, not 0x8"),
    ([Instruction(Op.WEIGHT, WEIGHT | {"bytes": 40})], "bytes must be a multiple of 16, not 0x28"),
    (
        [Instruction(Op.WEIGHT, WEIGHT | {"count": 2, "stride": 264})],
        "stride must be a multiple of 16, not 0x108",
    ),
    ([Instruction(Op.LDREGS, {"offset": 4, "count": 1})], "the address must be a multiple of 64"),
    ([Instruction(Op.LDREGS, {"count": 129})], "count must be 1 to 128, not 129"),
    (
        [Instruction(Op.LOAD, LOAD | {"dst": 8191})],
        "what is loaded reaches word 8192 of the row buffer, which has 8192",
    ),
    (
        [Instruction(Op.LOAD, LOAD | {"dest": LoadDest.ACT, "dst": 4093})],
        "reaches word 4096 of the act buffer, which has 4096",
    ),
    (
        [Instruction(Op.WEIGHT, WEIGHT), Instruction(Op.MATMUL, MATMUL | {"acc": 512})],
        "the result reaches word 512 of the acc0 buffer, which has 512",
    ),
    (
        [Instruction(Op.MATMUL, MATMUL | {"rows_inner": 2, "act_inner": 4096})],
        "the activations reaches word 4096 of the act buffer",
    ),
    ([Instruction(Op.VECTOR, VECTOR | {"m": 2, "src_m": 8192})], "A reaches word 8192 of the row"),
    ([Instruction(Op.VECTOR, VECTOR | {"param": 1, "par": 2048})], "the parameters reaches word 2048"),
    (
        [Instruction(Op.VECTOR, VECTOR | {"reduce": Reduce.MAX, "red": 1024})],
        "the reduction reaches word 1024 of the stat buffer",
    ),
    ([Instruction(Op.VECTOR, VECTOR | {"source": Source.STAT})], "n must be 1 where A is STAT, not 8"),
    ([Instruction(Op.VECTOR, VECTOR | {"add": Add.ROW})], "the second operand needs the row buffer's port"),
    (
        [Instruction(Op.VECTOR, VECTOR | {"source": Source.ACC, "add": Add.ROW, "mul": Mul.ROW})],
        "cannot both take the second operand",
    ),
    ([Instruction(Op.VECTOR, VECTOR | {"param": 1, "add": Add.PARAM})], "only one of param, add and mul"),
    ([Instruction(Op.VECTOR, VECTOR | {"mul": Mul.PARAM, "add": Add.ROTATE})], "only one of param, add and mul"),
    ([Instruction(Op.VECTOR, VECTOR | {"wide": 1})], "wide joins accumulators: A must be ACC, not ROW"),
    ([Instruction(Op.VECTOR, VECTOR | {"merge": 1, "reduce": Reduce.SUM})], "merge goes with MAX and ARGMAX, not SUM"),
    ([Instruction(Op.VECTOR, VECTOR | {"merge": 1})], "merge goes with MAX and ARGMAX, not NONE"),
    ([Instruction(Op.VECTOR, VECTOR | {"reduce": Reduce.VAR, "reduce_outer": 1})], "VAR cannot reduce_outer"),
    (
        [Instruction(Op.VECTOR, VECTOR | {"reduce": Reduce.VAR, "limit": 7})],
        "every element must be valid for VAR: limit is 7, n 8",
    ),
    (
        [Instruction(Op.VECTOR, VECTOR | {"reduce": Reduce.VAR, "n": 32768, "limit": 65535})],
        "n must be at most 32767 for VAR, not 32768",
    ),
    (
        [Instruction(Op.VECTOR, VECTOR | {"reduce": Reduce.VAR})],
        "VAR: element 0 of row (0, 0) is 1.0, beyond the exponent of what should be the row's absolute maximum, 0.0",
    ),
    (
        [Instruction(Op.VECTOR, VECTOR | {"source": Source.ACC, "dest": Dest.STORE_RAW, "wide": 1})],
        "STORE_RAW takes A from ACC or STAT and does nothing else",
    ),
    (
        [
            Instruction(Op.VECTOR, VECTOR | {"reduce": Reduce.ARGMAX}),
            Instruction(Op.VECTOR, VECTOR | {"add": Add.STAT_B}),
        ],
        "field b of the statistics holds an index of ARGMAX, which is no F24",
    ),
    (
        [Instruction(Op.VECTOR, VECTOR | {"dest": Dest.ACT16, "dst": 4095})],
        "the destination reaches word 4096 of the act buffer",
    ),
    (
        [Instruction(Op.VECTOR, VECTOR | {"source": Source.ACC, "wide": 1, "src": 511})],
        "A reaches word 512 of the acc0 buffer, which has 512",
    ),
    (
        [Instruction(Op.WEIGHT, WEIGHT), Instruction(Op.MATMUL, MATMUL | {"pair": 1, "acc": 511})],
        "the result reaches word 512 of the acc0 buffer",
    ),
    (
        [Instruction(Op.LOAD, LOAD | {"transpose": 1})],
        "transpose goes with dest STREAM, not ROW",
    ),
    (
        [Instruction(Op.LOAD, LOAD | {"transpose": 1, "dest": LoadDest.STREAM, "bytes": 128})],
        "bytes of transposed tiles must be a multiple of 256, not 0x80",
    ),
    ([Instruction(Op.LOAD, LOAD | {"dest": LoadDest.TABLE, "bytes": 1024})], "a table is 2048 bytes, not 1024"),
    (
        [Instruction(Op.WEIGHT, WEIGHT | {"format": WeightFormat.INT4, "rows": 40})],
        "rows of a run must be whole tiles of 16 rows, not 40",
    ),
    (
        [Instruction(Op.WEIGHT, WEIGHT | {"format": WeightFormat.INT4})],
        "rows of a run must be whole tiles of 16 rows, not 0",
    ),
    (
        [Instruction(Op.WEIGHT, WEIGHT | {"format": WeightFormat.INT4, "rows": 80})],
        "a run of 80 int4 rows takes 672 bytes, not 256",
    ),
    ([Instruction(Op.VECTOR, VECTOR | {"n": 7, "add": Add.ROTATE})], "n must be even for ROTATE, not 7"),
    (
        [Instruction(Op.VECTOR, VECTOR | {"add": Add.ROTATE, "scale": Scale.CONST})],
        "ROTATE replaces both multipliers",
    ),
    ([Instruction(Op.VECTOR, VECTOR | {"dest": Dest.STORE_RAW})], "STORE_RAW takes A from ACC"),
    (
        [Instruction(Op.VECTOR, VECTOR | {"n": 16, "dest": Dest.ROW, "dst": 1})],
        "source and destination in the row buffer overlap without being identical",
    ),
    (
        [Instruction(Op.VECTOR, VECTOR | {"m": 2, "h": 2, "src_m": 1, "src_h": 2, "dst_m": 2, "dst_h": 1})],
        None,  # no destination: nothing overlaps
    ),
    (
        [
            Instruction(
                Op.VECTOR,
                VECTOR | {"m": 2, "h": 2, "src_m": 1, "src_h": 2, "dst_m": 2, "dst_h": 1, "dest": Dest.ROW},
            )
        ],
        "overlap without being identical",  # the same words, in another order
    ),
    (
        [Instruction(Op.VECTOR, VECTOR | {"reduce": Reduce.SUMSQ})],
        "SUMSQ: element 0 of row (0, 0) is 1.0, beyond the exponent of what should be the row's absolute maximum, 0.0",
    ),
]


@pytest.mark.parametrize(("program", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_only_the_model_can_refuse(program, message):
    d = device([*program, END])
    d.machine.buffers.row[:] = 1
    if message is None:
        run(d)
        return
    with pytest.raises(DeviceError, match=re.escape(message)) as error:
        run(d)
    assert error.value.code == 0
    last = Instruction.decode([*program, END][d.machine.index].encode())
    assert str(error.value).startswith(f"instruction {d.machine.index} ({last}): ")


def test_reset_empties_the_fifos():
    d = device([Instruction(Op.WEIGHT, WEIGHT), END])
    with pytest.raises(DeviceError, match="still holds"):
        run(d)
    d.reset()
    write_program(d, [END])
    run(d)
    assert register(d, "STATUS") == 2


def test_limit():
    d = device([*[Instruction(Op.NOP)] * 9, END])
    run(d, 10)
    with pytest.raises(DeviceError, match="did not end within 9 instructions"):
        run(d, 9)


def test_buffers_stay_from_run_to_run_but_may_not_be_relied_on():
    load = Instruction(Op.LOAD, LOAD | {"dest": LoadDest.PARAM})
    d = device([load, END], check=True)
    run(d)
    assert register(d, "STATUS") == 2
    use = Instruction(Op.VECTOR, VECTOR | {"source": Source.STAT, "n": 1}, {Unit.LOAD: 1})
    d = device([use, END], check=True)
    with pytest.raises(DeviceError, match="reads word 0 of the stat buffer, which was not written since"):
        run(d)
    d = device([use, END])
    run(d)
