"""The matrix unit: executes MATMUL on the systolic array."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from tilewright_hw.arch.isa import Op
from tilewright_hw.gateware.accumulator import Accumulators, accumulator_row
from tilewright_hw.gateware.array import SystolicArray, sum_width
from tilewright_hw.gateware.checks import check_config
from tilewright_hw.gateware.layouts import bytes_word, operands, sums_word, tile_rows
from tilewright_hw.gateware.loader import TileLoader, rows_together
from tilewright_hw.gateware.skew import pipeline

TILE = data.StructLayout(
    {
        "stream": 1,  # it comes from the stream FIFO
        "first": 1,  # of its command
        "last": 1,  # of its command
        "fresh": 1,  # the first tile of a sum: the next accumulators
        "overwrite": 1,
        "bank": 1,
        "pair": 1,
        "act": 16,
        "acc": 16,
        "rows_outer": 16,
        "rows_inner": 16,
        "act_outer": 16,
        "act_inner": 16,  # from the last word of a row
    }
)
"""What is to be done with one tile."""


class TileWalker(wiring.Component):
    """Turn each command into its tiles: for g in groups, for n' in n, for k' in k.

    Flow control: streams. A command is taken when the one before has given its last tile.

    Latency: the first tile is offered one cycle after the command was taken, the next one cycle
    after each was taken; two cycles lie between the last tile of a command and the next command's
    first.

    Members
    -------
    cmd : stream of operands(Op.MATMUL)
    o : stream of TILE
    """

    def __init__(self):
        super().__init__({"cmd": In(stream.Signature(operands(Op.MATMUL))), "o": Out(stream.Signature(TILE))})

    def elaborate(self, platform):
        m = Module()
        now = Signal(operands(Op.MATMUL), reset_less=True)
        fields = self.cmd.payload
        act = Signal(16)  # of this tile
        group = Signal(16)  # of the first tile of this group
        left = {name: Signal(16, name=f"{name}_left") for name in ("k", "n", "groups")}
        end = {name: count == 1 for name, count in left.items()}
        valid = Signal()
        first = Signal()
        fresh = Signal()

        m.d.comb += [self.cmd.ready.eq(~valid), self.o.valid.eq(valid)]
        with m.If(self.cmd.ready & self.cmd.valid):
            m.d.sync += [now.eq(fields), valid.eq(1), first.eq(1), fresh.eq(1)]
            m.d.sync += [act.eq(fields.act), group.eq(fields.act)]
            m.d.sync += [count.eq(fields[name]) for name, count in left.items()]
        with m.If(self.o.ready & self.o.valid):
            m.d.sync += [first.eq(0), fresh.eq(end["k"])]
            with m.If(~end["k"]):
                m.d.sync += [left["k"].eq(left["k"] - 1), act.eq(act + 1 + now.pair)]
            with m.Elif(~end["n"]):
                m.d.sync += [left["k"].eq(now.k), left["n"].eq(left["n"] - 1), act.eq(group)]
            with m.Else():
                m.d.sync += [left["k"].eq(now.k), left["n"].eq(now.n)]
                m.d.sync += left["groups"].eq(left["groups"] - 1)
                following = group + now.act_group
                m.d.sync += [group.eq(following), act.eq(following), valid.eq(~end["groups"])]

        tile = self.o.payload
        copied = ("stream", "bank", "pair", "acc", "rows_outer", "rows_inner", "act_outer")
        m.d.comb += [tile[name].eq(now[name]) for name in copied]
        m.d.comb += [
            tile.act.eq(act),
            tile.act_inner.eq(now.act_inner - now.pair),  # from the second word of a pair
            tile.first.eq(first),
            tile.fresh.eq(fresh),
            tile.overwrite.eq(fresh & ~now.accumulate),
            tile.last.eq(end["k"] & end["n"] & end["groups"]),
        ]
        return m


class RowIssuer(wiring.Component):
    """For each tile, issue its rows: for o in rows_outer, for i in rows_inner, and both words of a pair; one per cycle.

    Flow control: `i` is a stream; a tile is taken in the cycle in which the one before issues its
    last row. The output is rigid.

    Latency: a tile taken in cycle t issues its first row in t + 1. A tile that adds to one of the
    last two accumulators waits until they are stored, for at most two cycles.

    Accumulators are counted on from the command's `acc`, row after row; a tile that continues a sum
    goes back to where that sum began.

    Parameters
    ----------
    acc_rows : int
        Accumulator rows per bank.

    Members
    -------
    i : stream of TILE
    act_en : 1, out
        A row is issued.
    act_addr : unsigned(16), out
        Its activation word.
    swap : 1, out
        It is the first of its tile.
    o_row : accumulator_row, out
        Where its sums go; `last` with the last row of a command.
    """

    def __init__(self, acc_rows):
        self.acc_rows = acc_rows
        super().__init__(
            {
                "i": In(stream.Signature(TILE)),
                "act_en": Out(1),
                "act_addr": Out(16),
                "swap": Out(1),
                "o_row": Out(accumulator_row(acc_rows)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        tile = self.i.payload
        now = Signal(TILE, reset_less=True)
        outer = Signal(16, reset_less=True)  # activation word of the first row of this outer row
        inner_left = Signal(16)
        outer_left = Signal(16)
        inner_end = Signal()  # inner_left is 1: a register, as much waits for it
        outer_end = Signal()  # outer_left is 1
        half = Signal()  # a pair's second word is to follow
        take = self.i.valid & self.i.ready
        ends = inner_end & outer_end & ~half
        goes_on = Signal()
        m.d.comb += goes_on.eq(take | (self.act_en & ~ends))
        m.d.sync += self.act_en.eq(goes_on)

        acc, hold = self._accumulator(m, take, goes_on, now.bank)
        m.d.comb += self.i.ready.eq((~self.act_en | ends) & ~hold)
        with m.If(self.act_en & half):
            m.d.sync += [self.act_addr.eq(self.act_addr + 1), self.swap.eq(0), half.eq(0)]
        with m.Elif(self.act_en):
            following = Mux(inner_end, outer, self.act_addr) + Mux(inner_end, now.act_outer, now.act_inner)
            m.d.sync += [self.act_addr.eq(following), self.swap.eq(0), half.eq(now.pair)]
            m.d.sync += inner_left.eq(Mux(inner_end, now.rows_inner, inner_left - 1))
            m.d.sync += inner_end.eq(Mux(inner_end, now.rows_inner == 1, inner_left == 2))
            with m.If(inner_end):
                m.d.sync += [outer.eq(following), outer_left.eq(outer_left - 1), outer_end.eq(outer_left == 2)]
        with m.If(take):
            m.d.sync += [now.eq(tile), self.swap.eq(1), half.eq(tile.pair)]
            m.d.sync += [self.act_addr.eq(tile.act), outer.eq(tile.act)]
            m.d.sync += [inner_left.eq(tile.rows_inner), outer_left.eq(tile.rows_outer)]
            m.d.sync += [inner_end.eq(tile.rows_inner == 1), outer_end.eq(tile.rows_outer == 1)]

        m.d.comb += [
            self.o_row.addr.eq(acc),
            self.o_row.bank.eq(now.bank),
            self.o_row.overwrite.eq(now.overwrite),
            self.o_row.last.eq(now.last & ends),
        ]
        return m

    def _accumulator(self, m, take, goes_on, bank):
        """Return the accumulator of the row being issued, and whether the next tile must wait.

        `goes_on`: in the next cycle, too, a row is issued.
        """
        tile = self.i.payload
        acc = Signal(exact_log2(self.acc_rows))
        base = Signal.like(acc)  # of the first row of this sum
        start = Signal.like(acc)  # of the next tile, unless that is simply the following one
        following = Signal.like(acc)
        goes_back = tile.first | ~tile.fresh
        m.d.comb += [
            following.eq(acc + self.act_en),
            start.eq(Mux(tile.first, tile.acc, base)),
        ]
        with m.If(~take):
            m.d.sync += acc.eq(following)
        with m.Else():
            m.d.sync += acc.eq(Mux(goes_back, start, following))
            with m.If(tile.fresh):
                m.d.sync += base.eq(Mux(tile.first, tile.acc, following))

        # What the last two rows have left is not stored yet. A tile that adds to one of them waits.
        recent = Signal()  # one is issued now, or was in the cycle before; a register of its own, as ready waits for it
        distance = Signal.like(acc)
        m.d.sync += recent.eq(goes_on | self.act_en)
        m.d.comb += distance.eq(acc - start)
        near = (distance[1:] == 0) & (tile.bank == bank) & recent
        return acc, goes_back & ~tile.overwrite & near


class MatrixUnit(wiring.Component):
    """Executes MATMUL (docs/architecture.md): acc[...] (+)= act[...] @ tile, for every tile and row.

    Flow control: `cmd`, `i_weight` and `i_stream` are streams; all else is rigid. A command is
    taken while earlier ones are still at work, so that the array is fed back to back across
    commands. `done` pulses in the order of commands.

    Throughput: one row of activations per cycle, without a bubble between tiles or commands, while
    the tiles are there and have rows / ingest rows or more; a tile with fewer rows takes
    rows / ingest cycles.

    Latency: with the first tile in its FIFO, a command taken in cycle t issues its first row
    (`act_en`) in t + ISSUE_LATENCY. `done` follows the cycle of its last row by DONE_LATENCY.

    Number format: int8 times int8 into int32, modulo 2^32.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator's parameters.

    Members
    -------
    cmd : In(stream.Signature(operands(Op.MATMUL)))
        Commands.
    done : Out(1)
        All accumulators of a command are written (and may be read in this cycle).
    i_weight : In(stream.Signature(tile_rows(C, rows_together(config)))), i_stream : In(stream.Signature(bytes_word(C)))
        Rows of tiles in memory order; always ready while credits are kept.
    weight_pop, stream_pop : Out(1)
        The room of one whole tile is free again.
    act_en : Out(1), act_addr : Out(16), act_data : In(bytes_word(R))
        Reads activation words; data one cycle later.
    acc_en, acc_bank : In(1), acc_addr : In(16), acc_data : Out(sums_word(C))
        Reads accumulators; data one cycle later. Not of the bank that is being written.
    row_valid : Out(1)
        A row enters the array in this cycle.
    wait_tile : Out(1)
        A command is held, no row is issued, and only the next tile is missing.
    """

    ISSUE_LATENCY = 3

    def __init__(self, config):
        self.config = check_config(config)
        self.count = rows_together(config)
        super().__init__(
            {
                "cmd": In(stream.Signature(operands(Op.MATMUL))),
                "done": Out(1),
                "i_weight": In(stream.Signature(tile_rows(config.cols, self.count))),
                "i_stream": In(stream.Signature(bytes_word(config.cols))),
                "weight_pop": Out(1),
                "stream_pop": Out(1),
                "act_en": Out(1),
                "act_addr": Out(16),
                "act_data": In(bytes_word(config.rows)),
                "acc_en": In(1),
                "acc_bank": In(1),
                "acc_addr": In(16),
                "acc_data": Out(sums_word(config.cols)),
                "row_valid": Out(1),
                "wait_tile": Out(1),
            }
        )

    @property
    def DONE_LATENCY(self):
        """Cycles from the issue of a command's last row to `done`."""
        return self.config.rows + self.config.cols + 3

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.walker = walker = TileWalker()
        m.submodules.loader = loader = TileLoader(
            tile=TILE,
            rows=c.rows,
            cols=c.cols,
            ingest=c.ingest,
            weight_tiles=c.weight_fifo_bytes // c.tile_bytes,
            stream_tiles=c.stream_fifo_bytes // c.tile_bytes,
            count=self.count,
        )
        m.submodules.issuer = issuer = RowIssuer(c.acc_rows)
        m.submodules.array = array = SystolicArray(c.rows, c.cols, c.ingest)
        m.submodules.accumulators = accumulators = Accumulators(cols=c.cols, depth=c.acc_rows, width=sum_width(c.rows))
        for name in ("i_weight", "i_stream"):
            connect(m, flipped(getattr(self, name)), getattr(loader, name))
        connect(m, flipped(self.cmd), walker.cmd)
        connect(m, walker.o, loader.i)
        connect(m, loader.o, issuer.i)
        self._feed_array(m, loader, issuer, array)
        self._drain_array(m, issuer, array, accumulators)
        m.d.comb += [
            self.weight_pop.eq(loader.weight_pop),
            self.stream_pop.eq(loader.stream_pop),
            self.row_valid.eq(array.valid),
            self.wait_tile.eq(loader.waiting & ~issuer.act_en),
        ]
        return m

    def _feed_array(self, m, loader, issuer, array):
        m.d.comb += [
            array.load.eq(loader.load),
            *(i.eq(o) for i, o in zip(array.i_weights, loader.o_weights, strict=True)),
            self.act_en.eq(issuer.act_en),
            self.act_addr.eq(issuer.act_addr),
            array.i_x.eq(self.act_data),
        ]
        m.d.sync += [array.valid.eq(issuer.act_en), array.swap.eq(issuer.swap & issuer.act_en)]

    def _drain_array(self, m, issuer, array, accumulators):
        # A row enters the array one cycle after its issue, and its accumulators are fetched one
        # cycle before its first sum is there.
        valid, row = pipeline(m, issuer.act_en, issuer.o_row, array.LATENCY, "row")
        names = row[-1].shape().members
        m.d.comb += [getattr(accumulators, name).eq(row[-1][name]) for name in names]
        m.d.comb += [
            accumulators.valid.eq(valid[-1]),
            accumulators.i_sums.eq(array.o_sums),
            self.done.eq(accumulators.done),
            accumulators.read_en.eq(self.acc_en),
            accumulators.read_bank.eq(self.acc_bank),
            accumulators.read_addr.eq(self.acc_addr),
            self.acc_data.eq(accumulators.read_data),
        ]
