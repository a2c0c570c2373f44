"""Tiles that lie in memory the other way round: a corner turner that gives a row for every row it takes."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tilewright_hw.gateware.layouts import bytes_word
from tilewright_hw.gateware.width import word

__all__ = ["Transposer"]


def _exchange(lanes, distance, bits):
    """Return the lanes in the order lane ^ distance, for these bits of `distance`: a layer of two-way muxes each."""
    for i in bits:
        lanes = [Mux(distance[i], lanes[at ^ (1 << i)], lane) for at, lane in enumerate(lanes)]
    return lanes


class Transposer(wiring.Component):
    """o[r][c] = i[c][r] for one tile after another: takes `cols` rows of `rows` bytes, gives `rows` of `cols`.

    Flow control: a row is taken and a row given in every cycle, tile after tile, where rows = cols; else the more of
    the two decide. The first row of a tile is taken before, and while, the last of the tile before is given. `i.ready`
    depends on `o.ready`.

    Latency: the first row of a tile is offered three cycles after its last row was taken.

    Storage: N memories of N bytes, N the next power of two of rows and cols, read without a clock (LUT RAM). Byte r of
    row c lies in memory r ^ c at address c; so a row going in and a row coming out each touch every memory once, and
    both pass one layer of exchanges per address bit. What is read makes room for the next tile, which lies there with
    rows and columns exchanged: byte r of its row c at address r. So tiles use the two orders in turn, and row c of the
    next tile may come once row c of this one has been read.

    Parameters
    ----------
    rows, cols : int
        Size of a tile that comes out.
    ends : int
        End marks: bits that come with the last row of a tile in and leave with its last row out, 0 with the others.

    Members
    -------
    i : In(stream of word(bytes_word(rows), ends))
        The `cols` rows of a tile in memory.
    o : Out(stream of word(bytes_word(cols), ends))
        The `rows` rows of a tile.
    """

    LATENCY = 3

    def __init__(self, *, rows, cols, ends=0):
        for name, value in (("rows", rows), ("cols", cols)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 2:
                raise TypeError(f"{name} must be an integer of at least 2, not {value!r}")
        self.rows, self.cols, self.ends = rows, cols, ends
        super().__init__(
            {
                "i": In(stream.Signature(word(bytes_word(rows), ends))),
                "o": Out(stream.Signature(word(bytes_word(cols), ends))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bits = ceil_log2(max(self.rows, self.cols))
        come = Signal(bits)  # rows of the tile that comes that were taken from `i`
        taken = Signal(bits)  # those that were written
        given = Signal(bits)  # rows read of the tile that is held
        held = Signal()  # a whole tile is held
        mode = Signal()  # how it lies
        staged = Signal()
        free = Signal()
        writes = Signal()
        reads = Signal()
        staged_end = Signal(self.ends)
        end = Signal(self.ends)
        last_in, last_out = taken == self.cols - 1, given == self.rows - 1
        m.d.comb += [
            reads.eq(held & (self.o.ready | ~self.o.valid)),
            # While a tile is held, the rows still to be given keep their places, and the next is not completed.
            free.eq(~held | (reads & last_out) | (~last_in & ((taken < given) | (reads & (taken == given))))),
            writes.eq(staged & free),
            self.i.ready.eq(~staged | free),
        ]
        with m.If(self.i.ready):
            m.d.sync += staged.eq(self.i.valid)
        with m.If(self.i.ready & self.i.valid):
            m.d.sync += [come.eq(Mux(come == self.cols - 1, 0, come + 1)), staged_end.eq(self.i.p.end)]
        with m.If(writes):
            m.d.sync += taken.eq(Mux(last_in, 0, taken + 1))
        with m.If(reads):
            m.d.sync += given.eq(Mux(last_out, 0, given + 1))
        with m.If(writes & last_in):
            m.d.sync += [held.eq(1), mode.eq(~mode), end.eq(staged_end)]
        with m.Elif(reads & last_out):
            m.d.sync += held.eq(0)
        with m.If(self.o.ready | ~self.o.valid):
            m.d.sync += [self.o.valid.eq(held), self.o.p.end.eq(Mux(last_out, end, 0))]
        stored = self._store(m, taken, given, mode, writes, self._enter(m, come, taken))
        self._leave(m, given, reads, stored)
        return m

    def _enter(self, m, come, taken):
        """Exchange the lanes of a row that comes, with a register half way; return them as they are to be written.

        The register halves more than the delay: synthesis would make one wide mux of each lane, twice as large.
        """
        half = len(come) // 2
        lanes = [Cat(self.i.p.data[r]) for r in range(self.rows)]
        lanes += [Const(0, 8)] * ((1 << len(come)) - self.rows)
        staged = [Signal(8, name=f"staged_{b}", reset_less=True) for b in range(len(lanes))]
        with m.If(self.i.ready & self.i.valid):
            m.d.sync += [to.eq(lane) for to, lane in zip(staged, _exchange(lanes, come, range(half)), strict=True)]
        return _exchange(staged, taken, range(half, len(come)))

    def _store(self, m, taken, given, mode, writes, lanes):
        """Write the row taken; return what the memories hold of the row to be given.

        `mode` is how the tile held lies: 0 with byte r of row c at address r, 1 at address c. The tile that comes lies
        the other way. Memory b has row `taken` or `given` at that address, or at the one that differs by b.
        """
        stored = []
        for b, lane in enumerate(lanes):
            m.submodules[f"bank_{b}"] = bank = memory.Memory(shape=8, depth=len(lanes), init=[])
            write, read = bank.write_port(), bank.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(writes),
                write.data.eq(lane),
                write.addr.eq(Mux(mode, taken ^ b, taken)),
                read.addr.eq(Mux(mode, given ^ b, given)),
            ]
            stored.append(read.data)
        return stored

    def _leave(self, m, given, reads, stored):
        """Exchange the lanes of a row that is given, with the register of the output half way."""
        half = len(given) // 2
        leaving = Signal.like(given, reset_less=True)
        lanes = [Signal(8, name=f"leaving_{b}", reset_less=True) for b in range(len(stored))]
        with m.If(reads):
            m.d.sync += leaving.eq(given)
            m.d.sync += [to.eq(lane) for to, lane in zip(lanes, _exchange(stored, given, range(half)), strict=True)]
        lanes = _exchange(lanes, leaving, range(half, len(given)))
        m.d.comb += [Cat(self.o.p.data[c]).eq(lanes[c]) for c in range(self.cols)]
