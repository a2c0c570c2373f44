"""Row reductions (docs/numerics.md, "Reductions"): lanes to one value per row, and the value to a statistics entry.

`RowReduce` -> `RowScalar` is the whole way from beats of L floats to the entry (a, b); the other blocks are their parts.
All are rigid pipelines without flow control; `latency` (an instance's attribute where it depends on the lanes) counts
the cycles from input to output.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tilewright_hw.arch.isa import Reduce
from tilewright_hw.gateware.float import FloatAdd, FloatMul, IntToFloat, RoundBf16, Scale2
from tilewright_hw.gateware.functions import ReciprocalUnit
from tilewright_hw.gateware.layouts import F24, vector_word

__all__ = ["AlignToInt", "MaxTree", "RowReduce", "RowScalar", "Square", "SumTree"]

SUM_WIDTH = 64
"""Bits of a row's sum."""


class MaxTree(wiring.Component):
    """o = max of i[0..lanes-1], unsigned: a registered tree, one result per cycle.

    Feed it `order_key` or `magnitude_key` of floats, and 0 for lanes that take no part.

    Parameters
    ----------
    lanes : int
        Inputs.
    width : int
        Bits of each.

    Attributes
    ----------
    latency : int
        ceil(log2(lanes)) cycles.

    Members
    -------
    i : In(unsigned(width)) x lanes
        Keys.
    o : Out(unsigned(width))
        The largest.
    """

    def __init__(self, *, lanes, width=24):
        self.lanes = lanes
        self.width = width
        self.latency = ceil_log2(lanes)
        super().__init__(
            {"i": In(data.ArrayLayout(unsigned(width), lanes)), "o": Out(unsigned(width))}
        )

    def elaborate(self, platform):
        m = Module()
        return m


class SumTree(wiring.Component):
    """o = sum of i[0..lanes-1], signed and exact: a registered tree, one result per cycle.

    Parameters
    ----------
    lanes : int
        Inputs.
    width : int
        Bits of each, sign included.

    Attributes
    ----------
    latency : int
        ceil(log2(lanes)) cycles.

    Members
    -------
    i : In(signed(width)) x lanes
        Terms.
    o : Out(signed(width + ceil(log2(lanes))))
        Their sum.
    """

    def __init__(self, *, lanes, width):
        self.lanes = lanes
        self.width = width
        self.latency = ceil_log2(lanes)
        super().__init__(
            {
                "i": In(data.ArrayLayout(signed(width), lanes)),
                "o": Out(signed(width + ceil_log2(lanes))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        return m


class AlignToInt(wiring.Component):
    """o = RNE(i * 2^(15 - E)), E = exponent - 127, clamped to +-65535; or floor(i * 2^24) of i within [0, 1].

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Number.
    exponent : In(8)
        Biased exponent (bits 15 to 22) of the row's absolute maximum; 0 makes every result 0. Same cycle as `i`.
    unit : In(1)
        Takes floor(i * 2^24), i clamped to [0, 1], instead; `exponent` is ignored. Same cycle as `i`.
    o : Out(signed(26))
        Integer, `LATENCY` cycles later: within +-65535, or with `unit` 0 to 2^24.
    """

    LATENCY = 2
    i: In(F24)
    exponent: In(8)
    unit: In(1)
    o: Out(signed(26))

    def elaborate(self, platform):
        m = Module()
        return m


class Square(wiring.Component):
    """o = i * i, i within +-65535.

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(signed(17))
        Integer; -65536 is not allowed.
    o : Out(32)
        Its square, `LATENCY` cycles later.
    """

    LATENCY = 1
    i: In(signed(17))
    o: Out(32)

    def elaborate(self, platform):
        m = Module()
        return m


def reduce_beat(lanes):
    """Return the payload of one beat into `RowReduce`.

    valid: a beat is here. first, last: it is the first, the last beat that is reduced into one entry (beats of an entry
    follow one another, with or without gaps). data: L floats, +0 in lanes that take no part. keep: lanes that take part
    (matters for MAX only). exponent: bits 15 to 22 of field a of the source statistics entry (SUMSQ, SUM).
    """
    return data.StructLayout(
        {
            "valid": 1,
            "first": 1,
            "last": 1,
            "data": vector_word(lanes),
            "keep": unsigned(lanes),
            "exponent": unsigned(8),
        }
    )


class RowReduce(wiring.Component):
    """Reduce beats of L floats to one value per entry: the maximum as F24, or the exact integer sum.

    MAX (of no elements: +0), ABSMAX and QSCALE give an F24 in the low 24 bits of `value`; EXPSUM, SUMSQ and SUM a signed
    64-bit integer. Rigid pipeline: one beat per cycle; `o.valid` pulses `latency` cycles after a beat with `last`.

    Parameters
    ----------
    lanes : int
        Floats per beat.

    Attributes
    ----------
    latency : int
        4 + ceil(log2(lanes)) cycles.

    Members
    -------
    kind : In(Reduce)
        What is computed; stable while an entry is in flight.
    i : In(reduce_beat(lanes))
        Beats.
    o : Out(row_value)
        {valid, value 64, exponent 8}: ready to be `RowScalar`'s input. `exponent` is that of the first beat.
    """

    def __init__(self, *, lanes):
        self.lanes = lanes
        self.latency = 4 + ceil_log2(lanes)
        super().__init__(
            {"kind": In(Reduce), "i": In(reduce_beat(lanes)), "o": Out(row_value())}
        )

    def elaborate(self, platform):
        m = Module()
        return m


def row_value():
    """Return the payload between `RowReduce` and `RowScalar`: valid, the row's value, the exponent E (biased)."""
    return data.StructLayout(
        {"valid": 1, "value": unsigned(SUM_WIDTH), "exponent": unsigned(8)}
    )


def row_entry():
    """Return the payload of `RowScalar`'s output: valid and the statistics entry (a, b)."""
    return data.StructLayout({"valid": 1, "a": F24, "b": F24})


class RowScalar(wiring.Component):
    """Turn a row's maximum or sum into its statistics entry (a, b).

    =======  =============================================================  ==============
    kind     a                                                              b
    =======  =============================================================  ==============
    MAX      value                                                          +0
    ABSMAX   value                                                          +0
    QSCALE   recip(b)                                                       mul(value, const1), bf16 with scale16
    EXPSUM   recip(scale2(i2f(value), -24))                                 +0
    SUMSQ    rsqrt(add(mul(scale2(i2f(value), 2(E-15)), const1), const2))   +0
    SUM      mul(scale2(i2f(value), E-15), const1)                          +0
    =======  =============================================================  ==============

    Rigid pipeline, one row per cycle: integer to float, scale2, multiply, round, add, reciprocal; a kind that needs
    less multiplies by 1 or adds 0, which change nothing.

    Members
    -------
    kind : In(Reduce)
        Row of the table; like the constants it is stable from the first `i.valid` to the last `o.valid`.
    const1, const2 : In(F24)
        Constants of the instruction.
    scale16 : In(1)
        QSCALE rounds b to bfloat16.
    i : In(row_value)
        {valid, value 64, exponent 8}: F24 in the low bits of value for MAX, ABSMAX and QSCALE, a signed integer for the
        others; exponent: bits 15 to 22 of field a of the source entry (SUMSQ, SUM).
    o : Out(row_entry)
        {valid, a, b}, `LATENCY` cycles later.
    """

    LATENCY = (
        IntToFloat.LATENCY
        + Scale2.LATENCY
        + FloatMul.LATENCY
        + RoundBf16.LATENCY
        + FloatAdd.LATENCY
        + ReciprocalUnit.LATENCY
    )
    kind: In(Reduce)
    const1: In(F24)
    const2: In(F24)
    scale16: In(1)
    i: In(row_value())
    o: Out(row_entry())

    def elaborate(self, platform):
        m = Module()
        return m
