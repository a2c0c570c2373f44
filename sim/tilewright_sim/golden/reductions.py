"""Row reductions (docs/numerics.md, "Reductions"): over the last axis, or the axes given, which are kept with length 1.

`valid` marks the elements that take part (None: all); the others must be zero in x.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright_sim.golden import formats, tables
from tilewright_sim.golden.formats import Floats, add, mul

Axis = tuple[int, ...]
Mask = NDArray[np.bool_] | None
_LAST: Axis = (-1,)
MAX_VAR = 32767
"""The longest row of which n * (sum of squares) - sum^2 fits 63 bits."""
_ZERO, _ONE, _EXPSUM_UNITS = np.array(0.0), np.array(1.0), np.array(2.0**24)
_LAST_BIT = np.array(2.0**-formats.FRACTION_BITS)
_END_ALIGNED = 2.0 ** (formats.FRACTION_BITS + 1)
_BELOW_ALL = np.array(2.0**-142)


def max_reduction(x: Floats, valid: Mask = None, axis: Axis = _LAST, before: Floats | None = None) -> Floats:
    """Return the maximum, of `before` too if it is given; +0 of no elements."""
    y = x if valid is None else np.where(valid, x, -np.inf)
    most: Floats = np.maximum.reduce(y, axis=axis, keepdims=True)
    if before is not None:
        return np.maximum(most, before)
    return most if valid is None else np.where(most == -np.inf, 0.0, most)


def argmax_reduction(
    x: Floats,
    first: int,
    valid: Mask = None,
    axis: Axis = _LAST,
    before: tuple[Floats, NDArray[np.uint32]] | None = None,
) -> tuple[Floats, NDArray[np.uint32]]:
    """Return the maximum and the index of its first element, modulo 2^24; (+0, first) of no elements.

    Element 0 of the last axis has the index `first`. `before` is the maximum and the index of earlier elements.
    """
    most = max_reduction(x, valid, axis)
    has = (x == most) if valid is None else (x == most) & valid
    n = x.shape[-1]
    flat = has.reshape(*has.shape[: has.ndim - len(axis)], -1)
    index = (flat.argmax(axis=-1).reshape(most.shape) % n + first) & 0xFFFFFF
    index = np.where(flat.any(axis=-1).reshape(most.shape), index, first).astype(np.uint32)
    if before is None:
        return most, index
    some = np.broadcast_to(valid, x.shape).any(axis=axis, keepdims=True) if valid is not None else np.True_
    greater = (most > before[0]) & some
    return np.where(greater, most, before[0]), np.where(greater, index, before[1])


def absmax_reduction(x: Floats, axis: Axis = _LAST) -> Floats:
    """Return the largest magnitude."""
    largest: Floats = np.maximum.reduce(np.abs(x), axis=axis, keepdims=True)
    return largest


def qscale_reduction(x: Floats, const1: Floats, *, scale16: bool = False, axis: Axis = _LAST) -> tuple[Floats, Floats]:
    """Return (recip(s), s) with s = mul(largest magnitude, const1), rounded to bfloat16 if `scale16`."""
    s = mul(absmax_reduction(x, axis), const1)
    s = formats.bf16(s) if scale16 else s
    return tables.recip(s), s


def expsum_reduction(x: Floats, axis: Axis = _LAST) -> Floats:
    """Return recip of the sum of x, clamped to [0, 1], in units of 2^-24."""
    units = np.floor(np.minimum(np.maximum(x, _ZERO), _ONE) * _EXPSUM_UNITS)
    total = formats.i2f(integer_sum(units, axis, 2.0**24))
    return tables.recip(total / _EXPSUM_UNITS)


def sumsq_reduction(x: Floats, largest: Floats, const1: Floats, const2: Floats, axis: Axis = _LAST) -> Floats:
    """Return rsqrt(sum of squares * const1 + const2), in integers aligned to the exponent of `largest`."""
    aligned, unit = align(x, largest)
    total = formats.i2f(integer_sum(aligned * aligned, axis, 2.0**32))
    return tables.rsqrt(add(mul(formats.limit(total * (unit * unit)), const1), const2))


def sum_reduction(x: Floats, largest: Floats, const1: Floats, axis: Axis = _LAST) -> Floats:
    """Return sum * const1, in integers aligned to the exponent of `largest`."""
    aligned, unit = align(x, largest)
    total = formats.i2f(integer_sum(aligned, axis, 2.0**16))
    return mul(formats.limit(total * unit), const1)


def var_reduction(x: Floats, largest: Floats, const1: Floats, const2: Floats) -> tuple[Floats, Floats]:
    """Return r = rsqrt(variance + const2) and -mean * r of whole rows; const1 is 1/n."""
    n, (aligned, unit) = x.shape[-1], align(x, largest)
    integers = aligned.astype(np.int64)
    total = integers.sum(axis=-1, keepdims=True)
    spread = n * (integers * integers).sum(axis=-1, keepdims=True) - total * total
    variance = mul(mul(formats.limit(formats.i2f(spread) * (unit * unit)), const1), const1)
    r = tables.rsqrt(add(variance, const2))
    mean = mul(formats.limit(formats.i2f(total) * unit), const1)
    return r, mul(-mean, r)


class BeyondLargest(ValueError):
    """An element is greater than what was given as the row's absolute maximum; the text says which and by what."""


def align(x: Floats, largest: Floats) -> tuple[Floats, Floats]:
    """Return the integers X = RNE(x * 2^(15-E)) and their unit 2^(E-15), E the exponent of `largest`.

    Where `largest` is 0 the unit is below all F24: only zeros pass. BeyondLargest if an exponent is above E.
    """
    unit = np.maximum(formats.power(largest), _BELOW_ALL) * _LAST_BIT
    aligned = np.rint(x * (_ONE / unit))
    magnitude = np.abs(aligned)
    if magnitude.size and magnitude.item(at := int(magnitude.argmax())) >= _END_ALIGNED:
        *row, i = (int(k) for k in np.unravel_index(at, x.shape))
        most = np.broadcast_to(largest, x.shape)[*row, i]
        raise BeyondLargest(
            f"element {i} of row {tuple(row)} is {x[*row, i]}, beyond the exponent of what should be the row's "
            f"absolute maximum, {most}"
        )
    return aligned, unit


def integer_sum(x: Floats, axis: Axis, largest: float) -> NDArray[Any]:
    """Return the exact sum of float64 integers of at most `largest` in magnitude, in float64 or 64 bits."""
    count = math.prod(x.shape[i] for i in axis)
    if count * largest <= 2.0**53:
        total: NDArray[Any] = np.add.reduce(x, axis=axis, keepdims=True)
        return total
    kind = np.int64 if x.min() < 0 else np.uint64
    wide: NDArray[Any] = x.astype(kind).sum(axis=axis, keepdims=True)
    return wide
