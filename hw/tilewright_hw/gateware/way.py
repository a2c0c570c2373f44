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

    `now` is what is at the place in this cycle. Where what enters is known a cycle ahead, so is what comes out, `next`:
    the end of a way can be a register then, at no cost in cycles.

    Parameters
    ----------
    m : Module
        The pipeline's.
    start : view with a field `valid`
        What enters.
    following : view of the same shape, optional
        What enters in the next cycle. Without it there is no `next`.
    """

    def __init__(self, m, start, following=None):
        self.m = m
        self._here = (start,) if following is None else (start, following)  # now, and in the next cycle
        # All that may be at this place, at those times, and whether the last stage used is theirs.
        self._sources = [("start", self._here, C(1))]

    @property
    def now(self):
        """What is at this place."""
        return self._here[0]

    @property
    def next(self):
        """What will be there in the next cycle."""
        return self._here[1]

    def past(self, used, cycles, *, name):
        """Go past a stage of so many cycles; return `now` behind it."""
        m, times = self.m, len(self._here)
        uses = self._named(f"{name}_used", used)
        stage = []  # what is at its end comes first, and what will be there in the next cycle is one register before
        for time, before in zip(("in", "then"), self._here, strict=False):
            late = Signal.like(before, name=f"{name}_{time}")
            m.d.comb += [late.eq(before), late.valid.eq(before.valid & uses)]
            stage.append(late)
        for n in range(cycles):
            stage.insert(0, delay(m, stage[0], 1, name=f"{name}_{n}", reset_less=False))
        self._sources = [
            (whose, source, self._named(f"{name}_from_{whose}", theirs & ~uses))
            for whose, source, theirs in self._sources
        ]
        self._sources.append((name, stage[:times], uses))
        self._here = tuple(self._meet(time, f"{name}_{('now', 'next')[time]}") for time in range(times))
        return self.now

    def _named(self, name, value):
        """Return a bit as a signal: Amaranth writes an expression out again wherever it is used."""
        bit = Signal(name=name)
        self.m.d.comb += bit.eq(value)
        return bit

    def _meet(self, time, name):
        """Return what is at this place: 0 for this cycle, 1 for the next."""
        met = Signal.like(self.now, name=name)
        width = len(Value.cast(met))
        chosen = [Value.cast(source[time]) & theirs.replicate(width) for _, source, theirs in self._sources]
        self.m.d.comb += met.eq(reduce(or_, chosen))
        return met
