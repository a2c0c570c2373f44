"""Where the vector unit's results go: which elements are valid, and the way to the buffers and the store stream."""

from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tilewright_hw.arch.isa import Dest, Op, Source
from tilewright_hw.gateware.address import AddressGenerator, Token
from tilewright_hw.gateware.fifo import StreamFifo
from tilewright_hw.gateware.float import FloatToInt, delay
from tilewright_hw.gateware.layouts import (
    buffer_write,
    bytes_word,
    operands,
    store_word,
    sums_word,
    vector_word,
)

__all__ = ["ResultWriter", "ValidLanes", "act_write"]

STORE_DEPTH = 32
"""Words of the FIFO in front of the store stream: about the longest way from issue to there, so that words flow at one
per cycle."""


def act_write(lanes, parts):
    """Return the signature with which L bytes of an activation word are written: en, addr, part, data."""
    return wiring.Signature(
        {
            "en": Out(1),
            "addr": Out(16),
            "part": Out(ceil_log2(parts)),
            "data": Out(bytes_word(lanes)),
        }
    )


class ValidLanes(wiring.Component):
    """Which lanes of each word hold valid elements: those before lim(m) = min(n, limit + m * causal).

    Parameters
    ----------
    lanes : int
        Elements of a word.

    Members
    -------
    load : In(1)
        An instruction starts.
    n, limit : In(16)
        Elements of a row, and valid ones of the first outer row. Taken at `load`.
    causal : In(1)
        The limit grows with each outer row. Taken at `load`.
    token : In(Token)
        A word comes.
    keep : Out(lanes)
        Its valid lanes, a cycle after the token.
    """

    def __init__(self, *, lanes):
        self.lanes = lanes
        super().__init__(
            {
                "load": In(1),
                "n": In(16),
                "limit": In(16),
                "causal": In(1),
                "token": In(Token),
                "keep": Out(lanes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bound = Signal(16)  # of this outer row
        left = Signal(16)  # from this word on
        n = Signal(16)
        causal = Signal()
        grown = Signal(16)
        smaller = Mux(self.limit < self.n, self.limit, self.n)
        m.d.comb += grown.eq(bound + (causal & (bound != n)))
        with m.If(self.load):
            m.d.sync += [bound.eq(smaller), left.eq(smaller), n.eq(self.n), causal.eq(self.causal)]
        with m.Elif(self.token.valid):
            m.d.sync += self.keep.eq(Cat(left > lane for lane in range(self.lanes)))
            m.d.sync += left.eq(Mux(left > self.lanes, left - self.lanes, 0))
            with m.If(self.token.row_end):
                m.d.sync += left.eq(bound)
            with m.If(self.token.outer_end):
                m.d.sync += [bound.eq(grown), left.eq(grown)]
        return m


class ResultWriter(wiring.Component):
    """Writes results to the row buffer, the activation buffer or the store stream.

    Rigid towards the lanes: the store stream has a FIFO, and a word must be reserved in it (`reserve`, only while
    `room`) before it is issued.

    Parameters
    ----------
    lanes : int
        Elements of a word.
    parts : int
        Words of L elements in an activation word.

    Members
    -------
    load : In(1)
        An instruction starts: `next`.
    next : In(operands(Op.VECTOR))
        Its operands, with `load`.
    command : In(operands(Op.VECTOR))
        The same from the next cycle on, while it runs.
    room : Out(1)
        There is room in the store FIFO for another word.
    reserve : In(1)
        A word is issued that will enter it.
    integer, x5 : In(Token)
        The tokens of those names (`TokenPath`).
    integers : In(sums_word(lanes))
        In time with `integer`.
    floats : In(vector_word(lanes))
        x5: a cycle after its token.
    quantised : In(array of signed(15))
        x5 quantised: `FloatToInt.LATENCY` cycles after that. For ACT16 it stays for two cycles.
    row_en, row : Out(1), Out(buffer_write(vector_word(lanes)))
        Write into the row buffer.
    act : Out(act_write(lanes, parts))
        Write into the activation buffer.
    o_store : Out(stream of store_word(lanes))
        Store stream.
    last : Out(1)
        The instruction's last word is being written.
    """

    def __init__(self, *, lanes, parts):
        self.lanes = lanes
        self.parts = parts
        super().__init__(
            {
                "load": In(1),
                "next": In(operands(Op.VECTOR)),
                "command": In(operands(Op.VECTOR)),
                "room": Out(1, init=1),
                "reserve": In(1),
                "integer": In(Token),
                "x5": In(Token),
                "integers": In(sums_word(lanes)),
                "floats": In(vector_word(lanes)),
                "quantised": In(data.ArrayLayout(signed(15), lanes)),
                "row_en": Out(1),
                "row": Out(buffer_write(vector_word(lanes))),
                "act": Out(act_write(lanes, parts)),
                "o_store": Out(stream.Signature(store_word(lanes))),
                "last": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        dest = self.command.dest
        pairs, integers, raw = self._kinds(m)
        token, high = self._token(m, pairs, integers, raw)
        m.d.comb += self.last.eq(token.valid & token.last)
        # As `token` is for this destination, from a cycle before: loads into the row buffer wait for it.
        m.d.sync += self.row_en.eq(self.x5.valid & (dest == Dest.ROW))

        m.submodules.target = target = AddressGenerator(subs=self.parts)
        m.d.comb += [
            target.load.eq(self.load),
            target.base.eq(self.next.dst),
            target.step_m.eq(self.command.dst_m),
            target.step_h.eq(self.command.dst_h),
            target.step.eq(Mux(pairs, 2, 1)),
            target.last_sub.eq(Mux((dest == Dest.ACT) | pairs, self.parts - 1, 0)),
            target.token.eq(token),
            self.row.addr.eq(target.addr),
            self.row.data.eq(self.floats),
            self.act.en.eq((token.valid & ((dest == Dest.ACT) | pairs)) | high),
            self.act.addr.eq(target.addr + (token.valid & pairs)),
            self.act.part.eq(target.sub),
        ]
        for byte, value in zip(self.act.data, self.quantised, strict=True):
            with m.If(~pairs):
                m.d.comb += byte.eq(value[:8])
            with m.Elif(high):
                m.d.comb += byte.eq(value[7:])
            with m.Else():
                m.d.comb += byte.eq(Cat(value[:7], C(0, 1)))
        self._store(m, token.valid)
        return m

    def _kinds(self, m):
        """Return whether results come in pairs, are quantised, are the accumulators': registers, as `last` waits."""
        pairs = Signal()
        integers = Signal()
        raw = Signal()
        dest = self.next.dest
        with m.If(self.load):
            m.d.sync += [
                pairs.eq(dest == Dest.ACT16),
                integers.eq(dest.matches(Dest.ACT, Dest.ACT16, Dest.STORE_INT8)),
                raw.eq((dest == Dest.STORE_RAW) & (self.next.source == Source.ACC)),
            ]
        return pairs, integers, raw

    def _token(self, m, pairs, integers, raw):
        """Return the token in time with the data that the destination takes, and whether ACT16's first half is here."""
        result = delay(m, self.x5, 1, name="result", reset_less=False)
        quantised = Signal(Token)
        high = Signal(Token)
        m.d.comb += [quantised.eq(result), quantised.valid.eq(result.valid & integers)]
        quantised = delay(m, quantised, FloatToInt.LATENCY, name="late_quantised")
        m.d.comb += [high.eq(quantised), high.valid.eq(quantised.valid & pairs)]
        low = delay(m, high, 1, name="low")
        token = Signal(Token)
        with m.If(raw):
            m.d.comb += token.eq(self.integer)
        with m.Elif(pairs):
            m.d.comb += token.eq(low)
        with m.Elif(integers):
            m.d.comb += token.eq(quantised)
        with m.Else():
            m.d.comb += token.eq(result)
        return token, high.valid

    def _store(self, m, valid):
        """Build the store FIFO and count its room."""
        dest = self.command.dest
        m.submodules.fifo = fifo = StreamFifo(store_word(self.lanes), STORE_DEPTH)
        wiring.connect(m, fifo.o, wiring.flipped(self.o_store))
        m.d.comb += fifo.i.valid.eq(valid & (dest >= Dest.STORE_INT8))
        for i in range(self.lanes):
            word = fifo.i.payload[i]
            with m.Switch(dest):
                with m.Case(Dest.STORE_RAW):
                    m.d.comb += word.eq(self.integers[i].as_unsigned())
                    if i == 0:  # rows of statistics have one element
                        with m.If(self.command.source == Source.STAT):
                            m.d.comb += word.eq(self.floats[i])
                with m.Case(Dest.STORE_INT8):
                    m.d.comb += word.eq(self.quantised[i][:8])
                with m.Case(Dest.STORE_BF16):
                    m.d.comb += word.eq(self.floats[i][8:])
                with m.Default():
                    m.d.comb += word.eq(self.floats[i] << 8)

        free = Signal(range(STORE_DEPTH + 1), init=STORE_DEPTH)
        left = Signal.like(free)
        m.d.comb += left.eq(free - self.reserve + (self.o_store.valid & self.o_store.ready))
        m.d.sync += [free.eq(left), self.room.eq(left != 0)]
