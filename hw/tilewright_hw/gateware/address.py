"""Which word of which row comes next, and where it lies: the vector unit's loops and address generators.

The loops count once, where words are issued. From there on every word is a token of four bits that travels beside its
data; whoever needs an address keeps a generator of its own, which the token steps as it passes. So an operand is read
where it is needed, and no address and no early operand waits in a delay line.
"""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

__all__ = ["AddressGenerator", "RowLoops", "Token"]


class Token(data.Struct):
    """One word of a row on its way through the vector unit.

    `row_end` marks the last word of a row, `outer_end` the last word of an outer row (the last word of its last inner
    row), `last` the last word of the instruction; each implies those before it. Without `valid` none counts.
    """

    valid: unsigned(1)
    row_end: unsigned(1)
    outer_end: unsigned(1)
    last: unsigned(1)


def _check_positive(owner: str, name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise TypeError(f"{owner} {name} must be a positive integer, not {value!r}")


class AddressGenerator(wiring.Component):
    """The addresses of a region of rows, one per token: base + m*step_m + h*step_h + (w // subs)*step.

    m, h and w count outer rows, inner rows and the words of a row, as the tokens say; `sub` is w modulo the sub-words
    of an address. One adder, on what the token before has left in registers: `addr` does not wait for the token of its
    cycle, which comes late. Rigid: tokens may come in every cycle, and `load` may not coincide with one.

    Parameters
    ----------
    subs : int
        Most words that share an address.

    Members
    -------
    load : In(1)
        Start a region at `base`.
    base : In(16)
        First address.
    step_m, step_h, step : In(16)
        Distance of outer rows, of inner rows, and of addresses within a row (modulo 2**16); stable while tokens come.
    last_sub : In(ceil_log2(subs))
        Words that share an address, minus one; stable while tokens come.
    token : In(Token)
        Uses the address and goes on to the next.
    addr : Out(16)
        Address for the token of this cycle.
    sub : Out(ceil_log2(subs))
        Place within it.
    """

    def __init__(self, *, subs: int = 1):
        _check_positive("AddressGenerator", "subs", subs)
        self.subs = subs
        super().__init__(
            {
                "load": In(1),
                "base": In(16),
                "step_m": In(16),
                "step_h": In(16),
                "step": In(16),
                "last_sub": In(ceil_log2(subs)),
                "token": In(Token),
                "addr": Out(16),
                "sub": Out(ceil_log2(subs)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        outer = Signal(16)  # address of the outer row
        inner = Signal(16)  # of the inner row
        before = Signal(16)  # of the last token
        row_ended = Signal()  # the last token was a row's last
        outer_ended = Signal()  # it was an outer row's last
        moved_on = Signal()  # it was the last of its address
        start = Signal(16)
        step = Signal(16)
        wrap = Signal()
        m.d.comb += [
            wrap.eq(self.sub == self.last_sub),
            start.eq(before),
            step.eq(Mux(moved_on, self.step, 0)),
            self.addr.eq(start + step),
        ]
        with m.If(outer_ended):
            m.d.comb += [start.eq(outer), step.eq(self.step_m)]
        with m.Elif(row_ended):
            m.d.comb += [start.eq(inner), step.eq(self.step_h)]

        with m.If(self.load):
            m.d.sync += [address.eq(self.base) for address in (outer, inner, before)]
            m.d.sync += [self.sub.eq(0), row_ended.eq(0), outer_ended.eq(0), moved_on.eq(0)]
        with m.Elif(self.token.valid):
            m.d.sync += [row_ended.eq(self.token.row_end), outer_ended.eq(self.token.outer_end), moved_on.eq(wrap)]
            m.d.sync += [before.eq(self.addr), self.sub.eq(Mux(self.token.row_end | wrap, 0, self.sub + 1))]
            with m.If(row_ended):
                m.d.sync += inner.eq(self.addr)
            with m.If(outer_ended):
                m.d.sync += outer.eq(self.addr)
        return m


class RowLoops(wiring.Component):
    """Issues the tokens of an instruction: for m: for h: for each word of a row, one per cycle in which `advance` is 1.

    A row has ceil(n / lanes) words; with `pad`, as many as fill the last word of `parts * lanes` elements.

    Parameters
    ----------
    lanes : int
        Elements of a word; a power of two.
    parts : int
        Words to whose multiple `pad` fills up a row.

    Members
    -------
    load : In(1)
        Start with the counts beside it; not while `active`.
    n, m, h : In(16)
        Elements of a row, outer and inner rows; at least one. Taken at `load`.
    pad : In(1)
        Fill up rows. Taken at `load`.
    active : Out(1)
        There are tokens left to issue.
    advance : In(1)
        There is room for a word: `token` is taken.
    token : Out(Token)
        The next word; valid where `active` and `advance`.
    """

    def __init__(self, *, lanes: int, parts: int):
        _check_positive("RowLoops", "lanes", lanes)
        _check_positive("RowLoops", "parts", parts)
        if lanes & (lanes - 1):
            raise ValueError(f"RowLoops lanes must be a power of two, not {lanes!r}")
        self.lanes = lanes
        self.parts = parts
        super().__init__(
            {
                "load": In(1),
                "n": In(16),
                "m": In(16),
                "h": In(16),
                "pad": In(1),
                "active": Out(1),
                "advance": In(1),
                "token": Out(Token),
            }
        )

    def elaborate(self, platform):
        m = Module()
        token = self.token
        # What is left, this word included, and the part of an activation word that it is.
        counts = data.StructLayout({"words": 16, "inner": 16, "outer": 16, "part": range(self.parts)})
        now = Signal(counts)
        then = Signal(counts)
        per_row = Signal(16)
        per_outer = Signal(16)
        pad = Signal()
        row_end = Signal()  # these three are registers: many adders wait for them
        inner_end = Signal()
        outer_end = Signal()
        fill = Signal()
        m.d.comb += [
            token.valid.eq(self.active & self.advance),
            token.row_end.eq(row_end),
            token.outer_end.eq(row_end & inner_end),
            token.last.eq(row_end & inner_end & outer_end),
            then.eq(now),
            fill.eq(pad),
        ]
        with m.If(self.load):
            count = (self.n + (self.lanes - 1)) >> exact_log2(self.lanes)
            m.d.comb += [then.words.eq(count), then.inner.eq(self.h), then.outer.eq(self.m)]
            m.d.comb += [then.part.eq(0), fill.eq(self.pad)]
            m.d.sync += [per_row.eq(count), per_outer.eq(self.h), pad.eq(self.pad), self.active.eq(1)]
        with m.Elif(token.valid):
            m.d.comb += then.words.eq(Mux(now.words == 0, 0, now.words - 1))  # 0: past n, padding
            m.d.comb += then.part.eq(Mux(now.part == self.parts - 1, 0, now.part + 1))
            with m.If(token.row_end):
                m.d.comb += [then.words.eq(per_row), then.inner.eq(now.inner - 1), then.part.eq(0)]
            with m.If(token.outer_end):
                m.d.comb += [then.inner.eq(per_outer), then.outer.eq(now.outer - 1)]
            with m.If(token.last):
                m.d.sync += self.active.eq(0)
        m.d.sync += [
            now.eq(then),
            row_end.eq((then.words[1:] == 0) & (~fill | (then.part == self.parts - 1))),
            inner_end.eq(then.inner == 1),
            outer_end.eq(then.outer == 1),
        ]
        return m
