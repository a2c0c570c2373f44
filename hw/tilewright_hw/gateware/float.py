"""Arithmetic on F24 (docs/numerics.md): rigid pipelines, one result per cycle, no flow control.

Every block has a fixed latency: what enters in cycle t leaves in cycle t + `LATENCY`. Operands are canonical F24 (zero
is 24 zero bits), except that multiplier and adder ignore the sign of a zero: flipping bit 23 negates an operand.
Results are canonical.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware.layouts import F24

__all__ = [
    "FloatAdd",
    "FloatMul",
    "FloatToInt8",
    "IntToFloat",
    "RoundBf16",
    "Scale2",
    "delay",
    "from_order_key",
    "magnitude_key",
    "order_key",
]


def delay(m, value, cycles, *, name):
    """Return `value` as it was `cycles` cycles ago (a chain of registers; `value` itself for 0)."""
    for n in range(cycles):
        register = Signal.like(value, name=f"{name}_{n + 1}")
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
        return m


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
        return m


class FloatToInt8(wiring.Component):
    """o = min(127, max(-127, f2i(i))): F24 as int8, rounded to nearest even.

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Number.
    o : Out(signed(8))
        Integer within +-127, `LATENCY` cycles later.
    """

    LATENCY = 2
    i: In(F24)
    o: Out(signed(8))

    def elaborate(self, platform):
        m = Module()
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
        return m
