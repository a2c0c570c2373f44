"""Weight tiles on their way into the array: FIFOs of whole tiles, and the loader that empties them."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tilewright_hw.gateware.checks import check_integer
from tilewright_hw.gateware.fifo import NO_COLLISION
from tilewright_hw.gateware.layouts import bytes_word, tile_rows


def _next(m, pointer, depth):
    """Advance a pointer that counts 0 .. depth - 1 and round again."""
    m.d.sync += pointer.eq(Mux(pointer == depth - 1, 0, pointer + 1))


def rows_together(config):
    """Return how many rows of weights enter the weight FIFO in a cycle.

    int4 brings S rows with a beat, and the array takes `ingest` in a cycle: the largest power of two that is at most
    either, as long as it divides the rows of a row group.
    """
    count = 1
    while 2 * count <= min(config.nibble_rows, config.ingest) and config.rows // config.ingest % (2 * count) == 0:
        count *= 2
    return count


class TileBank(wiring.Component):
    """The rows of one row group: written `count` at a time, read one by one, `span` of them in `span` cycles.

    Flow control: none (rigid). `start` in cycle s: row j of the next tile is on `o` in cycle
    s + 1 + j. May come again after `span` cycles; `o_start` is `start`, `span` cycles later.

    Parameters
    ----------
    cols : int
        Bytes of a row.
    span : int
        Rows of a tile in this bank.
    tiles : int
        Tiles held.
    count : int
        Rows that are written together: a power of two that divides span.

    Members
    -------
    write : 1, in
    i : count times cols int8, in
    start : 1, in
    o_start : 1, out
    o_valid : 1, out
        `o` holds a row.
    o : cols int8, out
    """

    def __init__(self, *, cols, span, tiles, count=1):
        self.cols = cols
        self.span = span
        self.tiles = tiles
        self.count = count
        super().__init__(
            {
                "write": In(1),
                "i": In(tile_rows(cols, count)),
                "start": In(1),
                "o_start": Out(1),
                "o_valid": Out(1),
                "o": Out(bytes_word(cols)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shape, depth = tile_rows(self.cols, self.count), self.span * self.tiles // self.count
        m.submodules.rows = rows = memory.Memory(shape=shape, depth=depth, init=[], attrs=NO_COLLISION)
        write, read = rows.write_port(), rows.read_port()
        m.d.comb += [write.en.eq(self.write), write.data.eq(self.i)]
        with m.If(self.write):
            _next(m, write.addr, depth)

        active = Signal()
        busy = Signal()
        row = Signal(range(self.span))  # the row being read, counted from `start`
        part = row[: exact_log2(self.count)]
        held = Signal(exact_log2(self.count))
        m.d.comb += [
            active.eq(self.start | busy),
            read.en.eq(active & (part == 0)),
            Cat(self.o).eq(Cat(read.data).word_select(held, 8 * self.cols)),
        ]
        m.d.sync += [self.o_valid.eq(active), self.o_start.eq(0)]
        with m.If(read.en):
            _next(m, read.addr, depth)
        with m.If(active):
            _next(m, row, self.span)
            m.d.sync += [
                held.eq(part),
                busy.eq(row != self.span - 1),
                self.o_start.eq(row == self.span - 1),
            ]
        return m


class TileFifo(wiring.Component):
    """First in, first out, of whole weight tiles: rows come `count` at a time and leave as the array wants.

    Flow control: `i` obeys valid/ready and takes `count` rows in every cycle while there is room for the
    rows' tile. The output is rigid: `start`, allowed while `available`, in cycle s puts row r of
    the oldest tile on `o[r // (rows / ingest)]` in cycle s + 1 + r. It may come again
    rows / ingest cycles later.

    `free` says that the tile's room counts as free, and comes when what is read stays ahead of what may be written:
    with `start` if rows come one by one, else as the last row group begins to be read. (Row r is read r cycles after
    the start. The next tile may be complete rows / count cycles after `free`, and count is at most ingest.)

    Latency: `available` rises in the cycle after the last row of a tile was taken.

    Number format: int8, moved as it is.

    Parameters
    ----------
    rows, cols : int
        Size of a tile, each from 1 to 256.
    ingest : int
        Row groups; divides rows.
    tiles : int
        Tiles held, from 1 to 2^20.
    count : int
        Rows that come together: a power of two of at most ingest that divides rows / ingest.

    Members
    -------
    i : In(stream.Signature(tile_rows(cols, count)))
        Rows of tiles, in order.
    available : Out(1)
        There is a whole tile.
    start : In(1)
        Take it.
    free : Out(1)
        The room of a tile is free again.
    o_valid : Out(ingest)
        One bit per row group: there is a row on its `o`.
    o : Out(bytes_word(cols)).array(ingest)
        A row of each row group.
    """

    def __init__(self, *, rows, cols, ingest, tiles, count=1):
        self.rows = check_integer("rows", rows, most=256)
        self.cols = check_integer("cols", cols, most=256)
        self.ingest = check_integer("ingest", ingest, most=rows)
        self.tiles = check_integer("tiles", tiles, most=1 << 20)
        self.count = check_integer("count", count, most=rows)
        if rows % ingest:
            raise ValueError(f"ingest must divide rows ({rows}), not {ingest!r}")
        if count & (count - 1) or count > ingest or rows // ingest % count:
            raise ValueError(
                f"count must be a power of two of at most {ingest} that divides {rows // ingest}, not {count!r}"
            )
        super().__init__(
            {
                "i": In(stream.Signature(tile_rows(cols, count))),
                "available": Out(1),
                "start": In(1),
                "free": Out(1),
                "o_valid": Out(ingest),
                "o": Out(bytes_word(cols)).array(ingest),
            }
        )

    def elaborate(self, platform):
        m = Module()
        span = self.rows // self.ingest
        writes = span // self.count  # of a tile to each bank
        row = Signal(range(writes))
        group = Signal(range(self.ingest))
        written = Signal()
        taken = self.i.valid & self.i.ready
        whole = self._level(m, "whole", written, self.start)
        held = whole if self.count == 1 else self._level(m, "held", written, self.free)
        m.d.comb += [self.i.ready.eq(held != self.tiles), self.available.eq(whole != 0)]
        with m.If(taken):
            _next(m, row, writes)
            with m.If(row == writes - 1):
                _next(m, group, self.ingest)
                m.d.comb += written.eq(group == self.ingest - 1)

        starts = [self.start]
        for g in range(self.ingest):
            bank = TileBank(cols=self.cols, span=span, tiles=self.tiles, count=self.count)
            m.submodules[f"bank_{g}"] = bank
            m.d.comb += [
                bank.write.eq(taken & (group == g)),
                bank.i.eq(self.i.payload),
                bank.start.eq(starts[g]),
                self.o_valid[g].eq(bank.o_valid),
                self.o[g].eq(bank.o),
            ]
            starts.append(bank.o_start)
        m.d.comb += self.free.eq(starts[0] if self.count == 1 else starts[self.ingest - 1])
        return m

    def _level(self, m, name, more, less):
        """Return a counter of tiles."""
        level = Signal(range(self.tiles + 1), name=name)
        with m.If(more & ~less):
            m.d.sync += level.eq(level + 1)
        with m.If(less & ~more):
            m.d.sync += level.eq(level - 1)
        return level


class TileLoader(wiring.Component):
    """Load tiles into the array's shadow registers: those of `i`, in order, each from its own FIFO.

    Flow control: `i` tells which tiles are wanted, `o` repeats what `i` said once the tile is on
    its way. Loading starts when the FIFO has the tile, the tile before has left `o` (so that its
    shadow registers are needed no longer) and rows / ingest cycles have passed.

    Latency: a tile that can be loaded in cycle s is taken from `i` in s, on `o` in s + 1, and
    enters the array (`load`) in s + 1. If tiles are taken from `o` at once, one enters every
    rows / ingest cycles. Rows that use a tile may enter the array from the cycle after `o` is
    taken on.

    Parameters
    ----------
    tile : struct layout
        What is known of a tile; has a member `stream` (1: take it from `i_stream`).
    rows, cols, ingest : int
        The array's.
    weight_tiles, stream_tiles : int
        Tiles that the FIFOs hold.
    count : int
        Rows of weights that come together.

    Members
    -------
    i_weight : stream of count times cols int8
    i_stream : stream of cols int8
        Rows of tiles in order, into the FIFOs.
    weight_pop, stream_pop : 1, out
        The room of one tile is free again.
    i, o : stream of tile
        Tiles wanted, tiles loaded.
    load : 1, out
    o_weights : ingest times cols int8, out
        To the array.
    waiting : 1, out
        A tile could be loaded but is not there.
    """

    def __init__(self, *, tile, rows, cols, ingest, weight_tiles, stream_tiles, count=1):
        self.tile = tile
        self.rows = rows
        self.cols = cols
        self.ingest = ingest
        self.weight_tiles = weight_tiles
        self.stream_tiles = stream_tiles
        self.count = count
        super().__init__(
            {
                "i_weight": In(stream.Signature(tile_rows(cols, count))),
                "i_stream": In(stream.Signature(bytes_word(cols))),
                "weight_pop": Out(1),
                "stream_pop": Out(1),
                "i": In(stream.Signature(tile)),
                "o": Out(stream.Signature(tile)),
                "load": Out(1),
                "o_weights": Out(bytes_word(cols)).array(ingest),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        size = {"rows": self.rows, "cols": self.cols, "ingest": self.ingest}
        m.submodules.weight_fifo = weight = TileFifo(**size, tiles=self.weight_tiles, count=self.count)
        m.submodules.stream_fifo = streamed = TileFifo(**size, tiles=self.stream_tiles)
        wiring.connect(m, wiring.flipped(self.i_weight), weight.i)
        m.d.comb += [
            streamed.i.valid.eq(self.i_stream.valid),
            streamed.i.payload[0].eq(self.i_stream.payload),
            self.i_stream.ready.eq(streamed.i.ready),
        ]

        from_stream = self.i.payload.stream
        start = self._start(m, Mux(from_stream, streamed.available, weight.available))
        m.d.comb += [
            weight.start.eq(start & ~from_stream),
            streamed.start.eq(start & from_stream),
        ]
        m.d.sync += [
            self.load.eq(start),
            self.weight_pop.eq(weight.free),
            self.stream_pop.eq(streamed.free),
        ]
        for g in range(self.ingest):
            m.d.comb += self.o_weights[g].eq(Mux(streamed.o_valid[g], streamed.o[g].as_value(), weight.o[g].as_value()))
        return m

    def _start(self, m, available):
        """Return the pulse that starts a tile; count the cycles between tiles and move tiles on."""
        start = Signal()
        span = self.rows // self.ingest
        pause = Signal(range(span))  # cycles until the next tile may start
        able = Signal()
        m.d.comb += [
            able.eq(self.i.valid & (pause == 0) & ~self.o.valid),
            start.eq(able & available),
            self.waiting.eq(able & ~available),
            self.i.ready.eq(start),
        ]
        with m.If(start):
            m.d.sync += [pause.eq(span - 1), self.o.valid.eq(1), self.o.payload.eq(self.i.payload)]
        with m.Else():
            with m.If(pause != 0):
                m.d.sync += pause.eq(pause - 1)
            with m.If(self.o.ready):
                m.d.sync += self.o.valid.eq(0)
        return start
