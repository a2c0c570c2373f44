"""The loadable function of the vector unit: what LOAD brings, on its way to the lanes."""

from amaranth import C, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware.functions import LaneFunction
from tilewright_hw.gateware.layouts import TABLE_SEGMENTS, table_word, table_write

__all__ = ["TableLoader"]


class TableLoader(wiring.Component):
    """Writes a table's segments to the lanes one after another, and holds its shifts in the form that they need.

    Flow control: takes a segment per cycle; it is written a cycle later. A table ends with `last`, or with its last
    segment.

    Members
    -------
    i : In(stream of table_word())
        Segments, the first one first.
    write : Out(table_write())
        To every lane's `LaneFunction`.
    loaded : In(1)
        The lanes compute table, not another function; a register.
    align, exponent : Out(8), Out(9)
        What `LaneFunction` has to know of the shifts, a cycle after `loaded`.
    """

    i: In(stream.Signature(table_word()))
    write: Out(table_write())
    loaded: In(1)
    align: Out(8, init=LaneFunction.ALIGN)
    exponent: Out(9, init=LaneFunction.SIGMOID_EXPONENT)

    def elaborate(self, platform):
        m = Module()
        word = self.i.payload
        place = Signal(range(TABLE_SEGMENTS))
        input_shift = Signal(5)
        output_shift = Signal(signed(8))
        m.d.comb += self.i.ready.eq(1)
        m.d.sync += [
            self.write.en.eq(self.i.valid),
            self.write.addr.eq(place),
            self.write.data.eq(word.data),
            self.align.eq(Mux(self.loaded, LaneFunction.TABLE_ALIGN - input_shift, LaneFunction.ALIGN)),
            self.exponent.eq(
                Mux(self.loaded, C(LaneFunction.TABLE_EXPONENT, 9) - output_shift, LaneFunction.SIGMOID_EXPONENT)
            ),
        ]
        with m.If(self.i.valid):
            m.d.sync += [
                place.eq(Mux(word.last, 0, place + 1)),
                input_shift.eq(word.shifts[:5]),
                output_shift.eq(word.shifts[8:]),
            ]
        return m
