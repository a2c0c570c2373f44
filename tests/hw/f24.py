"""An exact reference for F24 (docs/numerics.md) in Python integers and fractions, and a driver for rigid pipelines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from fractions import Fraction
from math import floor, isqrt
from typing import Any

from amaranth.sim import Simulator

LARGEST = 254 << 15 | 0x7FFF
ONE = 127 << 15


def value(x: int) -> Fraction:
    """Return what the 24 bits `x` stand for."""
    sign, exponent, fraction = x >> 23, x >> 15 & 255, x & 0x7FFF
    if exponent == 0:
        return Fraction(0)
    return (-1) ** sign * Fraction(2) ** (exponent - 127) * (1 + Fraction(fraction, 1 << 15))


def rne(x: Fraction) -> int:
    """Return x rounded to the nearest integer, ties to even."""
    return round(x)


def encode(x: Fraction | int, bits: int = 16) -> int:
    """Return the F24 nearest to x with a significand of `bits` bits, flushed and saturated."""
    magnitude = abs(Fraction(x))
    if magnitude == 0:
        return 0
    sign = int(x < 0) << 23
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    significand = rne(magnitude / Fraction(2) ** exponent * (1 << (bits - 1)))
    if significand == 1 << bits:
        significand, exponent = significand >> 1, exponent + 1
    if exponent < -126:
        return 0
    fraction = significand << (16 - bits) & 0x7FFF
    if exponent > 127:
        exponent, fraction = 127, 0x8000 - (1 << (16 - bits))
    return sign | (exponent + 127) << 15 | fraction


def mul(a: int, b: int) -> int:
    return encode(value(a) * value(b))


def add(a: int, b: int) -> int:
    return encode(value(a) + value(b))


def neg(a: int) -> int:
    return a ^ 1 << 23 if a else 0


def f2i(x: int, limit: int) -> int:
    """Return x rounded to an integer and clipped to +-limit."""
    return min(limit, max(-limit, rne(value(x))))


def scale2(x: int, k: int) -> int:
    return encode(value(x) * Fraction(2) ** k)


def bf16(x: int) -> int:
    return encode(value(x), bits=8)


def half_up_root(x: Fraction, table_scale: int = 1 << 18) -> int:
    """Return floor(table_scale * sqrt(x) + 1/2) exactly."""
    square = 4 * table_scale**2 * x
    return (isqrt(square.numerator // square.denominator) + 1) // 2


def interpolate(ends: tuple[int, int], d: int, shift: int) -> int:
    low, high = ends
    return low - (((low - high) * d + (1 << (shift - 1))) >> shift)


def recip(x: int) -> int:
    if x == 0:
        return 0
    exponent, fraction = (x >> 15 & 255) - 127, x & 0x7FFF

    def table(i: int) -> int:
        return floor(Fraction(1 << 18) / (1 + Fraction(i, 256)) + Fraction(1, 2))

    i = fraction >> 7
    y = interpolate((table(i), table(i + 1)), fraction & 127, 7)
    return encode((-1) ** (x >> 23) * y * Fraction(2) ** (-18 - exponent))


def rsqrt(x: int) -> int:
    if x == 0 or x >> 23:
        return 0
    exponent, fraction = (x >> 15 & 255) - 127, x & 0x7FFF

    def table(i: int) -> int:
        return half_up_root(1 / ((1 + exponent % 2) * (1 + Fraction(i, 256))))

    i = fraction >> 7
    y = interpolate((table(i), table(i + 1)), fraction & 127, 7)
    return encode(y * Fraction(2) ** (-18 - exponent // 2))


def exp2_table(i: int) -> int:
    """Return round(2^18 * 2^(-i/256)): the largest n with 2n - 1 <= 2^(19 - i/256), in integers."""
    power = 1 << (256 * 19 - i)  # (2^(19 - i/256))^256
    low, high = 0, 1 << 20
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**256 <= power else (low, middle)
    return (low + 1) // 2


_EXP2 = [exp2_table(i) for i in range(257)]


def exp2(x: int) -> int:
    t = max(Fraction(0), -value(x))
    u = min(floor(t * 65536), (1 << 21) - 1)
    p, f = u >> 16, u & 65535
    i = f >> 8
    y = interpolate((_EXP2[i], _EXP2[i + 1]), f & 255, 8)
    return 0 if p > 24 else encode(y * Fraction(2) ** (-18 - p))


def exp_bounds(x: Fraction, terms: int = 400) -> tuple[Fraction, Fraction]:
    """Return fractions below and above e**x, 0 <= x <= 16, from the series with its remainder."""
    unit = 1 << 200
    total, term = 0, unit
    for n in range(1, terms):
        total += term
        term = term * x.numerator // (x.denominator * n)
    return Fraction(total, unit), Fraction(total + terms * unit // (1 << 150), unit)


def sigmoid_table(j: int) -> int:
    x = Fraction(j - 256, 16)
    rounded = set()
    for e in exp_bounds(abs(x)):
        s = e / (1 + e) if x >= 0 else 1 / (1 + e)
        rounded.add(floor(65536 * s + Fraction(1, 2)))
    assert len(rounded) == 1 or x == 0
    return rounded.pop() if x else 32768


_SIGMOID = [sigmoid_table(j) for j in range(513)]


def sigmoid(x: int) -> int:
    u = min(32767, max(-32768, rne(value(x) * 2048))) + 32768
    j, d = u >> 7, u & 127
    y = _SIGMOID[j] + (((_SIGMOID[j + 1] - _SIGMOID[j]) * d + 64) >> 7)
    return encode(Fraction(y, 65536))


def table(x: int, segments: list[tuple[int, int]], a: int, b: int) -> int:
    """Return the loaded function: segments (value, step), input shift a, output shift b."""
    u = min(32767, max(-32768, rne(value(x) * Fraction(2) ** (a - 8)))) + 32768
    v, step = segments[u >> 7]
    return scale2(encode(v + ((step * (u & 127) + 64) >> 7)), -b)


def align(x: int, exponent: int) -> int:
    """Return RNE(x * 2^(15 - E)), clamped, E given with its bias (0: the row is zero)."""
    if exponent == 0:
        return 0
    return min(65535, max(-65535, rne(value(x) * Fraction(2) ** (15 - (exponent - 127)))))


def unit_to_int(x: int) -> int:
    return floor(min(Fraction(1), max(Fraction(0), value(x))) * (1 << 24))


EDGES = [
    0,
    1 << 15,
    1 << 15 | 1,
    1 << 15 | 0x7FFF,
    2 << 15,
    126 << 15,
    ONE - 1,
    ONE,
    ONE + 1,
    ONE | 0x7FFF,
    128 << 15,
    253 << 15 | 0x7FFF,
    254 << 15,
    LARGEST,
]
EDGES += [x | 1 << 23 for x in EDGES if x]


def random_f24(rng: random.Random, low: int = 1, high: int = 254) -> int:
    """Return a random number with a biased exponent from low to high; simple fractions are frequent."""
    if rng.random() < 0.02:
        return 0
    fraction = rng.choice((rng.getrandbits(15), 0, 0x7FFF, 0x4000, 1, 1 << rng.randrange(15)))
    return rng.getrandbits(1) << 23 | rng.randint(low, high) << 15 | fraction


def run_pipeline(
    dut: Any, latency: int, vectors: Iterable[dict[str, Any]], read: Callable[[Any], Any] | None = None
) -> list[Any]:
    """Feed one vector of port values per cycle; return what `read(ctx)` (port o) gives `latency` cycles after each."""
    vectors = list(vectors)
    results: list[Any] = []
    read = read or (lambda ctx: ctx.get(dut.o))

    async def bench(ctx: Any) -> None:
        for cycle in range(len(vectors) + latency):
            if cycle < len(vectors):
                for name, port_value in vectors[cycle].items():
                    ctx.set(getattr(dut, name), port_value)
            if cycle >= latency:
                results.append(read(ctx))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return results


def check(dut: Any, reference: Callable[..., int], vectors: Iterable[dict[str, Any]]) -> None:
    """Compare a pipeline with `reference`, called with the ports' values, and name the first difference."""
    vectors = list(vectors)
    for got, vector in zip(run_pipeline(dut, dut.LATENCY, vectors), vectors, strict=True):
        want = reference(**vector)
        assert got == want, f"{vector}: got {got:#x}, expected {want:#x}"
