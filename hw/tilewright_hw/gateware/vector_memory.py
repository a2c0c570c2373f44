"""The row and the parameter buffer."""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tilewright_hw.gateware.fifo import NO_COLLISION
from tilewright_hw.gateware.layouts import buffer_write, vector_word

__all__ = ["VectorMemory"]


class VectorMemory(wiring.Component):
    """Words of L floats: one read port, and one write port that the vector unit shares with loads.

    A word is at `early` a cycle after `en`, straight from the memory, and at `data`, a register, two cycles after; it
    stays there until the next. Writes are seen by reads from the next cycle on; a word read in the cycle in which it is
    written is undefined. `write` is never refused; `i_load` waits for it.

    Parameters
    ----------
    lanes : int
        Floats of a word.
    words : int
        Words, a power of two; addresses wrap.

    Members
    -------
    en : In(1)
        Read.
    addr : In(16)
        Word to read.
    fresh : Out(1)
        A word has come to `early` in this cycle.
    early, data : Out(vector_word(lanes))
        What was read.
    write_en : In(1)
        Write `write`.
    write : In(buffer_write(vector_word(lanes)))
        Address and word.
    i_load : In(stream of buffer_write(vector_word(lanes)))
        Words to write when `write_en` is 0.
    """

    def __init__(self, *, lanes, words):
        self.lanes = lanes
        self.words = words
        self._width = exact_log2(words)
        word = buffer_write(vector_word(lanes))
        super().__init__(
            {
                "en": In(1),
                "addr": In(16),
                "fresh": Out(1),
                "early": Out(vector_word(lanes)),
                "data": Out(vector_word(lanes)),
                "write_en": In(1),
                "write": In(word),
                "i_load": In(stream.Signature(word)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = store = memory.Memory(
            shape=vector_word(self.lanes), depth=self.words, init=[], attrs=NO_COLLISION
        )
        read, write = store.read_port(), store.write_port()
        chosen = Signal.like(self.write)
        m.d.sync += self.fresh.eq(self.en)
        with m.If(self.fresh):
            m.d.sync += self.data.eq(read.data)
        m.d.comb += [
            read.en.eq(self.en),
            read.addr.eq(self.addr[: self._width]),
            self.early.eq(read.data),
            self.i_load.ready.eq(~self.write_en),
            chosen.eq(Mux(self.write_en, Value.cast(self.write), Value.cast(self.i_load.payload))),
            write.en.eq(self.write_en | self.i_load.valid),
            write.addr.eq(chosen.addr[: self._width]),
            write.data.eq(chosen.data),
        ]
        return m
