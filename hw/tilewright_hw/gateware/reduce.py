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
from tilewright_hw.gateware.ring import Ring
from tilewright_hw.gateware.way import Way

__all__ = ["AlignToInt", "MaxTree", "RowReduce", "RowScalar", "Square", "SumTree", "Variance", "stat_entry"]

SUM_WIDTH = 64
"""Bits of a row's sum."""
TAG_WIDTH = 2
"""Bits that stay beside an entry on its way."""


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


SUMS = (Reduce.EXPSUM, Reduce.SUMSQ, Reduce.SUM, Reduce.VAR)
SQUARES = (Reduce.SUMSQ, Reduce.VAR)
MULTIPLIED = (Reduce.QSCALE, Reduce.SUMSQ, Reduce.SUM, Reduce.VAR)
INVERTED = (Reduce.QSCALE, Reduce.EXPSUM, Reduce.SUMSQ, Reduce.VAR)
ORDERED = (Reduce.MAX, Reduce.ARGMAX)


def _among(kind, kinds):
    """Return whether `kind` is one of `kinds` (combinational)."""
    return Cat(kind == k for k in kinds).any()


def _is_sum(kind):
    """Return whether a kind reduces integers (combinational)."""
    return _among(kind, SUMS)


class MaxTree(wiring.Component):
    """o = max of i[0..lanes-1], unsigned, and the first lane that has it: a registered tree, one result per cycle.

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
    lane : Out(range(lanes))
        The first lane that has it.
    """

    def __init__(self, *, lanes, width=24):
        self.lanes = check_lanes(lanes)
        self.width = width
        self.latency = ceil_log2(lanes)
        super().__init__(
            {
                "i": In(data.ArrayLayout(unsigned(width), lanes)),
                "o": Out(unsigned(width)),
                "lane": Out(range(lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        inputs = [Cat(key, C(lane, ceil_log2(self.lanes))) for lane, key in enumerate(self.i)]
        best = _tree(m, inputs, lambda a, b: Mux(b[: self.width] > a[: self.width], b, a), name="max")
        m.d.comb += [self.o.eq(best[: self.width]), self.lane.eq(best[self.width :])]
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
    follow one another, with or without gaps). row_end: it is the last of its row; indices begin anew. data: L floats,
    +0 in lanes that take no part. keep: lanes that take part (matters for MAX and ARGMAX only). source: the source
    statistics entry, with `first` at least; the sums need bits 15 to 22 of its field a in every beat. tag: comes out
    beside the entry that ends with this beat.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "first": 1,
            "last": 1,
            "row_end": 1,
            "data": vector_word(lanes),
            "keep": unsigned(lanes),
            "source": stat_entry(),
            "tag": unsigned(TAG_WIDTH),
        }
    )


class RowReduce(wiring.Component):
    """Reduce beats of L floats to one value per entry: the maximum as F24, or the exact integer sum.

    MAX and ARGMAX (of no elements: +0), ABSMAX and QSCALE give an F24 in `maximum`; EXPSUM, SUMSQ and SUM a signed
    64-bit integer in `total`. ARGMAX gives in `index` the first index of the maximum, `origin` + its place in the row.
    VAR gives the sum of squares in `total`, and that of the integers in `sum`.

    Rigid pipeline, one beat per cycle; `o.valid` pulses `latency(kind)` cycles after a beat with `last`. An entry's
    integers are aligned to each beat's own exponent: it must not change within the entry.

    Parameters
    ----------
    lanes : int
        Floats per beat.

    Members
    -------
    awake : In(1)
        All registers stand still without it: less to simulate. It may be 0 while no beat is in flight, that is from the
        cycle after `o.valid` until before `i.valid`.
    kind : In(Reduce)
        What is computed; stable, as `merge` and `origin`, while an entry is in flight.
    merge : In(1)
        MAX, ARGMAX: begin with the source entry instead of with nothing.
    origin : In(24)
        ARGMAX: index of a row's first element.
    i : In(reduce_beat(lanes))
        Beats.
    o : Out(row_value)
        {valid, maximum, total 64, sum 32, index 24, exponent 8, tag}: ready to be `RowScalar`'s input. `exponent` is
        that of the first beat. All but `maximum` and `index` are registers.
    o_next : Out(row_mark)
        `valid` of the next cycle, and the tag that comes with it.
    """

    def __init__(self, *, lanes):
        self.lanes = check_lanes(lanes)
        super().__init__(
            {
                "awake": In(1, init=1),
                "kind": In(Reduce),
                "merge": In(1),
                "origin": In(24),
                "i": In(reduce_beat(lanes)),
                "o": Out(row_value()),
                "o_next": Out(row_mark()),
            }
        )

    def latency(self, kind):
        """Return the cycles from the last beat to `o.valid`: 1 + ceil(log2(lanes)), and 3 more for sums."""
        terms = AlignToInt.LATENCY + Square.LATENCY if kind in SUMS else 0
        return terms + ceil_log2(self.lanes) + 1

    def elaborate(self, platform):
        m = Module()
        i = self.i
        summed = Signal()
        m.d.comb += summed.eq(_is_sum(self.kind))
        flags = data.StructLayout({"valid": 1, "first": 1, "last": 1, "row_end": 1, "tag": TAG_WIDTH, "exponent": 8})
        start = Signal(flags)
        m.d.comb += [start[name].eq(i[name]) for name in ("valid", "first", "last", "row_end", "tag")]
        m.d.comb += start.exponent.eq(i.source.a[15:23])
        way = Way(m, start)
        way.past(summed, AlignToInt.LATENCY + Square.LATENCY, name="terms")
        way.past(C(1), ceil_log2(self.lanes), name="tree")
        beside = way.now
        valid = beside.valid
        m.d.comb += [self.o_next.valid.eq(valid & beside.last), self.o_next.tag.eq(beside.tag)]
        m.d.sync += self.o.valid.eq(self.o_next.valid)
        with m.If(valid):
            m.d.sync += self.o.tag.eq(beside.tag)
            with m.If(beside.first):
                m.d.sync += self.o.exponent.eq(beside.exponent)
        total, plain = self._sums(m, valid, beside.first)
        best, index = self._maxima(m, valid, beside)
        # Key 0 means that no lane took part.
        m.d.comb += [
            self.o.maximum.eq(Mux(best.any(), from_order_key(best), 0)),
            self.o.total.eq(total),
            self.o.sum.eq(plain),
            self.o.index.eq(index),
        ]
        return EnableInserter(self.awake)(m)

    def _sums(self, m, valid, first):
        """Add up the beats' integers; return the sum of the kind, and for VAR that of the integers themselves."""
        m.submodules.squares = squares = SumTree(lanes=self.lanes, width=33)
        m.submodules.plain = plain = SumTree(lanes=self.lanes, width=26)
        for lane in range(self.lanes):
            m.submodules[f"align_{lane}"] = align = AlignToInt()
            m.submodules[f"square_{lane}"] = square = Square()
            m.d.comb += [
                align.i.eq(self.i.data[lane]),
                align.exponent.eq(self.i.source.a[15:23]),
                align.unit.eq(self.kind == Reduce.EXPSUM),
                square.i.eq(align.o),
                squares.i[lane].eq(square.o),
                plain.i[lane].eq(delay(m, align.o, Square.LATENCY, name=f"plain_{lane}")),
            ]
        total = Signal(signed(SUM_WIDTH), reset_less=True)
        plain_total = Signal(signed(32), reset_less=True)
        with m.If(valid):
            m.d.sync += [
                total.eq(Mux(first, 0, total) + Mux(_among(self.kind, SQUARES), squares.o, plain.o)),
                plain_total.eq(Mux(first, 0, plain_total) + plain.o),
            ]
        return total, plain_total

    def _maxima(self, m, valid, beside):
        """Keep the largest key of an entry's beats; return it, and the first index that has it."""
        m.submodules.max = tree = MaxTree(lanes=self.lanes)
        for lane in range(self.lanes):
            x = self.i.data[lane]
            key = Mux(_among(self.kind, ORDERED), order_key(x), magnitude_key(x))
            m.d.comb += tree.i[lane].eq(Mux(self.i.keep[lane], key, 0))

        # Before an entry's first beat comes what it is merged with; a key of 0 is nothing.
        ordered = self.merge & _among(self.kind, ORDERED)
        start = delay(m, Mux(ordered, order_key(self.i.source.a), 0), tree.latency, name="start")
        start_index = delay(m, self.i.source.b, tree.latency, name="start_index")
        best = Signal(24, reset_less=True)
        word = Signal(16)  # of this beat in its row
        place = Signal(16, reset_less=True)  # of the best element in its row
        own = Signal(reset_less=True)  # it is of these rows
        other = Signal(24, reset_less=True)  # its index, where it is not
        better = Signal()
        begin = Signal()
        m.d.comb += [
            begin.eq(valid & beside.first),
            better.eq(valid & (tree.o > Mux(beside.first, start, best))),
        ]
        with m.If(valid):
            m.d.sync += word.eq(Mux(beside.row_end, 0, word + 1))
        with m.If(begin):
            m.d.sync += [other.eq(start_index), own.eq(~self.merge)]
        with m.If(begin | better):
            m.d.sync += best.eq(Mux(better, tree.o, start))
        with m.If(better):
            m.d.sync += [own.eq(1), place.eq(self._place(word, tree.lane))]
        with m.Elif(begin):
            m.d.sync += place.eq(0)
        return best, Mux(own, (self.origin + place)[:24], other)

    def _place(self, word, lane):
        """Return the place in its row of the element that a lane of a beat holds."""
        if self.lanes & (self.lanes - 1):
            return word * self.lanes + lane
        return Cat(lane, word)


def row_value():
    """Return the payload between `RowReduce` and `RowScalar`.

    valid, the row's maximum or total (the other one is anything), its sum (VAR) and index (ARGMAX) beside it, its
    exponent E (biased), tag.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "maximum": F24,
            "total": signed(SUM_WIDTH),
            "sum": unsigned(32),
            "index": unsigned(24),
            "exponent": unsigned(8),
            "tag": unsigned(TAG_WIDTH),
        }
    )


def row_mark():
    """Return what announces a row: whether one comes, and its tag."""
    return data.StructLayout({"valid": 1, "tag": unsigned(TAG_WIDTH)})


def stat_entry():
    """Return the two fields of a statistics entry."""
    return data.StructLayout({"a": F24, "b": F24})


def row_entry():
    """Return the payload of `RowScalar`'s output: valid, the statistics entry (a, b), and the tag."""
    return data.StructLayout({"valid": 1, "a": F24, "b": F24, "tag": unsigned(TAG_WIDTH)})


class Variance(wiring.Component):
    """o = n * i_squares - i_sum^2: n^2 times the variance of n integers, exact.

    Rigid pipeline of small products. Each multiplier makes two of them, one after the other, so inputs come every other
    cycle at most.

    Members
    -------
    start : In(1)
        Takes the inputs. Not in two cycles on end.
    n : In(16)
        Integers.
    i_squares : In(48)
        Sum of their squares.
    i_sum : In(signed(32))
        Their sum.
    o : Out(64)
        Result, `LATENCY` cycles later; not negative.
    """

    LATENCY = 3
    start: In(1)
    n: In(16)
    i_squares: In(48)
    i_sum: In(signed(32))
    o: Out(64)

    def elaborate(self, platform):
        m = Module()
        total = Signal(signed(32), reset_less=True)
        m.d.sync += total.eq(self.i_sum)
        low, high = total[:16], total[16:].as_signed()
        # First n times each 16 bits of the squares, then the three products of the sum's halves.
        second = ((low, low), (low, high), (high, high))
        products = [Signal(signed(34), name=f"product_{limb}", reset_less=True) for limb in range(3)]
        for limb, (product, factors) in enumerate(zip(products, second, strict=True)):
            a, b = (Signal(signed(17), name=f"factor_{limb}_{side}") for side in "ab")
            m.d.comb += [a.eq(factors[0]), b.eq(factors[1])]
            with m.If(self.start):
                m.d.comb += [a.eq(self.n), b.eq(self.i_squares[16 * limb :][:16])]
            m.d.sync += product.eq(a * b)

        p0, p1, p2 = products
        multiple = Signal(64, reset_less=True)
        difference = Signal(64, reset_less=True)
        m.d.sync += [
            multiple.eq(Cat(p0[:32], p2[:32]) + (p1[:32] << 16)),
            difference.eq(multiple - Cat(p0[:32], p2[:32]) - (p1[:33].as_signed() << 17)),
        ]
        m.d.comb += self.o.eq(difference)
        return m


class RowScalar(wiring.Component):
    """Turn a row's maximum or sum into its statistics entry (a, b).

    =======  =============================================================  ==================================
    kind     a                                                              b
    =======  =============================================================  ==================================
    MAX      maximum                                                        +0
    ABSMAX   maximum                                                        +0
    QSCALE   recip(b)                                                       mul(maximum, const1), bf16 with scale16
    EXPSUM   recip(scale2(i2f(total), -24))                                 +0
    SUMSQ    rsqrt(add(mul(scale2(i2f(total), 2(E-15)), const1), const2))   +0
    SUM      mul(scale2(i2f(total), E-15), const1)                          +0
    VAR      rsqrt(add(v, const2))                                          mul(-u, a)
    ARGMAX   maximum                                                        index
    =======  =============================================================  ==================================

    VAR: v = mul(mul(scale2(i2f(n * total - sum^2), 2(E-15)), const1), const1), u = mul(scale2(i2f(sum), E-15),
    const1).

    Rigid pipeline, one row per cycle: integer to float, scale2, multiply, round, add, reciprocal. A kind leaves out
    the stages that it does not need: `latency(kind)`. Rows of VAR go through the first of these twice, so they are at
    least two cycles apart.

    Members
    -------
    awake : In(1)
        All registers stand still without it: less to simulate. It may be 0 while no row is in flight, that is from the
        cycle after `o.valid` until before `i_next.valid`.
    kind : In(Reduce)
        Row of the table; like the constants it is stable from before the first `i_next.valid` to the last `o.valid`.
    const1, const2 : In(F24)
        Constants of the instruction.
    n : In(16)
        VAR: elements of a row.
    scale16 : In(1)
        QSCALE rounds b to bfloat16.
    i : In(row_value)
        {valid, maximum, total 64, sum 32, index 24, exponent 8, tag}: the maximum matters for MAX, ABSMAX, QSCALE and
        ARGMAX, the total for the others; exponent: bits 15 to 22 of field a of the source entry (SUMSQ, SUM, VAR).
    i_next : In(row_mark)
        {valid, tag} of `i`, a cycle ahead.
    o : Out(row_entry)
        {valid, a, b, tag}, `latency(kind)` cycles later. `valid` and `tag` are registers.
    """

    _STAGES = (
        ("variance", (Reduce.VAR,), Variance.LATENCY),
        ("float", SUMS, IntToFloat.LATENCY + Scale2.LATENCY),
        ("mul", MULTIPLIED, FloatMul.LATENCY),
        ("again", (Reduce.VAR,), FloatMul.LATENCY),
        ("round", (Reduce.QSCALE,), RoundBf16.LATENCY),
        ("add", SQUARES, FloatAdd.LATENCY),
        ("reciprocal", INVERTED, ReciprocalUnit.LATENCY),
        ("last", (Reduce.VAR,), FloatMul.LATENCY),
    )
    awake: In(1, init=1)
    kind: In(Reduce)
    const1: In(F24)
    const2: In(F24)
    n: In(16)
    scale16: In(1)
    i: In(row_value())
    i_next: In(row_mark())
    o: Out(row_entry())

    @classmethod
    def latency(cls, kind):
        """Return the cycles from `i` to `o`: those of the stages that the kind uses."""
        return sum(cycles for _, kinds, cycles in cls._STAGES if kind in kinds)

    def elaborate(self, platform):
        m = Module()
        m.submodules.mul = mul = FloatMul()
        m.submodules.again = again = FloatMul()
        m.submodules.round = round_ = RoundBf16()
        m.submodules.add = add = FloatAdd()
        m.submodules.reciprocal = reciprocal = ReciprocalUnit()
        variance = Signal()
        m.d.comb += variance.eq(self.kind == Reduce.VAR)
        maximum, total = self.i.maximum, self._scaled(m, variance)
        # Each block has only the sources that some kind takes it from; the way passes all of them in turn.
        m.d.comb += [
            mul.a.eq(Mux(self.kind == Reduce.QSCALE, maximum, total)),
            mul.b.eq(self.const1),
            again.a.eq(mul.o),
            again.b.eq(self.const1),
            round_.i.eq(mul.o),
            round_.enable.eq(self.scale16),
            add.a.eq(Mux(variance, again.o, mul.o)),
            add.b.eq(self.const2),
            reciprocal.sqrt.eq(_among(self.kind, SQUARES)),
        ]
        root, shift = self._shift(m, variance, mul.o, reciprocal.o)
        scale = delay(m, round_.o, ReciprocalUnit.LATENCY, name="scale")
        m.d.comb += self.o.a.eq(reciprocal.o)
        with m.Switch(self.kind):
            with m.Case(Reduce.QSCALE):
                m.d.comb += [reciprocal.i.eq(round_.o), self.o.b.eq(scale)]
            with m.Case(Reduce.EXPSUM):
                m.d.comb += reciprocal.i.eq(total)
            with m.Case(Reduce.SUMSQ):
                m.d.comb += reciprocal.i.eq(add.o)
            with m.Case(Reduce.VAR):
                m.d.comb += [reciprocal.i.eq(add.o), self.o.a.eq(root), self.o.b.eq(shift)]
            with m.Case(Reduce.SUM):
                m.d.comb += self.o.a.eq(mul.o)
            with m.Case(Reduce.ARGMAX):
                m.d.comb += [self.o.a.eq(maximum), self.o.b.eq(self.i.index)]
            with m.Default():
                m.d.comb += self.o.a.eq(maximum)

        start = Signal(row_mark())
        m.d.comb += [start.valid.eq(self.i.valid), start.tag.eq(self.i.tag)]
        way = Way(m, start, self.i_next)
        for stage, kinds, cycles in self._STAGES:
            way.past(_among(self.kind, kinds), cycles, name=f"{stage}_stage")
        m.d.sync += [self.o.valid.eq(way.next.valid), self.o.tag.eq(way.next.tag)]
        return EnableInserter(self.awake)(m)

    def _scaled(self, m, variance):
        """Return the row's sum as a float; for VAR the variance's, and in the cycle before that the sum's."""
        m.submodules.variance_unit = unit = Variance()
        m.submodules.convert = convert = IntToFloat(SUM_WIDTH)
        m.submodules.scale = scale = Scale2()
        m.d.comb += [unit.start.eq(self.i.valid), unit.n.eq(self.n)]
        m.d.comb += [unit.i_squares.eq(self.i.total), unit.i_sum.eq(self.i.sum)]
        early = Variance.LATENCY - 1
        is_sum = delay(m, self.i.valid & variance, early, name="is_sum")
        total = delay(m, self.i.sum, early, name="total").as_signed()
        exponent = delay(m, self.i.exponent, early, name="exponent")
        late = delay(m, exponent, 1, name="exponent_late")
        # E - 15 = exponent - 142
        shift = Signal(signed(10))
        with m.Switch(self.kind):
            with m.Case(Reduce.EXPSUM):
                m.d.comb += shift.eq(-24)
            with m.Case(Reduce.SUMSQ):
                m.d.comb += shift.eq((self.i.exponent - 142) << 1)
            with m.Case(Reduce.VAR):
                m.d.comb += shift.eq(Mux(is_sum, exponent - 142, (late - 142) << 1))
            with m.Default():
                m.d.comb += shift.eq(self.i.exponent - 142)
        with m.If(is_sum):
            m.d.comb += convert.i.eq(total)
        with m.Elif(variance):
            m.d.comb += convert.i.eq(unit.o)
        with m.Else():
            m.d.comb += convert.i.eq(self.i.total)
        m.d.comb += [scale.i.eq(convert.o), scale.k.eq(delay(m, shift, IntToFloat.LATENCY, name="shift"))]
        return scale.o

    def _shift(self, m, variance, mean, root):
        """Return VAR's fields: the root in time with the second, minus the mean (it waits for it) times the root."""
        m.submodules.means = means = Ring(F24, depth=8)  # rows are two cycles apart
        m.submodules.last = last = FloatMul()
        to_mean = Variance.LATENCY - 1 + IntToFloat.LATENCY + Scale2.LATENCY + FloatMul.LATENCY
        to_root = self.latency(Reduce.VAR) - FloatMul.LATENCY
        put = delay(m, self.i.valid & variance, to_mean, name="put", reset_less=False)
        m.d.comb += [
            means.put.eq(put),
            means.put_data.eq(mean),
            means.take.eq(delay(m, put, to_root - 1 - to_mean, name="take", reset_less=False)),
            last.a.eq(means.data ^ (1 << 23)),
            last.b.eq(root),
        ]
        return delay(m, root, FloatMul.LATENCY, name="root"), last.o
