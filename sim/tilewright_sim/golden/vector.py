"""VECTOR: row operations (docs/numerics.md, "A vector instruction"; docs/architecture.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch.isa import Add, Dest, Element, Func, Mul, Reduce, Scale, Source
from tilewright_sim.golden import formats, tables
from tilewright_sim.golden.formats import Floats, add, mul
from tilewright_sim.golden.functions import rotate
from tilewright_sim.golden.reductions import (
    Mask,
    absmax_reduction,
    expsum_reduction,
    max_reduction,
    qscale_reduction,
    sum_reduction,
    sumsq_reduction,
)
from tilewright_sim.golden.state import Fault, Region, StoreRows, put

if TYPE_CHECKING:
    from tilewright_sim.golden.machine import Fields, Machine

_ELEMENTS = {
    Dest.STORE_INT8: Element.INT8,
    Dest.STORE_FP32: Element.FP32,
    Dest.STORE_BF16: Element.BF16,
    Dest.STORE_RAW: Element.FP32,
}
_READS_STAT = (Reduce.SUMSQ, Reduce.SUM)


class VectorStep:
    """One VECTOR, its operands checked and its regions laid out; a call executes it.

    All rows are computed at once, as arrays (m, h, n).
    """

    def __init__(self, machine: Machine, f: Fields) -> None:
        config = machine.config
        self.n, self.m, self.h = f["n"], f["m"], f["h"]
        self.source, self.scale = Source(f["source"]), Scale(f["scale"])
        self.add, self.func, self.mul = Add(f["add"]), Func(f["func"]), Mul(f["mul"])
        self.reduce, self.dest = Reduce(f["reduce"]), Dest(f["dest"])
        self.param, self.outer, self.scale16 = f["param"], f["reduce_outer"], bool(f["scale16"])
        self.const1 = formats.load_fp32(np.uint32(f["const1"]))
        self.const2 = formats.load_bf16(np.uint16(f["const2"]))
        self.lanes, self.cols = config.lanes, config.cols
        self._check()
        self.reads, self.writes = list[Region](), list[Region]()
        limits = np.minimum(f["limit"] + np.arange(self.m) * f["causal"], self.n)
        self.limits = limits
        self.valid: Mask = None  # (m, 1, n); None: all
        if limits[0] < self.n and self.dest is not Dest.STORE_RAW:
            self.valid = (np.arange(self.n) < limits[:, None])[:, None, :]
        self._lay_out_sources(machine, f)
        self._lay_out_results(machine, f)
        self._check_overlaps()

    def _check(self) -> None:
        """Fault on combinations that the machine does not have."""
        row2 = (self.add is Add.ROW) + (self.mul is Mul.ROW)
        if row2 and self.source is Source.ROW:
            raise Fault("the second operand needs the row buffer's port, which A uses")
        if row2 == 2:
            raise Fault("the adder and the last multiplier cannot both take the second operand")
        if self.source is Source.STAT and self.n != 1:
            raise Fault(f"n must be 1 where A is STAT, not {self.n}")
        if self.func is Func.TABLE:
            raise Fault("func TABLE is reserved")
        if self.add is Add.ROTATE and (self.scale or self.param):
            raise Fault("ROTATE replaces both multipliers: scale and param must be 0")
        if self.add is Add.ROTATE and self.n % 2:
            raise Fault(f"n must be even for ROTATE, not {self.n}")
        plain = (self.scale, self.param, self.add, self.func, self.mul, self.reduce)
        if self.dest is Dest.STORE_RAW and (self.source is not Source.ACC or any(plain)):
            raise Fault("STORE_RAW takes A from ACC and does nothing else")

    def _rows(self, machine: Machine, name: str, f: Fields, field: str, words: int, what: str) -> Region:
        """Return the region of rows of `words` words that fields x, x_m and x_h describe."""
        loops = ((self.m, f[f"{field}_m"]), (self.h, f[f"{field}_h"]))
        return machine.buffers.check(Region(name, f[field], loops, words), what)

    def _read(self, machine: Machine, region: Region) -> NDArray[Any]:
        self.reads.append(region)
        return region.view(machine.buffers.array(region.name))

    def _lay_out_sources(self, machine: Machine, f: Fields) -> None:
        words = -(-self.n // self.lanes)
        if self.source is Source.ACC:
            cols = machine.config.cols
            groups = (-(-self.n // cols), f["src_n"])
            loops = ((self.m, f["src_m"]), (self.h, f["src_h"]), groups)
            acc = Region(f"acc{f['bank']}", f["src"], loops, 1)
            self.a = self._read(machine, machine.buffers.check(acc, "A"))
        elif self.source is Source.ROW:
            self.a = self._read(machine, self._rows(machine, "row", f, "src", words, "A"))
        if self.add is Add.ROW or self.mul is Mul.ROW:
            row = self._rows(machine, "row", f, "row", words, "the second operand")
            self.row2 = self._read(machine, row)[..., : self.n]
        if self.param or self.add is Add.ROTATE:
            par = self._rows(machine, "param", f, "par", words, "the parameters")
            self.par = self._read(machine, par)[..., : self.n]
        uses_stat = self.source is Source.STAT or self.scale in (Scale.STAT_A, Scale.STAT_B)
        if uses_stat or self.add is Add.NEG_STAT_A:
            self.stat = self._read(machine, self._rows(machine, "stat", f, "stat", 1, "statistics"))
        if self.reduce in _READS_STAT:
            # One entry for all inner rows where they are reduced together: that of inner row 0.
            per_row = ((self.m, f["stat_m"]), (1 if self.outer else self.h, f["stat_h"]))
            entry = machine.buffers.check(Region("stat", f["stat"], per_row, 1), "statistics")
            self.largest = self._read(machine, entry)[..., :1]  # (m, h, 1)

    def _lay_out_results(self, machine: Machine, f: Fields) -> None:
        self.into: NDArray[Any] | None = None
        if self.dest in (Dest.ROW, Dest.ACT):
            name = self.dest.name.lower()
            width = machine.config.rows if self.dest is Dest.ACT else self.lanes
            self.dst = self._rows(machine, name, f, "dst", -(-self.n // width), "the destination")
            self.writes.append(self.dst)
            self.into = self.dst.view(machine.buffers.array(name))
        if self.reduce:
            loops = ((self.m, f["red_m"]), (1 if self.outer else self.h, f["red_h"]))
            self.red = machine.buffers.check(Region("stat", f["red"], loops, 1), "the reduction")
            self.writes.append(self.red)
            self.entries = self.red.view(machine.buffers.stat)

    def _check_overlaps(self) -> None:
        """Fault where a row's results may meet another row's sources."""
        for write in self.writes:
            for read in self.reads:
                if write.name != read.name:
                    continue
                if self._mapping(read) != self._mapping(write) and write.overlaps(read):
                    raise Fault(f"source and destination in the {read.name} buffer overlap without being identical")

    def _mapping(self, region: Region) -> tuple[object, ...]:
        if self.outer and region.name == "stat" and not region.loops[1][1]:
            # The entry is written once, after the last inner row has read it.
            return Region("stat", region.start, region.loops[:1], 1).mapping
        return region.mapping

    def needs(self, region: Region) -> Mask:
        """Return which words of a source must be defined: those with valid elements (None: all)."""
        if self.valid is None or region.name == "stat":
            return None
        width = self.cols if len(region.loops) == 3 else self.lanes
        words = -(-self.n // width)
        used = np.arange(words) * width < self.limits[:, None]  # (m, words)
        return used[:, None, :, None] if len(region.loops) == 3 else used[:, None, :]

    def first_source(self, machine: Machine) -> None:
        """Return the source of what it takes from a FIFO: it takes nothing."""

    def __call__(self, machine: Machine) -> None:
        """Execute."""
        if self.dest is Dest.STORE_RAW:
            self._push(machine, self.a.reshape(self.m, self.h, -1)[..., : self.n])
            return
        y = self._elements()  # (m, h, n)
        if self.reduce:
            a, b = self._reduction(y)
        self._deliver(machine, y)
        if self.reduce:
            result = np.empty(self.entries.shape)
            result[..., :1], result[..., 1:] = a, b
            put(self.entries, result, self.red)

    def _elements(self) -> Floats:
        """Return x5."""
        if self.source is Source.STAT:
            x = self.stat[..., 1:]
        elif self.source is Source.ACC:
            x = formats.i2f(self.a.reshape(self.m, self.h, -1)[..., : self.n])
        else:
            x = self.a[..., : self.n]
        if self.scale is Scale.CONST:
            x = mul(x, self.const1)
        elif self.scale:
            field = 0 if self.scale is Scale.STAT_A else 1
            x = mul(x, self.stat[..., field : field + 1])
        if self.param:
            x = mul(x, self.par)
        if self.add is Add.ROTATE:
            x = rotate(x, self.par)
        elif self.add is Add.ROW:
            x = add(x, self.row2)
        elif self.add is Add.NEG_STAT_A:
            x = add(x, -self.stat[..., :1])
        y = x
        if self.func is Func.EXP2:
            y = tables.exp2(x)
        elif self.func is Func.SIGMOID:
            y = tables.sigmoid(x)
        if self.mul is Mul.SELF:
            y = mul(y, x)
        elif self.mul is Mul.ROW:
            y = mul(y, self.row2)
        return y if self.valid is None else np.where(self.valid, y, 0.0)

    def _reduction(self, y: Floats) -> tuple[Any, Any]:
        """Return fields a and b of the statistics entries, (m, h, 1) or (m, 1, 1)."""
        axis = (1, 2) if self.outer else (2,)
        if self.reduce is Reduce.MAX:
            return max_reduction(y, self.valid, axis), 0.0
        if self.reduce is Reduce.ABSMAX:
            return absmax_reduction(y, axis), 0.0
        if self.reduce is Reduce.QSCALE:
            return qscale_reduction(y, self.const1, scale16=self.scale16, axis=axis)
        if self.reduce is Reduce.EXPSUM:
            return expsum_reduction(y, axis), 0.0
        self._check_largest(y)
        if self.reduce is Reduce.SUM:
            return sum_reduction(y, self.largest, self.const1, axis), 0.0
        return sumsq_reduction(y, self.largest, self.const1, self.const2, axis), 0.0

    def _check_largest(self, y: Floats) -> None:
        """Fault if an element's exponent is above that of what should be the row's absolute maximum."""
        above = formats.exponent(y) > formats.exponent(self.largest)
        if above.any():
            m, h, i = (int(at) for at in np.unravel_index(above.argmax(), above.shape))
            largest = self.largest[m, 0 if self.outer else h, 0]
            raise Fault(
                f"{self.reduce.name}: element {i} of row ({m}, {h}) is {y[m, h, i]}, beyond the exponent of "
                f"what should be the row's absolute maximum, {largest}"
            )

    def _deliver(self, machine: Machine, y: Floats) -> None:
        """Put x5 where it goes."""
        if self.dest is Dest.NONE:
            return
        if self.dest is Dest.STORE_FP32:
            self._push(machine, formats.store_fp32(y))
        elif self.dest is Dest.STORE_BF16:
            self._push(machine, formats.store_bf16(y))
        elif self.dest is Dest.STORE_INT8:
            self._push(machine, formats.quantise(y))
        elif self.into is not None:
            values: NDArray[Any] = y if self.dest is Dest.ROW else formats.quantise(y)
            put(self.into, _padded(values, self.into.shape[-1]), self.dst)

    def _push(self, machine: Machine, values: NDArray[Any]) -> None:
        """Append rows to the store stream, each filled up to whole words."""
        width = -(-self.n // self.lanes) * self.lanes
        words = np.array(_padded(values, width)).reshape(-1, self.lanes)
        machine.store.chunks.append(StoreRows(words, int(_ELEMENTS[self.dest]), machine.index))


def _padded(values: NDArray[Any], width: int) -> NDArray[Any]:
    """Return (m, h, n) filled up with zeros to (m, h, width)."""
    if values.shape[-1] == width:
        return values
    out = np.zeros((*values.shape[:-1], width), values.dtype)
    out[..., : values.shape[-1]] = values
    return out
