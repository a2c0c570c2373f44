"""The vector unit's arithmetic: one lane, and the way of a word through its stages.

An instruction takes one constant path. A stage that it does not use is left out, not waited for: data and token skip it
together, and nothing is delayed to keep step. `TokenPath` gives every stage the token of its word before the data, when
a memory has to be read for it.
"""

from amaranth import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.arch.isa import Func
from tilewright_hw.gateware.address import Token
from tilewright_hw.gateware.float import FloatAdd, FloatMul, FloatToInt, IntToFloat, delay
from tilewright_hw.gateware.functions import LaneFunction
from tilewright_hw.gateware.layouts import F24, table_write
from tilewright_hw.gateware.way import Way

__all__ = ["ACC_LATENCY", "X0_TO_X5", "Lane", "LanePath", "TokenPath"]

ACC_LATENCY = 2
"""Cycles from the request for an accumulator row to the word chosen from it (its register in the vector unit)."""
X0_TO_X5 = 3 * FloatMul.LATENCY + FloatAdd.LATENCY + LaneFunction.TABLE_LATENCY + 2
"""Cycles from x0 to x5 where every stage is used."""


class LanePath(data.Struct):
    """An instruction's way through the stages; constant while it runs."""

    acc: unsigned(1)
    """Operand A is an integer."""
    wide: unsigned(1)
    """It is made of two accumulators, and comes a cycle later."""
    rotate: unsigned(1)
    """Both multipliers work on x0, its own element times cosine, its partner times sine, and the adder adds them."""
    mul1: unsigned(1)
    """x1 is the product with the scalar. Not with `rotate`."""
    mul2: unsigned(1)
    """x2 is the second product (set with `rotate`)."""
    add: unsigned(1)
    """x3 is the sum."""
    func: unsigned(1)
    """x4 is the function."""
    kind: Func
    """Which."""
    table: unsigned(1)
    """It is the loaded one (set with `func`)."""
    mul3: unsigned(1)
    """x5 is the third product."""
    own: unsigned(1)
    """Its factor is x3 itself (set with `mul3`)."""
    quantise16: unsigned(1)
    """x5 is quantised to 15 bits, not to 8."""
    raw: unsigned(1)
    """Words go no further than the accumulators' integers."""


class Lane(wiring.Component):
    """x0 to x5 of docs/numerics.md, and x5 quantised, for one element per cycle.

    Rigid pipeline; the path decides the latency, which `TokenPath` follows. x0, x3 and x5 are registers, with enables.

    Parameters
    ----------
    odd : bool
        Second of a pair: its parameter is the pair's sine, not the cosine.

    Members
    -------
    path : In(LanePath)
        Stages used.
    acc : In(signed(32))
        Operand A as an integer, `IntToFloat.LATENCY` cycles before x0 is loaded.
    high : In(signed(32))
        128 times this is added to `acc`; 0 but with `wide`.
    operand : In(F24)
        Operand A otherwise, in the cycle in which x0 is loaded.
    load_x0, load_x3, load_x5 : In(1)
        A word is at that register's input.
    keep : In(1)
        The element is valid, otherwise x5 becomes +0; with `load_x5`.
    scalar : In(F24)
        First multiplier's factor, beside x0.
    param : In(F24)
        Parameter, at the second multiplier.
    partner_x0, partner_param : In(F24)
        `x0` and `param` of the pair's other lane.
    addend, stat : In(F24)
        Addend, at the adder: of these and with `rotate` the first product one at most is not 0.
    factor : In(F24)
        Factor of the third multiplier but for `own`.
    recalled : In(F24)
        x3 from before the function, at the third multiplier.
    align, exponent, write : In(8), In(9), In(table_write())
        The ports of `LaneFunction`.
    x0, x3, x5 : Out(F24)
        Registers.
    integer : Out(signed(15))
        x5 quantised, `FloatToInt.LATENCY` cycles later.
    """

    def __init__(self, *, odd):
        self.odd = odd
        super().__init__(
            {
                "path": In(LanePath),
                "acc": In(signed(32)),
                "high": In(signed(32)),
                "operand": In(F24),
                "load_x0": In(1),
                "load_x3": In(1),
                "load_x5": In(1),
                "scalar": In(F24),
                "param": In(F24),
                "partner_x0": In(F24),
                "partner_param": In(F24),
                "addend": In(F24),
                "stat": In(F24),
                "factor": In(F24),
                "keep": In(1),
                "recalled": In(F24),
                "align": In(8),
                "exponent": In(9),
                "write": In(table_write()),
                "x0": Out(F24),
                "x3": Out(F24),
                "x5": Out(F24),
                "integer": Out(signed(15)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        path = self.path
        product1, x2 = self._multiply(m)

        m.submodules.add = add = FloatAdd()
        turned = Signal()  # a second register: the multipliers' choices hang on the first
        m.d.sync += turned.eq(path.rotate)
        m.d.comb += [
            add.a.eq(x2),
            add.b.eq(self.addend | self.stat | (product1 & turned.replicate(24))),
        ]
        with m.If(self.load_x3):
            m.d.sync += self.x3.eq(Mux(path.add, add.o, x2))

        m.submodules.mul3 = mul3 = FloatMul()
        m.d.comb += [
            mul3.a.eq(self._function(m)),
            mul3.b.eq(Mux(path.own, Mux(path.func, self.recalled, self.x3), self.factor)),
        ]
        with m.If(self.load_x5):
            m.d.sync += self.x5.eq(Mux(self.keep, Mux(path.mul3, mul3.o, mul3.a), 0))
        m.submodules.quantise = quantise = FloatToInt()
        m.d.comb += [quantise.i.eq(self.x5), quantise.wide.eq(path.quantise16), self.integer.eq(quantise.o)]
        return m

    def _function(self, m):
        """Build the function; return x4."""
        path = self.path
        m.submodules.func = func = LaneFunction()
        m.d.comb += [
            func.i.eq(self.x3),
            func.kind.eq(path.kind),
            func.align.eq(self.align),
            func.exponent.eq(self.exponent),
            func.write.eq(self.write),
        ]
        return Mux(path.func, Mux(path.table, func.o_table, func.o), self.x3)

    def _multiply(self, m):
        """Build x0 and the first two multipliers; return the first one's product, and x2."""
        path = self.path
        m.submodules.i2f = i2f = IntToFloat(40)
        m.submodules.mul1 = mul1 = FloatMul()
        m.submodules.mul2 = mul2 = FloatMul()
        m.d.comb += i2f.i.eq(self.acc + (self.high << 7))
        with m.If(self.load_x0):
            m.d.sync += self.x0.eq(Mux(path.acc, i2f.o, self.operand))
        if self.odd:
            cosine, sine = self.partner_param, self.param
        else:
            cosine, sine = self.param, self.partner_param ^ (1 << 23)  # -sin: a zero's sign is ignored
        x1 = Signal(F24)
        m.d.comb += [
            mul1.a.eq(self.x0),
            mul1.b.eq(Mux(path.rotate, cosine, self.scalar)),
            x1.eq(Mux(path.mul1, mul1.o, self.x0)),
            mul2.a.eq(Mux(path.rotate, self.partner_x0, x1)),
            mul2.b.eq(Mux(path.rotate, sine, self.param)),
        ]
        x2 = Signal(F24)
        m.d.comb += x2.eq(Mux(path.mul2, mul2.o, x1))
        return mul1.o, x2


class TokenPath(wiring.Component):
    """Takes every word's token along its path, past each stage two cycles before the data.

    Rigid; an instruction has left before the next one, with another path, begins.

    Members
    -------
    path : In(LanePath)
        Stages used.
    issue : In(Token)
        The word for which accumulators are read, or which is read as `operand`.
    integer : Out(Token)
        At the word chosen from the accumulators, in time with the data (with `wide` the first of the two).
    operand : Out(Token)
        One cycle before x0's input: read the row buffer's operand A and the statistics.
    read_param, read_addend, read_factor : Out(Token)
        Two cycles before the second multiplier, the adder, the third multiplier: read what they need.
    addend, factor, result : Out(Token)
        One cycle before the adder, the third multiplier, x5's input.
    x0, x3, x5 : Out(Token)
        At those registers' inputs, in time with the data: the registers hold the word a cycle later.
    """

    path: In(LanePath)
    issue: In(Token)
    integer: Out(Token)
    operand: Out(Token)
    read_param: Out(Token)
    read_addend: Out(Token)
    read_factor: Out(Token)
    addend: Out(Token)
    factor: Out(Token)
    result: Out(Token)
    x0: Out(Token)
    x3: Out(Token)
    x5: Out(Token)

    def elaborate(self, platform):
        m = Module()
        path = self.path

        # What is two cycles before a register's input is one cycle before it in `near`, and at it in `self`. It is two
        # cycles before the register's output in `near`, too.
        x3 = Signal(Token)
        x5 = Signal(Token)
        near_x3 = Signal(Token)
        at_acc = delay(m, self.issue, ACC_LATENCY - 1, name="acc", reset_less=False)
        going_on = Signal(Token)
        m.d.comb += [going_on.eq(self.issue), going_on.valid.eq(self.issue.valid & ~path.raw)]
        way = Way(m, going_on)
        way.past(path.acc, ACC_LATENCY - 1 + IntToFloat.LATENCY, name="i2f")
        m.d.comb += [
            self.operand.eq(way.past(path.wide, 1, name="wide")),
            self.read_param.eq(way.past(path.mul1, FloatMul.LATENCY, name="mul1")),
            self.read_addend.eq(way.past(path.mul2, FloatMul.LATENCY, name="mul2")),
            x3.eq(way.past(path.add, FloatAdd.LATENCY, name="add")),
        ]
        way = Way(m, near_x3)
        way.past(path.func, LaneFunction.LATENCY, name="func")
        table = LaneFunction.TABLE_LATENCY - LaneFunction.LATENCY
        m.d.comb += [
            self.read_factor.eq(way.past(path.table, table, name="table")),
            x5.eq(way.past(path.mul3, FloatMul.LATENCY, name="mul3")),
        ]
        m.d.sync += [
            self.integer.eq(at_acc),
            self.x0.eq(self.operand),
            self.addend.eq(self.read_addend),
            near_x3.eq(x3),
            self.x3.eq(near_x3),
            self.factor.eq(self.read_factor),
            self.result.eq(x5),
            self.x5.eq(self.result),
        ]
        return m
