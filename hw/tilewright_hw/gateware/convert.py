"""Numbers from memory to the vector unit's format."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.arch.isa import LoadFormat
from tilewright_hw.gateware.layouts import vector_word
from tilewright_hw.gateware.width import beat, word

__all__ = ["FloatConverter", "load_float"]


def load_float(raw):
    """Return the F24 that is loaded from the upper 24 bits of a float32 (docs/numerics.md, Load)."""
    exponent = raw[15:23]
    largest = Cat(Const(0x7FFF, 15), Const(254, 8), raw[23])
    return Mux(exponent.all(), largest, Mux(exponent.any(), raw, 0))


class FloatConverter(wiring.Component):
    """Converts beats of float32 or bfloat16 to F24 and packs them, in order, `lanes` to a word.

    A beat that ends its run ends its word too: the word's other lanes are +0, and the next beat starts a new word.

    Flow control: one beat per cycle goes in, or one word per cycle comes out, whichever is less.

    Latency: one cycle after the beat that completes a word.

    Parameters
    ----------
    bus_bytes : int
        Bytes of a beat, a power of two of at least four.
    lanes : int
        Elements of a word, a power of two.

    Members
    -------
    format : In(LoadFormat)
        Format in memory; constant from a run's first beat to its last word.
    i : In(stream of beat(bus_bytes, 2))
        Beats; bit 0 of `end` marks the last of a run.
    o : Out(stream of word(vector_word(lanes), 2))
        Words; the end marks of a beat come with its last word.
    """

    def __init__(self, *, bus_bytes, lanes):
        self.bus_bytes, self.lanes = bus_bytes, lanes
        super().__init__(
            {
                "format": In(LoadFormat),
                "i": In(stream.Signature(beat(bus_bytes, 2))),
                "o": Out(stream.Signature(word(vector_word(lanes), 2))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        lanes = [Signal(24, name=f"lane{j}") for j in range(self.lanes)]
        write = Signal(self.lanes)
        clear = Signal()
        beat_done = Signal()
        word_done = Signal()
        free = Signal()
        phase = Signal(range(max(2, self._phases())))
        m.d.comb += [
            free.eq(self.o.ready | ~self.o.valid),
            self.i.ready.eq(free & beat_done),
        ]
        with m.Switch(self.format):
            for kind in LoadFormat:
                with m.Case(kind):
                    self._select(m, self._elements(kind), phase, lanes, write, beat_done, word_done)
        m.d.comb += clear.eq(phase == 0)
        with m.If(free):
            m.d.sync += self.o.valid.eq(self.i.valid & word_done)
        with m.If(free & self.i.valid):
            m.d.sync += phase.eq(Mux(beat_done & word_done, 0, phase + 1))
            m.d.sync += self.o.p.end.eq(Mux(beat_done, self.i.p.end, 0))
            for j, raw in enumerate(lanes):
                with m.If(write[j]):
                    m.d.sync += self.o.p.data[j].eq(load_float(raw))
                with m.Elif(clear):
                    m.d.sync += self.o.p.data[j].eq(0)
        return m

    def _elements(self, kind):
        """Return the elements of a beat as the upper 24 bits of float32."""
        value = self.i.p.data
        if kind == LoadFormat.FP32:
            return [value[32 * i + 8 : 32 * i + 32] for i in range(self.bus_bytes // 4)]
        return [Cat(Const(0, 8), value[16 * i : 16 * i + 16]) for i in range(self.bus_bytes // 2)]

    def _phases(self):
        """Return the largest number of steps that a beat or a word takes."""
        counts = [self.bus_bytes // 4, self.bus_bytes // 2]
        return max(max(n // self.lanes, self.lanes // n) for n in counts)

    def _select(self, m, elements, phase, lanes, write, beat_done, word_done):
        """Say, for one format, which element goes to which lane in this phase of a beat or of a word."""
        n = len(elements)
        if n >= self.lanes:
            words = n // self.lanes
            for j, lane in enumerate(lanes):
                choice = [elements[p * self.lanes + j] for p in range(words)]
                m.d.comb += lane.eq(Array(choice)[phase] if words > 1 else choice[0])
            m.d.comb += [write.eq(-1), beat_done.eq(phase == words - 1), word_done.eq(1)]
        else:
            last = phase == self.lanes // n - 1
            m.d.comb += [beat_done.eq(1), word_done.eq(last | self.i.p.end[0])]
            for j, lane in enumerate(lanes):
                m.d.comb += [lane.eq(elements[j % n]), write[j].eq(phase == j // n)]
