"""The activation buffer: int8 words for the rows of the array."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware.checks import check_config
from tilewright_hw.gateware.fifo import NO_COLLISION
from tilewright_hw.gateware.layouts import buffer_write, bytes_word
from tilewright_hw.gateware.results import act_write


class ActBuffer(wiring.Component):
    """act[addr]: words of R int8, read whole, written whole (loads) or L bytes at a time.

    Flow control: reads and `write` never wait. `i_load` is a stream; it waits while `write.en`.

    Latency: `data` `LATENCY` = 1 cycle after `en`, and held until the next `en`. What is written in a cycle
    can be read from the next on (in the same cycle, the word read is undefined).

    Number format: int8, moved as it is.

    Storage: R/L block memories of L bytes, each with one synchronous read and one write port.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator's parameters.

    Members
    -------
    en : In(1), addr : In(16)
        Read a word.
    data : Out(bytes_word(R))
        It, a cycle later.
    write : In(act_write(L, R / L))
        Writes bytes part * L .. part * L + L - 1 of a word.
    i_load : In(stream.Signature(buffer_write(bytes_word(R))))
        Whole words to write.
    """

    LATENCY = 1

    def __init__(self, config):
        self.config = check_config(config)
        super().__init__(
            {
                "en": In(1),
                "addr": In(16),
                "data": Out(bytes_word(config.rows)),
                "write": In(act_write(config.lanes, config.rows // config.lanes)),
                "i_load": In(stream.Signature(buffer_write(bytes_word(config.rows)))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        lanes = self.config.lanes
        bits = 8 * lanes
        load, write = self.i_load.payload, self.write
        m.d.comb += self.i_load.ready.eq(~write.en)
        addr = Signal(16)
        m.d.comb += addr.eq(Mux(write.en, write.addr, load.addr))
        for p in range(self.config.rows // lanes):
            m.submodules[f"part_{p}"] = part = memory.Memory(
                shape=unsigned(bits), depth=self.config.act_words, init=[], attrs=NO_COLLISION
            )
            w, r = part.write_port(), part.read_port()
            loaded = load.data.as_value()[p * bits :][:bits]
            m.d.comb += [
                w.en.eq(Mux(write.en, write.part == p, self.i_load.valid)),
                w.addr.eq(addr),
                w.data.eq(Mux(write.en, write.data.as_value(), loaded)),
                r.en.eq(self.en),
                r.addr.eq(self.addr),
                self.data.as_value()[p * bits :][:bits].eq(r.data),
            ]
        return m
