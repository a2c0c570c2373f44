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
    MAX_VAR,
    BeyondLargest,
    Mask,
    absmax_reduction,
    argmax_reduction,
    expsum_reduction,
    max_reduction,
    qscale_reduction,
    sum_reduction,
    sumsq_reduction,
    var_reduction,
)
from tilewright_sim.golden.state import TABLE_WORDS, Fault, Region, StoreRows, boxed, field_bits, put

if TYPE_CHECKING:
    from tilewright_sim.golden.machine import Fields, Machine

_ELEMENTS = {
    Dest.STORE_INT8: Element.INT8,
    Dest.STORE_FP32: Element.FP32,
    Dest.STORE_BF16: Element.BF16,
    Dest.STORE_RAW: Element.FP32,
}
_ALIGNED = (Reduce.SUMSQ, Reduce.SUM, Reduce.VAR)
"""Reductions of integers aligned to field a of the source entry."""
_MERGED = (Reduce.MAX, Reduce.ARGMAX)
"""Reductions that may begin with the source entry."""


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
        self.wide, self.merge = f["wide"], f["merge"]
        self.first_index = f["const1"] >> 8
        self.const1 = formats.load_fp32(np.uint32(f["const1"]))
        self.const2 = formats.load_bf16(np.uint16(f["const2"]))
        self.lanes, self.cols, self.rows = config.lanes, config.cols, config.rows
        self._check_operands()
        limits = np.minimum(f["limit"] + np.arange(self.m) * f["causal"], self.n)
        self.limits = limits
        self._check_results()
        self.reads, self.writes = list[Region](), list[Region]()
        self.valid: Mask = None  # (m, 1, n); None: all
        if limits[0] < self.n and self.dest is not Dest.STORE_RAW:
            self.valid = (np.arange(self.n) < limits[:, None])[:, None, :]
        self._lay_out_sources(machine, f)
        self._lay_out_results(machine, f)
        self._check_overlaps()
        self._choose_operands()

    def _check_operands(self) -> None:
        """Fault on combinations of operands that the machine does not have."""
        row2 = (self.add is Add.ROW) + (self.mul is Mul.ROW)
        if row2 and self.source is Source.ROW:
            raise Fault("the second operand needs the row buffer's port, which A uses")
        if row2 == 2:
            raise Fault("the adder and the last multiplier cannot both take the second operand")
        if self.source is Source.STAT and self.n != 1:
            raise Fault(f"n must be 1 where A is STAT, not {self.n}")
        if self.wide and self.source is not Source.ACC:
            raise Fault(f"wide joins accumulators: A must be ACC, not {self.source.name}")
        if self.add is Add.ROTATE and (self.scale or self.param):
            raise Fault("ROTATE replaces both multipliers: scale and param must be 0")
        if self.add is Add.ROTATE and self.n % 2:
            raise Fault(f"n must be even for ROTATE, not {self.n}")
        takers = bool(self.param) + (self.add in (Add.PARAM, Add.ROTATE)) + (self.mul is Mul.PARAM)
        if takers > 1:
            raise Fault("only one of param, add and mul can take the parameter")

    def _check_results(self) -> None:
        """Fault on reductions and destinations that the machine does not have."""
        plain = (self.scale, self.param, self.add, self.func, self.mul, self.reduce, self.wide, self.merge)
        if self.dest is Dest.STORE_RAW and (self.source is Source.ROW or any(plain)):
            raise Fault("STORE_RAW takes A from ACC or STAT and does nothing else")
        if self.merge and self.reduce not in _MERGED:
            raise Fault(f"merge goes with MAX and ARGMAX, not {self.reduce.name}")
        if self.reduce is Reduce.VAR:
            if self.outer:
                raise Fault("VAR cannot reduce_outer")
            if self.n > MAX_VAR:
                raise Fault(f"n must be at most {MAX_VAR} for VAR, not {self.n}")
            if self.limits[0] < self.n:
                raise Fault(f"every element must be valid for VAR: limit is {self.limits[0]}, n {self.n}")

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
            acc = Region(f"acc{f['bank']}", f["src"], loops, 2 if self.wide else 1)
            self.a = self._read(machine, machine.buffers.check(acc, "A"))
        elif self.source is Source.ROW:
            self.a = self._read(machine, self._rows(machine, "row", f, "src", words, "A"))[..., : self.n]
        if self.add is Add.ROW or self.mul is Mul.ROW:
            row = self._rows(machine, "row", f, "row", words, "the second operand")
            self.row2 = self._read(machine, row)[..., : self.n]
        if self.param or self.add in (Add.ROTATE, Add.PARAM) or self.mul is Mul.PARAM:
            par = self._rows(machine, "param", f, "par", words, "the parameters")
            self.par = self._read(machine, par)[..., : self.n]
        if self.func is Func.TABLE:
            self.segments = self._read(machine, Region("table", 0, (), TABLE_WORDS))
            self.shifts = machine.buffers.shifts
        self._lay_out_statistics(machine, f)

    def _lay_out_statistics(self, machine: Machine, f: Fields) -> None:
        self.uses_b = self.source is Source.STAT or self.scale is Scale.STAT_B or self.add is Add.STAT_B
        if self.uses_b or self.scale is Scale.STAT_A or self.add is Add.NEG_STAT_A:
            stat = self._read(machine, self._rows(machine, "stat", f, "stat", 1, "statistics"))  # (m, h, 2)
            self.stat_a, self.stat_b = stat[..., :1], stat[..., 1:]
        if self.reduce in _ALIGNED or self.merge:
            # One entry for all inner rows where they are reduced together: that of inner row 0.
            per_row = ((self.m, f["stat_m"]), (1 if self.outer else self.h, f["stat_h"]))
            region = machine.buffers.check(Region("stat", f["stat"], per_row, 1), "statistics")
            self.entry = self._read(machine, region)  # (m, h, 2)

    def _lay_out_results(self, machine: Machine, f: Fields) -> None:
        self.into: NDArray[Any] | None = None
        if self.dest in (Dest.ROW, Dest.ACT, Dest.ACT16):
            name, width = ("row", self.lanes) if self.dest is Dest.ROW else ("act", machine.config.rows)
            words = -(-self.n // width) * (2 if self.dest is Dest.ACT16 else 1)
            self.dst = self._rows(machine, name, f, "dst", words, "the destination")
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

    def _choose_operands(self) -> None:
        """Work out what the multipliers and the adder take."""
        self.multipliers: list[Floats] = []
        if self.scale is Scale.CONST:
            self.multipliers.append(self.const1)
        elif self.scale:
            self.multipliers.append(self.stat_a if self.scale is Scale.STAT_A else self.stat_b)
        if self.param:
            self.multipliers.append(self.par)
        if self.add in (Add.ROW, Add.PARAM):
            self.addend = self.row2 if self.add is Add.ROW else self.par
        elif self.add is Add.STAT_B:
            self.addend = self.stat_b
        if self.mul in (Mul.ROW, Mul.PARAM):
            self.factor = self.row2 if self.mul is Mul.ROW else self.par

    def __call__(self, machine: Machine) -> None:
        """Execute."""
        if self.dest is Dest.STORE_RAW:
            raw = field_bits(self.stat_b) if self.source is Source.STAT else np.array(self._accumulators())
            self._push(machine, raw)
            return
        if self.uses_b and machine.buffers.indexed and np.isnan(self.stat_b).any():
            raise Fault("field b of the statistics holds an index of ARGMAX, which is no F24")
        y = self._elements()  # (m, h, n)
        if self.reduce:
            a, b = self._reduction(machine, y)
        self._deliver(machine, y)
        if self.reduce and self.red.meets_itself:
            put(self.entries, np.concatenate(np.broadcast_arrays(a, b), axis=-1), self.red)
        elif self.reduce:
            self.entries[..., :1], self.entries[..., 1:] = a, b

    def _accumulators(self) -> NDArray[Any]:
        """Return the integers of ACC, (m, h, n)."""
        if not self.wide:
            return self.a.reshape(self.m, self.h, -1)[..., : self.n]
        pair = self.a.reshape(self.m, self.h, -1, 2, self.cols)
        joined: NDArray[Any] = pair[..., 0, :] * 128.0 + pair[..., 1, :]
        return joined.reshape(self.m, self.h, -1)[..., : self.n]

    def _elements(self) -> Floats:
        """Return x5."""
        if self.source is Source.ACC:
            x = formats.i2f(self._accumulators())
        else:
            x = self.stat_b if self.source is Source.STAT else self.a
        for operand in self.multipliers:
            x = mul(x, operand)
        if self.add:
            x = self._added(x)
        y = x
        if self.func is Func.EXP2:
            y = tables.exp2(x)
        elif self.func is Func.SIGMOID:
            y = tables.sigmoid(x)
        elif self.func is Func.TABLE:
            y = tables.table(x, self.segments, *self.shifts)
        if self.mul:
            y = mul(y, x if self.mul is Mul.SELF else self.factor)
        return y if self.valid is None else np.where(self.valid, y, 0.0)

    def _added(self, x: Floats) -> Floats:
        """Return x3."""
        if self.add is Add.ROTATE:
            return rotate(x, self.par)
        return add(x, -self.stat_a if self.add is Add.NEG_STAT_A else self.addend)

    def _reduction(self, machine: Machine, y: Floats) -> tuple[Any, Any]:
        """Return fields a and b of the statistics entries, (m, h, 1) or (m, 1, 1)."""
        axis = (1, 2) if self.outer else (2,)
        if self.reduce is Reduce.MAX:
            return max_reduction(y, self.valid, axis, self.entry[..., :1] if self.merge else None), 0.0
        if self.reduce is Reduce.ARGMAX:
            before = (self.entry[..., :1], field_bits(self.entry[..., 1:])) if self.merge else None
            most, index = argmax_reduction(y, self.first_index, self.valid, axis, before)
            machine.buffers.indexed = True
            return most, boxed(index)
        if self.reduce is Reduce.ABSMAX:
            return absmax_reduction(y, axis), 0.0
        if self.reduce is Reduce.QSCALE:
            return qscale_reduction(y, self.const1, scale16=self.scale16, axis=axis)
        if self.reduce is Reduce.EXPSUM:
            return expsum_reduction(y, axis), 0.0
        return self._aligned_reduction(y)

    def _aligned_reduction(self, y: Floats) -> tuple[Any, Any]:
        largest = self.entry[..., :1]
        axis = (1, 2) if self.outer else (2,)
        try:
            if self.reduce is Reduce.SUM:
                return sum_reduction(y, largest, self.const1, axis), 0.0
            if self.reduce is Reduce.VAR:
                return var_reduction(y, largest, self.const1, self.const2)
            return sumsq_reduction(y, largest, self.const1, self.const2, axis), 0.0
        except BeyondLargest as e:
            raise Fault(f"{self.reduce.name}: {e}") from e

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
            put(self.into, self._words(y, self.into.shape[-1]), self.dst)

    def _words(self, y: Floats, width: int) -> NDArray[Any]:
        """Return what a buffer is to hold, (m, h, width)."""
        if self.dest is Dest.ROW:
            return _padded(y, width)
        if self.dest is Dest.ACT:
            return _padded(formats.quantise(y), width)
        parts = [_padded(part, width // 2).reshape(self.m, self.h, -1, self.rows) for part in formats.quantise16(y)]
        return np.stack(parts, axis=3).reshape(self.m, self.h, width)

    def _push(self, machine: Machine, values: NDArray[Any]) -> None:
        """Append rows to the store stream, each filled up to whole words."""
        width = -(-self.n // self.lanes) * self.lanes
        words = _padded(values, width).reshape(-1, self.lanes)
        machine.store.chunks.append(StoreRows(words, int(_ELEMENTS[self.dest]), machine.index))


def _padded(values: NDArray[Any], width: int) -> NDArray[Any]:
    """Return (m, h, n) filled up with zeros to (m, h, width)."""
    if values.shape[-1] == width:
        return values
    out = np.zeros((*values.shape[:-1], width), values.dtype)
    out[..., : values.shape[-1]] = values
    return out
