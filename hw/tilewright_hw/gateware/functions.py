"""Table functions on F24 (docs/numerics.md): rigid pipelines, one result per cycle, no flow control."""

from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware import tables
from tilewright_hw.gateware.float import FloatParts, delay, normalise, rounded, shift_right
from tilewright_hw.gateware.layouts import F24

__all__ = ["Exp2", "Exp2Sigmoid", "Interpolator", "Reciprocal", "ReciprocalSqrt", "ReciprocalUnit", "Sigmoid"]


SEGMENT = data.StructLayout({"value": 19, "step": 11})
"""One word of a table ROM: the value at the segment's start, and how far it is to the next."""


class Interpolator(wiring.Component):
    """o = T[addr] + ((step[addr] * d + 128) >> 8), or T[addr] - the same where `fall`: interpolation in a table ROM.

    Rigid pipeline, one result per cycle.

    Parameters
    ----------
    segments : list of (int, int)
        Value (19 bits) and step (11 bits) of each segment.

    Members
    -------
    addr : In(range(len(segments)))
        Segment.
    d : In(8)
        Position in the segment, in 256ths.
    fall : In(1)
        Whether the function falls.
    o : Out(19)
        Interpolated value, `LATENCY` cycles later.
    """

    LATENCY = 4

    def __init__(self, segments):
        self.segments = segments
        super().__init__({"addr": In(range(len(segments))), "d": In(8), "fall": In(1), "o": Out(19)})

    def elaborate(self, platform):
        m = Module()
        words = [{"value": value, "step": step} for value, step in self.segments]
        m.submodules.rom = rom = memory.Memory(shape=SEGMENT, depth=len(words), init=words)
        port = rom.read_port()
        segment = Signal(SEGMENT, reset_less=True)  # a block RAM's output register
        d = delay(m, self.d, 2, name="d")
        fall = delay(m, self.fall, 3, name="fall")
        m.d.comb += port.addr.eq(self.addr)
        m.d.sync += segment.eq(port.data)

        value = delay(m, segment.value, 1, name="value")
        product = Signal(19, reset_less=True)
        m.d.sync += product.eq(segment.step * d)

        # ceil((256 T - P - 128) / 256) = floor((256 T + 127 - P) / 256), and 127 - P = 128 + ~P: no carry in is needed.
        total = Signal(28)
        result = Signal(19, reset_less=True)
        m.d.comb += [
            total.eq(Cat(C(128, 8), value) + Cat(product ^ fall.replicate(19), fall.replicate(9)).as_signed()),
            self.o.eq(result),
        ]
        m.d.sync += result.eq(total[8:27])
        return m


class Exp2Sigmoid(wiring.Component):
    """o = sigmoid(i) where `sigmoid`, else exp2(i): two functions that share aligner, table ROM and multiplier.

    Rigid pipeline, one result per cycle; the function may change from cycle to cycle.

    Parameters
    ----------
    only : str or None
        'exp2' or 'sigmoid' leaves the other's table out: its results are then meaningless.

    Members
    -------
    i : In(F24)
        Argument. exp2 takes what is above 0 as 0.
    sigmoid : In(1)
        Chooses the function, in the same cycle as `i`.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = 2 + Interpolator.LATENCY
    i: In(F24)
    sigmoid: In(1)
    o: Out(F24)

    def __init__(self, *, only=None):
        if only not in (None, "exp2", "sigmoid"):
            raise ValueError(f"Function must be 'exp2', 'sigmoid' or None, not {only!r}")
        self.only = only
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        # exp2 comes last: where it is alone, the upper address bits fall away.
        segments = tables.segments(tables.sigmoid_table()) if self.only != "exp2" else []
        segments += tables.segments(tables.exp2_table()) if self.only != "sigmoid" else []
        m.submodules.table = table = Interpolator(segments)
        sign, aligned, over, sticky = self._align(m)
        chosen = delay(m, self.sigmoid, 1, name="sigmoid")

        # exp2: u = floor(-x * 2^16), which is zero for x > 0.
        u = Signal(21)
        m.d.comb += u.eq(Mux(sign, aligned | over.replicate(21), 0))

        # sigmoid: v = RNE(x * 2^11) + 32768, within 16 bits. Negation takes the rounding's carry along.
        up = aligned[4] & (sticky | aligned[:4].any() | aligned[5])
        rounded_x = Signal(signed(18))
        v = Signal(16)
        m.d.comb += rounded_x.eq(
            Cat(aligned[5:] ^ sign.replicate(16), sign.replicate(2)).as_signed() + (up ^ sign) + 32768
        )
        with m.If(over | (rounded_x[16:] != 0)):
            m.d.comb += v.eq((~sign).replicate(16))
        with m.Else():
            m.d.comb += v.eq(rounded_x[:16])

        m.d.comb += [
            table.addr.eq(Mux(chosen, v[7:16], Cat(u[8:16], C(2, 2)))),
            table.d.eq(Mux(chosen, Cat(C(0, 1), v[:7]), u[:8])),
            table.fall.eq(~chosen),
        ]
        octave = delay(m, u[16:], Interpolator.LATENCY, name="octave")
        chosen = delay(m, chosen, Interpolator.LATENCY, name="sigmoid_late")
        self._pack(m, table.o, octave, chosen)
        return m

    def _align(self, m):
        """Register |x| * 2^16, floored to 21 bits, whether it is 32 or more, and whether bits were lost."""
        x = FloatParts(self.i)
        sign = Signal(reset_less=True)
        aligned = Signal(21, reset_less=True)
        over = Signal(reset_less=True)
        sticky = Signal(reset_less=True)
        distance = Signal(signed(9))
        m.d.comb += distance.eq(131 - x.exponent)
        shifted, lost = shift_right(Cat(C(0, 5), x.normal), distance[:5])
        m.d.sync += [
            sign.eq(x.sign),
            aligned.eq(Mux(distance[5:].any(), 0, shifted)),
            over.eq(distance[8]),
            sticky.eq(lost),
        ]
        return sign, aligned, over, sticky

    def _pack(self, m, y, octave, chosen):
        """Register the result: y * 2^(-18 - octave) rounded, or y * 2^-16, which needs no rounding."""
        result = Signal(24, reset_less=True)
        m.d.comb += self.o.eq(result)
        up = y[1] & (y[0] | y[2])
        power = Cat(y[2:17], 126 - octave) + Cat(up, C(0, 14), y[18])
        normal, shift = normalise(m, y[:16], (8, 4, 2, 1), name="normal")
        with m.If(~chosen):
            m.d.sync += result.eq(Mux(octave > 24, 0, power[:23]))
        with m.Elif(y[16]):
            m.d.sync += result.eq(C(127 << 15, 24))
        with m.Else():
            m.d.sync += result.eq(Mux(normal[15], Cat(normal[:15], (126 - shift)[:8]), 0))


class Exp2(wiring.Component):
    """o = exp2(i), i <= 0 (what is above 0 is taken as 0).

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Argument.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = Exp2Sigmoid.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = Exp2Sigmoid(only="exp2")
        m.d.comb += [unit.i.eq(self.i), unit.sigmoid.eq(0), self.o.eq(unit.o)]
        return m


class Sigmoid(wiring.Component):
    """o = sigmoid(i).

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Argument.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = Exp2Sigmoid.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = Exp2Sigmoid(only="sigmoid")
        m.d.comb += [unit.i.eq(self.i), unit.sigmoid.eq(1), self.o.eq(unit.o)]
        return m


class ReciprocalUnit(wiring.Component):
    """o = rsqrt(i) where `sqrt`, else recip(i): two functions that share table ROM and multiplier.

    Rigid pipeline, one result per cycle; the function may change from cycle to cycle.

    Parameters
    ----------
    only : str or None
        'recip' or 'rsqrt' leaves the other's table out: its results are then meaningless.

    Members
    -------
    i : In(F24)
        Argument. recip(0) = +0; rsqrt of what is not above 0 is +0.
    sqrt : In(1)
        Chooses the function, in the same cycle as `i`.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = Interpolator.LATENCY + 1
    i: In(F24)
    sqrt: In(1)
    o: Out(F24)

    def __init__(self, *, only=None):
        if only not in (None, "recip", "rsqrt"):
            raise ValueError(f"Function must be 'recip', 'rsqrt' or None, not {only!r}")
        self.only = only
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        # recip comes last: where it is alone, the upper address bits fall away.
        roots = [tables.rsqrt_table(odd=True), tables.rsqrt_table(odd=False)] if self.only != "recip" else []
        table = roots + ([tables.recip_table()] if self.only != "rsqrt" else [])
        segments = [segment for part in table for segment in tables.segments(part)]
        m.submodules.table = table = Interpolator(segments)
        x = FloatParts(self.i)
        # An odd biased exponent is an even exponent.
        m.d.comb += [
            table.addr.eq(Cat(x.fraction[7:], Mux(self.sqrt, Cat(x.exponent[0], C(0, 1)), C(2, 2)))),
            table.d.eq(Cat(C(0, 1), x.fraction[:7])),
            table.fall.eq(1),
        ]

        # The exponent of a result whose y is below 2^18; y = 2^18 adds one.
        exponent = Signal(signed(9), reset_less=True)
        nonzero = Signal(reset_less=True)
        m.d.sync += [
            exponent.eq(Mux(self.sqrt, 190 - ((x.exponent + 1) >> 1), 253 - x.exponent)),
            nonzero.eq(x.exponent.any() & ~(self.sqrt & x.sign)),
        ]
        late = Interpolator.LATENCY - 1
        y = table.o
        m.d.comb += self.o.eq(
            rounded(
                m,
                sign=delay(m, x.sign, late + 1, name="sign"),
                exponent=delay(m, exponent, late, name="exponent") + y[18],
                fraction=y[2:17],
                up=y[1] & (y[0] | y[2]),
                nonzero=delay(m, nonzero, late, name="nonzero"),
                stages=1,
            )
        )
        return m


class Reciprocal(wiring.Component):
    """o = recip(i); recip(0) = +0.

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Argument.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = ReciprocalUnit.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = ReciprocalUnit(only="recip")
        m.d.comb += [unit.i.eq(self.i), unit.sqrt.eq(0), self.o.eq(unit.o)]
        return m


class ReciprocalSqrt(wiring.Component):
    """o = rsqrt(i); +0 for i <= 0.

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Argument.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = ReciprocalUnit.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = ReciprocalUnit(only="rsqrt")
        m.d.comb += [unit.i.eq(self.i), unit.sqrt.eq(1), self.o.eq(unit.o)]
        return m
