"""Delays: the wavefronts that a systolic array wants, and pipelines beside it."""

from __future__ import annotations

from amaranth.hdl import Module, Shape, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware.checks import check_integer, check_shape


def pipeline(m, valid, payload, cycles, name):
    """Return `valid` and `payload`, each delayed by 0, 1, ... cycles; a payload moves if valid."""
    valids, payloads = [valid], [payload]
    for i in range(1, cycles + 1):
        valids.append(Signal(name=f"{name}_valid_{i}"))
        payloads.append(Signal(payload.shape(), name=f"{name}_{i}", reset_less=True))
        m.d.sync += valids[i].eq(valids[i - 1])
        with m.If(valids[i - 1]):
            m.d.sync += payloads[i].eq(payloads[i - 1])
    return valids, payloads


class Skew(wiring.Component):
    """Delay lane k by k * step cycles: o[k] at cycle t + k * step is i[k] at cycle t.

    Flow control: none (rigid). The registers move only behind `valid`, so that an idle skew is
    still: o[k] is defined in cycle t + k * step only if `valid` was high in cycle t.

    Latency: 0 for lane 0 (no register), `latency` = (count - 1) * step cycles for the last lane.

    Number format: any; lanes are moved as they are.

    All lanes that are equally late share one register, which gets narrower from stage to stage:
    `count * (count - 1) / 2 * step` lanes are stored.

    Parameters
    ----------
    shape : shape-like
        Shape of a lane, of 1 to 65536 bits.
    count : int
        Lanes, from 1 to 1024.
    step : int
        Cycles from one lane to the next, from 1 to 1024.

    Members
    -------
    valid : In(1)
        The lanes of `i` hold data.
    i : In(data.ArrayLayout(shape, count)), o : Out(data.ArrayLayout(shape, count))
        Input and output.
    """

    def __init__(self, shape, count, step=1):
        self.shape = check_shape("shape", shape)
        self.count = check_integer("count", count, most=1024)
        self.step = check_integer("step", step, most=1024)
        lanes = data.ArrayLayout(shape, count)
        super().__init__({"valid": In(1), "i": In(lanes), "o": Out(lanes)})

    @property
    def latency(self):
        """Cycles by which the last lane is late."""
        return (self.count - 1) * self.step

    def elaborate(self, platform):
        m = Module()
        width = Shape.cast(self.shape).width
        # Lane 0 on top: the next stage drops it, and all other bits keep their place.
        line = Signal(self.count * width, name="line_0")
        for k in range(self.count):
            m.d.comb += line[(self.count - 1 - k) * width :][:width].eq(self.i.as_value()[k * width :][:width])
        moving = self.valid
        m.d.comb += self.o.as_value()[:width].eq(line[-width:])
        for stage in range(1, self.latency + 1):
            lane = -(-stage // self.step)
            late = Signal((self.count - lane) * width, name=f"line_{stage}", reset_less=True)
            with m.If(moving):
                m.d.sync += late.eq(line)
            if stage % self.step == 0:
                m.d.comb += self.o.as_value()[lane * width :][:width].eq(late[-width:])
            if stage < self.latency:
                moved = Signal(name=f"valid_{stage}")
                m.d.sync += moved.eq(moving)
                moving = moved
            line = late
        return m
