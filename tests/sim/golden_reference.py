"""docs/numerics.md and docs/architecture.md once more, one element at a time, in exact rationals; shares nothing with
the golden model."""

from __future__ import annotations

import itertools
import math
import struct
from decimal import Decimal, getcontext
from fractions import Fraction

from tilewright_hw.arch.isa import Add, Dest, Func, LoadDest, LoadFormat, Mul, Reduce, Scale, Source, WeightFormat

getcontext().prec = 50

TINY = Fraction(1, 2**126)
LARGEST = (2 - Fraction(1, 2**15)) * 2**127


def split(x):
    """Return (m, e) with |x| = m * 2^e, 1 <= m < 2."""
    x = abs(Fraction(x))
    e = x.numerator.bit_length() - x.denominator.bit_length()
    if Fraction(2) ** e > x:
        e -= 1
    return x / Fraction(2) ** e, e


def nearest(x, bits=16):
    """Return RNE of x to `bits` significant bits, flushed and saturated."""
    if x == 0:
        return Fraction(0)
    _, e = split(x)
    unit = Fraction(2) ** (e - bits + 1)
    y = round(Fraction(x) / unit) * unit  # Python rounds fractions to even
    largest = (2 - Fraction(1, 2 ** (bits - 1))) * 2**127
    if abs(y) < TINY:
        return Fraction(0)
    return max(-largest, min(largest, y))


def f_mul(a, b):
    return nearest(a * b)


def f_add(a, b):
    return nearest(a + b)


def half_up(x):
    return math.floor(x + Fraction(1, 2))


def half_up_decimal(x):
    return math.floor(x + Decimal("0.5"))


def interpolate(t0, t1, d, bits):
    return t0 - (((t0 - t1) * d + (1 << (bits - 1))) >> bits)


def recip(x):
    if x == 0:
        return Fraction(0)
    m, e = split(x)
    f = int((m - 1) * 2**15)
    table = [half_up(Fraction(2**18) / (1 + Fraction(i, 256))) for i in ((f >> 7), (f >> 7) + 1)]
    y = nearest(Fraction(interpolate(*table, f & 127, 7)))
    return nearest((-1 if x < 0 else 1) * y * Fraction(2) ** (-18 - e))


def rsqrt(x):
    if x <= 0:
        return Fraction(0)
    m, e = split(x)
    f = int((m - 1) * 2**15)
    table = []
    for i in ((f >> 7), (f >> 7) + 1):
        square = (1 + Decimal(i) / 256) * (2 if e % 2 else 1)
        table.append(half_up_decimal(Decimal(2**18) / square.sqrt()))
    y = nearest(Fraction(interpolate(*table, f & 127, 7)))
    return nearest(y * Fraction(2) ** (-18 - e // 2))


def exp2(x):
    u = min(math.floor(max(Fraction(0), -x) * 2**16), 2**21 - 1)
    p, f = u >> 16, u & 65535
    i = f >> 8
    table = [half_up_decimal(2**18 * Decimal(2) ** (Decimal(-j) / 256)) for j in (i, i + 1)]
    if p > 24:
        return Fraction(0)
    return nearest(Fraction(interpolate(*table, f & 255, 8))) * Fraction(1, 2 ** (18 + p))


def sigmoid(x):
    u = max(-32768, min(32767, round(Fraction(x) * 2**11))) + 32768
    j, d = u >> 7, u & 127
    t0, t1 = (half_up_decimal(2**16 / (1 + (Decimal(256 - k) / 16).exp())) for k in (j, j + 1))
    return nearest(Fraction(t0 + (((t1 - t0) * d + 64) >> 7), 2**16))


def signed(value, bits):
    return (value & (1 << bits) - 1 ^ 1 << bits - 1) - (1 << bits - 1)


def loaded_table(x, words, a, b):
    u = max(-32768, min(32767, round(Fraction(x) * Fraction(2) ** (a - 8)))) + 32768
    j, d = divmod(u, 128)
    start, rise = signed(words[j] >> 12, 20), signed(words[j], 12)
    return nearest(nearest(Fraction(start + ((rise * d + 64) >> 7))) * Fraction(2) ** -b)


def from_fp32(bits):
    e = bits >> 23 & 255
    if e == 0:
        return Fraction(0)
    bits &= 0xFFFFFF00
    if e == 255:
        bits = bits & 0x80000000 | 0x7F7FFF00
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


def to_fp32(x):
    return struct.unpack("<I", struct.pack("<f", float(x)))[0]


def quantised(x, most=127):
    return max(-most, min(most, round(x)))


class Index(int):
    """A field b that ARGMAX wrote: 24 bits that are no F24."""


def bits24(b):
    """Return a field b as 24 bits."""
    return int(b) if isinstance(b, Index) else to_fp32(b) >> 8


class Reference:
    """The machine's state, in lists; the methods execute one instruction each, with all its fields in f."""

    def __init__(self, config, memory):
        self.c = config
        self.memory = bytearray(memory)
        self.act = [[0] * config.rows for _ in range(config.act_words)]
        self.row = [[Fraction(0)] * config.lanes for _ in range(config.row_words)]
        self.param = [[Fraction(0)] * config.lanes for _ in range(config.param_words)]
        self.acc = [[[0] * config.cols for _ in range(config.acc_rows)] for _ in range(2)]
        self.stat = [(Fraction(0), Fraction(0)) for _ in range(config.stat_entries)]
        self.table, self.shifts = [0] * 512, (0, 0)
        self.fifo = {"weight": [], "stream": []}
        self.stream = []

    def tiles(self, f, fifo):
        slot = self.c.col_slot
        for i in range(f["count"]):
            start = f["offset"] + i * f["stride"]
            for at in range(start, start + f["bytes"], slot):
                row = self.memory[at : at + self.c.cols]
                self.fifo[fifo].append([b - 256 if b > 127 else b for b in row])

    def weight(self, f):
        if f["format"] == WeightFormat.INT4:
            self.int4_tiles(f)
        else:
            self.tiles(f, "weight")

    def int4_tiles(self, f):
        """Walk through each run as it is read: S rows of g, then up to 32 * S rows of q, and so on."""
        slot, s = self.c.nibble_slot, self.c.nibble_rows

        def nibbles(at):
            return [self.memory[at + c // 2] >> 4 * (c % 2) & 15 for c in range(self.c.cols)]

        for i in range(f["count"]):
            at = f["offset"] + i * f["stride"]
            scales, left = [], f["rows"]
            while left:
                scales = [nibbles(at + k * slot) for k in range(s)]
                at += s * slot
                rows = min(left, 32 * s)
                for r in range(rows):
                    q = nibbles(at + r * slot)
                    row = [scales[r // 32][c] * signed(q[c], 4) for c in range(self.c.cols)]
                    self.fifo["weight"].append(row)
                at += rows * slot
                left -= rows

    def transposed_tiles(self, f):
        for i in range(f["count"]):
            start = f["offset"] + i * f["stride"]
            for tile in range(start, start + f["bytes"], self.c.transposed_tile_bytes):
                for r in range(self.c.rows):
                    column = [self.memory[tile + c * self.c.row_slot + r] for c in range(self.c.cols)]
                    self.fifo["stream"].append([signed(b, 8) for b in column])

    def load(self, f):
        if f["dest"] == LoadDest.STREAM:
            if f["transpose"]:
                self.transposed_tiles(f)
            else:
                self.tiles(f, "stream")
            return
        if f["dest"] == LoadDest.TABLE:
            raw = b"".join(bytes(self.memory[f["offset"] + i * f["stride"] :][: f["bytes"]]) for i in range(f["count"]))
            self.table = [w for (w,) in struct.iter_unpack("<I", raw)]
            self.shifts = (f["dst"] & 31, signed(f["dst"] >> 8, 8))
            return
        for i in range(f["count"]):
            start = f["offset"] + i * f["stride"]
            raw = self.memory[start : start + f["bytes"]]
            word = f["dst"] + i * f["dst_stride"]
            if f["dest"] == LoadDest.ACT:
                for k in range(len(raw) // self.c.row_slot):
                    part = raw[k * self.c.row_slot :][: self.c.rows]
                    self.act[word + k] = [b - 256 if b > 127 else b for b in part]
                continue
            if f["format"] == LoadFormat.FP32:
                values = [from_fp32(b) for (b,) in struct.iter_unpack("<I", raw)]
            else:
                values = [from_fp32(b << 16) for (b,) in struct.iter_unpack("<H", raw)]
            buffer = self.row if f["dest"] == LoadDest.ROW else self.param
            self.put_row(buffer, word, values, self.c.lanes, Fraction(0))

    def put_row(self, buffer, word, values, width, zero):
        for k in range(-(-len(values) // width)):
            part = values[k * width : (k + 1) * width]
            buffer[word + k] = part + [zero] * (width - len(part))

    def matmul(self, f):
        fifo = self.fifo["stream" if f["stream"] else "weight"]
        acc = self.acc[f["bank"]]
        rows = f["rows_outer"] * f["rows_inner"]
        for g in range(f["groups"]):
            for n in range(f["n"]):
                for k in range(f["k"]):
                    tile = [fifo.pop(0) for _ in range(self.c.rows)]
                    for o, i, p in itertools.product(
                        range(f["rows_outer"]), range(f["rows_inner"]), range(1 + f["pair"])
                    ):
                        word = f["act"] + g * f["act_group"] + o * f["act_outer"] + i * f["act_inner"]
                        x = self.act[word + (2 * k + p if f["pair"] else k)]
                        at = f["acc"] + (g * f["n"] + n) * rows + o * f["rows_inner"] + i
                        if f["pair"]:
                            at = f["acc"] + ((g * f["n"] + n) * rows + o * f["rows_inner"] + i) * 2 + p
                        old = acc[at] if k or f["accumulate"] else [0] * self.c.cols
                        acc[at] = [
                            self.wrap(old[c] + sum(x[r] * tile[r][c] for r in range(self.c.rows)))
                            for c in range(self.c.cols)
                        ]

    @staticmethod
    def wrap(x):
        return (x + 2**31) % 2**32 - 2**31

    def vector(self, f):
        new_rows, new_stats = {}, {}
        for m in range(f["m"]):
            limit = min(f["n"], f["limit"] + m * f["causal"])
            rows = []
            for h in range(f["h"]):
                row = [self.element(f, m, h, i) for i in range(f["n"])]
                if f["dest"] != Dest.STORE_RAW:
                    row[limit:] = [Fraction(0)] * (f["n"] - limit)
                rows.append(row[:limit])
                new_rows[m, h] = row
            if f["reduce"]:
                groups = [(0, [x for row in rows for x in row])] if f["reduce_outer"] else list(enumerate(rows))
                for h, values in groups:
                    entry = self.stat[f["stat"] + m * f["stat_m"] + h * f["stat_h"]]
                    at = f["red"] + m * f["red_m"] + h * f["red_h"]
                    indices = [i for row in (rows if f["reduce_outer"] else [values]) for i in range(len(row))]
                    new_stats[at] = self.reduction(f, values, entry, indices)
        for (m, h), row in new_rows.items():
            self.deliver(f, f["dst"] + m * f["dst_m"] + h * f["dst_h"], row)
        for at, entry in new_stats.items():
            self.stat[at] = entry

    def element(self, f, m, h, i):
        a, b = self.stat[f["stat"] + m * f["stat_m"] + h * f["stat_h"]]
        lanes = self.c.lanes

        def operand(i):
            at = f["src"] + m * f["src_m"] + h * f["src_h"]
            if f["source"] == Source.ROW:
                return self.row[at + i // lanes][i % lanes]
            if f["source"] == Source.STAT:
                return bits24(b) if f["dest"] == Dest.STORE_RAW else b
            acc, word = self.acc[f["bank"]], at + i // self.c.cols * f["src_n"]
            integer = acc[word][i % self.c.cols]
            if f["wide"]:
                integer = 128 * integer + acc[word + 1][i % self.c.cols]
            return integer if f["dest"] == Dest.STORE_RAW else nearest(Fraction(integer))

        def parameter(i):
            return self.param[f["par"] + m * f["par_m"] + h * f["par_h"] + i // lanes][i % lanes]

        x = operand(i)
        if f["dest"] == Dest.STORE_RAW:
            return x
        second = None
        if f["add"] == Add.ROW or f["mul"] == Mul.ROW:
            second = self.row[f["row"] + m * f["row_m"] + h * f["row_h"] + i // lanes][i % lanes]
        if f["add"] == Add.ROTATE:
            even = i - i % 2
            c, s = parameter(even), parameter(even + 1)
            if i % 2:
                x = f_add(f_mul(x, c), f_mul(operand(even), s))
            else:
                x = f_add(f_mul(x, c), -f_mul(operand(even + 1), s))
        else:
            if f["scale"]:
                factor = {Scale.STAT_A: a, Scale.STAT_B: b, Scale.CONST: from_fp32(f["const1"])}
                x = f_mul(x, factor[f["scale"]])
            if f["param"]:
                x = f_mul(x, parameter(i))
            if f["add"] == Add.ROW:
                x = f_add(x, second)
            if f["add"] == Add.NEG_STAT_A:
                x = f_add(x, -a)
            if f["add"] == Add.STAT_B:
                x = f_add(x, b)
            if f["add"] == Add.PARAM:
                x = f_add(x, parameter(i))
        functions = {Func.NONE: lambda x: x, Func.EXP2: exp2, Func.SIGMOID: sigmoid}
        functions[Func.TABLE] = lambda x: loaded_table(x, self.table, *self.shifts)
        y = functions[f["func"]](x)
        if f["mul"] == Mul.SELF:
            return f_mul(y, x)
        if f["mul"] == Mul.PARAM:
            return f_mul(y, parameter(i))
        return f_mul(y, second) if f["mul"] == Mul.ROW else y

    def largest(self, f, x, entry, indices):
        """Return the fields of MAX and ARGMAX."""
        first, argmax = f["const1"] >> 8, f["reduce"] == Reduce.ARGMAX
        best = (entry[0], bits24(entry[1])) if f["merge"] else None
        for value, i in zip(x, indices, strict=True):
            if best is None or value > best[0]:
                best = (value, (first + i) % 2**24)
        if best is None:
            best = (Fraction(0), first)
        return best[0], Index(best[1]) if argmax else Fraction(0)

    def reduction(self, f, x, entry, indices):
        zero = Fraction(0)
        largest = entry[0]
        c1, c2 = from_fp32(f["const1"]), from_fp32(f["const2"] << 16)
        magnitude = max((abs(v) for v in x), default=zero)
        if f["reduce"] in (Reduce.MAX, Reduce.ARGMAX):
            return self.largest(f, x, entry, indices)
        if f["reduce"] == Reduce.ABSMAX:
            return magnitude, zero
        if f["reduce"] == Reduce.QSCALE:
            s = f_mul(magnitude, c1)
            s = nearest(s, 8) if f["scale16"] else s
            return recip(s), s
        if f["reduce"] == Reduce.EXPSUM:
            total = sum(math.floor(max(zero, min(Fraction(1), v)) * 2**24) for v in x)
            return recip(nearest(nearest(Fraction(total)) / 2**24)), zero
        e = split(largest)[1] if largest else 0
        integers = [round(v * Fraction(2) ** (15 - e)) if largest else 0 for v in x]
        if f["reduce"] == Reduce.SUM:
            return f_mul(nearest(nearest(Fraction(sum(integers))) * Fraction(2) ** (e - 15)), c1), zero
        if f["reduce"] == Reduce.VAR:
            total, n = sum(integers), len(integers)
            spread = nearest(Fraction(n * sum(i * i for i in integers) - total**2))
            v = f_mul(f_mul(nearest(spread * Fraction(2) ** (2 * (e - 15))), c1), c1)
            r = rsqrt(f_add(v, c2))
            return r, f_mul(-f_mul(nearest(nearest(Fraction(total)) * Fraction(2) ** (e - 15)), c1), r)
        total = nearest(Fraction(sum(i * i for i in integers)))
        scaled = nearest(total * Fraction(2) ** (2 * (e - 15)))
        return rsqrt(f_add(f_mul(scaled, c1), c2)), zero

    def deliver(self, f, at, row):
        if f["dest"] == Dest.ROW:
            self.put_row(self.row, at, row, self.c.lanes, Fraction(0))
        elif f["dest"] == Dest.ACT:
            self.put_row(self.act, at, [quantised(x) for x in row], self.c.rows, 0)
        elif f["dest"] == Dest.ACT16:
            q = [quantised(x, 16383) for x in row]
            for k in range(-(-len(q) // self.c.rows)):
                part = q[k * self.c.rows : (k + 1) * self.c.rows]
                part += [0] * (self.c.rows - len(part))
                self.act[at + 2 * k] = [x >> 7 for x in part]
                self.act[at + 2 * k + 1] = [x & 127 for x in part]
        elif f["dest"] != Dest.NONE:
            self.stream.append((f["dest"], row))

    def store(self, f):
        size = 1 << f["element"]
        start = f["offset"]
        for m in range(f["m"]):
            if m:
                j, r = divmod(m - f["wrap_first"], f["wrap_period"] or 1)
                wraps = f["wrap_first"] > 0 and j >= 0 and r == 0
                if wraps and not f["wrap_period"]:
                    wraps = j == 0
                start += f["wrap_stride"] if wraps else f["stride_m"]
            for h in range(f["h"]):
                dest, row = self.stream.pop(0)
                for i, x in enumerate(row):
                    at = start + h * f["stride_h"]
                    at += i // f["run"] * f["stride_run"] + i % f["run"] * size
                    self.memory[at : at + size] = self.element_bytes(dest, x)

    @staticmethod
    def element_bytes(dest, x):
        if dest == Dest.STORE_RAW:
            return struct.pack("<i", x)
        if dest == Dest.STORE_INT8:
            return struct.pack("<b", quantised(x))
        bits = struct.pack("<I", to_fp32(x))
        return bits if dest == Dest.STORE_FP32 else bits[2:]
