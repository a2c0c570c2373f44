"""Arithmetic on F24 (docs/numerics.md): rigid pipelines, one result per cycle, no flow control.

Every block has a fixed latency: what enters in cycle t leaves in cycle t + `LATENCY`. Operands are canonical F24 (zero
is 24 zero bits), except that multiplier and adder ignore the sign of a zero: flipping bit 23 negates an operand.
Results are canonical.
"""

from amaranth import C, Cat, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tilewright_hw.gateware.layouts import F24

__all__ = [
    "FloatAdd",
    "FloatMul",
    "FloatParts",
    "FloatToInt",
    "IntToFloat",
    "RoundBf16",
    "Scale2",
    "delay",
    "from_order_key",
    "magnitude_key",
    "normalise",
    "order_key",
    "round_up",
    "rounded",
    "shift_right",
]


def delay(m, value, cycles, *, name, reset_less=True):
    """Return `value` as it was `cycles` cycles ago (a chain of registers; `value` itself for 0).

    Data needs no reset; bits that something is done for do (`reset_less=False`), or it is done after the reset.
    """
    for n in range(cycles):
        register = Signal.like(value, name=f"{name}_{n + 1}", reset_less=reset_less)
        m.d.sync += register.eq(value)
        value = register
    return value


def order_key(x):
    """Return an unsigned 24-bit Value that orders like the F24 value of `x`; it is never 0 (combinational)."""
    x = Value.cast(x)
    return Cat(x[:23] ^ x[23].replicate(23), ~x[23])


def magnitude_key(x):
    """Return `order_key` of the absolute value of `x` (combinational)."""
    return Cat(Value.cast(x)[:23], C(1, 1))


def from_order_key(key):
    """Return the F24 whose `order_key` is `key` (combinational). Key 0, which no number has, gives 0xffffff."""
    key = Value.cast(key)
    return Cat(key[:23] ^ (~key[23]).replicate(23), ~key[23])


class FloatParts:
    """The parts of an F24: sign, exponent, fraction, and the significand with its leading one.

    The significand of zero is 0; `normal` has the leading one there too, and is there earlier.
    """

    def __init__(self, x):
        x = Value.cast(x)
        self.sign = x[23]
        self.exponent = x[15:23]
        self.fraction = x[:15]
        self.significand = Cat(self.fraction, self.exponent.any())
        self.normal = Cat(self.fraction, C(1, 1))


def _pack(sign, fraction, exponent, nonzero):
    """Return the F24, with a signed `exponent` below 1 flushed and one above 254 saturated."""
    exponent = Value.cast(exponent)
    negative = exponent[-1]
    low = exponent[:8]
    above = exponent[8:].any() | low.all()
    below = negative | ~exponent.any()
    finite = Mux(above, Cat(C(0x7FFF, 15), C(254, 8), sign), Cat(fraction, low, sign))
    return Mux(below | ~nonzero, 0, finite)


def rounded(m, *, sign, exponent, fraction, up, nonzero, stages=2):
    """Return the F24 of a normalised number, `up` added to its last place; `stages` registers on the way.

    The carry of the fraction goes into the exponent, and leaves a zero fraction behind: both are one adder.
    """
    exponent = Value.cast(exponent)
    if not exponent.shape().signed:
        exponent = Cat(exponent, C(0, 2)).as_signed()
    total = Signal(15 + len(exponent), reset_less=True)
    result = Signal(24, reset_less=True)
    m.d["sync" if stages == 2 else "comb"] += total.eq(Cat(fraction, exponent) + up)
    if stages == 2:
        sign, nonzero = delay(m, sign, 1, name="sign"), delay(m, nonzero, 1, name="nonzero")
    m.d.sync += result.eq(_pack(sign, total[:15], total[15:].as_signed(), nonzero))
    return result


def normalise(m, value, steps, *, name, sign=None):
    """Return `value` shifted left by those of `steps` whose leading bits are all `sign` (0), and the sum of the shifts.

    So a two's complement number without its sign bit may be normalised as it is, with no negation before: `value` ^
    `sign` is one less than the magnitude of a negative number, and `round_up` makes up for that.
    """
    width = len(value)
    shifts = []
    for step in steps:
        empty = Signal(name=f"{name}_empty{step}")
        shifted = Signal(width, name=f"{name}_shift{step}")
        leading = value[width - step :]
        m.d.comb += [
            empty.eq(~(leading if sign is None else leading ^ sign[0].replicate(step)).any()),
            shifted.eq(Mux(empty, Cat(C(0, step), value[: width - step]), value)),
        ]
        value = shifted
        shifts.append(empty)
    low = steps[-1].bit_length() - 1
    return value, Cat(C(0, low), *reversed(shifts))


def round_up(below, last, sign=0):
    """Return whether rounding to nearest even adds to the last place kept, `last`; `below` are the bits below it.

    Of a negative number (`sign`) both are those of its ones' complement: the magnitude is one of the lowest bit more.
    """
    exact = (below + sign)[: len(below) + 1]
    guard, sticky = exact[len(below) - 1], exact[: len(below) - 1].any()
    return exact[len(below)] | (guard & (sticky | last))


def shift_right(value, distance):
    """Return `value` shifted right by the unsigned `distance`, and whether a one was lost."""
    value = Value.cast(value)
    width = len(value)
    lost = value & ~(C((1 << width) - 1, width) << distance)[:width]
    return value >> distance, lost.any()


class FloatMul(wiring.Component):
    """o = mul(a, b): the product of two F24, rounded to nearest even.

    Rigid pipeline, one product per cycle.

    Members
    -------
    a, b : In(F24)
        Factors.
    o : Out(F24)
        Product, `LATENCY` cycles later.
    """

    LATENCY = 3
    a: In(F24)
    b: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        product = Signal(32, reset_less=True)
        exponent = Signal(signed(10), reset_less=True)
        nonzero = Signal(reset_less=True)
        sign = Signal(reset_less=True)
        a, b = FloatParts(self.a), FloatParts(self.b)
        m.d.sync += [
            product.eq(a.normal * b.normal),
            exponent.eq(a.exponent + b.exponent - 127),
            nonzero.eq(a.exponent.any() & b.exponent.any()),
            sign.eq(a.sign ^ b.sign),
        ]

        # The product is in [1, 4): one step of normalisation, then rounding carries into the exponent by itself.
        top = product[31]
        fraction = Mux(top, product[16:31], product[15:30])
        guard = Mux(top, product[15], product[14])
        sticky = product[:14].any() | (top & product[14])
        m.d.comb += self.o.eq(
            rounded(
                m,
                sign=sign,
                exponent=exponent + top,
                fraction=fraction,
                up=guard & (sticky | fraction[0]),
                nonzero=nonzero,
            )
        )
        return m


class FloatAdd(wiring.Component):
    """o = add(a, b): the sum of two F24, rounded to nearest even; x + (-x) = +0.

    Rigid pipeline, one sum per cycle.

    Members
    -------
    a, b : In(F24)
        Terms.
    o : Out(F24)
        Sum, `LATENCY` cycles later.
    """

    LATENCY = 5
    a: In(F24)
    b: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        big, small, distance = self._order(m)
        subtract = Signal(reset_less=True)
        m.d.sync += subtract.eq(big.sign ^ small.sign)
        terms = self._align(m, big, small, distance)
        total = Signal(20, reset_less=True)
        # One carry chain adds or subtracts: the lowest bit pair makes the carry in.
        other = terms[1] ^ subtract.replicate(20)
        m.d.sync += total.eq((Cat(subtract, terms[0]) + Cat(subtract, other))[1:21])

        # Bit 19 weighs twice the larger term's leading bit.
        exponent = delay(m, big.exponent, 2, name="exponent")
        sign = delay(m, big.sign, 3, name="sign")
        value, shift = normalise(m, total, (16, 8, 4), name="coarse")
        coarse = Signal(20, reset_less=True)
        coarse_exponent = Signal(signed(10), reset_less=True)
        m.d.sync += [coarse.eq(value), coarse_exponent.eq(exponent + 1 - shift)]
        value, shift = normalise(m, coarse, (2, 1), name="fine")
        m.d.comb += self.o.eq(
            rounded(
                m,
                sign=sign,
                exponent=coarse_exponent - shift,
                fraction=value[4:19],
                up=value[3] & (value[:3].any() | value[4]),
                nonzero=value[19],
                stages=1,
            )
        )
        return m

    def _order(self, m):
        """Register the operands by magnitude, and how far the smaller is to be shifted."""
        a, b = Value.cast(self.a), Value.cast(self.b)
        swap = Signal()
        big = Signal(24, reset_less=True)
        small = Signal(24, reset_less=True)
        distance = Signal(8, reset_less=True)
        m.d.comb += swap.eq(b[:23] > a[:23])
        m.d.sync += [
            big.eq(Mux(swap, b, a)),
            small.eq(Mux(swap, a, b)),
            distance.eq(Mux(swap, b[15:23] - a[15:23], a[15:23] - b[15:23])),
        ]
        return FloatParts(big), FloatParts(small), distance

    def _align(self, m, big, small, distance):
        """Register both significands as 20 bits with three bits below the last, the lowest of them sticky."""
        larger = Signal(20, reset_less=True)
        smaller = Signal(20, reset_less=True)
        unshifted = Cat(C(0, 3), small.significand)
        shifted, lost = shift_right(unshifted, distance[:5])
        far = distance[5:].any()
        m.d.sync += [
            larger.eq(Cat(C(0, 3), big.significand)),
            smaller.eq(Mux(far, small.exponent.any(), Cat(shifted[0] | lost, shifted[1:]))),
        ]
        return larger, smaller


class IntToFloat(wiring.Component):
    """o = i2f(i): an integer as F24, rounded to nearest even.

    Rigid pipeline, one result per cycle.

    Parameters
    ----------
    width : int
        Bits of the input, sign included: 2 to 128.
    signed : bool
        Whether the input is signed.

    Members
    -------
    i : In(signed(width)) or In(unsigned(width))
        Integer.
    o : Out(F24)
        The same as F24, `LATENCY` cycles later.
    """

    LATENCY = 4

    def __init__(self, width, *, signed=True):
        if not isinstance(width, int) or isinstance(width, bool):
            raise TypeError(f"Width must be an integer, not {width!r}")
        if not 2 <= width <= 128:
            raise ValueError(f"Width must be from 2 to 128, not {width!r}")
        self.width = width
        self.signed = signed
        super().__init__({"i": In(Shape(width, signed)), "o": Out(F24)})

    def elaborate(self, platform):
        m = Module()
        # The number without its sign bit; the pipeline is in two's complement up to the last stage.
        bits = self.width - self.signed
        width = max(bits, 24)
        number = Signal(self.width, reset_less=True)
        m.d.sync += number.eq(self.i)

        # The widest step is chosen beside the first register, as it looks at the most bits.
        widest = 1 << (ceil_log2(width) - 1)
        far = Signal(reset_less=True)
        sign, entering = self._split(self.i, width)
        m.d.sync += far.eq(~(entering[width - widest :] ^ sign.replicate(widest)).any())
        sign, value = self._split(number, width)
        value = Mux(far, Cat(C(0, widest), value[: width - widest]), value)
        steps = [1 << n for n in reversed(range(3, ceil_log2(width) - 1))]
        value, shift = normalise(m, value, steps, name="coarse", sign=sign)
        coarse = Signal(25, reset_less=True)  # fewer than 8 leading sign bits; the lowest bit is sticky
        coarse_shift = Signal(range(width), reset_less=True)
        m.d.sync += [
            coarse.eq(Cat(value[: width - 24].any(), value[width - 24 :])),
            coarse_shift.eq(Cat(shift, far)),
        ]

        sign = delay(m, sign, 1, name="sign")
        value, shift = normalise(m, coarse, (4, 2, 1), name="fine", sign=sign)
        fine = Signal(18, reset_less=True)
        exponent = Signal(8, reset_less=True)
        m.d.sync += [
            fine.eq(Cat(value[:8].any(), value[8:]) ^ sign.replicate(18)),
            exponent.eq(127 + bits - 1 - coarse_shift - shift),
        ]
        sign = delay(m, sign, 1, name="sign_late")
        m.d.comb += self.o.eq(
            rounded(
                m,
                sign=sign,
                exponent=exponent,
                fraction=fine[2:17],
                up=round_up(fine[:2], fine[2], sign),
                nonzero=fine[17],
                stages=1,
            )
        )
        return m

    def _split(self, i, width):
        """Return the sign of an integer, and its other bits, padded below to a width."""
        bits = self.width - self.signed
        return (i[-1] if self.signed else C(0, 1)), Cat(C(0, width - bits), i[:bits])


class FloatToInt(wiring.Component):
    """o = f2i(i), clipped to +-127, or with `wide` to +-16383: F24 as an integer, rounded to nearest even.

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Number.
    wide : In(1)
        Clip to 15 bits instead of 8; while the number is under way.
    o : Out(signed(15))
        Integer, `LATENCY` cycles later.
    """

    LATENCY = 2
    i: In(F24)
    wide: In(1)
    o: Out(signed(15))

    def elaborate(self, platform):
        m = Module()
        x = FloatParts(self.i)
        # At exponent 13 the integer part is the upper 14 bits of the significand.
        shifted, lost = shift_right(x.normal, (140 - x.exponent)[:4])
        integer = Signal(14, reset_less=True)
        guard = Signal(reset_less=True)
        sticky = Signal(reset_less=True)
        large = Signal(reset_less=True)
        sign = Signal(reset_less=True)
        within = x.exponent >= 126  # at least a half
        m.d.sync += [
            integer.eq(Mux(within, shifted[2:], 0)),
            guard.eq(within & shifted[1]),
            sticky.eq(shifted[0] | lost),
            large.eq(x.exponent > Mux(self.wide, 140, 133)),
            sign.eq(x.sign),
        ]

        # One adder rounds and negates: -(n + up) = ~n + 1 - up = (n ^ -1) + (up ^ 1).
        up = guard & (sticky | integer[0])
        full = integer[:7].all() & (integer[7:].all() | ~self.wide)
        over = Signal()
        magnitude = Signal(14)
        result = Signal(signed(15), reset_less=True)
        m.d.comb += [
            over.eq(large | (up & full)),
            magnitude.eq(Mux(over, Cat(C(127, 7), self.wide.replicate(7)), integer)),
            self.o.eq(result),
        ]
        m.d.sync += result.eq(Cat(magnitude ^ sign.replicate(14), sign).as_signed() + ((up & ~over) ^ sign))
        return m


class Scale2(wiring.Component):
    """o = scale2(i, k) = i * 2^k, flushed and saturated as every result.

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Number.
    k : In(signed(10))
        Exponent, taken in the same cycle as `i`.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = 1
    i: In(F24)
    k: In(signed(10))
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        x = FloatParts(self.i)
        result = Signal(24, reset_less=True)
        m.d.sync += result.eq(_pack(x.sign, x.fraction, x.exponent + self.k, x.exponent.any()))
        m.d.comb += self.o.eq(result)
        return m


class RoundBf16(wiring.Component):
    """o = bf16(i) where `enable`, else i: rounding to nearest even at 8 significant bits.

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Number.
    enable : In(1)
        0 passes `i` through unchanged.
    o : Out(F24)
        Result, `LATENCY` cycles later; the low 8 fraction bits are zero where it was rounded.
    """

    LATENCY = 1
    i: In(F24)
    enable: In(1)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        x = Value.cast(self.i)
        rounded = Signal(15)
        result = Signal(24, reset_less=True)
        m.d.comb += [
            rounded.eq(x[8:23] + (x[7] & (x[:7].any() | x[8]))),
            self.o.eq(result),
        ]
        m.d.sync += result.eq(x)
        with m.If(self.enable):
            # Exponent 255: back to the largest finite number of 8 bits.
            high = Mux(rounded[7:].all(), C(254 << 7 | 127, 15), rounded)
            m.d.sync += result.eq(Cat(C(0, 8), high, x[23]))
        return m
