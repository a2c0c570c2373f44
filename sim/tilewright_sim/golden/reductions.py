"""Row reductions (docs/numerics.md, "Reductions"): over the last axis, or the axes given, which are kept with length 1.

`valid` marks the elements that take part (None: all); the others must be zero in x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright_sim.golden import formats, tables
from tilewright_sim.golden.formats import Floats, add, mul

Axis = tuple[int, ...]
Mask = NDArray[np.bool_] | None
_LAST: Axis = (-1,)


def max_reduction(x: Floats, valid: Mask = None, axis: Axis = _LAST) -> Floats:
    """Return the maximum; +0 of no elements."""
    y = x if valid is None else np.where(valid, x, -np.inf)
    most: Floats = y.max(axis=axis, keepdims=True)
    return most if valid is None else np.where(most == -np.inf, 0.0, most)


def absmax_reduction(x: Floats, axis: Axis = _LAST) -> Floats:
    """Return the largest magnitude."""
    largest: Floats = np.abs(x).max(axis=axis, keepdims=True)
    return largest


def qscale_reduction(x: Floats, const1: Floats, *, scale16: bool = False, axis: Axis = _LAST) -> tuple[Floats, Floats]:
    """Return (recip(s), s) with s = mul(largest magnitude, const1), rounded to bfloat16 if `scale16`."""
    s = mul(absmax_reduction(x, axis), const1)
    s = formats.bf16(s) if scale16 else s
    return tables.recip(s), s


def expsum_reduction(x: Floats, axis: Axis = _LAST) -> Floats:
    """Return recip of the sum of x, clamped to [0, 1], in units of 2^-24."""
    units = np.floor(np.clip(x, 0.0, 1.0) * 2.0**24)
    total = formats.i2f(integer_sum(units, axis, 2.0**24))
    return tables.recip(formats.scale2(total, -24))


def sumsq_reduction(x: Floats, largest: Floats, const1: Floats, const2: Floats, axis: Axis = _LAST) -> Floats:
    """Return rsqrt(sum of squares * const1 + const2), in integers aligned to the exponent of `largest`."""
    aligned = align(x, largest)
    total = formats.i2f(integer_sum(aligned * aligned, axis, 2.0**32))
    scaled = formats.scale2(total, 2 * (formats.exponent(largest) - 15))
    return tables.rsqrt(add(mul(np.where(largest == 0, 0.0, scaled), const1), const2))


def sum_reduction(x: Floats, largest: Floats, const1: Floats, axis: Axis = _LAST) -> Floats:
    """Return sum * const1, in integers aligned to the exponent of `largest`."""
    total = formats.i2f(integer_sum(align(x, largest), axis, 2.0**16))
    scaled = formats.scale2(total, formats.exponent(largest) - 15)
    return mul(np.where(largest == 0, 0.0, scaled), const1)


def align(x: Floats, largest: Floats) -> Floats:
    """Return X = RNE(x * 2^(15-E)), E the exponent of `largest`, clamped to 16 bits; 0 where `largest` is 0."""
    scaled = np.rint(np.ldexp(x, 15 - formats.exponent(largest)))
    return np.where(largest == 0, 0.0, np.clip(scaled, -65535.0, 65535.0))


def integer_sum(x: Floats, axis: Axis, largest: float) -> NDArray[Any]:
    """Return the exact sum of float64 integers of at most `largest` in magnitude, in float64 or 64 bits."""
    count = int(np.prod([x.shape[i] for i in axis]))
    if count * largest <= 2.0**53:
        total: NDArray[Any] = x.sum(axis=axis, keepdims=True)
        return total
    kind = np.int64 if x.min() < 0 else np.uint64
    wide: NDArray[Any] = x.astype(kind).sum(axis=axis, keepdims=True)
    return wide
