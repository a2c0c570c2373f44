"""The table functions: recip, rsqrt, exp2, sigmoid and a loaded one (docs/numerics.md, "Table functions").

Table entries are computed in integers, or in decimal arithmetic of 60 digits, never by a libm. What each function does
to a fraction is worked out once, in integers, for every fraction there is; a call looks it up and sets the exponent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilewright_sim.golden import formats
from tilewright_sim.golden.formats import Floats

Ints = NDArray[np.int64]

_DIGITS = 60


def _half_up(x: Fraction) -> int:
    """Return floor(x + 1/2)."""
    return (2 * x.numerator + x.denominator) // (2 * x.denominator)


def _half_up_sqrt(square: Fraction) -> int:
    """Return floor(sqrt(square) + 1/2), exactly: floor(2 * sqrt(q)) is the integer root of floor(4 * q)."""
    return (isqrt(int(4 * square)) + 1) // 2


def _half_up_decimal(x: Decimal) -> int:
    return int((x + Decimal("0.5")).to_integral_value(rounding=ROUND_FLOOR))


@functools.cache
def recip_table() -> Ints:
    """Return T[i] = round(2^18 / (1 + i/256)), i = 0..256."""
    return np.array([_half_up(Fraction(2**18 * 256, 256 + i)) for i in range(257)])


@functools.cache
def rsqrt_table(odd: bool) -> Ints:
    """Return T[i] = round(2^18 / sqrt(1 + i/256)), or with 2 * (1 + i/256) where the exponent is odd; i = 0..256."""
    return np.array([_half_up_sqrt(Fraction(2**36 * 256, (256 + i) * (2 if odd else 1))) for i in range(257)])


@functools.cache
def exp2_table() -> Ints:
    """Return T[i] = round(2^18 * 2^(-i/256)), i = 0..256."""
    with localcontext(Context(prec=_DIGITS)):
        step = (Decimal(2).ln() / -256).exp()
        return np.array([_half_up_decimal(2**18 * step**i) for i in range(257)])


@functools.cache
def sigmoid_table() -> Ints:
    """Return T[j] = round(2^16 * sigmoid((j - 256)/16)), j = 0..512."""
    with localcontext(Context(prec=_DIGITS)):
        return np.array([_half_up_decimal(2**16 / (1 + (Decimal(256 - j) / 16).exp())) for j in range(513)])


Segments = tuple[NDArray[np.uint32], int, int]
"""The words of a loaded table, and its shifts a and b."""


def _segments(shifts: tuple[int, int], f: Callable[[Decimal], Decimal]) -> Segments:
    """Return the table of f between the points (j - 256) * 2^(15-a), j = 0..512, rounded to units of 2^-b."""
    a, b = shifts
    with localcontext(Context(prec=_DIGITS)):
        points = [Decimal(j - 256) * Decimal(2) ** (15 - a) for j in range(513)]
        t = np.array([_half_up_decimal(f(x) * 2**b) for x in points])
    words = (t[:-1] & 0xFFFFF) << 12 | (np.diff(t) & 0xFFF)
    return words.astype(np.uint32), a, b


def _decimal_tanh(x: Decimal) -> Decimal:
    return 1 - 2 / ((2 * x).exp() + 1)


def _decimal_pi() -> Decimal:
    """Return pi = 16 arctan(1/5) - 4 arctan(1/239)."""

    def arctan_of_inverse(n: int) -> Decimal:
        return sum(((-1) ** k * Decimal(n) ** (-2 * k - 1) / (2 * k + 1) for k in range(_DIGITS)), Decimal(0))

    return 16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)


def _decimal_erf(x: Decimal) -> Decimal:
    """Return 2/sqrt(pi) * sum of (-1)^k x^(2k+1) / (k! (2k+1)), with digits to spare for what cancels."""
    with localcontext(Context(prec=2 * _DIGITS)):
        power, total, k = x, x, 0
        while abs(power) > Decimal(10) ** -_DIGITS:
            k += 1
            power *= -x * x / k
            total += power / (2 * k + 1)
        return 2 * total / _decimal_pi().sqrt()


@functools.cache
def tanh_segments() -> Segments:
    """Return the table of tanh."""
    return _segments((20, 16), _decimal_tanh)


@functools.cache
def erf_segments() -> Segments:
    """Return the table of erf."""
    return _segments((21, 16), _decimal_erf)


@functools.cache
def gelu_segments() -> Segments:
    """Return the table of Phi(x) = (1 + erf(x / sqrt(2))) / 2."""
    return _segments((20, 17), lambda x: (1 + _decimal_erf(x / Decimal(2).sqrt())) / 2)


@functools.cache
def gelu_tanh_segments() -> Segments:
    """Return the table of (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2."""

    def ratio(x: Decimal) -> Decimal:
        return (1 + _decimal_tanh((2 / _decimal_pi()).sqrt() * (x + Decimal("0.044715") * x**3))) / 2

    return _segments((20, 17), ratio)


def _falling(table: Ints, bits: int) -> Ints:
    """Return y = T[i] - (((T[i] - T[i+1]) * d + half) >> bits) for every (i, d), in order."""
    d = np.arange(1 << bits)
    slope = table[:-1, None] - table[1:, None]
    y: Ints = table[:-1, None] - ((slope * d + (1 << (bits - 1))) >> bits)
    return y.reshape(-1)


@functools.cache
def _recip_fractions() -> Floats:
    """Return RNE16(y) * 2^-18 for each of the 2^15 fractions."""
    return formats.i2f(_falling(recip_table(), 7)) * 2.0**-18


@functools.cache
def _rsqrt_values() -> Floats:
    """Return rsqrt for each fraction of the exponents 1 and 2, in this order: as biased exponents end."""
    odd, even = (formats.i2f(_falling(rsqrt_table(odd), 7)) * 2.0**-18 for odd in (True, False))
    return np.concatenate([odd, even / 2])


@functools.cache
def _exp2_fractions() -> Floats:
    """Return RNE16(y) * 2^-18 for each of the 2^16 fractions."""
    return formats.i2f(_falling(exp2_table(), 8)) * 2.0**-18


@functools.cache
def _exp2_powers() -> Floats:
    """Return 2^-p, and 0 where p > 24, for p = 0..31."""
    return np.array([2.0**-p if p <= 24 else 0.0 for p in range(32)])


@functools.cache
def _sigmoid_values() -> Floats:
    """Return sigmoid for each u + 32768."""
    table = sigmoid_table()
    d = np.arange(128)
    y = table[:-1, None] + (((table[1:, None] - table[:-1, None]) * d + 64) >> 7)
    return formats.i2f(y.reshape(-1)) * 2.0**-16


# NumPy converts a number to an array at every call.
_ZERO, _ONE = np.array(0.0), np.array(1.0)
_UNIT_EXP2, _LAST_EXP2 = np.array(-65536.0), np.array(2.0**21 - 1)
_EXP2_FRACTION, _BELOW_EXP2_POWER = np.array(0xFFFF), np.array(16)
_UNIT_SIGMOID, _LOW, _HIGH = np.array(2048.0), np.array(-32768.0), np.array(32767.0)
_BELOW_FRACTION, _FRACTION = np.array(52 - formats.FRACTION_BITS), np.array((1 << formats.FRACTION_BITS) - 1)
_WITH_PARITY = np.array((2 << formats.FRACTION_BITS) - 1)
_BELOW_HALF_EXPONENT, _HALF_BIAS = np.array(53), np.array(512)
_MIN = np.array(formats.MIN)


def recip(x: ArrayLike) -> Floats:
    """Return 1 / x; recip(0) = 0."""
    x = np.asarray(x, dtype=np.float64)
    if not x.all():
        return np.where(x == _ZERO, _ZERO, recip(np.where(x == _ZERO, _ONE, x)))
    fractions = _recip_fractions()[x.view(np.int64) >> _BELOW_FRACTION & _FRACTION]
    y: Floats = fractions / np.copysign(formats.power(x), x)
    return formats.limit(y)


def rsqrt(x: ArrayLike) -> Floats:
    """Return 1 / sqrt(x); 0 for x <= 0."""
    x = np.asarray(x, dtype=np.float64)
    bits = np.maximum(x, _MIN).view(np.int64)  # no x > 0 is less
    half = (bits >> _BELOW_HALF_EXPONENT) - _HALF_BIAS  # of an odd exponent e: (e - 1) / 2; of an even one: e / 2 - 1
    y = formats.limit(np.ldexp(_rsqrt_values()[bits >> _BELOW_FRACTION & _WITH_PARITY], -half))
    return np.where(x > _ZERO, y, _ZERO)


def exp2(x: ArrayLike) -> Floats:
    """Return 2**x for x <= 0; x > 0 is taken as 0."""
    t = np.minimum(np.multiply(x, _UNIT_EXP2), _LAST_EXP2)
    u = np.maximum(t, _ZERO).astype(np.int64)  # truncation is floor: t is not negative
    y: Floats = _exp2_fractions()[u & _EXP2_FRACTION] * _exp2_powers()[u >> _BELOW_EXP2_POWER]
    return y


def sigmoid(x: ArrayLike) -> Floats:
    """Return 1 / (1 + exp(-x))."""
    u = np.rint(np.multiply(x, _UNIT_SIGMOID))
    u = np.minimum(np.maximum(u, _LOW), _HIGH)
    y: Floats = _sigmoid_values()[(u - _LOW).astype(np.int64)]
    return y


def table(x: ArrayLike, words: NDArray[np.uint32], input_shift: int, output_shift: int) -> Floats:
    """Return the function whose 512 segments are `words`, with shifts a and b."""
    u = np.rint(np.multiply(x, 2.0 ** (input_shift - 8)))
    u = (np.minimum(np.maximum(u, _LOW), _HIGH) - _LOW).astype(np.int64)
    word = words.view(np.int32)[u >> 7].astype(np.int64)
    start, rise = word >> 12, ((word & 0xFFF) ^ 0x800) - 0x800
    return formats.scale2(formats.i2f(start + ((rise * (u & 127) + 64) >> 7)), -output_shift)
