"""A VECTOR instruction straight from docs/numerics.md and docs/architecture.md, in exact arithmetic, element by element.

Nothing here is shared with the golden model or the gateware.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import f24

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import Add, Dest, Func, Mul, Reduce, Scale, Source


@dataclass
class Buffers:
    """What a VECTOR reads and writes. Words that were never written are zero."""

    config: AcceleratorConfig
    acc: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    row: dict[int, list[int]] = field(default_factory=dict)
    param: dict[int, list[int]] = field(default_factory=dict)
    stat: dict[int, tuple[int, int]] = field(default_factory=dict)
    act: dict[int, list[int]] = field(default_factory=dict)
    store: list[list[int]] = field(default_factory=list)

    def float(self, memory: dict[int, list[int]], base: int, i: int) -> int:
        lanes = self.config.lanes
        return memory.get(base + i // lanes, [0] * lanes)[i % lanes]


def reduction(f: dict[str, int], x: list[int], exponent: int) -> tuple[int, int]:
    """Return the entry (a, b) of the valid results x; exponent: biased, of the source entry's field a."""
    const1, const2 = f["const1"] >> 8, f["const2"] << 8
    kind = f["reduce"]
    if kind == Reduce.MAX:
        return max(x, key=f24.value, default=0), 0
    absmax = max((e & 0x7FFFFF for e in x), default=0)
    if kind == Reduce.ABSMAX:
        return absmax, 0
    if kind == Reduce.QSCALE:
        s = f24.mul(absmax, const1)
        s = f24.bf16(s) if f["scale16"] else s
        return f24.recip(s), s
    if kind == Reduce.EXPSUM:
        total = f24.encode(sum(f24.unit_to_int(e) for e in x))
        return f24.recip(f24.scale2(total, -24)), 0
    aligned = [f24.align(e, exponent) for e in x]
    if kind == Reduce.SUM:
        total = f24.encode(sum(aligned))
        scaled = f24.scale2(total, exponent - 127 - 15) if exponent else 0
        return f24.mul(scaled, const1), 0
    total = f24.encode(sum(e * e for e in aligned))
    scaled = f24.scale2(total, 2 * (exponent - 127 - 15)) if exponent else 0
    return f24.rsqrt(f24.add(f24.mul(scaled, const1), const2)), 0


def execute(f: dict[str, int], state: Buffers) -> None:
    """Execute a VECTOR with all its fields in f."""
    results: dict[tuple[int, int], list[int]] = {}  # rows of x5, or of integers
    kept: dict[tuple[int, int], list[int]] = {}
    for m in range(f["m"]):
        valid = min(f["n"], f["limit"] + m * f["causal"])
        for h in range(f["h"]):
            row = [element(f, state, m, h, i) for i in range(f["n"])]
            kept[m, h] = row[:valid]
            if f["dest"] != Dest.STORE_RAW:
                row[valid:] = [0] * (f["n"] - valid)
            results[m, h] = row
    entries = {}
    if f["reduce"]:
        for m in range(f["m"]):
            rows = [[h] for h in range(f["h"])] if not f["reduce_outer"] else [range(f["h"])]
            for group in rows:
                stat = state.stat.get(f["stat"] + m * f["stat_m"] + group[0] * f["stat_h"], (0, 0))
                values = [x for h in group for x in kept[m, h]]
                entry = f["red"] + m * f["red_m"] + group[0] * f["red_h"]
                entries[entry] = reduction(f, values, stat[0] >> 15 & 255)
    for (m, h), row in results.items():
        write(f, state, f["dst"] + m * f["dst_m"] + h * f["dst_h"], row)
    state.stat.update(entries)


def element(f: dict[str, int], state: Buffers, m: int, h: int, i: int) -> int:
    """Return x5 (the integer itself for STORE_RAW)."""
    a, b = state.stat.get(f["stat"] + m * f["stat_m"] + h * f["stat_h"], (0, 0))
    row_base = f["row"] + m * f["row_m"] + h * f["row_h"]
    par_base = f["par"] + m * f["par_m"] + h * f["par_h"]

    def x0(i: int) -> int:
        if f["source"] == Source.STAT:
            return b
        base = f["src"] + m * f["src_m"] + h * f["src_h"]
        if f["source"] == Source.ROW:
            return state.float(state.row, base, i)
        cols = state.config.cols
        integer = state.acc[f["bank"], base + i // cols * f["src_n"]][i % cols]
        return integer if f["dest"] == Dest.STORE_RAW else f24.encode(integer)

    if f["dest"] == Dest.STORE_RAW:
        return x0(i)
    if f["add"] == Add.ROTATE:
        c, s = (state.float(state.param, par_base, i - i % 2 + k) for k in (0, 1))
        partner = f24.mul(x0(i ^ 1), s)
        x3 = f24.add(f24.mul(x0(i), c), partner if i % 2 else f24.neg(partner))
    else:
        x = x0(i)
        scales = {Scale.STAT_A: a, Scale.STAT_B: b, Scale.CONST: f["const1"] >> 8}
        x1 = f24.mul(x, scales[Scale(f["scale"])]) if f["scale"] else x
        x2 = f24.mul(x1, state.float(state.param, par_base, i)) if f["param"] else x1
        if f["add"] == Add.ROW:
            x3 = f24.add(x2, state.float(state.row, row_base, i))
        else:
            x3 = f24.add(x2, f24.neg(a)) if f["add"] == Add.NEG_STAT_A else x2
    functions = {Func.NONE: lambda x: x, Func.EXP2: f24.exp2, Func.SIGMOID: f24.sigmoid}
    x4 = functions[Func(f["func"])](x3)
    if f["mul"] == Mul.SELF:
        return f24.mul(x4, x3)
    return f24.mul(x4, state.float(state.row, row_base, i)) if f["mul"] == Mul.ROW else x4


def write(f: dict[str, int], state: Buffers, dst: int, row: list[int]) -> None:
    """Put a row where it goes; the store stream gets the low bits that count."""
    config, dest = state.config, f["dest"]
    width = config.rows if dest == Dest.ACT else config.lanes
    if dest in (Dest.ACT, Dest.STORE_INT8):
        row = [f24.f2i8(x) for x in row]
    row = row + [0] * (-len(row) % width)
    for w in range(0, len(row), width):
        word = row[w : w + width]
        if dest == Dest.ROW:
            state.row[dst + w // width] = word
        elif dest == Dest.ACT:
            state.act[dst + w // width] = word
        elif dest == Dest.STORE_INT8:
            state.store.append([x & 0xFF for x in word])
        elif dest == Dest.STORE_FP32:
            state.store.append([x << 8 for x in word])
        elif dest == Dest.STORE_BF16:
            state.store.append([x >> 8 for x in word])
        elif dest == Dest.STORE_RAW:
            state.store.append([x & 0xFFFFFFFF for x in word])


def random_float(rng, spread: int = 6) -> int:
    return f24.random_f24(rng, 127 - spread, 127 + spread)


def fraction(x: float) -> int:
    """Return the F24 nearest to x."""
    return f24.encode(Fraction(x))
