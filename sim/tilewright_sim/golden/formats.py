"""F24 arithmetic on NumPy arrays (docs/numerics.md, "F24").

An F24 value is held as the float64 of the same value, so an array of F24 is a float64 array all of whose elements are
exactly representable; there is one zero, +0. float64 products of two F24 values are exact, and float64 sums, having
more than 2 * 16 + 2 bits, round again to 16 bits as the exact sum would.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FRACTION_BITS = 15
"""Fraction bits of F24."""
MIN = 2.0**-126
"""The smallest positive F24."""
MAX = (2 - 2.0**-FRACTION_BITS) * 2.0**127
"""The largest F24."""
_BF16_BITS = 7
_MAX_BF16 = (2 - 2.0**-_BF16_BITS) * 2.0**127
_FLOAT64_BITS = 52

# Most arrays are short, and then a NumPy call costs more than its arithmetic: constants are arrays, because NumPy makes
# one of a number at every call, and a largest element is found by argmax, which is the fastest reduction.
_EXPONENT = np.array(0x7FF << _FLOAT64_BITS)
_SHIFT, _BIASED, _BIAS = np.array(_FLOAT64_BITS), np.array(0x7FF), np.array(1023)
_ZERO, _MIN = np.array(0.0), np.array(MIN)
_MIN_INT8, _MAX_INT8 = np.array(-127.0), np.array(127.0)
_MIN_INT15, _MAX_INT15 = np.array(-16383.0), np.array(16383.0)
# Added to x and subtracted again, 1.5 * 2**(52 - bits) times the power of two below |x| leaves x rounded to nearest
# even with that many fraction bits: its unit in the last place is the one wanted, and it is an even multiple of it.
_MAGIC_F24 = np.array(1.5 * 2.0 ** (_FLOAT64_BITS - FRACTION_BITS))
_MAGIC_BF16 = np.array(1.5 * 2.0 ** (_FLOAT64_BITS - _BF16_BITS))
# So does 2**(52 - bits) times x itself, unless x needs all of float64's bits: a multiple of that unit which is even
# wherever a tie is to be decided.
_MULTIPLE_F24 = np.array(2.0 ** (_FLOAT64_BITS - FRACTION_BITS))
_FP32_KEPT, _FP32_MAGNITUDE = np.array(0xFFFFFF00, np.uint32), np.array(0x7FFFFFFF, np.uint32)
_FP32_MIN, _FP32_MAX, _FP32_SPECIAL = np.array([0x00800000, 0x7F7FFF00, 0x7F800000], np.uint32)


def _significand(x: Floats, magic: NDArray[np.float64] = _MAGIC_F24) -> Floats:
    """Return x rounded to the significand that `magic` stands for, the exponent unbounded; -0 becomes +0."""
    c: Floats = power(x) * magic
    y: Floats = x + c
    y -= c
    return y


def _short_significand(x: Floats) -> Floats:
    """Return x, which have at most 52 significant bits, rounded to the significand of F24; -0 becomes +0."""
    c: Floats = x * _MULTIPLE_F24
    y: Floats = x + c
    y -= c
    return y


def limit(x: Floats, largest: float = MAX) -> Floats:
    """Return x with magnitudes below MIN flushed to +0 and those above `largest` saturated."""
    magnitude = np.abs(x)
    if not magnitude.size:
        return x
    if magnitude.item(magnitude.argmin()) < MIN:
        x = np.where(magnitude < _MIN, _ZERO, x)
    if magnitude.item(magnitude.argmax()) > largest:
        x = np.clip(x, -largest, largest)
    return x


def round_f24(x: ArrayLike) -> Floats:
    """Return the F24 nearest to each (finite float64) x: RNE, then flush and saturation."""
    return limit(_significand(np.asarray(x, dtype=np.float64)))


def mul(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return RNE(a * b)."""
    return limit(_short_significand(np.multiply(a, b, dtype=np.float64)))


def add(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return RNE(a + b)."""
    return round_f24(np.add(a, b, dtype=np.float64))


def i2f(i: ArrayLike) -> Floats:
    """Return RNE of integers: any integer type, or float64 holding integers below 2**53."""
    array = np.asarray(i)
    if array.dtype.itemsize == 8 and array.dtype.kind in "iu":
        array = _wide_to_float(array)
    return _significand(np.asarray(array, dtype=np.float64))  # no integer is out of F24's range


def _wide_to_float(i: NDArray[Any]) -> Floats:
    """Return 64-bit integers as float64 that round to F24 as the integers do: what is cut off leaves a sticky bit."""
    magnitude = np.where(i < 0, np.uint64(0) - i.astype(np.uint64), i.astype(np.uint64))
    sticky = (magnitude >> np.uint64(11)) | ((magnitude & np.uint64(2047)) != 0).astype(np.uint64)
    wide: Floats = np.where(
        magnitude < np.uint64(1 << 53), magnitude.astype(np.float64), sticky.astype(np.float64) * 2048.0
    )
    return np.where(i < 0, -wide, wide)


def f2i(x: ArrayLike) -> Floats:
    """Return RNE to an integer, as float64 (F24 values may exceed every integer type)."""
    y: Floats = np.rint(np.asarray(x, dtype=np.float64))
    return y + 0.0


def quantise(x: ArrayLike) -> NDArray[np.int8]:
    """Return min(127, max(-127, f2i(x)))."""
    q: Floats = np.rint(np.asarray(x, dtype=np.float64))
    q = np.minimum(np.maximum(q, _MIN_INT8), _MAX_INT8)
    return q.astype(np.int8)


def quantise16(x: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return the high part q >> 7 and the low part q & 127 of q = min(16383, max(-16383, f2i(x)))."""
    q = np.rint(np.asarray(x, dtype=np.float64))
    q = np.minimum(np.maximum(q, _MIN_INT15), _MAX_INT15).astype(np.int16)
    return (q >> 7).astype(np.int8), (q & 127).astype(np.int8)


def bf16(x: ArrayLike) -> Floats:
    """Return RNE to an 8-bit significand, saturating to the largest such F24."""
    return limit(_significand(np.asarray(x, dtype=np.float64), _MAGIC_BF16), _MAX_BF16)


def scale2(x: ArrayLike, k: ArrayLike) -> Floats:
    """Return x * 2**k, flushed and saturated."""
    y: Floats = np.ldexp(np.asarray(x, dtype=np.float64), k)
    return limit(y)


def exponent(x: ArrayLike) -> NDArray[np.int64]:
    """Return the unbiased exponent of each nonzero F24 (of zero: -1023)."""
    bits = np.asarray(x, dtype=np.float64).view(np.int64)
    e: NDArray[np.int64] = (bits >> _SHIFT & _BIASED) - _BIAS
    return e


def power(x: Floats) -> Floats:
    """Return the power of two that each nonzero magnitude begins with, 2**exponent; 0 of zero."""
    p: Floats = (x.view(np.int64) & _EXPONENT).view(np.float64)
    return p


def load_fp32(bits: ArrayLike) -> Floats:
    """Return the F24 values that float32 bit patterns (uint32) load as."""
    u = np.asarray(bits, dtype=np.uint32) & _FP32_KEPT
    magnitude = u & _FP32_MAGNITUDE
    if not u.size:
        return u.astype(np.float64)
    if magnitude.item(magnitude.argmax()) >= _FP32_SPECIAL:
        u = np.where(magnitude >= _FP32_SPECIAL, u & ~_FP32_MAGNITUDE | _FP32_MAX, u)
    if magnitude.item(magnitude.argmin()) < _FP32_MIN:
        u = np.where(magnitude < _FP32_MIN, np.uint32(0), u)
    return u.view(np.float32).astype(np.float64)


@functools.cache
def _bf16_values() -> Floats:
    """Return what each of the 2^16 bit patterns loads as."""
    return load_fp32(np.arange(1 << 16, dtype=np.uint32) << np.uint32(16))


def load_bf16(bits: ArrayLike) -> Floats:
    """Return the F24 values that bfloat16 bit patterns (uint16) load as."""
    return _bf16_values()[np.asarray(bits, dtype=np.uint16)]


def store_fp32(x: ArrayLike) -> NDArray[np.uint32]:
    """Return the float32 bit patterns of F24 values; the low eight bits are zero."""
    return np.asarray(x, dtype=np.float64).astype(np.float32).view(np.uint32)


def store_bf16(x: ArrayLike) -> NDArray[np.uint16]:
    """Return the upper 16 bits of F24 values."""
    return (store_fp32(x) >> np.uint32(16)).astype(np.uint16)
