"""F24 arithmetic on NumPy arrays (docs/numerics.md, "F24").

An F24 value is held as the float64 of the same value, so an array of F24 is a float64 array all of whose elements are
exactly representable; there is one zero, +0. float64 products of two F24 values are exact, and float64 sums, having
more than 2 * 16 + 2 bits, round again to 16 bits as the exact sum would.
"""

from __future__ import annotations

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
_MAX_BF16 = (2 - 2.0**-7) * 2.0**127
_EXPONENT = np.int64(0x7FF0000000000000)
# Added to x and subtracted again, 1.5 * 2**(52 - bits) times the power of two below |x| leaves x rounded to nearest
# even with that many fraction bits: its unit in the last place is the one wanted, and it is an even multiple of it.
_MAGIC_F24 = 1.5 * 2.0 ** (52 - FRACTION_BITS)
_MAGIC_BF16 = 1.5 * 2.0 ** (52 - 7)


def _significand(x: Floats, magic: float) -> Floats:
    """Return x rounded to the significand that `magic` stands for, the exponent unbounded; -0 becomes +0."""
    c: Floats = (x.view(np.int64) & _EXPONENT).view(np.float64) * magic
    y: Floats = x + c
    y -= c
    return y


def _limit(x: Floats, largest: float = MAX) -> Floats:
    """Return x with magnitudes below MIN flushed to +0 and those above `largest` saturated."""
    magnitude = np.abs(x)
    small = magnitude < MIN
    if small.any():
        x = np.where(small, 0.0, x)
    if magnitude.max(initial=0.0) > largest:
        x = np.clip(x, -largest, largest)
    return x


def round_f24(x: ArrayLike) -> Floats:
    """Return the F24 nearest to each (finite float64) x: RNE, then flush and saturation."""
    return _limit(_significand(np.asarray(x, dtype=np.float64), _MAGIC_F24))


def mul(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return RNE(a * b)."""
    return round_f24(np.multiply(a, b, dtype=np.float64))


def add(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return RNE(a + b)."""
    return round_f24(np.add(a, b, dtype=np.float64))


def i2f(i: ArrayLike) -> Floats:
    """Return RNE of integers: any integer type, or float64 holding integers below 2**53."""
    array = np.asarray(i)
    if array.dtype.itemsize == 8 and array.dtype.kind in "iu":
        return round_f24(_wide_to_float(array))
    return round_f24(array)


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
    q = np.rint(np.asarray(x, dtype=np.float64))
    return np.minimum(np.maximum(q, -127.0), 127.0).astype(np.int8)


def quantise16(x: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return the high part q >> 7 and the low part q & 127 of q = min(16383, max(-16383, f2i(x)))."""
    q = np.rint(np.asarray(x, dtype=np.float64))
    q = np.minimum(np.maximum(q, -16383.0), 16383.0).astype(np.int16)
    return (q >> 7).astype(np.int8), (q & 127).astype(np.int8)


def bf16(x: ArrayLike) -> Floats:
    """Return RNE to an 8-bit significand, saturating to the largest such F24."""
    return _limit(_significand(np.asarray(x, dtype=np.float64), _MAGIC_BF16), _MAX_BF16)


def scale2(x: ArrayLike, k: ArrayLike) -> Floats:
    """Return x * 2**k, flushed and saturated."""
    y: Floats = np.ldexp(np.asarray(x, dtype=np.float64), k)
    return _limit(y) + 0.0


def exponent(x: ArrayLike) -> NDArray[np.int64]:
    """Return the unbiased exponent of each nonzero F24 (of zero: -1023)."""
    bits = np.asarray(x, dtype=np.float64).view(np.int64)
    return ((bits >> 52) & 0x7FF) - 1023


def load_fp32(bits: ArrayLike) -> Floats:
    """Return the F24 values that float32 bit patterns (uint32) load as."""
    u = np.asarray(bits, dtype=np.uint32) & np.uint32(0xFFFFFF00)
    e = u & np.uint32(0x7F800000)
    special = e == 0x7F800000
    if special.any():
        u = np.where(special, (u & np.uint32(0x80000000)) | np.uint32(0x7F7FFF00), u)
    zero = e == 0
    if zero.any():
        u = np.where(zero, np.uint32(0), u)
    return u.view(np.float32).astype(np.float64)


def load_bf16(bits: ArrayLike) -> Floats:
    """Return the F24 values that bfloat16 bit patterns (uint16) load as."""
    return load_fp32(np.asarray(bits, dtype=np.uint16).astype(np.uint32) << np.uint32(16))


def store_fp32(x: ArrayLike) -> NDArray[np.uint32]:
    """Return the float32 bit patterns of F24 values; the low eight bits are zero."""
    return np.asarray(x, dtype=np.float64).astype(np.float32).view(np.uint32)


def store_bf16(x: ArrayLike) -> NDArray[np.uint16]:
    """Return the upper 16 bits of F24 values."""
    return (store_fp32(x) >> np.uint32(16)).astype(np.uint16)
