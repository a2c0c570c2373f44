"""Tiles that lie in memory the other way round: a corner turner that gives a row for every row it takes."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tilewright_hw.gateware.layouts import bytes_word
from tilewright_hw.gateware.width import word

__all__ = ["Transposer"]


def _exchange(lanes, distance):
    """Return the lanes in the order lane ^ distance: a layer of two-way muxes for each bit of `distance`."""
    for i, bit in enumerate(distance):
        lanes = [Mux(bit, lanes[at ^ (1 << i)], lane) for at, lane in enumerate(lanes)]
    return lanes


class Transposer(wiring.Component):
    """o[r][c] = i[c][r] for one tile after another: takes `cols` rows of `rows` bytes, gives `rows` of `cols`.

    Flow control: a row is taken and a row given in every cycle, tile after tile, where rows = cols; else the more of
    the two decide. The first row of a tile is taken before, and while, the last of the tile before is given. `i.ready`
    depends on `o.ready`.

    Latency: the first row of a tile is offered two cycles after its last row was taken.

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

    LATENCY = 2

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
        taken, given = Signal(bits), Signal(bits)  # rows taken of the tile that comes, given of the one that is held
        held, mode = Signal(), Signal()  # a whole tile is held; how it lies
        end, writes, reads, fills = Signal(self.ends), Signal(), Signal(), Signal()
        last_in, last_out = taken == self.cols - 1, given == self.rows - 1
        m.d.comb += [
            reads.eq(held & (self.o.ready | ~self.o.valid)),
            # While a tile is held, rows that it still needs keep their places; and the next is not whole before its end.
            self.i.ready.eq(~held | (reads & last_out) | (~last_in & ((taken < given) | (reads & (taken == given))))),
            writes.eq(self.i.valid & self.i.ready),
            fills.eq(writes & last_in),
        ]
        with m.If(writes):
            m.d.sync += taken.eq(Mux(last_in, 0, taken + 1))
        with m.If(reads):
            m.d.sync += given.eq(Mux(last_out, 0, given + 1))
        with m.If(fills):
            m.d.sync += [held.eq(1), mode.eq(~mode), end.eq(self.i.p.end)]
        with m.Elif(reads & last_out):
            m.d.sync += held.eq(0)
        with m.If(self.o.ready | ~self.o.valid):
            m.d.sync += [self.o.valid.eq(held), self.o.p.end.eq(Mux(last_out, end, 0))]
        self._store(m, taken, given, mode, writes, reads)
        return m

    def _store(self, m, taken, given, mode, writes, reads):
        """Write the row taken and read the row given, each with its lanes exchanged.

        `mode` is how the tile held lies: 0 with byte r of row c at address r, 1 at address c. The tile that comes lies
        the other way. Memory b has row `taken` or `given` at that address, or at the one that differs by b.
        """
        count = 1 << len(taken)
        lanes = [self.i.p.data[r] for r in range(self.rows)] + [Const(0, 8)] * (count - self.rows)
        stored = []
        for b, lane in enumerate(_exchange([Cat(lane) for lane in lanes], taken)):
            m.submodules[f"bank_{b}"] = bank = memory.Memory(shape=8, depth=count, init=[])
            write, read = bank.write_port(), bank.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(writes),
                write.data.eq(lane),
                write.addr.eq(Mux(mode, taken ^ b, taken)),
                read.addr.eq(Mux(mode, given ^ b, given)),
            ]
            stored.append(read.data)
        with m.If(reads):
            m.d.sync += [Cat(self.o.p.data[c]).eq(lane) for c, lane in enumerate(_exchange(stored, given)[: self.cols])]
