"""Payload shapes that several blocks share; the operand layouts come from the instruction set's definition."""

from __future__ import annotations

from amaranth import signed, unsigned
from amaranth.lib import data

from tilewright_hw.arch.isa import FIELDS, OPERAND_WORD, Op

F24 = unsigned(24)
"""One float element: sign in bit 23, exponent in bits 15 to 22, fraction in bits 0 to 14."""


def operands(op: Op) -> data.StructLayout:
    """Return the operands of `op` as a struct: one member per field, in definition order."""
    return data.StructLayout({f.name: unsigned(f.width) for f in FIELDS[op]})


def unpack_operands(op: Op, words):
    """Return a Value of layout `operands(op)` from the instruction's 16 words (an array view of 32-bit values)."""
    from amaranth import Cat

    assert all(f.word >= OPERAND_WORD for f in FIELDS[op])
    return operands(op)(Cat(words[f.word][f.lsb : f.lsb + f.width] for f in FIELDS[op]))


def vector_word(lanes: int) -> data.ArrayLayout:
    """Return the shape of one word of the row and the parameter buffer: L floats."""
    return data.ArrayLayout(F24, lanes)


def bytes_word(count: int) -> data.ArrayLayout:
    """Return the shape of a row of int8."""
    return data.ArrayLayout(signed(8), count)


def tile_rows(cols: int, count: int) -> data.ArrayLayout:
    """Return the shape of `count` rows of a weight tile, of `cols` int8 each."""
    return data.ArrayLayout(bytes_word(cols), count)


def sums_word(cols: int) -> data.ArrayLayout:
    """Return the shape of one accumulator row: C int32."""
    return data.ArrayLayout(signed(32), cols)


def store_word(lanes: int) -> data.ArrayLayout:
    """Return the shape of the store stream: L elements, each in the low bits of 32."""
    return data.ArrayLayout(unsigned(32), lanes)


def buffer_write(word) -> data.StructLayout:
    """Return the payload that writes one word of a buffer: address and word."""
    return data.StructLayout({"addr": unsigned(16), "data": word})


TABLE_SEGMENTS = 512
"""Segments of the function that LOAD brings."""


def table_segment() -> data.StructLayout:
    """Return one word of the loadable table: a segment's value at its start, and how far it is to the next."""
    return data.StructLayout({"step": signed(12), "value": signed(20)})


def table_word() -> data.StructLayout:
    """Return the payload of a table on its way from LOAD: a segment, LOAD's `dst`, and whether it is the last."""
    return data.StructLayout({"data": unsigned(32), "shifts": unsigned(16), "last": unsigned(1)})


def table_write() -> data.StructLayout:
    """Return what writes the loadable table: whether to, where, and the segment."""
    return data.StructLayout({"en": unsigned(1), "addr": range(TABLE_SEGMENTS), "data": table_segment()})
