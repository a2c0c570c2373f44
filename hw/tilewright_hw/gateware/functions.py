"""Table functions on F24 (docs/numerics.md): rigid pipelines, one result per cycle, no flow control."""

from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.arch.isa import Func
from tilewright_hw.gateware import tables
from tilewright_hw.gateware.fifo import NO_COLLISION
from tilewright_hw.gateware.float import FloatParts, delay, normalise, round_up, rounded, shift_right
from tilewright_hw.gateware.layouts import F24, TABLE_SEGMENTS, table_segment, table_write

__all__ = ["Exp2", "Interpolator", "LaneFunction", "Reciprocal", "ReciprocalSqrt", "ReciprocalUnit", "Sigmoid"]


SEGMENT = data.StructLayout({"value": 19, "step": 11})
"""One word of a table ROM: the value at the segment's start, and how far it is to the next."""


class Interpolator(wiring.Component):
    """o = T[addr] + ((step[addr] * d + 128) >> 8), or T[addr] - the same where `fall`: interpolation in a table ROM.

    Rigid pipeline, one result per cycle.

    Parameters
    ----------
    segments : list of (int, int)
        Value (19 bits) and step (11 bits) of each segment.
    loadable : bool
        There is a second table, in a RAM, of `TABLE_SEGMENTS` segments with signs.

    Members
    -------
    addr : In(range(len(segments)))
        Segment.
    d : In(8)
        Position in the segment, in 256ths.
    fall : In(1)
        Whether the function falls.
    loaded : In(1), write : In(table_write())
        `loadable`: use the second table, in the same cycle as `addr`; writes it.
    o : Out(19), or with `loadable` Out(signed(21))
        Interpolated value, `LATENCY` cycles later.
    """

    LATENCY = 4

    def __init__(self, segments, *, loadable=False):
        self.segments = segments
        self.loadable = loadable
        ports = {"addr": In(range(len(segments))), "d": In(8), "fall": In(1)}
        if loadable:
            ports |= {"loaded": In(1), "write": In(table_write()), "o": Out(signed(21))}
        else:
            ports |= {"o": Out(19)}
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        segment = self._read(m)
        d = delay(m, self.d, 2, name="d")
        fall = delay(m, self.fall, 3, name="fall")
        value = delay(m, segment.value, 1, name="value")
        # Beside 128, the product's lowest seven bits can carry into nothing.
        product = Signal(signed(13), reset_less=True)
        m.d.sync += product.eq((segment.step * d) >> 7)

        # ceil((256 T - P - 128) / 256) = floor((256 T + 127 - P) / 256), and 127 - P = 128 + ~P: no carry in is needed.
        whole = Cat(C(1, 1), value)
        total = Signal(signed(22))
        result = Signal.like(self.o, reset_less=True)
        signed_product = (product ^ fall.replicate(13))[:13].as_signed()
        m.d.comb += [
            total.eq((whole.as_signed() if self.loadable else whole) + signed_product),
            self.o.eq(result),
        ]
        m.d.sync += result.eq(total[1 : 1 + len(result)])
        return m

    def _read(self, m):
        """Return the segment read, in a block RAM's output register."""
        words = [{"value": value, "step": step} for value, step in self.segments]
        m.submodules.rom = rom = memory.Memory(shape=SEGMENT, depth=len(words), init=words)
        port = rom.read_port()
        m.d.comb += port.addr.eq(self.addr)
        segment = Signal(table_segment() if self.loadable else SEGMENT, reset_less=True)
        m.d.sync += [segment.value.eq(port.data.value), segment.step.eq(port.data.step)]
        if self.loadable:
            m.submodules.ram = ram = memory.Memory(
                shape=table_segment(), depth=TABLE_SEGMENTS, init=[], attrs=NO_COLLISION
            )
            read, write = ram.read_port(), ram.write_port()
            m.d.comb += [
                read.addr.eq(self.addr[: len(read.addr)]),
                write.en.eq(self.write.en),
                write.addr.eq(self.write.addr),
                write.data.eq(self.write.data),
            ]
            with m.If(delay(m, self.loaded, 1, name="loaded")):
                m.d.sync += segment.eq(read.data)
        return segment


class LaneFunction(wiring.Component):
    """o = exp2(i) or sigmoid(i), and a cycle later o_table = table(i): they share aligner, interpolation, normaliser.

    Rigid pipeline, one result per cycle; the function may change from cycle to cycle.

    Parameters
    ----------
    only : str or None
        'exp2' or 'sigmoid' leaves the other tables out: their results are then meaningless.

    Members
    -------
    i : In(F24)
        Argument. exp2 takes what is above 0 as 0.
    kind : In(Func)
        Chooses the function, in the same cycle as `i`.
    align : In(8)
        `ALIGN`, or for table `TABLE_ALIGN` minus the input shift; in the same cycle as `i`.
    exponent : In(9)
        `SIGMOID_EXPONENT`, or for table `TABLE_EXPONENT` minus the output shift; while the result is under way.
    write : In(table_write())
        Writes a segment of table (not with `only`).
    o : Out(F24)
        Result, `LATENCY` cycles later.
    o_table : Out(F24)
        Result for table, `TABLE_LATENCY` cycles later.
    """

    LATENCY = 2 + Interpolator.LATENCY
    TABLE_LATENCY = LATENCY + 1
    ALIGN, TABLE_ALIGN = 131, 150
    """Exponents whose significands are the uppermost bits of the argument in fixed point."""
    SIGMOID_EXPONENT, TABLE_EXPONENT = 127 + 19 - 16, 127 + 19
    """Exponents of a result whose leading one is bit 19 of the interpolated value."""

    def __init__(self, *, only=None):
        if only not in (None, "exp2", "sigmoid"):
            raise ValueError(f"Function must be 'exp2', 'sigmoid' or None, not {only!r}")
        self.only = only
        ports = {"i": In(F24), "kind": In(Func), "align": In(8), "exponent": In(9), "o": Out(F24)}
        if only is None:
            ports |= {"write": In(table_write()), "o_table": Out(F24)}
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        # exp2 comes last: where it is alone, the upper address bits fall away.
        segments = tables.segments(tables.sigmoid_table()) if self.only != "exp2" else []
        segments += tables.segments(tables.exp2_table()) if self.only != "sigmoid" else []
        m.submodules.table = table = Interpolator(segments, loadable=self.only is None)
        sign, aligned, over, sticky = self._align(m)
        # Of exp2 and the others, only what is asked for is built.
        u = C(0, 21) if self.only == "sigmoid" else self._exp2_argument(m, sign, aligned, over)
        v = C(0, 16) if self.only == "exp2" else self._other_argument(m, sign, aligned, over, sticky)
        chosen = C(self.only != "exp2", 1) if self.only else delay(m, self.kind != Func.EXP2, 1, name="chosen")
        m.d.comb += [
            table.addr.eq(self._either(chosen, v[7:16], Cat(u[8:16], C(2, 2)))),
            table.d.eq(self._either(chosen, Cat(C(0, 1), v[:7]), u[:8])),
            table.fall.eq(~chosen),
        ]
        if self.only is None:
            m.d.comb += [
                table.loaded.eq(delay(m, self.kind == Func.TABLE, 1, name="loaded")),
                table.write.eq(self.write),
            ]
        self._pack(m, table.o, u[16:], chosen)
        return m

    def _either(self, chosen, other, exp2):
        """Return what is chosen, where there is a choice."""
        if self.only is None:
            return Mux(chosen, other, exp2)
        return exp2 if self.only == "exp2" else other

    def _exp2_argument(self, m, sign, aligned, over):
        """Return floor(-x * 2^16), which is zero for x > 0."""
        u = Signal(21)
        m.d.comb += u.eq(Mux(sign, aligned | over.replicate(21), 0))
        return u

    def _other_argument(self, m, sign, aligned, over, sticky):
        """Return RNE(x * 2^11) + 32768, within 16 bits. Negation takes the rounding's carry along."""
        up = round_up(Cat(sticky, aligned[:5]), aligned[5])
        rounded_x = Signal(signed(18))
        v = Signal(16)
        m.d.comb += rounded_x.eq(
            Cat(aligned[5:] ^ sign.replicate(16), sign.replicate(2)).as_signed() + (up ^ sign) + 32768
        )
        with m.If(over | (rounded_x[16:] != 0)):
            m.d.comb += v.eq((~sign).replicate(16))
        with m.Else():
            m.d.comb += v.eq(rounded_x[:16])
        return v

    def _align(self, m):
        """Register |x| in fixed point, floored to 21 bits, whether it is more, and whether bits were lost."""
        x = FloatParts(self.i)
        sign = Signal(reset_less=True)
        aligned = Signal(21, reset_less=True)
        over = Signal(reset_less=True)
        sticky = Signal(reset_less=True)
        distance = Signal(signed(9))
        m.d.comb += distance.eq(self.align - x.exponent)
        shifted, lost = shift_right(Cat(C(0, 5), x.normal), distance[:5])
        m.d.sync += [
            sign.eq(x.sign),
            aligned.eq(Mux(distance[5:].any(), 0, shifted)),
            over.eq(distance[8]),
            sticky.eq(lost),
        ]
        return sign, aligned, over, sticky

    def _pack(self, m, y, octave, chosen):
        """Register y * 2^(-18 - octave) rounded, or y normalised: sigmoid needs no rounding, table a cycle for it.

        The octave and the choice come with the argument.
        """
        result = Signal(24 if self.only is None else 23, reset_less=True)
        m.d.comb += self.o.eq(result)
        power = None if self.only == "sigmoid" else self._power(m, y, octave)
        if self.only == "exp2":
            m.d.sync += result.eq(power)
            return
        chosen = delay(m, chosen, Interpolator.LATENCY, name="chosen_late") if self.only is None else chosen
        sign = y[20] if self.only is None else C(0, 1)
        value, shift = normalise(m, Cat(y, C(0, 1))[:20], (16, 8, 4, 2, 1), name="normal", sign=sign)
        normal = value ^ sign.replicate(20)
        exponent = Signal(signed(10))
        m.d.comb += exponent.eq(self.exponent - shift)
        normalised = Mux(normal[19], Cat(normal[4:19], exponent[:8]), 0)
        if self.only == "sigmoid":
            m.d.sync += result.eq(normalised)
            return
        with m.If(~chosen):
            m.d.sync += result.eq(power)
        with m.Else():
            m.d.sync += result.eq(normalised)
        below, upper = delay(m, normal[:4], 1, name="below"), delay(m, exponent[8:], 1, name="upper")
        sign = delay(m, sign, 1, name="result_sign")
        m.d.comb += self.o_table.eq(
            rounded(
                m,
                sign=sign,
                exponent=Cat(result[15:23], upper).as_signed(),
                fraction=result[:15],
                up=round_up(below, result[0], sign),
                nonzero=delay(m, normal[19], 1, name="nonzero"),
                stages=1,
            )
        )

    def _power(self, m, y, octave):
        """Return y * 2^(-18 - octave) rounded."""
        octave = delay(m, octave, Interpolator.LATENCY, name="octave")
        up = round_up(y[:2], y[2])
        power = Cat(y[2:17], 126 - octave) + Cat(up, C(0, 14), y[18])
        return Mux(octave > 24, 0, power[:23])


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

    LATENCY = LaneFunction.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = LaneFunction(only="exp2")
        m.d.comb += [
            unit.i.eq(self.i),
            unit.kind.eq(Func.EXP2),
            unit.align.eq(LaneFunction.ALIGN),
            unit.exponent.eq(LaneFunction.SIGMOID_EXPONENT),
            self.o.eq(unit.o),
        ]
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

    LATENCY = LaneFunction.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = LaneFunction(only="sigmoid")
        m.d.comb += [
            unit.i.eq(self.i),
            unit.kind.eq(Func.SIGMOID),
            unit.align.eq(LaneFunction.ALIGN),
            unit.exponent.eq(LaneFunction.SIGMOID_EXPONENT),
            self.o.eq(unit.o),
        ]
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
                up=round_up(y[:2], y[2]),
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
