"""A VECTOR instruction straight from docs/numerics.md and docs/architecture.md, element by element in exact numbers.

Nothing here is shared with the golden model or the gateware.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import f24

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import FIELDS, Add, Dest, Func, Mul, Op, Reduce, Scale, Source

LOADED, SOURCES, RESULTS, ONES = range(0, 64), range(0, 160), range(70, 255), 255
"""Row-buffer words: loaded beside instructions, read by them, written by them (from 70 on in place), a word of ones."""


def vector(**fields: int) -> dict[str, int]:
    """Return all fields of a VECTOR; one row of all its elements unless told otherwise."""
    return {f.name: 0 for f in FIELDS[Op.VECTOR]} | {"n": 1, "m": 1, "h": 1, "limit": 65535} | fields


def show(fields: dict[str, int]) -> str:
    """Return the fields that are not zero, enumerations by name."""
    enums = {f.name: f.enum for f in FIELDS[Op.VECTOR]}
    return " ".join(f"{k}={enums[k](v).name if enums[k] else v}" for k, v in fields.items() if v)


@dataclass
class Buffers:
    """What a VECTOR reads and writes. Words that were never written are zero."""

    config: AcceleratorConfig
    acc: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    row: dict[int, list[int]] = field(default_factory=dict)
    param: dict[int, list[int]] = field(default_factory=dict)
    stat: dict[int, tuple[int, int]] = field(default_factory=dict)
    segments: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * 512)
    shifts: tuple[int, int] = (0, 0)
    act: dict[int, list[int]] = field(default_factory=dict)
    store: list[list[int]] = field(default_factory=list)

    def float(self, memory: dict[int, list[int]], base: int, i: int) -> int:
        lanes = self.config.lanes
        return memory.get(base + i // lanes, [0] * lanes)[i % lanes]


def best(f: dict[str, int], elements: list[tuple[int, int]], source: tuple[int, int]) -> tuple[int, int]:
    """Return the entry (a, b) of MAX or ARGMAX; elements: (place in the row, x)."""
    first = f["const1"] >> 8
    found = source if f["merge"] else None
    for place, x in elements:
        if found is None or f24.value(x) > f24.value(found[0]):
            found = x, (first + place) % (1 << 24)
    a, b = found or (0, first)
    return a, b if f["reduce"] == Reduce.ARGMAX else 0


def reduction(f: dict[str, int], elements: list[tuple[int, int]], source: tuple[int, int]) -> tuple[int, int]:
    """Return the entry (a, b) of the valid results; elements: (place in the row, x5); source: the source entry."""
    const1, const2 = f["const1"] >> 8, f["const2"] << 8
    kind = f["reduce"]
    if kind in (Reduce.MAX, Reduce.ARGMAX):
        return best(f, elements, source)
    x, exponent = [e for _, e in elements], source[0] >> 15 & 255
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
    s, q = sum(aligned), sum(e * e for e in aligned)
    shift = exponent - 127 - 15  # if the exponent is 0, all sums are
    mean = f24.mul(f24.scale2(f24.encode(s), shift), const1)
    if kind == Reduce.SUM:
        return mean, 0
    if kind == Reduce.VAR:
        v = f24.mul(f24.mul(f24.scale2(f24.encode(f["n"] * q - s * s), 2 * shift), const1), const1)
        r = f24.rsqrt(f24.add(v, const2))
        return r, f24.mul(f24.neg(mean), r)
    return f24.rsqrt(f24.add(f24.mul(f24.scale2(f24.encode(q), 2 * shift), const1), const2)), 0


def execute(f: dict[str, int], state: Buffers) -> None:
    """Execute a VECTOR with all its fields in f."""
    results: dict[tuple[int, int], list[int]] = {}  # rows of x5, or of integers
    kept: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for m in range(f["m"]):
        valid = min(f["n"], f["limit"] + m * f["causal"])
        for h in range(f["h"]):
            row = [element(f, state, m, h, i) for i in range(f["n"])]
            kept[m, h] = list(enumerate(row[:valid]))
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
                entries[entry] = reduction(f, values, stat)
    for (m, h), row in results.items():
        write(f, state, f["dst"] + m * f["dst_m"] + h * f["dst_h"], row)
    state.stat.update(entries)


def element(f: dict[str, int], state: Buffers, m: int, h: int, i: int) -> int:
    """Return x5 (the integer itself for STORE_RAW)."""
    a, b = state.stat.get(f["stat"] + m * f["stat_m"] + h * f["stat_h"], (0, 0))
    row_base = f["row"] + m * f["row_m"] + h * f["row_h"]
    par_base = f["par"] + m * f["par_m"] + h * f["par_h"]

    def second(i: int) -> int:
        return state.float(state.row, row_base, i)

    def parameter(i: int) -> int:
        return state.float(state.param, par_base, i)

    def x0(i: int) -> int:
        if f["source"] == Source.STAT:
            return b
        base = f["src"] + m * f["src_m"] + h * f["src_h"]
        if f["source"] == Source.ROW:
            return state.float(state.row, base, i)
        cols = state.config.cols
        address = base + i // cols * f["src_n"]
        integer = state.acc[f["bank"], address][i % cols]
        if f["wide"]:
            integer = 128 * integer + state.acc[f["bank"], address + 1][i % cols]
        return integer if f["dest"] == Dest.STORE_RAW else f24.encode(integer)

    if f["dest"] == Dest.STORE_RAW:
        return x0(i)
    if f["add"] == Add.ROTATE:
        c, s = (parameter(i - i % 2 + k) for k in (0, 1))
        partner = f24.mul(x0(i ^ 1), s)
        x3 = f24.add(f24.mul(x0(i), c), partner if i % 2 else f24.neg(partner))
    else:
        x = x0(i)
        scales = {Scale.STAT_A: a, Scale.STAT_B: b, Scale.CONST: f["const1"] >> 8}
        x1 = f24.mul(x, scales[Scale(f["scale"])]) if f["scale"] else x
        x2 = f24.mul(x1, parameter(i)) if f["param"] else x1
        addends = {Add.ROW: second(i), Add.NEG_STAT_A: f24.neg(a), Add.STAT_B: b, Add.PARAM: parameter(i)}
        x3 = f24.add(x2, addends[Add(f["add"])]) if f["add"] else x2
    functions = {
        Func.NONE: lambda x: x,
        Func.EXP2: f24.exp2,
        Func.SIGMOID: f24.sigmoid,
        Func.TABLE: lambda x: f24.table(x, state.segments, *state.shifts),
    }
    x4 = functions[Func(f["func"])](x3)
    factors = {Mul.SELF: x3, Mul.ROW: second(i), Mul.PARAM: parameter(i)}
    return f24.mul(x4, factors[Mul(f["mul"])]) if f["mul"] else x4


def write(f: dict[str, int], state: Buffers, dst: int, row: list[int]) -> None:
    """Put a row where it goes; the store stream gets the low bits that count."""
    config, dest = state.config, f["dest"]
    width = config.rows if dest in (Dest.ACT, Dest.ACT16) else config.lanes
    if dest in (Dest.ACT, Dest.STORE_INT8):
        row = [f24.f2i(x, 127) for x in row]
    if dest == Dest.ACT16:
        row = [f24.f2i(x, 16383) for x in row]
    row = row + [0] * (-len(row) % width)
    for w in range(0, len(row), width):
        word = row[w : w + width]
        if dest == Dest.ROW:
            state.row[dst + w // width] = word
        elif dest == Dest.ACT:
            state.act[dst + w // width] = word
        elif dest == Dest.ACT16:
            state.act[dst + 2 * (w // width)] = [x >> 7 for x in word]
            state.act[dst + 2 * (w // width) + 1] = [x & 127 for x in word]
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


def random_integer(rng) -> int:
    """Return an int32 of any size."""
    magnitude = rng.getrandbits(rng.choice([1, 8, 15, 20, 24, 31]))
    return rng.choice([0, 1, -1, -(1 << 31), magnitude, -magnitude])


def random_segments(rng) -> list[tuple[int, int]]:
    """Return a loadable table of any values."""
    value = [rng.getrandbits(rng.randint(1, 19)) * rng.choice((-1, 1)) for _ in range(512)]
    return [(v, rng.randint(-2048, 2047)) for v in value]


def seed_statistics(config: AcceleratorConfig) -> list[dict[str, int]]:
    """Instructions that give all 64 statistics entries values in both fields."""
    rows = vector(n=config.lanes, m=64, source=Source.ROW, src_m=1, red_m=1)
    scale = rows | {"reduce": Reduce.QSCALE, "const1": fraction(0.37) << 8}
    return [scale, rows | {"m": 8, "src": 64, "reduce": Reduce.MAX, "red": 3, "red_m": 7}]


def steps(rng, width, m, h):
    """Return strides (m, h) of rows of `width` words that do not overlap."""
    gap = rng.choice([0, 0, 1])
    if rng.random() < 0.7:
        return (width + gap) * h, width + gap
    return width + gap, (width + gap) * m


def random_vector(rng, config) -> dict[str, int]:
    """Return a random legal instruction, within the regions that the bench sets up."""
    lanes = config.lanes
    f = vector(m=rng.choice([1, 1, 2, 3]), h=rng.choice([1, 1, 2, 3]))
    f["source"] = rng.choice([Source.ACC, Source.ACC, Source.ROW, Source.ROW, Source.STAT])
    f["n"] = rng.choice([1, 2, lanes, lanes + 1, rng.randint(1, 4 * max(config.rows, lanes))])
    f["n"] = min(f["n"], 5 * lanes)
    if rng.random() < 0.2:  # raw
        f |= {"source": rng.choice([Source.ACC, Source.ACC, Source.STAT]), "dest": Dest.STORE_RAW}
    else:
        random_path(rng, f)
    if f["source"] == Source.STAT:
        f["n"] = 1
    if f["add"] == Add.ROTATE:
        f["n"] += f["n"] % 2
    if rng.random() < 0.4 and f["dest"] != Dest.STORE_RAW and f["reduce"] != Reduce.VAR:
        f |= {"limit": rng.randint(0, f["n"] + 1), "causal": rng.randint(0, 1)}
    random_regions(rng, config, f)
    return f


def random_path(rng, f):
    f["scale"] = rng.choice(list(Scale))
    f["param"] = rng.randint(0, 1)
    f["add"] = rng.choice(list(Add) + [Add.NONE])
    f["func"] = rng.choice([Func.NONE, *Func])
    f["mul"] = rng.choice([Mul.NONE, *Mul])
    f["reduce"] = rng.choice([Reduce.NONE, *Reduce, Reduce.VAR, Reduce.ARGMAX])
    f["reduce_outer"], f["scale16"] = rng.randint(0, 1), rng.randint(0, 1)
    f["wide"] = int(f["source"] == Source.ACC and rng.random() < 0.4)
    f["merge"] = int(f["reduce"] in (Reduce.MAX, Reduce.ARGMAX) and rng.random() < 0.5)
    if f["reduce"] == Reduce.VAR:
        f["reduce_outer"] = 0
    f["dest"] = rng.choice([d for d in Dest if d != Dest.STORE_RAW])
    if f["source"] == Source.ROW and f["add"] == Add.ROW:
        f["add"] = Add.NONE
    if f["mul"] == Mul.ROW and (f["source"] == Source.ROW or f["add"] == Add.ROW):
        f["mul"] = Mul.NONE
    if f["add"] == Add.ROTATE:
        if f["source"] == Source.STAT:
            f["source"] = Source.ACC
        f |= {"scale": Scale.NONE, "param": 0}
    if f["add"] == Add.PARAM or f["mul"] == Mul.PARAM:  # it takes the parameter once
        f["param"] = 0
    if f["mul"] == Mul.PARAM and f["add"] in (Add.PARAM, Add.ROTATE):
        f["mul"] = Mul.NONE
    f["const1"] = random_float(rng) << 8
    if f["reduce"] == Reduce.ARGMAX:
        f["const1"] = rng.choice([0, (1 << 24) - 2, rng.getrandbits(24)]) << 8
    f["const2"] = (random_float(rng) & 0x7FFFFF) >> 8


def random_regions(rng, config, f):
    words = -(-f["n"] // config.lanes)
    m, h = f["m"], f["h"]
    if f["source"] == Source.ACC:
        f |= {"src": rng.randrange(20), "src_n": rng.randrange(8)}
        f |= {"bank": rng.randint(0, 1), "src_m": rng.randrange(8), "src_h": rng.randrange(6)}
    elif f["source"] == Source.ROW:
        f["src"] = rng.choice([rng.randrange(64), rng.randrange(64, 90)])
        f["src_m"], f["src_h"] = rng.choice([(0, words), (0, 0), steps(rng, words, m, h)])
    f |= {"row": rng.randrange(80), "row_m": rng.randrange(8), "row_h": rng.randrange(8)}
    f |= {"par": rng.randrange(24), "par_m": rng.randrange(10), "par_h": rng.randrange(10)}
    f["dst"] = 160 + rng.randrange(16)
    f["dst_m"], f["dst_h"] = steps(rng, words, m, h)
    if f["dest"] == Dest.ROW and f["source"] == Source.ROW and rng.random() < 0.4:  # in place
        f |= {"src": 70, "src_m": f["dst_m"], "src_h": f["dst_h"], "dst": 70}
    if f["dest"] in (Dest.ACT, Dest.ACT16):
        f["dst"] = rng.randrange(8)
        f["dst_m"], f["dst_h"] = steps(rng, -(-f["n"] // config.rows) * (1 + (f["dest"] == Dest.ACT16)), m, h)
    f["stat_m"], f["stat_h"] = rng.choice([(1, m), (h, 1), (3, 0), (0, 0), (0, 1)])
    f["stat"] = rng.randrange(32)
    f["red_m"], f["red_h"] = rng.choice([(1, m), (h, 1)])
    f["red"] = rng.randrange(44, 48)
    if (f["stat_m"], f["stat_h"]) == (f["red_m"], f["red_h"]) and not f["reduce_outer"]:
        f["red"] = rng.choice([f["red"], f["stat"]])  # in place
