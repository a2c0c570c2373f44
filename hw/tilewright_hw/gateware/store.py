"""The write side of memory: the store stream becomes AXI write bursts."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from tilewright_hw.arch.isa import BASES, Element, Op
from tilewright_hw.gateware.axi import AxiWrite, drive_address
from tilewright_hw.gateware.burst import BurstSplitter, burst, run
from tilewright_hw.gateware.checks import check_config
from tilewright_hw.gateware.fifo import ReadyBuffer, StreamFifo
from tilewright_hw.gateware.layouts import operands, store_word
from tilewright_hw.gateware.reader import select_base

__all__ = ["Packer", "RowWalker", "RunWalker", "StoreUnit", "WriteIssue"]

RUN_BITS = 18
"""Width of a run's last byte: 65,536 elements of four bytes."""
FIFO_WORDS = 64
"""Words of the store stream that may wait for the bus."""
RUNS = 8
"""Runs whose addresses may be ahead of their data."""

ROW = data.StructLayout({"addr": unsigned(64), "last": 1})
"""Where a row starts, and whether it is the command's last."""


def layout_run(block_bytes):
    """Return what the data side knows of a run.

    `at` is its first byte's place in an aligned block of the largest burst's size, `count` its elements minus one,
    `row_end` whether it ends its row, `size` log2 of an element's bytes, `step` log2 of the elements per piece.
    """
    return data.StructLayout(
        {
            "at": unsigned(exact_log2(block_bytes)),
            "count": unsigned(16),
            "row_end": 1,
            "size": unsigned(2),
            "step": unsigned(3),
        }
    )


class RowWalker(wiring.Component):
    """The start of every row of a STORE: base + offset + A(m) + h * stride_h (docs/architecture.md).

    Flow control: one row per cycle. Latency: the first row is offered two cycles after `start`.

    Members
    -------
    start : In(1)
        Take `command` and `base`; only when no row is left.
    command : In(operands(Op.STORE)), base : In(64)
        The command and its base register, at `start`.
    o : Out(stream of ROW)
        Rows.
    """

    def __init__(self):
        super().__init__(
            {
                "start": In(1),
                "command": In(operands(Op.STORE)),
                "base": In(64),
                "o": Out(stream.Signature(ROW)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        command, row = self.command, self.o.p
        names = ("stride_m", "stride_h", "wrap_stride", "h", "wrap_period")
        kept = {name: Signal.like(command[name], name=name) for name in names}
        offset = Signal(32)
        first = Signal()
        more = Signal()
        outer = Signal(64)  # start of the outer row
        inner_left = Signal(16)
        outer_left = Signal(16)
        to_wrap = Signal(16)
        step = Signal(32)
        origin = Signal(64)
        # Whether the row is the last inner one, and the next one wraps: registers, as a wide adder waits for them.
        inner_last = Signal()
        wraps = Signal()
        # One adder makes each row from the one before: from the base, from the inner row, or from the outer row.
        with m.If(first):
            m.d.comb += [step.eq(offset), origin.eq(row.addr)]
        with m.Elif(~inner_last):
            m.d.comb += [step.eq(kept["stride_h"]), origin.eq(row.addr)]
        with m.Else():
            m.d.comb += [step.eq(Mux(wraps, kept["wrap_stride"], kept["stride_m"])), origin.eq(outer)]
        with m.If(self.start):
            m.d.sync += [kept[name].eq(command[name]) for name in names]
            m.d.sync += [row.addr.eq(self.base), offset.eq(command.offset), first.eq(1), more.eq(1)]
            m.d.sync += [outer_left.eq(command.m), to_wrap.eq(command.wrap_first), wraps.eq(command.wrap_first == 1)]
        with m.Elif(self.o.ready | ~self.o.valid):
            m.d.sync += self.o.valid.eq(more)
            with m.If(more):
                after = origin + step
                m.d.sync += [row.addr.eq(after), first.eq(0)]
                self._count(m, kept, first, inner_last, wraps, inner_left, outer_left, to_wrap, more)
                with m.If(first | inner_last):
                    m.d.sync += outer.eq(after)
        return m

    def _count(self, m, kept, first, inner_last, wraps, inner_left, outer_left, to_wrap, more):
        """Count the row that is entered: `inner_left` and `outer_left` include it from then on."""
        last_inner = Signal()
        last_outer = Signal()
        m.d.comb += [
            last_inner.eq(Mux(first | inner_last, kept["h"] == 1, inner_left == 2)),
            last_outer.eq(Mux(~first & inner_last, outer_left == 2, outer_left == 1)),
        ]
        m.d.sync += [self.o.p.last.eq(last_inner & last_outer), more.eq(~(last_inner & last_outer))]
        m.d.sync += inner_last.eq(last_inner)
        with m.If(first | inner_last):
            m.d.sync += inner_left.eq(kept["h"])
        with m.Else():
            m.d.sync += inner_left.eq(inner_left - 1)
        with m.If(~first & inner_last):
            # A period of zero, and a first wrap of zero, count down through 65,535: further than there are rows.
            m.d.sync += [
                outer_left.eq(outer_left - 1),
                to_wrap.eq(Mux(wraps, kept["wrap_period"], to_wrap - 1)),
                wraps.eq(Mux(wraps, kept["wrap_period"] == 1, to_wrap == 2)),
            ]


class RunWalker(wiring.Component):
    """Cuts rows into runs: run r of a row starts at its address + r * stride_run; the last may be shorter.

    Flow control: one run per cycle, also from row to row. Latency: one cycle.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator's parameters.

    Members
    -------
    start : In(1), command : In(operands(Op.STORE))
        Take what is needed of the command.
    i : In(stream of ROW)
        Rows.
    o : Out(stream of run)
        Runs, as bytes, for the addresses.
    o_data : Out(stream of layout_run)
        The same runs for the data side.
    """

    def __init__(self, config):
        self.config = config
        self.block_bytes = config.burst_beats * config.bus_bytes
        super().__init__(
            {
                "start": In(1),
                "command": In(operands(Op.STORE)),
                "i": In(stream.Signature(ROW)),
                "o": Out(stream.Signature(run(RUN_BITS))),
                "o_data": Out(stream.Signature(layout_run(self.block_bytes))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # Counts are kept minus one; `left` is what remains of the row, this run included.
        row_count = Signal(16)
        run_count = Signal(16)
        left = Signal(16)
        stride = Signal(32)
        size = Signal(2)
        step = Signal(3)
        addr = Signal(64)
        last_row = Signal()
        valid = Signal()
        row_end = Signal()
        count = Signal(16)
        taken = Signal()
        m.d.comb += [
            row_end.eq(left <= run_count),
            count.eq(Mux(row_end, left, run_count)),
            taken.eq(self.o.ready & self.o_data.ready),
            self.o.valid.eq(valid & self.o_data.ready),
            self.o_data.valid.eq(valid & self.o.ready),
            self.o.p.addr.eq(addr),
            self.o.p.last.eq(last_row & row_end),
            self.o_data.p.at.eq(addr),
            self.o_data.p.count.eq(count),
            self.o_data.p.row_end.eq(row_end),
            self.o_data.p.size.eq(size),
            self.o_data.p.step.eq(step),
            self.i.ready.eq(~valid | (taken & row_end)),
        ]
        with m.Switch(size):
            for element in Element:
                with m.Case(element):
                    last_byte = Cat(Const((1 << element) - 1, int(element)), count)
                    m.d.comb += self.o.p.last_byte.eq(last_byte)
        with m.If(self.start):
            m.d.sync += [
                row_count.eq(self.command.n - 1),
                run_count.eq(self.command.run - 1),
                stride.eq(self.command.stride_run),
                size.eq(self.command.element),
                step.eq(self._step(m)),
            ]
        with m.If(self.i.ready):
            m.d.sync += [
                valid.eq(self.i.valid),
                addr.eq(self.i.p.addr),
                last_row.eq(self.i.p.last),
                left.eq(row_count),
            ]
        with m.Elif(taken):
            m.d.sync += [addr.eq(addr + stride), left.eq(left - run_count - 1)]
        return m

    def _step(self, m):
        """Return log2 of the elements that move at once.

        It is the largest power of two that divides a run, but no more than fit in a beat, nor than a store word holds:
        then no piece crosses a beat, a store word or a run's end.
        """
        step = Signal(3)
        lanes, beat = exact_log2(self.config.lanes), exact_log2(self.config.bus_bytes)
        with m.Switch(self.command.element):
            for element in Element:
                with m.Case(element):
                    most = min(lanes, beat - int(element))
                    m.d.comb += step.eq(most)
                    for k in reversed(range(most)):
                        with m.If(self.command.run[k]):
                            m.d.comb += step.eq(k)
        return step


class Packer(wiring.Component):
    """Places the elements of store words into beats, a piece of 2**step elements per cycle.

    Two stages. The first takes the piece out of the word, drops the unused bytes of its elements, and notes which bytes
    exist. The second repeats the piece over the width of the beat and writes it to the byte lanes that its address
    names: so nothing is ever shifted by an address. A beat leaves when its last byte is written, or its run ends.

    Flow control: one piece per cycle. Latency: two cycles. Each row starts at a new store word.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator's parameters.

    Members
    -------
    i : In(stream of store_word(L))
        Elements.
    i_run : In(stream of layout_run)
        Where they go.
    o : Out(stream of {data, strb, last})
        Beats; `last` marks the last of a burst.
    permit : In(1)
        The burst of the next beat has been asked for; no beat is begun before.
    last_written : Out(1)
        The last beat of a burst is complete and will be offered from the next cycle on.
    busy : Out(1)
        A run, a piece or a beat is held.
    """

    def __init__(self, config):
        self.config = config
        self.block_bytes = config.burst_beats * config.bus_bytes
        beat = {"data": config.bus_bits, "strb": config.bus_bytes, "last": 1}
        super().__init__(
            {
                "i": In(stream.Signature(store_word(config.lanes))),
                "i_run": In(stream.Signature(layout_run(self.block_bytes))),
                "o": Out(stream.Signature(data.StructLayout(beat))),
                "permit": In(1),
                "last_written": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self._piece_bytes = min(self.config.bus_bytes, 4 * self.config.lanes)
        # The piece in the second stage: its bytes with their marks, its place, and what it completes.
        self._bytes = [Signal(9, name=f"byte{i}") for i in range(self._piece_bytes)]
        self._at = Signal(exact_log2(self.config.bus_bytes))
        self._length = Signal(3)  # log2 of its bytes
        self._full = Signal()
        self._ends = Signal()
        self._valid = Signal()
        self._free = Signal()
        self._take_pieces(m)
        self._write_lanes(m)
        return m

    def _take_pieces(self, m):
        """First stage: step through the words of a row and the runs that they fill."""
        now = Signal(layout_run(self.block_bytes))
        have = Signal()
        at_element = Signal(exact_log2(self.config.lanes))
        run_end = Signal()
        go = Signal()
        word_end = Signal()
        elements = Signal(5)
        length = Signal(3)
        after = Signal(len(now.at))
        beyond = Signal(exact_log2(self.config.lanes) + 1)
        m.d.comb += [
            length.eq(now.size + now.step),
            elements.eq(1 << now.step),
            run_end.eq(now.count < elements),
            after.eq(now.at + (1 << length)),
            beyond.eq(at_element + elements),
            word_end.eq(beyond[-1] | (run_end & now.row_end)),
            go.eq(have & self.i.valid & self._free),
            self.i.ready.eq(go & word_end),
            self.i_run.ready.eq(~have | (go & run_end)),
            self.busy.eq(have | self._valid | self.o.valid),
        ]
        with m.If(self.i_run.ready):
            m.d.sync += [now.eq(self.i_run.p), have.eq(self.i_run.valid)]
        with m.Elif(go):
            m.d.sync += [now.at.eq(after), now.count.eq(now.count - elements)]
        with m.If(self._free):
            m.d.sync += self._valid.eq(go)
        with m.If(go):
            m.d.sync += [
                at_element.eq(Mux(word_end, 0, beyond)),
                self._at.eq(now.at),
                self._length.eq(length),
                self._full.eq(run_end | (after[: len(self._at)] == 0)),
                self._ends.eq(run_end | (after == 0)),
            ]
            self._compact(m, now, at_element)

    def _compact(self, m, now, at_element):
        """Move the piece's elements to the front of the word, and their used bytes next to each other."""
        words = [Signal(32, name=f"element{i}") for i in range(self.config.lanes)]
        moved = list(self.i.p)
        for k in reversed(range(len(at_element))):
            half = [Mux(at_element[k], moved[i + (1 << k)], moved[i]) for i in range(1 << k)]
            moved = half + moved[1 << k :]
        m.d.comb += [word.eq(value) for word, value in zip(words, moved, strict=True)]
        with m.Switch(now.size):
            for element in Element:
                size = 1 << element
                with m.Case(element):
                    for i, byte in enumerate(self._bytes):
                        if i // size < self.config.lanes:
                            value = words[i // size][8 * (i % size) : 8 * (i % size) + 8]
                            used = now.count >= i // size if i >= size else Const(1)
                            m.d.sync += byte.eq(Cat(value, used))

    def _write_lanes(self, m):
        """Second stage: repeat the piece, and write the lanes that its address names."""
        width = len(self._at)
        repeated = self._bytes
        for k in range(width):
            # Lanes whose bit k is set: their own byte if the piece is longer than 2**k, else that of the lane below.
            low = repeated[: 1 << k]
            own = repeated[1 << k : 2 << k]
            high = [Mux(self._length > k, a, b) for a, b in zip(own, low, strict=True)] if own else low
            repeated = low + high + repeated[2 << k :]
        begun = Signal()
        write = Signal()
        out = self.o.p
        m.d.comb += [
            write.eq(self._valid & self.permit & (self.o.ready | ~self.o.valid)),
            self._free.eq(~self._valid | write),
            self.last_written.eq(write & self._full & self._ends),
        ]
        with m.If(self.o.ready | ~self.o.valid):
            m.d.sync += self.o.valid.eq(write & self._full)
        with m.If(write):
            m.d.sync += [out.last.eq(self._ends), begun.eq(~self._full)]
            for i, byte in enumerate(repeated):
                here = Const(1, 1)
                for k in range(width):
                    here &= (self._length > k) | (self._at[k] == (i >> k & 1))
                with m.If(here):
                    m.d.sync += out.data[8 * i : 8 * i + 8].eq(byte[:8])
                m.d.sync += out.strb[i].eq((out.strb[i] & begun) | (here & byte[8]))


class WriteIssue(wiring.Component):
    """Asks for bursts ahead of their data, and counts them until they are answered.

    Flow control: one burst per cycle while fewer than `limit` are outstanding; the address comes from registers.

    Parameters
    ----------
    limit : int
        Bursts that may be outstanding.

    Members
    -------
    i : In(stream of burst(0))
        Bursts.
    o : Out(stream of {addr, len})
        The address channel.
    answer : In(1)
        A response came.
    last_written : In(1)
        The data of a burst is complete.
    permit : Out(1)
        A burst has been asked for whose data is not complete.
    done : Out(1)
        The response of a command's last burst came.
    idle : Out(1)
        Nothing is outstanding.
    """

    def __init__(self, limit):
        self.limit = limit
        super().__init__(
            {
                "i": In(stream.Signature(burst(0))),
                "o": Out(stream.Signature(data.StructLayout({"addr": 64, "len": 8}))),
                **dict.fromkeys(("answer", "last_written"), In(1)),
                **dict.fromkeys(("permit", "done", "idle"), Out(1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # One bit per outstanding burst: whether it is its command's last.
        m.submodules.ends = ends = StreamFifo(1, self.limit + 1)
        outstanding = Signal(range(self.limit + 1))
        unwritten = Signal(range(self.limit + 1))
        free = Signal()
        issued = Signal()
        m.d.comb += [
            free.eq((self.o.ready | ~self.o.valid) & (outstanding != self.limit) & ends.i.ready),
            self.i.ready.eq(free),
            issued.eq(free & self.i.valid),
            ends.i.valid.eq(issued),
            ends.i.p.eq(self.i.p.end),
            ends.o.ready.eq(self.answer),
            self.permit.eq(unwritten != 0),
            self.idle.eq(outstanding == 0),
        ]
        m.d.sync += [
            self.done.eq(self.answer & ends.o.p),
            outstanding.eq(outstanding + issued - self.answer),
            unwritten.eq(unwritten + issued - self.last_written),
        ]
        with m.If(self.o.ready | ~self.o.valid):
            m.d.sync += self.o.valid.eq(issued)
        with m.If(issued):
            m.d.sync += [self.o.p.addr.eq(self.i.p.addr), self.o.p.len.eq(self.i.p.len)]
        return m


class StoreUnit(wiring.Component):
    """Executes STORE: writes the rows of the store stream to memory (docs/architecture.md), in 64-bit addresses.

        STORE -> rows -> runs -+-> bursts ------------> AW
                               v
        i_data -> FIFO --> pieces -> byte lanes ------> W      B -> done, error

    A run becomes the beats that its bytes touch, in INCR bursts aligned to the largest one's size, with byte strobes at
    its ends. Data moves in pieces: per cycle the largest power of two of elements that divides a run, but at most a bus
    word and L elements. So contiguous 32-bit elements go at a beat per cycle (where L elements fill it, and as many
    beats may be unanswered as memory takes cycles to answer), scattered ones at one element per cycle.

    Flow control: AXI and streams, valid/ready. Addresses are asked for ahead of their data; data is offered only after
    its address, and does not wait for the address to be taken. `i_data` takes words ahead of the command too, as long
    as there is room.

    Latency: the first address of a command is offered COMMAND_LATENCY cycles after the command was, if none is before
    it.

    Number format: elements of 8, 16 or 32 bits, the low ones of those in the store stream, as they are.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator's parameters.

    Members
    -------
    cmd : In(stream of operands(Op.STORE))
        Commands; the next is taken when the addresses of the former have been generated, and at the earliest in the
        second cycle in which it is offered.
    done : Out(1)
        One pulse per command, in order, after all its write responses.
    i_data : In(stream of store_word(L))
        The store stream.
    bases : In(64).array(8)
        Base registers; read in the cycle before a command is taken.
    axi : Out(AxiWrite)
        The master's write channels.
    error : Out(1)
        A write was answered SLVERR or DECERR; stays until reset.
    beat : Out(1)
        Event: a data beat was taken.
    idle : Out(1)
        No command is held and no write outstanding.
    """

    COMMAND_LATENCY = 6

    def __init__(self, config):
        self.config = check_config(config)
        super().__init__(
            {
                "cmd": In(stream.Signature(operands(Op.STORE))),
                "done": Out(1),
                "i_data": In(stream.Signature(store_word(config.lanes))),
                "bases": In(64).array(BASES),
                "axi": Out(AxiWrite(data_bits=config.bus_bits)),
                "error": Out(1),
                "beat": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, axi = self.config, self.axi
        m.submodules.fifo = fifo = StreamFifo(store_word(config.lanes), FIFO_WORDS)
        m.submodules.packer = packer = Packer(config)
        m.submodules.issue = issue = WriteIssue(config.writes_in_flight)
        walking = self._addresses(m, packer, issue)
        connect(m, flipped(self.i_data), fifo.i)
        connect(m, fifo.o, packer.i)
        m.d.comb += [
            packer.permit.eq(issue.permit),
            issue.last_written.eq(packer.last_written),
            issue.answer.eq(axi.bvalid),
            self.done.eq(issue.done),
            self.beat.eq(axi.wvalid & axi.wready),
            self.idle.eq(issue.idle & ~walking & ~packer.busy & ~issue.done),
            *drive_address("aw", axi, config.bus_bytes),
            axi.awaddr.eq(issue.o.p.addr),
            axi.awlen.eq(issue.o.p.len),
            axi.awvalid.eq(issue.o.valid),
            issue.o.ready.eq(axi.awready),
            axi.wdata.eq(packer.o.p.data),
            axi.wstrb.eq(packer.o.p.strb),
            axi.wlast.eq(packer.o.p.last),
            axi.wvalid.eq(packer.o.valid),
            packer.o.ready.eq(axi.wready),
            axi.bready.eq(1),
        ]
        m.d.sync += self.error.eq(self.error | (axi.bvalid & axi.bresp[1]))
        return m

    def _addresses(self, m, packer, issue):
        """Take commands one at a time and generate their runs and bursts; return whether any may be left."""
        config = self.config
        m.submodules.rows = rows = RowWalker()
        m.submodules.runs = runs = RunWalker(config)
        m.submodules.queue = queue = StreamFifo(runs.o_data.p.shape(), RUNS)
        m.submodules.bursts = bursts = BurstSplitter(
            bus_bytes=config.bus_bytes, beats=config.burst_beats, bits=RUN_BITS
        )
        walking = Signal()
        start = Signal()
        # The base registers are far away: the command's is chosen one cycle, and used from the next one on.
        base = Signal(64)
        chosen = Signal()
        select_base(m, self.bases, self.cmd.p.base, base)
        m.d.sync += [rows.base.eq(base), chosen.eq(self.cmd.valid & ~start)]
        m.d.comb += [
            self.cmd.ready.eq(chosen & ~walking),
            start.eq(self.cmd.valid & chosen & ~walking),
            rows.start.eq(start),
            runs.start.eq(start),
            rows.command.eq(self.cmd.p),
            runs.command.eq(self.cmd.p),
        ]
        with m.If(start):
            m.d.sync += walking.eq(1)
        with m.Elif(runs.o.valid & runs.o.ready & runs.o.p.last):
            m.d.sync += walking.eq(0)
        connect(m, rows.o, runs.i)
        connect(m, runs.o, bursts.i)
        connect(m, runs.o_data, queue.i)
        connect(m, queue.o, packer.i_run)
        m.submodules.burst_cut = cut = ReadyBuffer(burst())
        connect(m, bursts.o, cut.i)
        connect(m, cut.o, issue.i)
        return walking | cut.o.valid | queue.o.valid
