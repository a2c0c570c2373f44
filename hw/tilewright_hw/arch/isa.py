"""The instruction set: opcodes, fields and their encoding; the one definition that all the rest reads.

An instruction is 64 bytes: sixteen little-endian 32-bit words. Word 0 holds the opcode and the dependencies, words 1
and 2 four register patches, words 3 to 15 the operands that `FIELDS` lists for each opcode.

Instructions are issued in program order to five units, each of which starts its own instructions in order. An
instruction may name, for every unit u, a distance k from 1 to 15: it starts only when the k-th most recently issued
instruction of unit u (counted back from itself) has completed. 0 means no dependency.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright_hw.arch.errors import InputError

WORDS = 16
"""32-bit words of an instruction."""
BYTES = 4 * WORDS
"""Bytes of an instruction."""
OPERAND_WORD = 3
"""First operand word."""
REG_COUNT = 128
"""Sequencer registers of 32 bits, loaded by LDREGS and added to operand words by patches."""
BASES = 8
"""64-bit base address registers."""
PATCHES = 4
"""Patches of an instruction."""
MAX_WAIT = 15
"""The longest dependency distance."""


class Unit(enum.IntEnum):
    """The units that execute instructions; the value is the index of the dependency nibble."""

    WEIGHT = 0
    """Reads weight tiles into the weight FIFO; never waits on data."""
    LOAD = 1
    """Reads everything else: cached tiles, activations, rows, parameters."""
    MATRIX = 2
    """Streams activations through the systolic array into the accumulators."""
    VECTOR = 3
    """Row operations: dequantise, normalise, softmax, rotate, activate, quantise."""
    STORE = 4
    """Writes the vector unit's stream to memory."""


class Op(enum.IntEnum):
    """Opcodes. Those below 16 are the sequencer's own."""

    NOP = 0
    """Waits for its dependencies and does nothing."""
    END = 1
    """Waits until all units are idle and all queues empty, and ends the program: done, interrupt."""
    LDREGS = 2
    """Loads the sequencer's registers from memory."""
    WEIGHT = 16
    """Reads weight tiles from memory into the weight FIFO."""
    LOAD = 17
    """Reads strided runs from memory into the stream FIFO or into a buffer."""
    MATMUL = 18
    """Multiplies rows of the activation buffer by tiles of a FIFO, into accumulators."""
    VECTOR = 19
    """Works on rows element by element, and reduces each row to a statistics entry."""
    STORE = 20
    """Writes the vector unit's store stream to memory, strided."""


UNIT_OF: dict[Op, Unit] = {
    Op.WEIGHT: Unit.WEIGHT,
    Op.LOAD: Unit.LOAD,
    Op.MATMUL: Unit.MATRIX,
    Op.VECTOR: Unit.VECTOR,
    Op.STORE: Unit.STORE,
}


class LoadDest(enum.IntEnum):
    """Where LOAD puts what it reads."""

    STREAM = 0
    """The stream FIFO: weight tiles that depend on data (KV cache, a user's matrix)."""
    ACT = 1
    """The activation buffer: int8, one word of R bytes after another."""
    ROW = 2
    """The row buffer, converted to float."""
    PARAM = 3
    """The parameter buffer, converted to float."""
    TABLE = 4
    """The table of the vector unit's function TABLE: 512 words of 32 bits, a segment each (docs/numerics.md)."""


class LoadFormat(enum.IntEnum):
    """Format in memory of what goes to the row and the parameter buffer."""

    FP32 = 0
    """float32; the low eight bits are dropped."""
    BF16 = 1
    """bfloat16."""


class WeightFormat(enum.IntEnum):
    """Format in memory of weight tiles."""

    INT8 = 0
    """One byte per weight, tile after tile."""
    INT4 = 1
    """Four bits per weight and a four-bit scale per 32 inputs and output (docs/architecture.md); expanded to int8."""


class Source(enum.IntEnum):
    """Operand A of the vector unit."""

    ACC = 0
    """Accumulators, converted from int32."""
    ROW = 1
    """Row buffer."""
    STAT = 2
    """Field b of the row's statistics entry; n must be 1."""


class Scale(enum.IntEnum):
    """First multiplier: x1 = x0 * scale."""

    NONE = 0
    STAT_A = 1
    """Field a of the row's statistics entry."""
    STAT_B = 2
    """Field b of the row's statistics entry."""
    CONST = 3
    """The constant const1."""


class Add(enum.IntEnum):
    """Adder: x3 = x2 + addend."""

    NONE = 0
    ROW = 1
    """The row buffer's second operand (only when A is not ROW)."""
    NEG_STAT_A = 2
    """Minus field a of the row's statistics entry."""
    ROTATE = 3
    """RoPE over element pairs (docs/numerics.md); replaces both multipliers: `scale` and `param` are 0, n is even."""
    STAT_B = 4
    """Field b of the row's statistics entry."""
    PARAM = 5
    """The parameter buffer (`param` must be 0)."""


class Func(enum.IntEnum):
    """Function of x3."""

    NONE = 0
    EXP2 = 1
    """2**x for x <= 0."""
    SIGMOID = 2
    """1 / (1 + e**-x)."""
    TABLE = 3
    """The table that LOAD brought last (dest TABLE)."""


class Mul(enum.IntEnum):
    """Last multiplier: x5 = x4 * factor."""

    NONE = 0
    SELF = 1
    """x3, the function's own argument: SIGMOID with SELF is SiLU."""
    ROW = 2
    """The row buffer's second operand (only when A is not ROW and `add` is not ROW)."""
    PARAM = 3
    """The parameter buffer (`param` must be 0, and `add` neither PARAM nor ROTATE)."""


class Reduce(enum.IntEnum):
    """What is reduced over each row of results, and what the row's statistics entry (a, b) becomes."""

    NONE = 0
    MAX = 1
    """a = maximum, b = 0."""
    ABSMAX = 2
    """a = largest magnitude, b = 0."""
    QSCALE = 3
    """b = absmax * const1 (rounded to bfloat16 if `scale16`), a = 1/b: ready to quantise."""
    EXPSUM = 4
    """a = 1 / sum, the sum in fixed point of 24 fraction bits; b = 0."""
    SUMSQ = 5
    """a = rsqrt(sum of squares * const1 + const2), integers aligned to field a of the source entry; b = 0."""
    SUM = 6
    """a = sum * const1, integers aligned to field a of the source entry; b = 0."""
    VAR = 7
    """a = r = rsqrt(variance + const2), b = -mean * r, integers aligned as for SUMSQ; const1 = 1/n. Not with
    `reduce_outer`; n is at most 32767, and every element is valid."""
    ARGMAX = 8
    """a = maximum, b = the index of the first element that has it, an integer of 24 bits: the upper 24 bits of const1
    are the index of element 0."""


class Dest(enum.IntEnum):
    """Where the vector unit's results go."""

    NONE = 0
    """Nowhere: only the reduction counts."""
    ROW = 1
    """Row buffer, as floats."""
    ACT = 2
    """Activation buffer, quantised to int8."""
    ACT16 = 3
    """Activation buffer, quantised to 15 bits, as a pair of words of int8 for each R elements (docs/numerics.md)."""
    STORE_INT8 = 4
    """Store stream, quantised to int8."""
    STORE_FP32 = 5
    """Store stream, float32."""
    STORE_BF16 = 6
    """Store stream, the upper 16 bits of float32."""
    STORE_RAW = 7
    """Store stream, 32 bits untouched and nothing else set: the accumulator's int32 (A is ACC, not `wide`), or the 24
    bits of field b (A is STAT), zero-extended."""


class Element(enum.IntEnum):
    """Element size of STORE, log2 of bytes."""

    INT8 = 0
    """One byte: what STORE_INT8 gives."""
    BF16 = 1
    """Two bytes: what STORE_BF16 gives."""
    FP32 = 2
    """Four bytes: what STORE_FP32 and STORE_RAW give."""


@dataclass(frozen=True)
class Field:
    """One operand field: `width` bits from bit `lsb` of 32-bit word `word`."""

    name: str
    word: int
    lsb: int
    width: int
    doc: str
    enum: type[enum.IntEnum] | None = None
    low: int = 0
    """Smallest legal value (after patches); the sequencer stops with ILLEGAL_FIELD below it."""

    @property
    def mask(self) -> int:
        """Largest value."""
        return (1 << self.width) - 1


def _f(name: str, word: int, lsb: int, width: int, doc: str, enum_: type[enum.IntEnum] | None = None) -> Field:
    return Field(name, word, lsb, width, doc, enum_)


def _c(name: str, word: int, lsb: int, width: int, doc: str) -> Field:
    """Return a count: a field that must be at least one."""
    return Field(name, word, lsb, width, doc + " At least one.", low=1)


_READ = (
    _f("offset", 3, 0, 32, "Byte offset from the base register; a multiple of the bus word."),
    _c("bytes", 4, 0, 32, "Contiguous bytes of each run; a multiple of the bus word."),
    _c("count", 5, 0, 16, "Runs."),
    _f("base", 5, 16, 3, "Base register."),
    _f(
        "stride",
        6,
        0,
        32,
        "Bytes from the start of one run to the next; a multiple of the bus word.",
    ),
)

FIELDS: dict[Op, tuple[Field, ...]] = {
    Op.NOP: (),
    Op.END: (),
    Op.LDREGS: (
        _f("offset", 3, 0, 32, "Byte offset from the base register; a multiple of 64."),
        _c("count", 5, 0, 16, "Registers to load, from register 0 on; 1 to 128."),
        _f("base", 5, 16, 3, "Base register."),
    ),
    Op.WEIGHT: (
        *_READ,
        _f("format", 5, 20, 1, "Format in memory.", WeightFormat),
        _f("rows", 7, 0, 16, "INT4: weight rows of each run; a run is the tiles of one sum."),
    ),
    Op.LOAD: (
        *_READ,
        _f("dest", 5, 20, 3, "Destination.", LoadDest),
        _f("transpose", 5, 23, 1, "STREAM: 1: tiles lie in memory as C rows of R bytes, and are transposed."),
        _f("format", 5, 24, 1, "Format in memory (ROW and PARAM).", LoadFormat),
        _f(
            "dst",
            7,
            0,
            16,
            "First word written (ACT: of R bytes, ROW and PARAM: of L floats). "
            "TABLE: bits 0-4 the input shift, bits 8-15 the output shift (signed).",
        ),
        _f("dst_stride", 7, 16, 16, "Words from the start of one run to the next."),
    ),
    Op.MATMUL: (
        _c("k", 3, 0, 16, "Tiles along the reduction (R each)."),
        _f("bank", 3, 16, 1, "Accumulator bank."),
        _f("stream", 3, 17, 1, "1: tiles come from the stream FIFO, 0: from the weight FIFO."),
        _f("accumulate", 3, 18, 1, "1: add to the accumulators, 0: the first tile overwrites them."),
        _f("pair", 3, 19, 1, "1: each row is a pair of rows (15-bit activations), with an accumulator row each."),
        _c("n", 4, 0, 16, "Tiles along the outputs (C each)."),
        _c("groups", 4, 16, 16, "Outermost loop (KV heads)."),
        _f("act", 5, 0, 16, "First activation word."),
        _f("act_group", 5, 16, 16, "Activation words from one group to the next."),
        _c("rows_outer", 6, 0, 16, "Outer row loop."),
        _c("rows_inner", 6, 16, 16, "Inner row loop."),
        _f("act_outer", 7, 0, 16, "Activation words from one outer row to the next."),
        _f("act_inner", 7, 16, 16, "Activation words from one inner row to the next."),
        _f("acc", 8, 0, 16, "First accumulator row; group, n and row follow each other."),
    ),
    Op.VECTOR: (
        _c("n", 3, 0, 16, "Elements of a row."),
        _c("m", 3, 16, 16, "Outer rows."),
        _f("limit", 4, 0, 16, "Valid elements of outer row 0 (more than n: all); the others count as zero."),
        _c("h", 4, 16, 16, "Inner rows (heads)."),
        _f("source", 5, 0, 2, "Operand A.", Source),
        _f("bank", 5, 2, 1, "Accumulator bank of A."),
        _f("scale", 5, 3, 2, "First multiplier.", Scale),
        _f("param", 5, 5, 1, "Second multiplier: 1: times the parameter buffer."),
        _f("add", 5, 6, 3, "Adder.", Add),
        _f("func", 5, 9, 3, "Function.", Func),
        _f("mul", 5, 12, 2, "Last multiplier.", Mul),
        _f("reduce", 5, 14, 4, "Reduction.", Reduce),
        _f("reduce_outer", 5, 18, 1, "1: one statistics entry for all inner rows of an outer row."),
        _f("scale16", 5, 19, 1, "QSCALE: round the scale to bfloat16."),
        _f("causal", 5, 20, 1, "1: the limit grows by one with each outer row."),
        _f("dest", 5, 21, 4, "Destination.", Dest),
        _f("wide", 5, 25, 1, "ACC: 1: A is 128 times the accumulator row plus the row after it."),
        _f("merge", 5, 26, 1, "MAX, ARGMAX: 1: the reduction begins with the row's statistics entry."),
        _f("src", 6, 0, 16, "First word of A (accumulator row, or row-buffer word)."),
        _f("src_n", 6, 16, 16, "ACC: accumulator rows from one group of C elements to the next."),
        _f("src_m", 7, 0, 16, "A: words from one outer row to the next."),
        _f("src_h", 7, 16, 16, "A: words from one inner row to the next."),
        _f("row", 8, 0, 16, "First row-buffer word of the second operand."),
        _f("row_m", 8, 16, 16, "Second operand: words per outer row."),
        _f("row_h", 9, 0, 16, "Second operand: words per inner row."),
        _f("par", 9, 16, 16, "First parameter word."),
        _f("par_m", 10, 0, 16, "Parameter words per outer row."),
        _f("par_h", 10, 16, 16, "Parameter words per inner row."),
        _f("dst", 11, 0, 16, "First destination word (ROW: of L floats, ACT: of R bytes)."),
        _f("dst_m", 11, 16, 16, "Destination words per outer row."),
        _f("dst_h", 12, 0, 16, "Destination words per inner row."),
        _f("const2", 12, 16, 16, "A bfloat16 constant (epsilon)."),
        _f("stat", 13, 0, 16, "First statistics entry read."),
        _f("stat_m", 13, 16, 8, "Entries per outer row."),
        _f("stat_h", 13, 24, 8, "Entries per inner row."),
        _f("red", 14, 0, 16, "First statistics entry written."),
        _f("red_m", 14, 16, 8, "Entries per outer row."),
        _f("red_h", 14, 24, 8, "Entries per inner row."),
        _f("const1", 15, 0, 32, "A float32 constant whose low eight bits are zero."),
    ),
    Op.STORE: (
        _f("offset", 3, 0, 32, "Byte offset from the base register of element 0 of row 0."),
        _f("element", 4, 0, 2, "Element size.", Element),
        _f("base", 4, 4, 3, "Base register."),
        _c("n", 5, 0, 16, "Elements of a row, as in the VECTOR that feeds it."),
        _c("m", 5, 16, 16, "Outer rows."),
        _c("h", 6, 0, 16, "Inner rows."),
        _c("run", 6, 16, 16, "Contiguous elements of a run. It starts on a multiple of min(bytes of a bus word, the "
           "largest power of two that divides the run's bytes)."),
        _f("stride_m", 7, 0, 32, "Bytes from one outer row to the next."),
        _f("stride_h", 8, 0, 32, "Bytes from one inner row to the next."),
        _f("stride_run", 9, 0, 32, "Bytes from one run of a row to the next."),
        _f("wrap_first", 10, 0, 16, "Outer rows before the first wrap; 0: never wrap."),
        _f("wrap_period", 10, 16, 16, "Outer rows from one wrap to the next."),
        _f("wrap_stride", 11, 0, 32, "Bytes from one outer row to the next where a wrap falls, instead of stride_m."),
    ),
}  # fmt: skip

# The same for reading many instructions: name, word, lowest bit, mask, and the legal values of an enumeration.
_LAYOUT = {
    op: [(f.name, f.word, f.lsb, f.mask, None if f.enum is None else frozenset(map(int, f.enum))) for f in fields]
    for op, fields in FIELDS.items()
}


class InstructionError(InputError):
    """An instruction that cannot be encoded, or bytes that are not one."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Parameters
    ----------
    op : Op
        Opcode.
    fields : mapping of str to int
        Operands by name; what is not given is 0.
    waits : mapping of Unit to int
        Dependency distances, 1 to 15.
    patches : sequence of (str, int)
        Field name and sequencer register: the register is added to the 32-bit word that holds the field, which must
        start at bit 0 of its word. At most four.
    comment : str
        For people; not encoded.
    """

    op: Op
    fields: Mapping[str, int] = field(default_factory=dict)
    waits: Mapping[Unit, int] = field(default_factory=dict)
    patches: Sequence[tuple[str, int]] = ()
    comment: str = field(default="", compare=False)

    def encode(self) -> bytes:
        """Return the 64 bytes; InstructionError names the field that does not fit."""
        words = [0] * WORDS
        words[0] = int(self.op)
        for unit, distance in self.waits.items():
            if not 0 <= distance <= MAX_WAIT:
                raise InstructionError(f"{self.op.name}: wait on {unit.name} must be 0 to {MAX_WAIT}, not {distance}")
            words[0] |= distance << (8 + 4 * unit)
        known = {f.name: f for f in FIELDS[self.op]}
        for name, value in self.fields.items():
            if name not in known:
                raise InstructionError(f"{self.op.name} has no field {name!r}")
            f = known[name]
            if not 0 <= int(value) <= f.mask:
                raise InstructionError(f"{self.op.name}.{name} must be 0 to {f.mask}, not {value}")
            words[f.word] |= int(value) << f.lsb
        if len(self.patches) > PATCHES:
            raise InstructionError(f"{self.op.name}: at most {PATCHES} patches, not {len(self.patches)}")
        for i, (name, register) in enumerate(self.patches):
            if name not in known or known[name].lsb != 0:
                raise InstructionError(f"{self.op.name}.{name} cannot be patched: it must start at bit 0 of its word")
            if not 0 <= register < REG_COUNT:
                raise InstructionError(f"{self.op.name}: register must be 0 to {REG_COUNT - 1}, not {register}")
            words[1 + i // 2] |= (known[name].word | register << 4) << (16 * (i % 2))
        return struct.pack("<16I", *words)

    @classmethod
    def decode(cls, data: bytes) -> Instruction:
        """Read 64 bytes; InstructionError if the opcode or an enumerated field is unknown."""
        if len(data) != BYTES:
            raise InstructionError(f"an instruction has {BYTES} bytes, not {len(data)}")
        words = struct.unpack("<16I", data)
        try:
            op = Op(words[0] & 0xFF)
        except ValueError as e:
            raise InstructionError(f"unknown opcode {words[0] & 0xFF}") from e
        waits = {u: d for u in Unit if (d := words[0] >> (8 + 4 * u) & 15)} if words[0] >> 8 else {}
        values = {}
        for name, word, lsb, mask, legal in _LAYOUT[op]:
            value = words[word] >> lsb & mask
            if value:
                values[name] = value
            if legal is not None and value not in legal:
                raise InstructionError(f"{op.name}.{name} has no value {value}")
        patches = []
        if words[1] or words[2]:
            at = {f.word: f.name for f in FIELDS[op] if f.lsb == 0}
            for i in range(PATCHES):
                half = words[1 + i // 2] >> (16 * (i % 2)) & 0xFFFF
                if half & 15:
                    if half & 15 not in at:
                        raise InstructionError(f"{op.name} has no field in word {half & 15} to patch")
                    patches.append((at[half & 15], half >> 4 & (REG_COUNT - 1)))
        return cls(op, values, waits, tuple(patches))

    def __str__(self) -> str:
        return format_instruction(self)


def apply_patches(data: bytes, registers: Sequence[int]) -> bytes:
    """Return the instruction's bytes with its patches added: what the units receive.

    Each patch adds its register, modulo 2**32, to its word; a patch whose word index is 0 does nothing.
    """
    words = list(struct.unpack("<16I", data))
    for i in range(PATCHES):
        half = words[1 + i // 2] >> (16 * (i % 2)) & 0xFFFF
        if half & 15:
            word = half & 15
            words[word] = (words[word] + registers[half >> 4 & (REG_COUNT - 1)]) & 0xFFFFFFFF
    words[1] = words[2] = 0
    return struct.pack("<16I", *words)


def format_instruction(ins: Instruction) -> str:
    """Return one line of assembly: `OP name=value ... @UNIT-distance ... +name=r7 ; comment`."""
    enums = {f.name: f.enum for f in FIELDS[ins.op]}
    parts = [ins.op.name]
    for name, value in ins.fields.items():
        if value:
            e = enums[name]
            parts.append(f"{name}={e(value).name if e else value}")
    parts += [f"@{unit.name}-{distance}" for unit, distance in ins.waits.items() if distance]
    parts += [f"+{name}=r{register}" for name, register in ins.patches]
    return " ".join(parts) + (f" ; {ins.comment}" if ins.comment else "")


def assemble(program: Iterable[Instruction] | str) -> bytes:
    """Encode a program: instructions, or the text that `disassemble` writes."""
    if isinstance(program, str):
        program = parse(program)
    return b"".join(ins.encode() for ins in program)


def parse(text: str) -> Iterator[Instruction]:
    """Read assembly text, one instruction a line; `;` starts a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        code, _, comment = line.partition(";")
        words = code.split()
        if not words:
            continue
        try:
            yield _parse_words(words, comment.strip())
        except (KeyError, ValueError) as e:
            raise InstructionError(f"line {number}: {e}") from e


def _parse_words(words: list[str], comment: str) -> Instruction:
    op = Op[words[0]]
    enums = {f.name: f.enum for f in FIELDS[op]}
    values: dict[str, int] = {}
    waits: dict[Unit, int] = {}
    patches: list[tuple[str, int]] = []
    for word in words[1:]:
        if word[0] == "@":
            unit, _, distance = word[1:].partition("-")
            waits[Unit[unit]] = int(distance)
        elif word[0] == "+":
            name, _, register = word[1:].partition("=r")
            patches.append((name, int(register)))
        else:
            name, _, value = word.partition("=")
            e = enums.get(name)
            values[name] = int(e[value]) if e and not value.isdigit() else int(value, 0)
    return Instruction(op, values, waits, tuple(patches), comment)


def disassemble(data: bytes) -> str:
    """Return assembly text that `assemble` turns back into the same bytes."""
    lines = (format_instruction(Instruction.decode(data[i : i + BYTES])) for i in range(0, len(data), BYTES))
    return "\n".join(lines) + "\n"
