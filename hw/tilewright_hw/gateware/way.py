"""The way of tokens past the stages of a rigid pipeline, those left out that an instruction does not use."""

from functools import reduce
from operator import or_

from amaranth import C, Signal, Value

from tilewright_hw.gateware.float import delay

__all__ = ["Way"]


class Way:
    """What travels beside data on their way, and skips with them the stages that are not used.

    A stage that is not used keeps nothing: it could come out of it in the next instruction. What is at a place comes
    from the last stage before it that is used: all stages meet in one OR there, not in a chain of choices.

    `now` is what is at the place in this cycle, `next` what will be there in the next one, as far as the way began with
    the latter too: so the end of a way can be a register, at no cost in cycles.

    Parameters
    ----------
    m : Module
        The pipeline's.
    start : view with a field `valid`
        What enters.
    following : view of the same shape, optional
        What enters in the next cycle. Default: never known, and `next` of no use.
    """

    def __init__(self, m, start, following=None):
        self.m = m
        self.now = start
        self.next = Signal.like(start, name="next") if following is None else following
        # All that may be at this place, now and in the next cycle, and whether the last stage used is theirs.
        self._sources = [(self.now, self.next, C(1))]

    def past(self, used, cycles, *, name):
        """Go past a stage of so many cycles; return `now` behind it."""
        m = self.m
        entering = []
        for time, before in (("then", self.next), ("in", self.now)):
            late = Signal.like(before, name=f"{name}_{time}")
            m.d.comb += [late.eq(before), late.valid.eq(before.valid & used)]
            entering.append(late)
        for n in range(cycles):
            entering.append(delay(m, entering[-1], 1, name=f"{name}_{n}"))
        self._sources = [(now, then, theirs & ~used) for now, then, theirs in self._sources]
        self._sources.append((entering[-1], entering[-2], used))
        self.now = self._meet(0, f"{name}_now")
        self.next = self._meet(1, f"{name}_next")
        return self.now

    def _meet(self, time, name):
        """Return what is at this place: 0 for this cycle, 1 for the next."""
        met = Signal.like(self.now, name=name)
        width = len(Value.cast(met))
        chosen = [Value.cast(source[time]) & source[2].replicate(width) for source in self._sources]
        self.m.d.comb += met.eq(reduce(or_, chosen))
        return met
