"""Row reductions (docs/numerics.md, "Reductions"): lanes to one value per row, and the value to a statistics entry.

`RowReduce` -> `RowScalar` is the whole way from beats of L floats to the entry (a, b); the others are their parts. All
are rigid pipelines without flow control; `latency` (an instance's attribute where it depends on the lanes) counts the
cycles from input to output.
"""

from amaranth import C, Cat, EnableInserter, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tilewright_hw.arch.isa import Reduce
from tilewright_hw.gateware.float import (
    FloatAdd,
    FloatMul,
    FloatParts,
    IntToFloat,
    RoundBf16,
    Scale2,
    delay,
    from_order_key,
    magnitude_key,
    order_key,
    shift_right,
)
from tilewright_hw.gateware.functions import ReciprocalUnit
from tilewright_hw.gateware.layouts import F24, vector_word

__all__ = ["AlignToInt", "MaxTree", "RowReduce", "RowScalar", "Square", "SumTree"]

SUM_WIDTH = 64
"""Bits of a row's sum."""


def check_lanes(lanes):
    """Return `lanes`; TypeError unless it is a positive integer."""
    if not isinstance(lanes, int) or isinstance(lanes, bool) or lanes <= 0:
        raise TypeError(f"Lanes must be a positive integer, not {lanes!r}")
    return lanes


def _tree(m, values, combine, *, name):
    """Combine the values by pairs, with a register after each level; return the last one left."""
    level = 0
    while len(values) > 1:
        pairs = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=False)]
        if len(values) % 2:
            pairs.append(values[-1])
        values = []
        for index, pair in enumerate(pairs):
            register = Signal.like(pair, name=f"{name}_{level}_{index}", reset_less=True)
            m.d.sync += register.eq(pair)
            values.append(register)
        level += 1
    return values[0]


def _is_sum(kind):
    """Return whether a kind reduces integers (combinational)."""
    return (kind == Reduce.EXPSUM) | (kind == Reduce.SUMSQ) | (kind == Reduce.SUM)


def _asleep_while_empty(m, valid, flight):
    """Return `m`, all of whose registers stand still while nothing enters or is in flight: less to simulate."""
    awake = Signal()
    m.d.comb += awake.eq(valid | flight.any())
    return EnableInserter(awake)(m)


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
        self.lanes = check_lanes(lanes)
        self.width = width
        self.latency = ceil_log2(lanes)
        super().__init__({"i": In(data.ArrayLayout(unsigned(width), lanes)), "o": Out(unsigned(width))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(_tree(m, list(self.i), lambda a, b: Mux(a > b, a, b), name="max"))
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
        self.lanes = check_lanes(lanes)
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
        m.d.comb += self.o.eq(_tree(m, list(self.i), lambda a, b: a + b, name="sum"))
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
        x = FloatParts(self.i)
        unit = delay(m, self.unit, 1, name="unit")
        sign = delay(m, x.sign, 1, name="sign")
        over = Signal(reset_less=True)
        aligned = Signal(25, reset_less=True)  # nine fraction bits; all 25 are the integer with `unit`
        sticky = Signal(reset_less=True)
        reference = Mux(self.unit, 127, self.exponent)
        distance = Signal(signed(9))
        m.d.comb += distance.eq(reference - x.exponent)
        shifted, lost = shift_right(Cat(C(0, 9), x.significand), distance[:5])
        nothing = distance[5:].any() | ~reference.any()
        m.d.sync += [
            aligned.eq(Mux(nothing, 0, shifted)),
            over.eq(distance[8] & reference.any()),
            sticky.eq(lost),
        ]

        # One adder rounds and negates: -(n + up) = ~n + 1 - up = (n ^ -1) + (up ^ 1).
        up = aligned[8] & (sticky | aligned[:8].any() | aligned[9])
        magnitude = aligned[9:] | over.replicate(16)
        rounded = magnitude ^ sign.replicate(16)
        signed_x = Signal(signed(17))
        result = Signal(signed(26), reset_less=True)
        m.d.comb += [
            signed_x.eq(Cat(rounded, sign).as_signed() + ((up & ~over) ^ sign)),
            self.o.eq(result),
        ]
        above = over | (aligned[24] & aligned[9:24].any())
        with m.If(~unit):
            m.d.sync += result.eq(signed_x)
        with m.Elif(sign):
            m.d.sync += result.eq(0)
        with m.Else():
            m.d.sync += result.eq(Mux(above, 1 << 24, aligned))
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
        product = Signal(signed(34), reset_less=True)
        m.d.sync += product.eq(self.i * self.i)
        m.d.comb += self.o.eq(product[:32])
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

    MAX (of no elements: +0), ABSMAX and QSCALE give an F24 in the low 24 bits of `value`; EXPSUM, SUMSQ and SUM a
    signed 64-bit integer.

    Rigid pipeline, one beat per cycle; `o.valid` pulses `latency` cycles after a beat with `last`. An entry's integers
    are aligned to each beat's own `exponent`: it must not change within the entry.

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
        self.lanes = check_lanes(lanes)
        self.latency = 4 + ceil_log2(lanes)
        super().__init__({"kind": In(Reduce), "i": In(reduce_beat(lanes)), "o": Out(row_value())})

    def elaborate(self, platform):
        m = Module()
        depth = ceil_log2(self.lanes)
        flags = Cat(self.i.first, self.i.last)
        flags = delay(m, flags, self.latency - 1, name="flags")
        flight = Signal(self.latency)
        m.d.sync += flight.eq(Cat(self.i.valid, flight))
        exponent = delay(m, self.i.exponent, self.latency - 1, name="exponent")
        term, key = self._sums(m), self._maxima(m, self.latency - 1 - depth)

        total = Signal(signed(SUM_WIDTH), reset_less=True)
        best = Signal(24, reset_less=True)
        held = Signal(8, reset_less=True)
        done = Signal()
        first, last = flags
        valid = flight[self.latency - 2]
        m.d.sync += done.eq(valid & last)
        with m.If(valid):
            m.d.sync += [
                total.eq(Mux(first, 0, total) + term),
                best.eq(Mux(first | (key > best), key, best)),
            ]
            with m.If(first):
                m.d.sync += held.eq(exponent)

        summed = Signal()
        m.d.comb += [
            summed.eq(_is_sum(self.kind)),
            self.o.valid.eq(done),
            self.o.exponent.eq(held),
            # Key 0 means that no lane took part.
            self.o.value.eq(Mux(summed, total, Mux(best.any(), from_order_key(best), 0))),
        ]
        return _asleep_while_empty(m, self.i.valid, flight)

    def _sums(self, m):
        """Return the sum of one beat's integers."""
        m.submodules.sum = tree = SumTree(lanes=self.lanes, width=33)
        for lane in range(self.lanes):
            m.submodules[f"align_{lane}"] = align = AlignToInt()
            m.submodules[f"square_{lane}"] = square = Square()
            plain = delay(m, align.o, Square.LATENCY, name=f"plain_{lane}")
            m.d.comb += [
                align.i.eq(self.i.data[lane]),
                align.exponent.eq(self.i.exponent),
                align.unit.eq(self.kind == Reduce.EXPSUM),
                square.i.eq(align.o),
                tree.i[lane].eq(Mux(self.kind == Reduce.SUMSQ, square.o, plain)),
            ]
        return tree.o

    def _maxima(self, m, cycles):
        """Return the largest key of one beat, `cycles` after it left the tree."""
        m.submodules.max = tree = MaxTree(lanes=self.lanes)
        for lane in range(self.lanes):
            x = self.i.data[lane]
            key = Mux(self.kind == Reduce.MAX, order_key(x), magnitude_key(x))
            m.d.comb += tree.i[lane].eq(Mux(self.i.keep[lane], key, 0))
        return delay(m, tree.o, cycles, name="best")


def row_value():
    """Return the payload between `RowReduce` and `RowScalar`: valid, the row's value, the exponent E (biased)."""
    return data.StructLayout({"valid": 1, "value": unsigned(SUM_WIDTH), "exponent": unsigned(8)})


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
        x = self._scaled(m)
        x = self._affine(m, x)
        m.submodules.reciprocal = reciprocal = ReciprocalUnit()
        m.d.comb += [reciprocal.i.eq(x), reciprocal.sqrt.eq(self.kind == Reduce.SUMSQ)]

        before = delay(m, x, ReciprocalUnit.LATENCY, name="before")
        m.d.comb += self.o.a.eq(before)
        with m.Switch(self.kind):
            with m.Case(Reduce.EXPSUM, Reduce.SUMSQ):
                m.d.comb += self.o.a.eq(reciprocal.o)
            with m.Case(Reduce.QSCALE):
                m.d.comb += [self.o.a.eq(reciprocal.o), self.o.b.eq(before)]
        flight = Signal(self.LATENCY)
        m.d.sync += flight.eq(Cat(self.i.valid, flight))
        m.d.comb += self.o.valid.eq(flight[-1])
        return _asleep_while_empty(m, self.i.valid, flight)

    def _scaled(self, m):
        """Return the row's value as a float."""
        m.submodules.convert = convert = IntToFloat(SUM_WIDTH)
        m.submodules.scale = scale = Scale2()
        whole = delay(m, self.i.value[:24], IntToFloat.LATENCY + Scale2.LATENCY, name="whole")
        # E - 15 = exponent - 142
        shift = Signal(signed(10))
        shift_late = delay(m, shift, IntToFloat.LATENCY, name="shift")
        with m.Switch(self.kind):
            with m.Case(Reduce.EXPSUM):
                m.d.comb += shift.eq(-24)
            with m.Case(Reduce.SUMSQ):
                m.d.comb += shift.eq((self.i.exponent - 142) << 1)
            with m.Default():
                m.d.comb += shift.eq(self.i.exponent - 142)
        m.d.comb += [
            convert.i.eq(self.i.value),
            scale.i.eq(convert.o),
            scale.k.eq(shift_late),
        ]
        return Mux(_is_sum(self.kind), scale.o, whole)

    def _affine(self, m, x):
        """Return x * const1 (perhaps rounded to bfloat16) + const2; kinds without them take 1 and 0."""
        m.submodules.mul = mul = FloatMul()
        m.submodules.round = round_ = RoundBf16()
        m.submodules.add = add = FloatAdd()
        m.d.comb += [
            mul.a.eq(x),
            mul.b.eq(127 << 15),
            round_.i.eq(mul.o),
            round_.enable.eq((self.kind == Reduce.QSCALE) & self.scale16),
            add.a.eq(round_.o),
        ]
        with m.Switch(self.kind):
            with m.Case(Reduce.QSCALE, Reduce.SUM):
                m.d.comb += mul.b.eq(self.const1)
            with m.Case(Reduce.SUMSQ):
                m.d.comb += [mul.b.eq(self.const1), add.b.eq(self.const2)]
        return add.o
