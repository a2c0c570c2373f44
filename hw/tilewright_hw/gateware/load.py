"""The data side of LOAD: beats become tile rows, activation words or float words, with their addresses."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.arch.isa import LoadDest, LoadFormat
from tilewright_hw.gateware.convert import FloatConverter
from tilewright_hw.gateware.layouts import buffer_write, bytes_word, table_word, vector_word
from tilewright_hw.gateware.transpose import Transposer
from tilewright_hw.gateware.width import WidthConverter, beat

__all__ = ["TARGET", "LoadSink"]

TARGET = data.StructLayout(
    {
        "dest": LoadDest,
        "transpose": unsigned(1),
        "format": LoadFormat,
        "dst": unsigned(16),
        "dst_stride": unsigned(16),
    }
)
"""What the data side of a LOAD has to know."""


class LoadSink(wiring.Component):
    """Takes the beats of LOADs in order and hands them on in the form and to the place that each command names.

    Word w of run i goes to address dst + i * dst_stride + w (except to the stream FIFO and to the table, which have no
    addresses). Tiles that lie transposed pass a `Transposer` on their way to the stream FIFO.

    Flow control: a beat per cycle, or a word per cycle, whichever is less; one cycle passes between the last word of a
    command and the first beat of the next.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator's parameters.

    Members
    -------
    cmd : In(stream of TARGET)
        One item per command, ahead of its beats.
    i : In(stream of beat(bus_bytes, 2))
        Beats; end bit 0 marks the last of a run, bit 1 the last of a command.
    o_stream, o_act, o_row, o_param : Out(stream)
        Rows of tiles, and words with addresses for the three buffers.
    o_table : Out(stream of table_word())
        Segments of the table.
    transposed : Out(1)
        What is on `o_stream` came through the transposer.
    done : Out(1)
        One pulse per command, the cycle after its last word was taken.
    """

    def __init__(self, config):
        self.config = config
        floats = stream.Signature(buffer_write(vector_word(config.lanes)))
        super().__init__(
            {
                "cmd": In(stream.Signature(TARGET)),
                "i": In(stream.Signature(beat(config.bus_bytes, 2))),
                "o_stream": Out(stream.Signature(bytes_word(config.cols))),
                "o_act": Out(stream.Signature(buffer_write(bytes_word(config.rows)))),
                "o_row": Out(floats),
                "o_param": Out(floats),
                "o_table": Out(stream.Signature(table_word())),
                "transposed": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        target = Signal(TARGET)
        running = Signal()
        taken = Signal()
        end = Signal(2)
        addr = Signal(16)
        for wanted, first, last, out in self._ways(m, target):
            m.d.comb += first.i.p.eq(self.i.p)
            if hasattr(out.p, "addr"):
                m.d.comb += [out.p.addr.eq(addr), out.p.data.eq(last.o.p.data)]
            with m.If(wanted):
                m.d.comb += [
                    first.i.valid.eq(self.i.valid & running),
                    self.i.ready.eq(first.i.ready & running),
                    out.valid.eq(last.o.valid),
                    last.o.ready.eq(out.ready),
                    taken.eq(out.valid & out.ready),
                    end.eq(last.o.p.end),
                ]
        self._command(m, target, running, taken & end[1])
        self._address(m, target, addr, taken, end[0])
        return m

    def _ways(self, m, target):
        """Return, for each way through the converters: when it is wanted, its first and last block, and its output."""
        config, bus_bytes = self.config, self.config.bus_bytes
        m.submodules.tiles = tiles = WidthConverter(bus_bytes=bus_bytes, slot=config.col_slot, used=config.cols, ends=2)
        m.submodules.words = words = WidthConverter(bus_bytes=bus_bytes, slot=config.row_slot, used=config.rows, ends=2)
        m.submodules.floats = floats = FloatConverter(bus_bytes=bus_bytes, lanes=config.lanes)
        m.submodules.segments = segments = WidthConverter(bus_bytes=bus_bytes, slot=4, used=4, ends=2)
        m.submodules.transposer = transposer = Transposer(rows=config.rows, cols=config.cols, ends=2)
        dest, transpose = target.dest, target.transpose
        table = self.o_table.p
        m.d.comb += [
            floats.format.eq(target.format),
            self.transposed.eq(transpose),
            self.o_stream.p.eq(Mux(transpose, transposer.o.p.data.as_value(), tiles.o.p.data.as_value())),
            table.eq(Cat(segments.o.p.data, target.dst, segments.o.p.end[1])),
            transposer.i.valid.eq(words.o.valid & (dest == LoadDest.STREAM)),
            transposer.i.p.eq(words.o.p),
        ]
        with m.If(dest == LoadDest.STREAM):
            m.d.comb += words.o.ready.eq(transposer.i.ready)
        return (
            ((dest == LoadDest.STREAM) & ~transpose, tiles, tiles, self.o_stream),
            ((dest == LoadDest.STREAM) & transpose, words, transposer, self.o_stream),
            (dest == LoadDest.ACT, words, words, self.o_act),
            (dest == LoadDest.ROW, floats, floats, self.o_row),
            (dest == LoadDest.PARAM, floats, floats, self.o_param),
            (dest == LoadDest.TABLE, segments, segments, self.o_table),
        )

    def _command(self, m, target, running, finished):
        """Hold one command, and let beats in from when it is known until its last beat is in."""
        held = Signal()
        m.d.comb += self.cmd.ready.eq(~held | finished)
        m.d.sync += self.done.eq(finished)
        with m.If(self.cmd.ready):
            m.d.sync += [held.eq(self.cmd.valid), running.eq(self.cmd.valid)]
            m.d.sync += target.eq(self.cmd.p)
        with m.Elif(self.i.valid & self.i.ready & self.i.p.end[1]):
            m.d.sync += running.eq(0)

    def _address(self, m, target, addr, taken, run_end):
        start = Signal(16)
        after = Signal(16)
        m.d.comb += after.eq(start + target.dst_stride)
        with m.If(self.cmd.ready):
            m.d.sync += [addr.eq(self.cmd.p.dst), start.eq(self.cmd.p.dst)]
        with m.Elif(taken):
            m.d.sync += addr.eq(Mux(run_end, after, addr + 1))
            with m.If(run_end):
                m.d.sync += start.eq(after)
