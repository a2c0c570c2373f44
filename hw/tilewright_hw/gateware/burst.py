"""From a strided command to AXI bursts: runs of bytes, and runs cut into bursts."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tilewright_hw.gateware.axi import PAGE

__all__ = ["BurstSplitter", "RunGenerator", "burst", "largest_burst", "run", "strided"]


def strided(tag=0):
    """Return the shape of a strided command: `count` runs of `bytes` bytes, at start + offset + i * stride.

    `tag` bits travel with all that comes of it.
    """
    return data.StructLayout(
        {
            "start": unsigned(64),
            "offset": unsigned(32),
            "stride": unsigned(32),
            "bytes": unsigned(32),
            "count": unsigned(16),
            "tag": unsigned(tag),
        }
    )


def run(bits=32, tag=0):
    """Return the shape of a run: bytes from `addr` to `addr + last_byte`; `last` marks its command's last run."""
    return data.StructLayout(
        {
            "addr": unsigned(64),
            "last_byte": unsigned(bits),
            "last": unsigned(1),
            "tag": unsigned(tag),
        }
    )


def burst(tag=0):
    """Return the shape of a burst: address, beats minus one, whether it ends its run, and its command."""
    return data.StructLayout(
        {
            "addr": unsigned(64),
            "len": unsigned(8),
            "run_end": unsigned(1),
            "end": unsigned(1),
            "tag": unsigned(tag),
        }
    )


def largest_burst(burst_beats, room_beats):
    """Return the beats of the longest burst to ask for, where the data goes to a FIFO of `room_beats`.

    Half the FIFO at most: a part of a tile may stay behind in it, and the burst must fit beside it.
    """
    return min(burst_beats, 1 << ((room_beats // 2).bit_length() - 1))


class RunGenerator(wiring.Component):
    """The runs of strided commands: run i starts at start + offset + i * stride, in 64 bits.

    Flow control: one run per cycle; two cycles pass between the last run of a command and the first of the next.

    Latency: the first run is offered two cycles after its command is taken.

    Parameters
    ----------
    tag : int
        Tag bits of a command, repeated with each of its runs.

    Members
    -------
    i : In(stream of strided(tag))
        Commands; `bytes` and `count` are at least one.
    o : Out(stream of run(32, tag))
        Runs.
    """

    LATENCY = 2

    def __init__(self, tag=0):
        self.tag = tag
        super().__init__({"i": In(stream.Signature(strided(tag))), "o": Out(stream.Signature(run(32, tag)))})

    def elaborate(self, platform):
        m = Module()
        command, out = self.i.p, self.o.p
        step = Signal(32)
        stride = Signal(32)
        left = Signal(16)
        more = Signal()  # there are some left: commands wait for it
        free = Signal()
        m.d.comb += free.eq(self.o.ready | ~self.o.valid)
        m.d.comb += self.i.ready.eq(free & ~more)
        with m.If(free):
            m.d.sync += self.o.valid.eq(more)
            with m.If(more):
                m.d.sync += [
                    out.addr.eq(out.addr + step),
                    out.last.eq(left == 1),
                    step.eq(stride),
                    left.eq(left - 1),
                    more.eq(left != 1),
                ]
            with m.Elif(self.i.valid):
                # One adder serves both sums: the first step goes from the base register to the first run.
                m.d.sync += [
                    out.addr.eq(command.start),
                    step.eq(command.offset),
                    stride.eq(command.stride),
                    out.last_byte.eq(command.bytes - 1),
                    out.tag.eq(command.tag),
                    left.eq(command.count),
                    more.eq(1),
                ]
        return m


class BurstSplitter(wiring.Component):
    """Cuts runs of bytes into INCR bursts that end at multiples of the largest burst's size.

    A run becomes the beats that its bytes touch. Every burst but a run's first and last is a largest one, aligned to
    its size; as that divides 4 KiB, no burst crosses a 4 KiB boundary.

    Flow control: one burst per cycle, also from run to run. Latency: one cycle.

    Parameters
    ----------
    bus_bytes : int
        Bytes of a beat.
    beats : int
        Beats of the largest burst: a power of two, at most 256 and 4 KiB.
    bits : int
        Width of a run's `last_byte`.
    tag : int
        Tag bits of a run, repeated with each of its bursts.

    Members
    -------
    i : In(stream of run(bits, tag))
        Runs.
    o : Out(stream of burst(tag))
        Bursts; the address is that of the first beat, a multiple of the bus word.
    """

    LATENCY = 1

    def __init__(self, *, bus_bytes, beats, bits=32, tag=0):
        if beats <= 0 or beats & (beats - 1) or beats > 256 or beats * bus_bytes > PAGE:
            raise ValueError(f"Beats of a burst must be a power of two of at most 256 and {PAGE} bytes, not {beats!r}")
        self.bus_bytes, self.beats, self.bits, self.tag = bus_bytes, beats, bits, tag
        super().__init__({"i": In(stream.Signature(run(bits, tag))), "o": Out(stream.Signature(burst(tag)))})

    def elaborate(self, platform):
        m = Module()
        word = exact_log2(self.bus_bytes)
        inside = exact_log2(self.bus_bytes * self.beats)  # address bits inside an aligned block
        # `first` and `last` are byte positions from the block's start, `blocks` counts the blocks after this one.
        block = Signal(64 - inside)
        first = Signal(inside)
        blocks = Signal(self.bits + 1 - inside)
        last = Signal(inside)
        final = Signal()
        of_last_run = Signal()
        tag = Signal(self.tag)
        end = Signal(self.bits + 1)
        m.d.comb += [
            end.eq(self.i.p.addr[:inside] + self.i.p.last_byte),
            self.i.ready.eq(~self.o.valid | (self.o.ready & final)),
            self.o.p.addr.eq(Cat(Const(0, word), first[word:], block)),
            # Never negative: it has no bits of a sign.
            self.o.p.len.eq((Mux(final, last[word:], self.beats - 1) - first[word:])[: inside - word]),
            self.o.p.run_end.eq(final),
            self.o.p.end.eq(final & of_last_run),
            self.o.p.tag.eq(tag),
        ]
        with m.If(self.i.ready):
            m.d.sync += [
                self.o.valid.eq(self.i.valid),
                Cat(first, block).eq(self.i.p.addr),
                Cat(last, blocks).eq(end),
                final.eq(end[inside:] == 0),
                of_last_run.eq(self.i.p.last),
                tag.eq(self.i.p.tag),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += [
                block.eq(block + 1),
                first.eq(0),
                blocks.eq(blocks - 1),
                final.eq(blocks == 1),
            ]
        return m
