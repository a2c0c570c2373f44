"""A stand-alone softmax over the rows of a stream, and the three passes it is made of."""

from amaranth import Array, C, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from tilewright_hw.gateware import tables
from tilewright_hw.gateware.checks import check_integer
from tilewright_hw.gateware.fifo import NO_COLLISION, StreamFifo
from tilewright_hw.gateware.float import FloatAdd, FloatMul, IntToFloat, Scale2, delay, from_order_key, order_key
from tilewright_hw.gateware.functions import Exp2, Reciprocal
from tilewright_hw.gateware.layouts import F24, vector_word
from tilewright_hw.gateware.reduce import AlignToInt, MaxTree, SumTree

__all__ = ["ExpPass", "MaxPass", "RowBuffer", "ScalePass", "Softmax", "row_word"]


def row_word(lanes):
    """Return the payload of a stream of rows.

    data: L floats. keep: the lanes of a row's last word that belong to the row (ignored in its other words, which
    belong to it whole). last: the row's last word.
    """
    return data.StructLayout({"data": vector_word(lanes), "keep": unsigned(lanes), "last": 1})


def row_info(lanes, words):
    """Return what is kept of a stored row: the index of its last word, that word's lanes, and the row's scalar."""
    return data.StructLayout({"end": range(words), "keep": unsigned(lanes), "scalar": F24})


def row_writer(lanes, words):
    """Return the ports of a pass towards the buffer it fills, as the pass has them.

    room: a row may be begun; claim begins one. en, addr, data, last: write a word of the oldest claimed row that has
    not had its last. commit, info: the oldest row claimed and not committed is complete.
    """
    return wiring.Signature(
        {
            "room": In(1),
            "claim": Out(1),
            "en": Out(1),
            "addr": Out(range(words)),
            "data": Out(vector_word(lanes)),
            "last": Out(1),
            "commit": Out(1),
            "info": Out(row_info(lanes, words)),
        }
    )


def row_reader(lanes, words):
    """Return the ports of a pass towards the buffer it reads, as the pass has them.

    valid, info: the oldest complete row. addr: word of that row to read; data: its contents, `RowBuffer.LATENCY` cycles
    later. release: the row is not needed after this cycle's read.
    """
    return wiring.Signature(
        {
            "valid": In(1),
            "info": In(row_info(lanes, words)),
            "addr": Out(range(words)),
            "data": In(vector_word(lanes)),
            "release": Out(1),
        }
    )


class RowBuffer(wiring.Component):
    """Two rows: one pass fills the one while the next pass reads the other.

    Rows are claimed, written, committed, read and released in the same order. A word read comes `LATENCY` cycles after
    its address, from the block RAM's output register.

    Parameters
    ----------
    lanes : int
        Floats per word.
    words : int
        Words of the longest row.

    Members
    -------
    writer : row_writer, flipped
        The pass that fills the buffer.
    reader : row_reader, flipped
        The pass that reads it.
    """

    LATENCY = 2

    def __init__(self, *, lanes, words):
        self.lanes = lanes
        self.words = words
        super().__init__({"writer": In(row_writer(lanes, words)), "reader": In(row_reader(lanes, words))})

    def elaborate(self, platform):
        m = Module()
        writer, reader = self.writer, self.reader
        bits = ceil_log2(self.words)
        m.submodules.rows = rows = memory.Memory(
            shape=vector_word(self.lanes), depth=2 << bits, init=[], attrs=NO_COLLISION
        )
        w_port, r_port = rows.write_port(), rows.read_port()
        w_bank = Signal()
        r_bank = Signal()
        c_bank = Signal()
        word = Signal.like(r_port.data, reset_less=True)
        claimed = Signal(range(3))
        complete = Signal(2)
        info = Array(Signal.like(writer.info, name=f"info_{bank}", reset_less=True) for bank in range(2))
        m.d.comb += [
            w_port.en.eq(writer.en),
            w_port.addr.eq(Cat(writer.addr, C(0, bits - len(writer.addr)), w_bank)),
            w_port.data.eq(writer.data),
            r_port.addr.eq(Cat(reader.addr, C(0, bits - len(reader.addr)), r_bank)),
            reader.data.eq(word),
            writer.room.eq(claimed != 2),
            reader.valid.eq(complete.bit_select(r_bank, 1)),
            reader.info.eq(Mux(r_bank, info[1], info[0])),
        ]
        m.d.sync += [
            word.eq(r_port.data),
            claimed.eq(claimed + writer.claim - reader.release),
            w_bank.eq(w_bank ^ (writer.en & writer.last)),
            c_bank.eq(c_bank ^ writer.commit),
            r_bank.eq(r_bank ^ reader.release),
        ]
        with m.If(writer.commit):
            m.d.sync += [info[c_bank].eq(writer.info), complete.bit_select(c_bank, 1).eq(1)]
        with m.If(reader.release):
            m.d.sync += complete.bit_select(r_bank, 1).eq(0)
        return m


class MaxPass(wiring.Component):
    """First pass: store x * log2(e), and find the row's maximum (the scalar it commits, as order key).

    Takes a word per cycle while the buffer has room for the row.

    Parameters
    ----------
    lanes : int
        Floats per word.
    words : int
        Words of the longest row; a longer one is cut there.

    Members
    -------
    i : In(stream.Signature(row_word(lanes)))
        Rows.
    o_rows : Out(row_writer(lanes, words))
        Buffer to fill.
    """

    def __init__(self, *, lanes, words):
        self.lanes = lanes
        self.words = words
        super().__init__({"i": In(stream.Signature(row_word(lanes))), "o_rows": Out(row_writer(lanes, words))})

    def elaborate(self, platform):
        m = Module()
        lanes, rows, word = self.lanes, self.o_rows, self.i.payload
        addr = Signal(range(self.words))
        first = Signal()
        fire = Signal()
        last = Signal()
        m.d.comb += [
            first.eq(addr == 0),
            self.i.ready.eq(rows.room | ~first),
            fire.eq(self.i.valid & self.i.ready),
            last.eq(word.last | (addr == self.words - 1)),
            rows.claim.eq(fire & first),
        ]
        with m.If(fire):
            m.d.sync += addr.eq(Mux(last, 0, addr + 1))

        flags = delay(m, Cat(fire, first, last), FloatMul.LATENCY, name="flags", reset_less=False)
        keep = Mux(word.last, word.keep, C(-1, lanes))
        keep = delay(m, keep, FloatMul.LATENCY, name="keep")
        m.d.comb += [
            rows.en.eq(flags[0]),
            rows.last.eq(flags[2]),
            rows.addr.eq(delay(m, addr, FloatMul.LATENCY, name="addr")),
        ]
        m.submodules.max = tree = MaxTree(lanes=lanes)
        for lane in range(lanes):
            m.submodules[f"mul_{lane}"] = mul = FloatMul()
            m.d.comb += [
                mul.a.eq(word.data[lane]),
                mul.b.eq(tables.log2_e()),
                rows.data[lane].eq(mul.o),
                tree.i[lane].eq(Mux(keep[lane], order_key(mul.o), 0)),
            ]

        best = Signal(24, reset_less=True)
        fire, first, last = delay(m, flags, tree.latency, name="flags_late", reset_less=False)
        with m.If(fire & (first | (tree.o > best))):
            m.d.sync += best.eq(tree.o)
        m.d.sync += rows.commit.eq(fire & last)
        m.d.comb += [
            rows.info.scalar.eq(best),
            rows.info.keep.eq(delay(m, keep, tree.latency + 1, name="keep_late")),
            rows.info.end.eq(delay(m, rows.addr, tree.latency + 1, name="addr_late")),
        ]
        return m


class ExpPass(wiring.Component):
    """Second pass: store e = exp2(x - maximum), and commit 1 / sum of e as the row's scalar.

    Takes a word per cycle once a row is complete and the next buffer has room.

    Parameters
    ----------
    lanes : int
        Floats per word.
    words : int
        Words of the longest row.

    Members
    -------
    i_rows : Out(row_reader(lanes, words))
        Buffer to read: x, the maximum as order key.
    o_rows : Out(row_writer(lanes, words))
        Buffer to fill.
    """

    def __init__(self, *, lanes, words):
        self.lanes = lanes
        self.words = words
        super().__init__({"i_rows": Out(row_reader(lanes, words)), "o_rows": Out(row_writer(lanes, words))})

    def elaborate(self, platform):
        m = Module()
        source, rows, info = self.i_rows, self.o_rows, self.i_rows.info
        addr = Signal(range(self.words))
        first = Signal()
        fire = Signal()
        last = Signal()
        m.d.comb += [
            first.eq(addr == 0),
            fire.eq(source.valid & (rows.room | ~first)),
            last.eq(addr == info.end),
            source.addr.eq(addr),
            source.release.eq(fire & last),
            rows.claim.eq(fire & first),
        ]
        with m.If(fire):
            m.d.sync += addr.eq(Mux(last, 0, addr + 1))

        latency = RowBuffer.LATENCY + FloatAdd.LATENCY + Exp2.LATENCY
        flags = delay(m, Cat(fire, first, last), latency, name="flags", reset_less=False)
        keep = delay(m, Mux(last, info.keep, C(-1, self.lanes)), latency, name="keep")
        m.d.comb += [
            rows.en.eq(flags[0]),
            rows.last.eq(flags[2]),
            rows.addr.eq(delay(m, addr, latency, name="addr")),
        ]
        minus_max = Signal(24, reset_less=True)
        m.d.sync += minus_max.eq(from_order_key(delay(m, info.scalar, RowBuffer.LATENCY - 1, name="key")) ^ (1 << 23))
        for lane in range(self.lanes):
            m.submodules[f"add_{lane}"] = add = FloatAdd()
            m.submodules[f"exp2_{lane}"] = exp2 = Exp2()
            m.d.comb += [
                add.a.eq(source.data[lane]),
                add.b.eq(minus_max),
                exp2.i.eq(add.o),
                rows.data[lane].eq(Mux(keep[lane], exp2.o, 0)),
            ]
        self._sum(m, flags, keep)
        return m

    def _sum(self, m, flags, keep):
        """Add what is written to the buffer and commit the row with the reciprocal of its sum."""
        rows = self.o_rows
        m.submodules.sum = tree = SumTree(lanes=self.lanes, width=26)
        for lane in range(self.lanes):
            m.submodules[f"align_{lane}"] = align = AlignToInt()
            m.d.comb += [align.i.eq(rows.data[lane]), align.unit.eq(1), tree.i[lane].eq(align.o)]
        latency = AlignToInt.LATENCY + tree.latency
        fire, first, last = delay(m, flags, latency, name="flags_sum", reset_less=False)
        total = Signal(signed(27 + ceil_log2(self.lanes * self.words)), reset_less=True)
        with m.If(fire):
            m.d.sync += total.eq(Mux(first, 0, total) + tree.o)

        m.submodules.convert = convert = IntToFloat(len(total))
        m.submodules.scale = scale = Scale2()
        m.submodules.reciprocal = reciprocal = Reciprocal()
        m.d.comb += [
            convert.i.eq(total),
            scale.i.eq(convert.o),
            scale.k.eq(-24),
            reciprocal.i.eq(scale.o),
            rows.info.scalar.eq(reciprocal.o),
        ]
        tail = 1 + IntToFloat.LATENCY + Scale2.LATENCY + Reciprocal.LATENCY
        done = Signal(tail)
        m.d.sync += done.eq(Cat(fire & last, done))
        m.d.comb += [
            rows.commit.eq(done[-1]),
            rows.info.keep.eq(delay(m, keep, latency + tail, name="keep_sum")),
            rows.info.end.eq(delay(m, rows.addr, latency + tail, name="addr_sum")),
        ]


class ScalePass(wiring.Component):
    """Third pass: p = e * scalar, sent on as a stream.

    A word per cycle while the stream is taken; reads no more than its FIFO has room for.

    Parameters
    ----------
    lanes : int
        Floats per word.
    words : int
        Words of the longest row.

    Members
    -------
    i_rows : Out(row_reader(lanes, words))
        Buffer to read.
    o : Out(stream.Signature(row_word(lanes)))
        Rows.
    """

    DEPTH = 8
    """Words of the FIFO: those on the way through the multipliers, and a few more so that none is missed."""

    def __init__(self, *, lanes, words):
        self.lanes = lanes
        self.words = words
        super().__init__({"i_rows": Out(row_reader(lanes, words)), "o": Out(stream.Signature(row_word(lanes)))})

    def elaborate(self, platform):
        m = Module()
        source, info = self.i_rows, self.i_rows.info
        addr = Signal(range(self.words))
        pending = Signal(range(self.DEPTH + 1))
        fire = Signal()
        last = Signal()
        m.d.comb += [
            fire.eq(source.valid & (pending != self.DEPTH)),
            last.eq(addr == info.end),
            source.addr.eq(addr),
            source.release.eq(fire & last),
        ]
        m.d.sync += pending.eq(pending + fire - (self.o.valid & self.o.ready))
        with m.If(fire):
            m.d.sync += addr.eq(Mux(last, 0, addr + 1))

        m.submodules.fifo = fifo = StreamFifo(row_word(self.lanes), self.DEPTH)
        latency = RowBuffer.LATENCY + FloatMul.LATENCY
        scalar = delay(m, info.scalar, RowBuffer.LATENCY, name="scalar")
        keep = Mux(last, info.keep, C(-1, self.lanes))
        valid = Signal(latency)
        m.d.sync += valid.eq(Cat(fire, valid))
        m.d.comb += [
            fifo.i.valid.eq(valid[-1]),
            fifo.i.payload.last.eq(delay(m, last, latency, name="last")),
            fifo.i.payload.keep.eq(delay(m, keep, latency, name="keep")),
        ]
        for lane in range(self.lanes):
            m.submodules[f"mul_{lane}"] = mul = FloatMul()
            m.d.comb += [
                mul.a.eq(source.data[lane]),
                mul.b.eq(scalar),
                fifo.i.payload.data[lane].eq(mul.o),
            ]
        connect(m, fifo.o, flipped(self.o))
        return m


class Softmax(wiring.Component):
    """o = softmax of each row of i: p[k] = exp(x[k] - max x) / sum of exp(x[j] - max x).

    Exactly: y = mul(x, F24(log2 e)); e = exp2(add(y, -max y)); p = mul(e, recip(scale2(i2f(sum of floor(e * 2^24)),
    -24))), in F24 (docs/numerics.md).

    Three passes, each on another row, with a buffer of two rows before the second and the third:

        i -> MaxPass -> RowBuffer -> ExpPass -> RowBuffer -> ScalePass -> o

    Flow control: valid/ready on both sides. While `o` is not taken, four rows are inside, and eight words of those
    before them. Rows leave in order.

    Latency: where all passes are idle and the row's words come without a pause, the first of w words is offered
    `latency(w)` = 2 * w + 37 + 2 * ceil(log2(lanes)) cycles after it was taken. Throughput: such a row every
    w + 14 + ceil(log2(lanes)) cycles, or fewer.

    Number format: F24 (sign, 8 exponent bits, 15 fraction bits: the upper 24 bits of a float32).

    Parameters
    ----------
    lanes : int
        Floats per word, L, from 1 to 64.
    max_length : int
        Elements of the longest row, from 1 to 65536. A longer one is cut into rows of ceil(max_length / L) words.

    Members
    -------
    i : In(stream.Signature(row_word(lanes)))
        Rows: L floats a word; `last` marks a row's last word, and `keep` that word's lanes that belong to the row.
    o : Out(stream.Signature(row_word(lanes)))
        Probabilities in the same packing. Lanes that do not belong to the row are +0; `keep` is all ones but in the
        row's last word.
    """

    def __init__(self, *, lanes, max_length):
        self.lanes = check_integer("lanes", lanes, most=64)
        self.max_length = check_integer("max_length", max_length, most=65536)
        super().__init__(
            {
                "i": In(stream.Signature(row_word(lanes))),
                "o": Out(stream.Signature(row_word(lanes))),
            }
        )

    def latency(self, words):
        """Return the cycles from a row's first word to its first probabilities, where all is idle."""
        return 2 * words + 37 + 2 * ceil_log2(self.lanes)

    def elaborate(self, platform):
        m = Module()
        sizes = {"lanes": self.lanes, "words": max(2, -(-self.max_length // self.lanes))}
        m.submodules.maximum = maximum = MaxPass(**sizes)
        m.submodules.arguments = arguments = RowBuffer(**sizes)
        m.submodules.exponential = exponential = ExpPass(**sizes)
        m.submodules.exponentials = exponentials = RowBuffer(**sizes)
        m.submodules.scale = scale = ScalePass(**sizes)
        connect(m, flipped(self.i), maximum.i)
        connect(m, maximum.o_rows, arguments.writer)
        connect(m, arguments.reader, exponential.i_rows)
        connect(m, exponential.o_rows, exponentials.writer)
        connect(m, exponentials.reader, scale.i_rows)
        connect(m, scale.o, flipped(self.o))
        return m
