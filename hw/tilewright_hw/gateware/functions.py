"""Table functions on F24 (docs/numerics.md): rigid pipelines, one result per cycle, no flow control."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware.layouts import F24

__all__ = ["Exp2", "Exp2Sigmoid", "Reciprocal", "ReciprocalSqrt", "ReciprocalUnit", "Sigmoid"]


class Exp2Sigmoid(wiring.Component):
    """o = sigmoid(i) where `sigmoid`, else exp2(i): two functions that share aligner, table ROM and multiplier.

    Rigid pipeline, one result per cycle; the function may change from cycle to cycle.

    Members
    -------
    i : In(F24)
        Argument. exp2 takes what is above 0 as 0.
    sigmoid : In(1)
        Chooses the function, in the same cycle as `i`.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = 6
    i: In(F24)
    sigmoid: In(1)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        return m


class Exp2(wiring.Component):
    """o = exp2(i), i <= 0 (what is above 0 is taken as 0).

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Argument.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = Exp2Sigmoid.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        return m


class Sigmoid(wiring.Component):
    """o = sigmoid(i).

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Argument.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = Exp2Sigmoid.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        return m


class ReciprocalUnit(wiring.Component):
    """o = rsqrt(i) where `sqrt`, else recip(i): two functions that share table ROM and multiplier.

    Rigid pipeline, one result per cycle; the function may change from cycle to cycle.

    Members
    -------
    i : In(F24)
        Argument. recip(0) = +0; rsqrt of what is not above 0 is +0.
    sqrt : In(1)
        Chooses the function, in the same cycle as `i`.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = 4
    i: In(F24)
    sqrt: In(1)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        return m


class Reciprocal(wiring.Component):
    """o = recip(i); recip(0) = +0.

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Argument.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = ReciprocalUnit.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        return m


class ReciprocalSqrt(wiring.Component):
    """o = rsqrt(i); +0 for i <= 0.

    Rigid pipeline, one result per cycle.

    Members
    -------
    i : In(F24)
        Argument.
    o : Out(F24)
        Result, `LATENCY` cycles later.
    """

    LATENCY = ReciprocalUnit.LATENCY
    i: In(F24)
    o: Out(F24)

    def elaborate(self, platform):
        m = Module()
        return m
