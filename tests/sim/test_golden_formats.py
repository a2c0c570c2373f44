"""F24 arithmetic against exact rationals."""

import struct
from fractions import Fraction

import golden_reference as exact
import numpy as np
import pytest

from tilewright_sim.golden import formats, tables

SEED = 7


def edges():
    one, ulp = 1.0, 2.0**-15
    values = [0.0, one, one + ulp, 2 - ulp, 1.5, formats.MIN, formats.MIN * (1 + ulp), formats.MAX]
    values += [formats.MIN * 2, 2.0**127, 2.0**64, 2.0**-63, 2.0**-64, 127.0, 126.5, 0.5, 1 / 256]
    return [s * v for v in values for s in (1, -1) if v or s == 1]


def random_f24(rng, count, low=-126, high=127):
    fraction = rng.integers(0, 1 << 15, count) / 2.0**15
    sign = rng.choice([-1.0, 1.0], count)
    return sign * np.ldexp(1 + fraction, rng.integers(low, high + 1, count))


def pairs():
    rng = np.random.default_rng(SEED)
    a = random_f24(rng, 1500)
    exponents = formats.exponent(a)
    near = random_f24(rng, 1500, 0, 0)
    gap = rng.integers(-19, 20, 1500)
    b = np.ldexp(near, np.clip(exponents + gap, -126, 127))
    tail = np.ldexp(random_f24(rng, 1500, 0, 0), np.clip(-126 - exponents + gap % 5 - 2, -126, 127))
    top = np.ldexp(random_f24(rng, 1500, 0, 0), np.clip(127 - exponents + gap % 5 - 2, -126, 127))
    grid = np.array([(x, y) for x in edges() for y in edges()])
    left = np.concatenate([a, a, a, a, a, grid[:, 0]])
    right = np.concatenate([b, tail, top, -a, random_f24(rng, 1500), grid[:, 1]])
    return left, right


def same(got, expected):
    got = np.asarray(got)
    assert not np.signbit(got[got == 0]).any(), "there is one zero, +0"
    for i, (x, y) in enumerate(zip(got.tolist(), expected, strict=True)):
        assert Fraction(x) == y, f"element {i}: {x!r}, not {float(y)!r}"


@pytest.mark.parametrize("name", ["mul", "add"])
def test_mul_and_add_are_rounded_once(name):
    a, b = pairs()
    reference = {"mul": exact.f_mul, "add": exact.f_add}[name]
    expected = [reference(Fraction(x), Fraction(y)) for x, y in zip(a, b, strict=True)]
    same(getattr(formats, name)(a, b), expected)


def test_ties_go_to_even():
    ulp = 2.0**-15
    assert formats.round_f24(1 + ulp / 2) == 1
    assert formats.round_f24(1 + 3 * ulp / 2) == 1 + 2 * ulp
    assert formats.round_f24(-(2 - ulp / 2)) == -2


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
def test_integers_of_any_width(kind):
    info = np.iinfo(kind)
    rng = np.random.default_rng(SEED)
    wide = rng.integers(info.min, info.max, 500, dtype=kind, endpoint=True)
    few = wide >> rng.integers(0, info.bits, 500).astype(kind)
    ties = [(1 << k) + (1 << (k - 16)) + d for k in range(17, info.bits - 1) for d in (-1, 0, 1, 2**10)]
    values = np.concatenate([wide, few, np.array([info.min, info.max, 0, *ties], kind)])
    same(formats.i2f(values), [exact.nearest(Fraction(v)) for v in values.tolist()])


def test_f2i_and_quantise():
    rng = np.random.default_rng(SEED)
    x = np.concatenate([random_f24(rng, 800, -3, 9), edges(), np.arange(-130, 130) + 0.5])
    x = formats.round_f24(x)
    same(formats.f2i(x), [Fraction(round(Fraction(v))) for v in x])
    q = formats.quantise(x)
    assert q.dtype == np.int8
    assert q.tolist() == [exact.quantised(Fraction(v)) for v in x]


def test_bf16_rounds_and_saturates():
    rng = np.random.default_rng(SEED)
    x = np.concatenate([random_f24(rng, 2000), edges()])
    same(formats.bf16(x), [exact.nearest(Fraction(v), 8) for v in x])
    assert formats.bf16(formats.MAX) == (2 - 2.0**-7) * 2.0**127


def test_scale2_flushes_and_saturates():
    rng = np.random.default_rng(SEED)
    x, k = np.concatenate([random_f24(rng, 2000), [0.0]]), rng.integers(-300, 300, 2001)
    expected = [exact.nearest(Fraction(a) * Fraction(2) ** int(b)) for a, b in zip(x, k, strict=True)]
    same(formats.scale2(x, k), expected)


def test_load_and_store():
    rng = np.random.default_rng(SEED)
    bits = rng.integers(0, 1 << 32, 4000, dtype=np.uint32)
    special = [0, 1 << 31, 0x7F800000, 0xFF800001, 0x7FC00000, 0x007FFFFF, 0x00800000, 0x7F7FFFFF]
    bits = np.concatenate([bits, np.array(special, np.uint32)])
    x = formats.load_fp32(bits)
    same(x, [exact.from_fp32(b) for b in bits.tolist()])
    assert formats.store_fp32(x).tolist() == [exact.to_fp32(v) for v in x.tolist()]
    assert not (formats.store_fp32(x) & 255).any()
    halves = (bits >> 16).astype(np.uint16)
    y = formats.load_bf16(halves)
    same(y, [exact.from_fp32(b << 16) for b in halves.tolist()])
    assert formats.store_bf16(x).tolist() == [struct.unpack("<H", struct.pack("<f", v)[2:])[0] for v in x.tolist()]


@pytest.mark.parametrize("name", ["recip", "rsqrt", "exp2", "sigmoid"])
def test_table_functions(name):
    rng = np.random.default_rng(SEED)
    spread = {"exp2": (-17, 6), "sigmoid": (-14, 5)}.get(name, (-126, 127))
    x = np.concatenate([random_f24(rng, 500, *spread), edges(), 2.0 ** np.arange(-8, 9), [-16, 16]])
    if name == "exp2":
        x = np.concatenate([x, -np.arange(30.0), [-31.999, -25, -24.998, -32, -33]])
    x = formats.round_f24(x)
    reference = getattr(exact, name)
    same(getattr(tables, name)(x), [reference(Fraction(v)) for v in x])


def test_every_table_entry():
    """Entries, by a route of their own: binary search for the half-up rounding of an irrational root."""
    for odd in (False, True):
        for i, entry in enumerate(tables.rsqrt_table(odd).tolist()):
            # entry - 1/2 <= 2^18 / sqrt(q) < entry + 1/2, squared and multiplied out
            q = Fraction(256 + i, 256) * (2 if odd else 1)
            assert Fraction(2 * entry - 1, 2) ** 2 * q <= 2**36 < Fraction(2 * entry + 1, 2) ** 2 * q
    assert tables.recip_table().tolist() == [exact.half_up(Fraction(2**26, 256 + i)) for i in range(257)]
    for i, entry in enumerate(tables.exp2_table().tolist()):
        # (entry -+ 1/2)^256 around 2^(18 * 256 - i)
        power = 2 ** (18 * 256 - i)
        assert Fraction(2 * entry - 1, 2) ** 256 <= power < Fraction(2 * entry + 1, 2) ** 256
    table = tables.sigmoid_table().tolist()
    assert table[256] == 1 << 15
    assert all(abs(a + b - 65536) <= 1 for a, b in zip(table, table[::-1], strict=True))
    assert table == sorted(table)
