"""A value that waits for the stage that needs it, in a small memory instead of a delay line."""

from amaranth import Module
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Ring"]


class Ring(wiring.Component):
    """Gives back in order what was put in: a FIFO without flow control.

    The k-th `take` gives the k-th value that was put, one cycle later, and `data` holds it until the next. A value may
    be taken in any cycle after the one in which it was put, with `transparent` in the same cycle too. The user sees to
    it that every value is taken, and that no more than `depth` wait.

    Parameters
    ----------
    shape : shape-like
        Shape of a value.
    depth : int
        Values that may wait; a power of two.
    transparent : bool
        Whether a value may be taken in the cycle in which it is put.

    Members
    -------
    put : In(1)
        Takes `put_data` in.
    put_data : In(shape)
        Value.
    take : In(1)
        Goes on to the next value.
    data : Out(shape)
        The value last taken.
    """

    def __init__(self, shape, *, depth, transparent=False):
        if not isinstance(depth, int) or depth < 2 or depth & (depth - 1):
            raise ValueError(f"Ring depth must be a power of two of at least 2, not {depth!r}")
        self.shape = shape
        self.depth = depth
        self.transparent = transparent
        super().__init__({"put": In(1), "put_data": In(shape), "take": In(1), "data": Out(shape)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = store = memory.Memory(shape=self.shape, depth=self.depth, init=[])
        write = store.write_port()
        read = store.read_port(transparent_for=(write,) if self.transparent else ())
        m.d.comb += [
            write.en.eq(self.put),
            write.data.eq(self.put_data),
            read.en.eq(self.take),
            self.data.eq(read.data),
        ]
        with m.If(self.put):
            m.d.sync += write.addr.eq(write.addr + 1)
        with m.If(self.take):
            m.d.sync += read.addr.eq(read.addr + 1)
        return m
