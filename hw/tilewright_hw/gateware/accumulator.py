"""Two banks of 32-bit accumulators behind the array's columns."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tilewright_hw.gateware.checks import check_integer, check_power_of_two
from tilewright_hw.gateware.fifo import NO_COLLISION
from tilewright_hw.gateware.layouts import sums_word
from tilewright_hw.gateware.skew import pipeline

BANKS = 2


def accumulator_row(depth):
    """Return the shape of what travels with a row of sums: where it goes, and how."""
    return data.StructLayout({"addr": unsigned(exact_log2(depth)), "bank": 1, "overwrite": 1, "last": 1})


class AccumulatorColumn(wiring.Component):
    """One column: in cycle t the old value is fetched, in t + 1 the sum is added, in t + 2 stored.

    Flow control: none (rigid). An accumulator must not come again within two cycles.

    Number format: int32, modulo 2^32.

    Parameters
    ----------
    depth : int
        Accumulators per bank, a power of two.
    width : int
        Bits of a sum.

    Members
    -------
    fetch : 1 per bank, in
        Fetch accumulator `addr` of this bank.
    addr : unsigned, in
    add : 1, in
        One cycle later: add `sum` to it, or, with `overwrite`, to nothing.
    add_bank, overwrite : 1, in
    sum : signed(width), in
    store : 1 per bank, in
        Another cycle later: store the result at `store_addr`.
    store_addr : unsigned, in
    read : 1 per bank, in
        Read accumulator `read_addr` (of a bank that `fetch` leaves alone).
    read_addr : unsigned, in
    o : signed(32) per bank, out
        What was read or fetched in the cycle before.
    """

    def __init__(self, depth, width):
        self.depth = depth
        self.width = width
        super().__init__(
            {
                "fetch": In(BANKS),
                "addr": In(range(depth)),
                "add": In(1),
                "add_bank": In(1),
                "overwrite": In(1),
                "sum": In(signed(width)),
                "store": In(BANKS),
                "store_addr": In(range(depth)),
                "read": In(BANKS),
                "read_addr": In(range(depth)),
                "o": Out(signed(32)).array(BANKS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        total = Signal(signed(32), reset_less=True)
        for b in range(BANKS):
            m.submodules[f"bank_{b}"] = bank = memory.Memory(
                shape=signed(32), depth=self.depth, init=[], attrs=NO_COLLISION
            )
            read, write = bank.read_port(), bank.write_port()
            m.d.comb += [
                read.en.eq(self.fetch[b] | self.read[b]),
                read.addr.eq(Mux(self.fetch[b], self.addr, self.read_addr)),
                self.o[b].eq(read.data),
                write.en.eq(self.store[b]),
                write.addr.eq(self.store_addr),
                write.data.eq(total),
            ]
        old = Signal(signed(32))
        with m.If(~self.overwrite):
            m.d.comb += old.eq(Mux(self.add_bank, self.o[1], self.o[0]))
        with m.If(self.add):
            m.d.sync += total.eq(old + self.sum)
        return m


class Accumulators(wiring.Component):
    """acc[bank][addr][c] (+)= i_sums[c] for the columns as they leave the array, each one later.

    Flow control: none (rigid). `valid` in cycle t announces a row of sums: column c is on
    `i_sums[c]` in cycle t + 1 + c. The same `addr` and `bank` may come again RECURRENCE cycles
    later at the earliest. While one bank accumulates, the other may be read.

    Latency: column c is stored at the end of cycle t + 2 + c. `done` follows a row announced with
    `last` DONE_LATENCY = cols + 2 cycles later, when all of it can be read. A word read appears one
    cycle after `read_en`.

    Number format: sums are extended to 32 bits and added modulo 2^32.

    Addresses travel with the columns, so that the sums need no registers to wait for each other.

    Parameters
    ----------
    cols : int
        Columns, from 1 to 1024.
    depth : int
        Accumulator rows of each bank, a power of two from 2 to 65536.
    width : int
        Bits of a sum, from 1 to 32.

    Members
    -------
    valid : In(1)
        A row of sums is announced.
    bank : In(1), addr : In(range(depth))
        Where it goes.
    overwrite : In(1)
        It takes the place of what is there, and is not added to it.
    last : In(1)
        `done` is to follow it.
    i_sums : In(data.ArrayLayout(signed(width), cols))
        Sums, column c a cycle after column c - 1.
    done : Out(1)
        Pulse: the row announced with `last` is stored.
    read_en, read_bank : In(1), read_addr : In(range(depth))
        Read a row.
    read_data : Out(sums_word(cols))
        It, a cycle later.
    """

    RECURRENCE = 3

    def __init__(self, *, cols, depth, width):
        self.cols = check_integer("cols", cols, most=1024)
        self.depth = check_power_of_two("depth", depth, least=2, most=65536)
        self.width = check_integer("width", width, most=32)
        super().__init__(
            {
                "valid": In(1),
                "bank": In(1),
                "overwrite": In(1),
                "last": In(1),
                "addr": In(range(depth)),
                "i_sums": In(data.ArrayLayout(signed(width), cols)),
                "done": Out(1),
                "read_en": In(1),
                "read_bank": In(1),
                "read_addr": In(range(depth)),
                "read_data": Out(sums_word(cols)),
            }
        )

    @property
    def DONE_LATENCY(self):
        """Cycles from `valid` with `last` to `done`."""
        return self.cols + 2

    def elaborate(self, platform):
        m = Module()
        first = Signal(accumulator_row(self.depth))
        m.d.comb += [first[name].eq(getattr(self, name)) for name in first.shape().members]
        valid, row = pipeline(m, self.valid, first, self.cols + 1, "row")
        read = Signal(BANKS)
        held_bank = Signal()
        m.d.comb += read.eq(Cat(self.read_en & ~self.read_bank, self.read_en & self.read_bank))
        with m.If(self.read_en):
            m.d.sync += held_bank.eq(self.read_bank)
        for c in range(self.cols):
            m.submodules[f"column_{c}"] = column = AccumulatorColumn(self.depth, self.width)
            now, add, store = range(c, c + 3)
            m.d.comb += [
                column.fetch.eq(Cat(valid[now] & ~row[now].bank, valid[now] & row[now].bank)),
                column.addr.eq(row[now].addr),
                column.add.eq(valid[add]),
                column.add_bank.eq(row[add].bank),
                column.overwrite.eq(row[add].overwrite),
                column.sum.eq(self.i_sums[c]),
                column.store.eq(Cat(valid[store] & ~row[store].bank, valid[store] & row[store].bank)),
                column.store_addr.eq(row[store].addr),
                column.read.eq(read),
                column.read_addr.eq(self.read_addr),
                self.read_data[c].eq(Mux(held_bank, column.o[1], column.o[0])),
            ]
        m.d.sync += self.done.eq(valid[-1] & row[-1].last)
        return m
