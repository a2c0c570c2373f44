"""Beats of the bus to words of another width, and back to slots: an integer factor either way."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware.checks import check_integer
from tilewright_hw.gateware.layouts import bytes_word

__all__ = ["WidthConverter", "beat", "word"]


def beat(bus_bytes, ends=0):
    """Return the shape of a beat with `ends` bits that mark the end of something."""
    return data.StructLayout({"data": unsigned(8 * bus_bytes), "end": unsigned(ends)})


def word(shape, ends=0):
    """Return the shape of a word with `ends` bits that mark the end of something."""
    return data.StructLayout({"data": shape, "end": unsigned(ends)})


class WidthConverter(wiring.Component):
    """Takes memory as beats of `bus_bytes`, cuts it into slots, and offers the first `used` bytes of each.

    Flow control: limited by the narrower side alone: one beat per cycle goes in where a slot is at least a beat, one
    word per cycle comes out where it is at most one.

    Latency: none where a slot is at most a beat (the word is a part of the beat offered, which is taken with its last
    word); else a word is offered in the cycle after the slot's last beat was taken. `latency` says which: 0 or 1.

    Number format: any; bytes are moved as they are.

    Parameters
    ----------
    bus_bytes : int
        Bytes of a beat, from 1 to 4096.
    slot : int
        Bytes of a slot, from 1 to 4096: a multiple or a divisor of bus_bytes.
    used : int
        Bytes kept of each slot, from its start.
    ends : int
        End marks, from 0 to 64: bits that come with a beat and leave with its last word, 0 with the others.

    Members
    -------
    i : In(stream of beat(bus_bytes, ends))
        Beats.
    o : Out(stream of word(bytes_word(used), ends))
        Words.
    """

    def __init__(self, *, bus_bytes, slot, used, ends=0):
        self.bus_bytes = check_integer("bus_bytes", bus_bytes, most=4096)
        self.slot = check_integer("slot", slot, most=4096)
        self.used = check_integer("used", used, most=4096)
        self.ends = check_integer("ends", ends, least=0, most=64)
        if slot % bus_bytes and bus_bytes % slot:
            raise ValueError(f"slot must be a multiple or a divisor of {bus_bytes}, not {slot!r}")
        if used > slot:
            raise ValueError(f"used must be at most the slot ({slot}), not {used!r}")
        super().__init__(
            {
                "i": In(stream.Signature(beat(bus_bytes, ends))),
                "o": Out(stream.Signature(word(bytes_word(used), ends))),
            }
        )

    @property
    def latency(self):
        """Cycles from a word's last beat to the word."""
        return int(self.slot > self.bus_bytes)

    def elaborate(self, platform):
        m = Module()
        if self.slot > self.bus_bytes:
            self._gather(m, self.slot // self.bus_bytes)
        elif self.slot == self.bus_bytes:
            m.d.comb += [
                self.o.valid.eq(self.i.valid),
                Cat(self.o.p.data).eq(self.i.p.data),
                self.o.p.end.eq(self.i.p.end),
                self.i.ready.eq(self.o.ready),
            ]
        else:
            self._split(m, self.bus_bytes // self.slot)
        return m

    def _gather(self, m, count):
        part = Signal(range(count))
        kept = Cat(self.o.p.data)
        m.d.comb += self.i.ready.eq(self.o.ready | ~self.o.valid)
        with m.If(self.i.ready):
            m.d.sync += self.o.valid.eq(self.i.valid & (part == count - 1))
        with m.If(self.i.ready & self.i.valid):
            m.d.sync += self.o.p.end.eq(self.i.p.end)
            with m.Switch(part):
                for index in range(count):
                    low = 8 * self.bus_bytes * index
                    with m.Case(index):
                        m.d.sync += [
                            kept[low : low + 8 * self.bus_bytes].eq(self.i.p.data),
                            part.eq((index + 1) % count),
                        ]

    def _split(self, m, count):
        part = Signal(range(count))
        last = part == count - 1
        m.d.comb += [
            self.o.valid.eq(self.i.valid),
            Cat(self.o.p.data).eq(self.i.p.data.word_select(part, 8 * self.slot)),
            self.i.ready.eq(self.o.ready & last),
        ]
        with m.If(last):
            m.d.comb += self.o.p.end.eq(self.i.p.end)
        with m.If(self.o.ready & self.i.valid):
            m.d.sync += part.eq(part + 1)
