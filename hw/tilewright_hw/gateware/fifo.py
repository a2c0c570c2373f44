"""Elastic storage on streams: a FIFO in block RAM and register stages."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware.checks import check_integer, check_shape

NO_COLLISION = {"no_rw_check": 1}
"""Attribute of a memory whose word is never read in the cycle in which it is written: synthesis need not add logic for
what a read would then return."""


class StreamFifo(wiring.Component):
    """First in, first out: `o` repeats what `i` took, in order.

    Flow control: both streams obey valid/ready; one item enters and one leaves per cycle while the
    FIFO is neither full nor empty. `i.ready` does not depend on `o.ready`, so a chain has no long path.

    Latency: an item that enters an empty FIFO is offered `LATENCY` = 2 cycles later.

    Number format: any; items are moved as they are.

    Storage is a memory with one synchronous read and one write port (a block RAM if it is large),
    whose output register holds the item offered.

    Parameters
    ----------
    shape : shape-like
        Shape of an item, of 1 to 65536 bits.
    depth : int
        Items held, from 2 to 2^20.

    Members
    -------
    i : In(stream.Signature(shape)), o : Out(stream.Signature(shape))
        Input and output.
    level : Out(range(depth + 1))
        Items held.
    """

    LATENCY = 2

    def __init__(self, shape, depth):
        self.shape = check_shape("shape", shape)
        self.depth = check_integer("depth", depth, least=2, most=1 << 20)
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "level": Out(range(depth + 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        waiting = self.depth - 1  # items in the memory at most: one more is in its output register
        level = Signal(range(waiting + 1))
        write = Signal()
        read = Signal()
        m.submodules.storage = storage = memory.Memory(
            # Of two pointers that are equal, one stands still: the FIFO is empty or full.
            shape=len(Cat(self.i.payload)),
            depth=waiting,
            init=[],
            attrs=NO_COLLISION,
        )
        w, r = storage.write_port(), storage.read_port()
        m.d.comb += [
            self.i.ready.eq(level != waiting),
            write.eq(self.i.valid & self.i.ready),
            read.eq((level != 0) & (~self.o.valid | self.o.ready)),
            w.en.eq(write),
            w.data.eq(Cat(self.i.payload)),
            r.en.eq(read),
            Cat(self.o.payload).eq(r.data),
            self.level.eq(level + self.o.valid),
        ]
        for port, moves in ((w, write), (r, read)):
            with m.If(moves):
                m.d.sync += port.addr.eq(Mux(port.addr == waiting - 1, 0, port.addr + 1))
        with m.If(write & ~read):
            m.d.sync += level.eq(level + 1)
        with m.Elif(read & ~write):
            m.d.sync += level.eq(level - 1)
        with m.If(read):
            m.d.sync += self.o.valid.eq(1)
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m


class StreamBuffer(wiring.Component):
    """A register stage: `o` repeats what `i` took. It cuts every path between the two, as all outputs are registers.

    Flow control: both streams obey valid/ready; one item per cycle; holds two items, so that ready may be a register.

    Latency: `LATENCY` = 1 cycle.

    Number format: any; items are moved as they are.

    Parameters
    ----------
    shape : shape-like
        Shape of an item, of 1 to 65536 bits.

    Members
    -------
    i : In(stream.Signature(shape)), o : Out(stream.Signature(shape))
        Input and output.
    """

    LATENCY = 1

    def __init__(self, shape):
        self.shape = check_shape("shape", shape)
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        full = Signal()
        spare = Signal.like(self.i.payload)
        m.d.comb += self.i.ready.eq(~full)
        with m.If(self.o.ready | ~self.o.valid):
            m.d.sync += [self.o.valid.eq(self.i.valid | full), full.eq(0)]
            with m.If(full | self.i.valid):
                m.d.sync += Cat(self.o.payload).eq(Mux(full, Cat(spare), Cat(self.i.payload)))
        with m.Elif(self.i.valid & ~full):
            m.d.sync += [full.eq(1), Cat(spare).eq(Cat(self.i.payload))]
        return m


class ReadyBuffer(wiring.Component):
    """A register stage for ready alone: `i.ready` is a register, while an item passes in the cycle in which it comes.

    Where a chain of stages takes an item only when the next stage does, every stage lengthens the path that ready goes
    backwards; one of these in the chain halves it, and costs no cycle.

    Flow control: one item per cycle; holds the one item that comes while `o` waits. Latency: none.

    Parameters
    ----------
    shape : shape-like
        Shape of an item.

    Members
    -------
    i, o : stream of shape
        Input and output; `o.valid` and the payload follow `i` combinationally while nothing is held.
    """

    LATENCY = 0

    def __init__(self, shape):
        self.shape = check_shape("shape", shape)
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        full = Signal()
        spare = Signal.like(self.i.payload)
        m.d.comb += [
            self.i.ready.eq(~full),
            self.o.valid.eq(self.i.valid | full),
            Cat(self.o.payload).eq(Mux(full, Cat(spare), Cat(self.i.payload))),
        ]
        m.d.sync += full.eq(self.o.valid & ~self.o.ready)
        with m.If(~full):
            m.d.sync += Cat(spare).eq(Cat(self.i.payload))
        return m
