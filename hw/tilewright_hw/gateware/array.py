"""The systolic array: R x C multiply-accumulate cells, weight stationary, rigid."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tilewright_hw.gateware.checks import check_integer
from tilewright_hw.gateware.layouts import bytes_word
from tilewright_hw.gateware.skew import Skew


def sum_width(rows):
    """Return the bits that hold any sum of `rows` products of two int8."""
    return 16 + ceil_log2(rows)


class ProcessingElement(wiring.Component):
    """One cell: o_sum = i_sum + x * w, where x is the last activation taken and w the active weight.

    Flow control: none (rigid). Latency: an activation taken in cycle t is on `o_x` in cycle t + 1
    and in `o_sum` in cycle t + 2.

    Number format: int8 times int8, exact; sums are as wide as their row needs.

    Parameters
    ----------
    row : int
        Row of the array: gives the width of the sums.

    Members
    -------
    load : 1, in
        Take `i_w` into the shadow weight.
    i_w : signed(8), in
        Weight.
    valid : 1, in
        Take `i_x`.
    swap : 1, in
        With `valid`: the shadow weight becomes the active one, for this activation already.
    i_x, o_x : signed(8)
        Activation, from the left and to the right.
    add : 1, in
        Take the sum; `valid` one cycle later.
    i_sum, o_sum : signed
        Sum, from above (not present in row 0) and to below.
    """

    def __init__(self, row):
        self.row = check_integer("row", row, least=0, most=255)
        ports = {
            "load": In(1),
            "i_w": In(signed(8)),
            "valid": In(1),
            "swap": In(1),
            "i_x": In(signed(8)),
            "o_x": Out(signed(8)),
            "add": In(1),
            "o_sum": Out(signed(sum_width(row + 1))),
        }
        if row > 0:
            ports["i_sum"] = In(signed(sum_width(row)))
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        # Nothing looks at these before the control bits beside them say so: they need no reset.
        shadow = Signal(signed(8), reset_less=True)
        weight = Signal(signed(8), reset_less=True)
        x = Signal(signed(8), reset_less=True)
        total = Signal.like(self.o_sum, reset_less=True)
        product = x * weight
        with m.If(self.load):
            m.d.sync += shadow.eq(self.i_w)
        with m.If(self.valid):
            m.d.sync += x.eq(self.i_x)
            with m.If(self.swap):
                m.d.sync += weight.eq(shadow)
        with m.If(self.add):
            m.d.sync += total.eq(self.i_sum + product if self.row else product)
        m.d.comb += [self.o_x.eq(x), self.o_sum.eq(total)]
        return m


class SystolicArray(wiring.Component):
    """o_sums[c] = sum over r of x[r] * w[r][c]: one row of activations per cycle.

    Flow control: none (rigid, nothing ever waits). All in time with a diagonal wavefront: cell
    (r, c) does r + c cycles later what cell (0, 0) does.

    * `load` in cycle s says that a tile of weights enters: its row r is on
      `i_weights[r // (rows / ingest)]` in cycle s + r. So a tile may start every rows / ingest
      cycles. It goes into shadow registers.
    * `valid` in cycle t says that a row of activations enters. With `swap`, the tile loaded last
      becomes the active one, for this row and those after it. This may be in cycle s + 1 or later,
      and the next `load` not before the cycle of the `swap`: loading and computing have the same
      slope, and a tile may be used while most of it is still on its way.

    Latency: the sum of column c is on `o_sums[c]` in cycle t + LATENCY + c, where LATENCY is
    rows + 1 (and stays until the next row's). `o_valid` is high in cycle t + LATENCY.

    Number format: int8 activations and weights (-128 included), exact sums of 16 + ceil(log2(rows))
    bits; the sum below row r has 16 + ceil(log2(r + 1)).

    Cost: a multiplier, an adder and about 40 flip-flops per cell; two triangles of byte registers.

    Parameters
    ----------
    rows, cols : int
        Size, each from 1 to 256.
    ingest : int
        Rows of weights that enter per cycle; divides rows.

    Members
    -------
    load : In(1)
        A tile of weights enters from this cycle on.
    i_weights : In(bytes_word(cols)).array(ingest)
        Its rows: one of each row group.
    valid, swap : In(1)
        A row of activations enters; it is the first of those that use the tile loaded last.
    i_x : In(bytes_word(rows))
        The row.
    o_valid : Out(1)
        `o_sums[0]` is that of another row.
    o_sums : Out(data.ArrayLayout(signed(16 + ceil(log2(rows))), cols))
        The sums, each column a cycle later than the one before.
    """

    def __init__(self, rows, cols, ingest=1):
        self.rows = check_integer("rows", rows, most=256)
        self.cols = check_integer("cols", cols, most=256)
        self.ingest = check_integer("ingest", ingest, most=rows)
        if rows % ingest:
            raise ValueError(f"ingest must divide rows ({rows}), not {ingest!r}")
        super().__init__(
            {
                "load": In(1),
                "i_weights": In(bytes_word(cols)).array(ingest),
                "valid": In(1),
                "swap": In(1),
                "i_x": In(bytes_word(rows)),
                "o_valid": Out(1),
                "o_sums": Out(data.ArrayLayout(signed(sum_width(rows)), cols)),
            }
        )

    @property
    def LATENCY(self):
        """Cycles from a row of activations to the sum of column 0."""
        return self.rows + 1

    def elaborate(self, platform):
        m = Module()
        diagonals = self.rows + self.cols
        # All cells of a diagonal do the same at the same time: one control bit for each diagonal.
        load = self._delayed(m, "load", self.load, diagonals)
        valid = self._delayed(m, "valid", self.valid, diagonals)
        swap = self._delayed(m, "swap", self.swap, diagonals)
        weights = self._skewed_weights(m, load)

        m.submodules.skew_x = skew_x = Skew(signed(8), self.rows)
        m.d.comb += [skew_x.valid.eq(self.valid), skew_x.i.eq(self.i_x)]

        cells = [[ProcessingElement(r) for _ in range(self.cols)] for r in range(self.rows)]
        for r, c in self._positions():
            m.submodules[f"cell_{r}_{c}"] = cell = cells[r][c]
            m.d.comb += [
                cell.load.eq(load[r + c]),
                cell.i_w.eq(weights[r * self.ingest // self.rows][c]),
                cell.valid.eq(valid[r + c]),
                cell.swap.eq(swap[r + c]),
                cell.i_x.eq(cells[r][c - 1].o_x if c else skew_x.o[r]),
                cell.add.eq(valid[r + c + 1]),
            ]
            if r:
                m.d.comb += cell.i_sum.eq(cells[r - 1][c].o_sum)
        m.d.comb += [self.o_sums[c].eq(cells[-1][c].o_sum) for c in range(self.cols)]
        m.d.comb += self.o_valid.eq(valid[self.LATENCY])
        return m

    def _positions(self):
        """Return all (row, column), diagonal by diagonal: equal enables stay together."""
        both = [(r, c) for r in range(self.rows) for c in range(self.cols)]
        return sorted(both, key=lambda position: (sum(position), position))

    def _delayed(self, m, name, bit, count):
        """Return `bit` delayed by 0, 1, ... count cycles."""
        chain = [bit]
        for i in range(1, count + 1):
            chain.append(Signal(name=f"{name}_{i}"))
            m.d.sync += chain[i].eq(chain[i - 1])
        return chain

    def _skewed_weights(self, m, load):
        """Return, for each row group, its weights with column c late by c cycles."""
        span = self.rows // self.ingest
        groups = []
        for i, word in enumerate(self.i_weights):
            m.submodules[f"skew_w_{i}"] = skew = Skew(signed(8), self.cols)
            m.d.comb += [
                skew.valid.eq(reduce(or_, load[i * span : (i + 1) * span])),
                skew.i.eq(word),
            ]
            groups.append(skew.o)
        return groups
