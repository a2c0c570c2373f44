"""The statistics of rows: entries (a, b) that one instruction's reductions write and later ones read."""

from amaranth import Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tilewright_hw.arch.isa import Add, Op, Scale
from tilewright_hw.gateware.address import AddressGenerator, Token
from tilewright_hw.gateware.fifo import NO_COLLISION
from tilewright_hw.gateware.lane import X0_TO_X5
from tilewright_hw.gateware.layouts import F24, operands
from tilewright_hw.gateware.reduce import row_entry, stat_entry
from tilewright_hw.gateware.ring import Ring

__all__ = ["RowStatistics", "first_of"]

ROWS_IN_FLIGHT = 1 << X0_TO_X5.bit_length()
"""Rows between x0 and x5 at most: one per cycle of the longest path."""


def first_of(m, token, end, *, name):
    """Return whether `token` begins what `end` (one of its flags, or a choice of them) ends."""
    begin = Signal(init=1, name=f"{name}_begin")
    with m.If(token.valid):
        m.d.sync += begin.eq(end)
    return token.valid & begin


class RowStatistics(wiring.Component):
    """Reads a row's entry when its first word comes to x0, and has its parts ready where the row needs them.

    Rigid: one entry read and one written per cycle, so rows of a single word follow each other without a gap.

    Parameters
    ----------
    entries : int
        Entries, a power of two; addresses wrap.

    Members
    -------
    load : In(1)
        An instruction starts: `next`.
    next : In(operands(Op.VECTOR))
        Its operands, with `load`.
    command : In(operands(Op.VECTOR))
        The same from the next cycle on, while it runs.
    operand, x0, addend, x5 : In(Token)
        The tokens of those names (`TokenPath`).
    b : Out(F24)
        Field b, at x0's input.
    scalar : Out(F24)
        The first multiplier's factor, in time with x0.
    addition : Out(F24)
        What the instruction adds of the entry, at the adder: minus field a (a zero may be negative), field b, or 0.
    source : Out(stat_entry())
        The entry, in time with x5; with reduce_outer that of the first inner row.
    entry : In(row_entry())
        Entry to write. Tag bit 0: it ends an outer row.
    """

    def __init__(self, *, entries):
        self.entries = entries
        self._width = exact_log2(entries)
        super().__init__(
            {
                "load": In(1),
                "next": In(operands(Op.VECTOR)),
                "command": In(operands(Op.VECTOR)),
                "operand": In(Token),
                "x0": In(Token),
                "addend": In(Token),
                "x5": In(Token),
                "b": Out(F24),
                "scalar": Out(F24),
                "addition": Out(F24),
                "source": Out(stat_entry()),
                "entry": In(row_entry()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # Rows write other entries than those that are read, or each the one that it has read (docs/architecture.md).
        m.submodules.memory = store = memory.Memory(shape=stat_entry(), depth=self.entries, init=[], attrs=NO_COLLISION)
        self._write(m, store.write_port())
        stat, fresh = self._read(m, store.read_port())
        command = self.command

        m.d.comb += self.b.eq(stat.b)
        with m.If(self.x0.valid):
            with m.Switch(command.scale):
                with m.Case(Scale.STAT_A):
                    m.d.sync += self.scalar.eq(stat.a)
                with m.Case(Scale.STAT_B):
                    m.d.sync += self.scalar.eq(stat.b)
                with m.Case(Scale.CONST):
                    m.d.sync += self.scalar.eq(command.const1[8:])

        # Rows are fewer than words: what later stages need of the entry waits once per row. The adder may come right
        # after x0.
        m.submodules.addends = addends = Ring(F24, depth=ROWS_IN_FLIGHT, transparent=True)
        m.d.comb += [
            addends.put.eq(fresh),
            addends.take.eq(first_of(m, self.addend, self.addend.row_end, name="addend")),
            self.addition.eq(addends.data),
        ]
        with m.Switch(command.add):
            with m.Case(Add.NEG_STAT_A):
                m.d.comb += addends.put_data.eq(stat.a ^ (1 << 23))
            with m.Case(Add.STAT_B):
                m.d.comb += addends.put_data.eq(stat.b)
        m.submodules.sources = sources = Ring(stat_entry(), depth=ROWS_IN_FLIGHT)
        m.d.comb += [
            sources.put.eq(fresh & (first_of(m, self.x0, self._end(self.x0), name="x0"))),
            sources.put_data.eq(stat),
            sources.take.eq(first_of(m, self.x5, self._end(self.x5), name="x5")),
            self.source.eq(sources.data),
        ]
        return m

    def _end(self, token):
        """Return whether the token ends what makes up one entry."""
        return Mux(self.command.reduce_outer, token.outer_end, token.row_end)

    def _read(self, m, port):
        """Read each row's entry; return what is at the port, and whether a new entry is (in time with x0's input)."""
        m.submodules.source = source = AddressGenerator()
        fresh = Signal()
        m.d.comb += [
            source.load.eq(self.load),
            source.base.eq(self.next.stat),
            source.step_m.eq(self.command.stat_m),
            source.step_h.eq(self.command.stat_h),
            source.token.eq(self.operand),
            port.addr.eq(source.addr[: self._width]),
            port.en.eq(first_of(m, self.operand, self.operand.row_end, name="operand")),
        ]
        m.d.sync += fresh.eq(port.en)
        return port.data, fresh

    def _write(self, m, port):
        m.submodules.target = target = AddressGenerator()
        m.d.comb += [
            target.load.eq(self.load),
            target.base.eq(self.next.red),
            target.step_m.eq(self.command.red_m),
            target.step_h.eq(self.command.red_h),
            target.token.valid.eq(self.entry.valid),
            target.token.row_end.eq(1),
            target.token.outer_end.eq(self.entry.tag[0]),
            port.addr.eq(target.addr[: self._width]),
            port.en.eq(self.entry.valid),
            port.data.a.eq(self.entry.a),
            port.data.b.eq(self.entry.b),
        ]
