"""The read side of memory: one AXI read master for instructions, weight tiles and loads."""

from __future__ import annotations

import enum

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from tilewright_hw.arch.isa import BASES, LoadDest, Op, WeightFormat
from tilewright_hw.gateware.axi import AxiRead, drive_address
from tilewright_hw.gateware.burst import BurstSplitter, RunGenerator, burst, largest_burst, run
from tilewright_hw.gateware.checks import check_config
from tilewright_hw.gateware.expand import EXPANSION, NibbleExpander
from tilewright_hw.gateware.fifo import ReadyBuffer, StreamBuffer, StreamFifo
from tilewright_hw.gateware.layouts import buffer_write, bytes_word, operands, table_word, tile_rows, vector_word
from tilewright_hw.gateware.load import TARGET, LoadSink
from tilewright_hw.gateware.loader import rows_together
from tilewright_hw.gateware.width import WidthConverter, beat

__all__ = ["FETCH", "MemoryReader", "ReadIssue", "Requester", "load_fifo_beats", "select_base"]

FETCH = data.StructLayout({"addr": unsigned(64), "beats": unsigned(16)})
"""A read request of the sequencer: `beats` bus words from a byte address on."""

COMMANDS = 8
"""LOADs whose data may be outstanding at the same time."""


class Requester(enum.IntEnum):
    """Who asked for a burst."""

    FETCH = 0
    WEIGHT = 1
    LOAD = 2


ORIGIN = data.StructLayout({"requester": Requester, "run_end": 1, "end": 1, "tag": 2})
"""What is remembered of a burst until its data comes; the tag is the weights'."""

WEIGHT_TAG = data.StructLayout({"int4": 1, "half": 1})
"""What goes with the bursts of a WEIGHT: its format, and whether the last unit of a run is half full (expand.py)."""

LOAD_TAG = data.StructLayout({"stream": 1, "transpose": 1})
"""What goes with the bursts of a LOAD."""


def load_fifo_beats(config):
    """Return the depth of the load FIFO: what may be in flight, but no more than 256 beats or two bursts."""
    return min(config.reads_in_flight * config.burst_beats, max(256, 2 * config.burst_beats))


def select_base(m, bases, index, value):
    """Drive `value` with base register number `index`."""
    with m.Switch(index):
        for i, base in enumerate(bases):
            with m.Case(i):
                m.d.comb += value.eq(base)


class ReadIssue(wiring.Component):
    """Chooses the next burst, reserves the room for its data, and asks for it.

    A burst may go when fewer than `reads_in_flight` are outstanding and its data's room is free: for weights and
    streamed tiles that of their FIFOs in the matrix unit, for all loads that of the load FIFO. At most
    `weight_window` beats of weights are asked for and not yet there, so that a load or an instruction never waits
    behind more than these.

    Room is counted in beats of int8. A burst of int4 reserves twice its beats, which is the most that they become; what
    its scales and padding did not need comes back as `weight_surplus`. A FIFO of streamed tiles whose two kinds differ
    in size counts as many of the smaller; each tile gives back what it took.

    Choice: an instruction fetch first; then a load; then weights. But after three loads that went where weights could
    have gone, one burst of weights goes before the next load. (Fetches are few: the sequencer asks for what it has room
    for.) So neither starves, and in the long run each gets the share that its room, as it is given back, allows.

    Flow control: one burst per cycle, from one unit one in two cycles; a burst is offered two cycles after it came.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator's parameters.

    Members
    -------
    i_fetch : In(stream of burst(0)), i_weight, i_load : In(stream of burst(2))
        Bursts, tagged with WEIGHT_TAG and LOAD_TAG.
    o : Out(stream of {addr 64, len 8})
        The address channel.
    o_origin : Out(stream of ORIGIN)
        One item per burst, in order; always taken.
    weight_pop, stream_pop : In(1)
        The room of one tile is free again.
    stream_push, stream_kind : In(1)
        A tile has entered the stream FIFO; it lay transposed in memory.
    weight_surplus : In
        Beats of the room reserved for int4 that are not needed.
    load_pop, weight_beat, burst_done : In(1)
        A beat left the load FIFO; a beat of weights came; a burst's last beat came.
    idle : Out(1)
        No read is outstanding.
    """

    LOADS_BEFORE_WEIGHT = 3

    def __init__(self, config):
        self.config = config
        self.tile_beats = config.tile_bytes // config.bus_bytes
        self.transposed_beats = config.transposed_tile_bytes // config.bus_bytes
        self.stream_tiles = config.stream_fifo_bytes // config.tile_bytes
        self.weight_room = config.weight_fifo_bytes // config.tile_bytes * self.tile_beats
        self.stream_room = self.stream_tiles * min(self.tile_beats, self.transposed_beats)
        self.load_room = load_fifo_beats(config)
        self.weight_window = max(256, 2 * config.burst_beats)
        self.rooms = {}  # the counters of free beats by name, once elaborated: for tests
        super().__init__(
            {
                "i_fetch": In(stream.Signature(burst(0))),
                "i_weight": In(stream.Signature(burst(2))),
                "i_load": In(stream.Signature(burst(2))),
                "o": Out(stream.Signature(data.StructLayout({"addr": 64, "len": 8}))),
                "o_origin": Out(stream.Signature(ORIGIN)),
                **dict.fromkeys(("weight_pop", "stream_pop", "load_pop", "weight_beat", "burst_done"), In(1)),
                **dict.fromkeys(("stream_push", "stream_kind"), In(1)),
                "weight_surplus": In(5),
                "idle": Out(1, init=1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        weight, load = self.i_weight, self.i_load
        to_stream = LOAD_TAG(load.p.tag).stream
        back = Mux(self.weight_pop, self.tile_beats, 0) + self.weight_surplus
        last = Mux(WEIGHT_TAG(weight.p.tag).int4, Cat(Const(1, 1), weight.p.len), weight.p.len)  # of the room to take
        fits_weight = self._room(m, "weight", self.weight_room, weight, 1, back, last)
        fits_window = self._room(m, "window", self.weight_window, weight, 1, self.weight_beat, weight.p.len)
        fits_stream = self._room(m, "stream", self.stream_room, load, to_stream, self._stream_back(m), load.p.len)
        fits_load = self._room(m, "load", self.load_room, load, 1, self.load_pop, load.p.len)
        may_weight = Signal()
        may_load = Signal()
        open_ = Signal()
        # Registers: room only grows while a burst is held, so what fitted a cycle ago still fits.
        m.d.sync += [
            may_weight.eq(weight.valid & ~weight.ready & fits_weight & fits_window),
            may_load.eq(load.valid & ~load.ready & fits_load & (fits_stream | ~to_stream)),
        ]
        m.d.comb += open_.eq((self.o.ready | ~self.o.valid) & self._slot_free(m) & self.o_origin.ready)
        self._choose(m, open_, may_load, may_weight)
        self._register(m)
        return m

    def _room(self, m, name, size, source, counts, back, last):
        """Count the beats that are free in a FIFO of `size`; return whether the burst offered by `source` fits.

        The burst takes `last` + 1 beats if it `counts`; `back` beats come back in this cycle.
        """
        room = Signal(range(size + 1), init=size, name=f"{name}_room")
        self.rooms[name] = room
        less = Signal(10, name=f"{name}_less")
        with m.If(source.valid & source.ready & counts):
            m.d.comb += less.eq(last + 1)
        m.d.sync += room.eq(room + back - less)
        return room > last

    def _stream_back(self, m):
        """Return the beats that a tile popped from the stream FIFO gives back: those of its kind, if these differ."""
        beats = Const(self.tile_beats)
        if self.tile_beats != self.transposed_beats:
            m.submodules.kinds = kinds = fifo.SyncFIFO(width=1, depth=self.stream_tiles)
            m.d.comb += [
                kinds.w_en.eq(self.stream_push),
                kinds.w_data.eq(self.stream_kind),
                kinds.r_en.eq(self.stream_pop),
            ]
            beats = Mux(kinds.r_data, self.transposed_beats, self.tile_beats)
        return Mux(self.stream_pop, beats, 0)

    def _slot_free(self, m):
        """Count the outstanding bursts; return whether another may go."""
        limit = self.config.reads_in_flight
        count = Signal(range(limit + 1))
        issued = Signal()
        m.d.comb += issued.eq(self.o_origin.valid)
        with m.If(issued & ~self.burst_done):
            m.d.sync += [count.eq(count + 1), self.idle.eq(0)]
        with m.Elif(self.burst_done & ~issued):
            m.d.sync += [count.eq(count - 1), self.idle.eq(count == 1)]
        return count != limit

    def _choose(self, m, open_, may_load, may_weight):
        streak = Signal(range(self.LOADS_BEFORE_WEIGHT + 1))
        load_went = Signal()
        weights_turn = Signal()
        load_next = Signal()
        m.d.sync += load_went.eq(self.i_load.ready)
        m.d.comb += [
            weights_turn.eq(may_weight & (streak == self.LOADS_BEFORE_WEIGHT)),
            # The next load is still being checked: weights let it go first.
            load_next.eq(load_went & self.i_load.valid & (streak != self.LOADS_BEFORE_WEIGHT)),
        ]
        with m.If(open_):
            with m.If(self.i_fetch.valid):
                m.d.comb += self.i_fetch.ready.eq(1)
            with m.Elif(may_load & ~weights_turn):
                m.d.comb += self.i_load.ready.eq(1)
                with m.If(may_weight):
                    m.d.sync += streak.eq(streak + 1)
            with m.Elif(may_weight & ~load_next):
                m.d.comb += self.i_weight.ready.eq(1)
                m.d.sync += streak.eq(0)

    def _register(self, m):
        """Put the chosen burst into the address register and the queue of origins."""
        out, origin = self.o, self.o_origin
        with m.If(out.ready):
            m.d.sync += out.valid.eq(0)
        for requester, source in (
            (Requester.FETCH, self.i_fetch),
            (Requester.WEIGHT, self.i_weight),
            (Requester.LOAD, self.i_load),
        ):
            with m.If(source.ready):
                m.d.sync += [
                    out.valid.eq(1),
                    out.p.addr.eq(source.p.addr),
                    out.p.len.eq(source.p.len),
                ]
                m.d.comb += [
                    origin.valid.eq(1),
                    origin.p.requester.eq(requester),
                    origin.p.run_end.eq(source.p.run_end),
                    origin.p.end.eq(source.p.end),
                    origin.p.tag.eq(source.p.tag),
                ]


class MemoryReader(wiring.Component):
    """Reads memory for the sequencer, the weight unit and the load unit, through one AXI4 read master.

    WEIGHT and LOAD read `count` runs of `bytes` bytes from base + offset + i * stride (64-bit sums). All bursts have
    one id, so data comes in order; see `ReadIssue` for their choice and for the rule that no data can come for which
    there is no room. The next command of a kind asks for its data while that of the former still comes.

    Data of LOADs passes a FIFO of `load_fifo_beats(config)` beats, then `LoadSink`; weights go straight to their
    width converter or, if they are int4, to the expander; fetched beats straight out.

    A command is done when all its data has been taken at the outputs. A read response SLVERR or DECERR sets `error`;
    the data passes as if it were good.

    Flow control: AXI and all streams obey valid/ready, but `o_fetch` and `o_weight`, which are taken without fail. Data
    is asked for only where its room is reserved, so no output that waits blocks another.

    Latency: where nothing else is asked for, the first address of a command is offered COMMAND_LATENCY cycles after the
    command was taken, that of a fetch FETCH_LATENCY cycles after its request. A beat that was fetched is on `o_fetch`
    in the cycle in which memory gives it.

    Number format: int8 and int4 weights, int8 activations; float32 and bfloat16 become F24 (docs/numerics.md, "Load").

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator's parameters.

    Members
    -------
    axi : Out(AxiRead)
        The master's read channels.
    bases : In(64).array(8)
        Base registers; read when a command is taken.
    fetch : In(stream of FETCH), o_fetch : Out(stream of one beat)
        Requests of the sequencer, and their data; the sequencer has room for what it asks.
    weight_cmd, load_cmd : In(stream of operands)
        Commands.
    weight_done, load_done : Out(1)
        One pulse per command, in order.
    o_weight : Out(stream of tile_rows(C, rows_together(config))), o_stream : Out(stream of bytes_word(C))
        Rows of tiles; those of weights are taken without fail.
    weight_pop, stream_pop : In(1)
        The room of one tile in the FIFO behind o_weight (o_stream) is free again.
    o_act, o_row, o_param : Out(stream of buffer_write)
        Words for the activation, row and parameter buffers.
    o_table : Out(stream of table_word())
        Segments of the vector unit's table.
    error : Out(1)
        A read failed; stays until reset.
    beat, fetch_beat : Out(1)
        Events: a beat came; it was for the sequencer.
    idle : Out(1)
        No read is outstanding.
    """

    COMMAND_LATENCY = 5
    FETCH_LATENCY = 2

    def __init__(self, config):
        self.config = check_config(config)
        self.count = rows_together(config)
        weights, acts = tile_rows(config.cols, self.count), buffer_write(bytes_word(config.rows))
        floats = buffer_write(vector_word(config.lanes))
        super().__init__(
            {
                "axi": Out(AxiRead(data_bits=config.bus_bits)),
                "bases": In(64).array(BASES),
                "fetch": In(stream.Signature(FETCH)),
                "o_fetch": Out(stream.Signature(config.bus_bits)),
                "weight_cmd": In(stream.Signature(operands(Op.WEIGHT))),
                "load_cmd": In(stream.Signature(operands(Op.LOAD))),
                "o_weight": Out(stream.Signature(weights)),
                "o_stream": Out(stream.Signature(bytes_word(config.cols))),
                "o_act": Out(stream.Signature(acts)),
                "o_row": Out(stream.Signature(floats)),
                "o_param": Out(stream.Signature(floats)),
                "o_table": Out(stream.Signature(table_word())),
                **dict.fromkeys(("weight_pop", "stream_pop"), In(1)),
                **dict.fromkeys(("weight_done", "load_done"), Out(1)),
                **dict.fromkeys(("error", "beat", "fetch_beat"), Out(1)),
                "idle": Out(1, init=1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.issue = issue = self.issue = ReadIssue(self.config)
        m.submodules.sink = sink = LoadSink(self.config)
        m.submodules.load_fifo = loads = StreamFifo(beat(self.config.bus_bytes, 2), issue.load_room)
        m.submodules.origins = origins = StreamFifo(ORIGIN, self.config.reads_in_flight + 1)
        self._fetch_side(m, issue)
        self._weight_side(m, issue)
        self._load_side(m, issue, sink)
        # A word of a block memory comes late, and the sink's ready depends on all that is behind it.
        m.submodules.load_buffer = buffer = StreamBuffer(loads.o.p.shape())
        connect(m, loads.o, buffer.i)
        connect(m, buffer.o, sink.i)
        connect(m, issue.o_origin, origins.i)
        for out, inner in (
            (self.o_stream, sink.o_stream),
            (self.o_act, sink.o_act),
            (self.o_row, sink.o_row),
            (self.o_param, sink.o_param),
            (self.o_table, sink.o_table),
        ):
            connect(m, inner, flipped(out))
        m.d.comb += [
            *drive_address("ar", self.axi, self.config.bus_bytes),
            self.axi.araddr.eq(issue.o.p.addr),
            self.axi.arlen.eq(issue.o.p.len),
            self.axi.arvalid.eq(issue.o.valid),
            issue.o.ready.eq(self.axi.arready),
            issue.load_pop.eq(buffer.o.valid & buffer.o.ready),
            issue.weight_pop.eq(self.weight_pop),
            issue.stream_pop.eq(self.stream_pop),
            self.load_done.eq(sink.done),
            self.idle.eq(issue.idle),
        ]
        self._return_side(m, issue, origins, loads)
        self._count_tiles(m, issue, sink)
        return m

    def _fetch_side(self, m, issue):
        bus_bytes = self.config.bus_bytes
        m.submodules.fetch_bursts = bursts = BurstSplitter(
            bus_bytes=bus_bytes, beats=self.config.burst_beats, bits=16 + bus_bytes.bit_length() - 1
        )
        request = self.fetch.p
        m.d.comb += [
            bursts.i.valid.eq(self.fetch.valid),
            self.fetch.ready.eq(bursts.i.ready),
            bursts.i.p.addr.eq(request.addr),
            bursts.i.p.last_byte.eq(Cat(Const(bus_bytes - 1, bus_bytes.bit_length() - 1), (request.beats - 1)[:16])),
        ]
        connect(m, bursts.o, issue.i_fetch)

    def _strided(self, m, name, cmd, room, out, tag=0):
        """Generate runs and bursts for the commands of `cmd`; return the stream that takes them."""
        m.submodules[f"{name}_runs"] = runs = RunGenerator(tag)
        m.submodules[f"{name}_bursts"] = bursts = BurstSplitter(
            bus_bytes=self.config.bus_bytes,
            beats=largest_burst(self.config.burst_beats, room),
            tag=tag,
        )
        m.submodules[f"{name}_cut"] = cut = ReadyBuffer(run(32, tag))
        select_base(m, self.bases, cmd.base, runs.i.p.start)
        for field in ("offset", "stride", "bytes", "count"):
            m.d.comb += runs.i.p[field].eq(cmd[field])
        connect(m, runs.o, cut.i)
        connect(m, cut.o, bursts.i)
        connect(m, bursts.o, out)
        return runs.i

    def _weight_side(self, m, issue):
        """Hand each WEIGHT to its address generator; a burst of int4 takes twice the room."""
        cmd, units = self.weight_cmd, self.config.nibble_rows
        i = self._strided(m, "weight", cmd.p, issue.weight_room // EXPANSION, issue.i_weight, tag=2)
        tag = WEIGHT_TAG(i.p.tag)
        m.d.comb += [
            i.valid.eq(cmd.valid),
            cmd.ready.eq(i.ready),
            tag.int4.eq(cmd.p.format == WeightFormat.INT4),
            tag.half.eq((cmd.p.rows & (units // 2)).any()),
        ]

    def _load_side(self, m, issue, sink):
        """Hand each LOAD to its address generator and to the queue of its data side at the same time."""
        cmd = self.load_cmd
        room = min(issue.stream_room, issue.load_room)
        i = self._strided(m, "load", cmd.p, room, issue.i_load, tag=2)
        m.submodules.targets = targets = StreamFifo(TARGET, COMMANDS)
        m.d.comb += [
            LOAD_TAG(i.p.tag).stream.eq(cmd.p.dest == LoadDest.STREAM),
            LOAD_TAG(i.p.tag).transpose.eq(cmd.p.transpose),
            i.valid.eq(cmd.valid & targets.i.ready),
            targets.i.valid.eq(cmd.valid & i.ready),
            cmd.ready.eq(i.ready & targets.i.ready),
            *(targets.i.p[f].eq(cmd.p[f]) for f in ("dest", "transpose", "format", "dst", "dst_stride")),
        ]
        m.submodules.target_cut = cut = ReadyBuffer(TARGET)
        connect(m, targets.o, cut.i)
        connect(m, cut.o, sink.cmd)

    def _count_tiles(self, m, issue, sink):
        """Tell when a tile has entered the stream FIFO, and of which kind it is."""
        row = Signal(range(self.config.rows))
        rows = self.config.rows
        moved = sink.o_stream.valid & sink.o_stream.ready
        with m.If(moved):
            m.d.sync += row.eq(Mux(row == rows - 1, 0, row + 1))
        m.d.comb += [issue.stream_push.eq(moved & (row == rows - 1)), issue.stream_kind.eq(sink.transposed)]

    def _weight_rows(self, m, issue):
        """Make rows of weights; return the two streams that take int8 and int4.

        A row of int4 is not kept waiting: one of int8 lets it go first.
        """
        config, slot, count = self.config, self.config.col_slot, self.count
        m.submodules.tiles = tiles = WidthConverter(
            bus_bytes=config.bus_bytes, slot=count * slot, used=count * slot, ends=0
        )
        m.submodules.expander = expander = NibbleExpander(config, count)
        for r, row in enumerate(self.o_weight.p):
            kept = Cat(tiles.o.p.data[r * slot : r * slot + config.cols])
            m.d.comb += Cat(row).eq(Mux(expander.o_valid, Cat(expander.o[r]), kept))
        m.d.comb += [
            self.o_weight.valid.eq(tiles.o.valid | expander.o_valid),
            tiles.o.ready.eq(self.o_weight.ready & ~expander.o_valid),
            issue.weight_surplus.eq(expander.surplus),
        ]
        return tiles.i, expander.i

    def _return_side(self, m, issue, origins, loads):
        """Register the data channel, and give each beat to whom it belongs."""
        config = self.config
        tiles, nibbles = self._weight_rows(m, issue)
        valid = Signal()
        last = Signal()
        payload = Signal(config.bus_bits)
        taken = Signal()
        known = Signal()
        origin = origins.o.p
        tag, of_weight = WEIGHT_TAG(origin.tag), origin.requester == Requester.WEIGHT
        m.d.comb += [
            self.axi.rready.eq(~valid | taken),
            self.beat.eq(self.axi.rvalid & self.axi.rready),
            known.eq(valid & origins.o.valid),
            origins.o.ready.eq(taken & last),
            issue.burst_done.eq(taken & last),
        ]
        with m.If(self.axi.rready):
            m.d.sync += valid.eq(self.axi.rvalid)
        with m.If(self.beat):
            m.d.sync += [payload.eq(self.axi.rdata), last.eq(self.axi.rlast)]
            m.d.sync += self.error.eq(self.error | self.axi.rresp[1])
        m.d.comb += [
            self.o_fetch.p.eq(payload),
            tiles.p.data.eq(payload),
            nibbles.p.data.eq(payload),
            nibbles.p.end.eq(Cat(last & origin.run_end, tag.half)),
            loads.i.p.data.eq(payload),
            loads.i.p.end.eq(Mux(last, Cat(origin.run_end, origin.end), 0)),
        ]
        for wanted, sink in (
            (origin.requester == Requester.FETCH, self.o_fetch),
            (of_weight & ~tag.int4, tiles),
            (of_weight & tag.int4, nibbles),
            (origin.requester == Requester.LOAD, loads.i),
        ):
            with m.If(wanted):
                m.d.comb += [sink.valid.eq(known), taken.eq(known & sink.ready)]
        m.d.comb += [
            self.fetch_beat.eq(taken & (origin.requester == Requester.FETCH)),
            issue.weight_beat.eq(taken & of_weight),
        ]
        # A row may be in a register for a cycle after its last beat was taken.
        weight_end = Signal()
        m.d.sync += [weight_end.eq(issue.weight_beat & last & origin.end), self.weight_done.eq(weight_end)]
