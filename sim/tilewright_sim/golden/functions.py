"""What the blocks and the operations compute, as functions of NumPy arrays (docs/numerics.md).

Arrays of elements are F24: float64 whose values are exact. What is given is rounded to F24 first, which changes nothing
that is F24 already; InputError if it is not finite. Rows are the last axis.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilewright_hw.arch import InputError
from tilewright_sim.golden import formats, tables
from tilewright_sim.golden.formats import Floats, add, mul, round_f24
from tilewright_sim.golden.matrix import integer_product
from tilewright_sim.golden.reductions import (
    MAX_VAR,
    absmax_reduction,
    argmax_reduction,
    expsum_reduction,
    max_reduction,
    qscale_reduction,
    sumsq_reduction,
    var_reduction,
)

LOG2_E = 1.4426950408889634
"""log2(e) = 0x1.71547652b82fep0; rounded to F24 where it is used."""


def _f24(x: ArrayLike) -> Floats:
    """Return x rounded to F24; InputError if it is not finite."""
    values = np.asarray(x, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError("elements must be finite")
    return round_f24(values)


def systolic_array(a: ArrayLike, w: ArrayLike) -> NDArray[np.int32]:
    """Return a (rows, K) @ w (K, N), int8, as int32 that wraps modulo 2^32.

    Leading axes broadcast, as in numpy.matmul.
    """
    a, w = np.asarray(a), np.asarray(w)
    for name, x in (("a", a), ("w", w)):
        if x.dtype != np.int8:
            raise InputError(f"{name} must be int8, not {x.dtype}")
    if a.ndim < 2 or w.ndim < 2 or a.shape[-1] != w.shape[-2]:
        raise InputError(f"shapes {a.shape} and {w.shape} cannot be multiplied")
    return integer_product(a, w).astype(np.int32)


def dequantise(acc: ArrayLike, row_scale: ArrayLike, column_scale: ArrayLike) -> Floats:
    """Return mul(mul(i2f(acc), row scale), column scale)."""
    return mul(mul(formats.i2f(acc), _f24(row_scale)), _f24(column_scale))


def quantise_rows(x: ArrayLike, *, scale16: bool = False) -> tuple[NDArray[np.int8], Floats]:
    """Return (q, s): int8 rows, and the scale of each row (..., 1) by which q times s is about x."""
    x = _f24(x)
    inverse, s = qscale_reduction(x, _f24(1 / 127), scale16=scale16)
    return formats.quantise(mul(x, inverse)), s


def softmax(x: ArrayLike) -> Floats:
    """Return the softmax of each row.

    t = mul(x, F24(log2 e)); e = exp2(add(t, -max t)); mul(e, 1 / sum e)
    """
    t = mul(_f24(x), _f24(LOG2_E))
    e = tables.exp2(add(t, -max_reduction(t)))
    return mul(e, expsum_reduction(e))


def rmsnorm(x: ArrayLike, w: ArrayLike, eps: float) -> Floats:
    """Return mul(mul(x, r), w) with r = 1 / sqrt(mean(x^2) + bf16(eps)) of each row."""
    x = _f24(x)
    largest = absmax_reduction(x)
    r = sumsq_reduction(x, largest, _f24(1 / x.shape[-1]), formats.bf16(eps))
    return mul(mul(x, r), _f24(w))


def sigmoid(x: ArrayLike) -> Floats:
    """Return 1 / (1 + e^-x)."""
    return tables.sigmoid(_f24(x))


def silu(x: ArrayLike) -> Floats:
    """Return mul(sigmoid(x), x)."""
    x = _f24(x)
    return mul(tables.sigmoid(x), x)


class LoadedTable(Protocol):
    """A function for `table`: what `tilewright.tables` makes."""

    words: NDArray[np.uint32]
    input_shift: int
    output_shift: int
    times_x: bool


def table(x: ArrayLike, table: LoadedTable) -> Floats:
    """Return the function of a loaded table, and where it says so, times x."""
    x = _f24(x)
    y = tables.table(x, table.words, table.input_shift, table.output_shift)
    return mul(y, x) if table.times_x else y


def tanh(x: ArrayLike) -> Floats:
    """Return tanh(x), from its table."""
    return tables.table(_f24(x), *tables.tanh_segments())


def erf(x: ArrayLike) -> Floats:
    """Return erf(x), from its table."""
    return tables.table(_f24(x), *tables.erf_segments())


def gelu(x: ArrayLike) -> Floats:
    """Return mul(Phi(x), x), Phi from its table."""
    x = _f24(x)
    return mul(tables.table(x, *tables.gelu_segments()), x)


def gelu_tanh(x: ArrayLike) -> Floats:
    """Return mul((1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, x), the first factor from its table."""
    x = _f24(x)
    return mul(tables.table(x, *tables.gelu_tanh_segments()), x)


def layernorm(x: ArrayLike, w: ArrayLike, b: ArrayLike, eps: float) -> Floats:
    """Return add(mul(add(mul(x, r), -mean * r), w), b) with r = 1 / sqrt(variance + bf16(eps)) of each row."""
    x = _f24(x)
    if x.shape[-1] > MAX_VAR:
        raise InputError(f"a row must have at most {MAX_VAR} elements, not {x.shape[-1]}")
    r, shift = var_reduction(x, absmax_reduction(x), _f24(1 / x.shape[-1]), formats.bf16(eps))
    return add(mul(add(mul(x, r), shift), _f24(w)), _f24(b))


def argmax(x: ArrayLike) -> NDArray[np.int64]:
    """Return the index of the first largest element of each row."""
    return argmax_reduction(_f24(x), 0)[1][..., 0].astype(np.int64)


def rope(x: ArrayLike, cos: ArrayLike, sin: ArrayLike) -> Floats:
    """Return each pair (x[2j], x[2j+1]) turned by the angle of cos[j] and sin[j]."""
    p: NDArray[Any] = np.stack([_f24(cos), _f24(sin)], axis=-1)
    return rotate(_f24(x), p.reshape(*p.shape[:-2], -1))


def rotate(x: Floats, p: Floats) -> Floats:
    """Return the pairs (x[2j], x[2j+1]) turned by the angles whose cos and sin are (p[2j], p[2j+1])."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = p[..., 0::2], p[..., 1::2]
    y = np.empty(np.broadcast_shapes(x.shape, p.shape))
    y[..., 0::2] = add(mul(even, cos), -mul(odd, sin))
    y[..., 1::2] = add(mul(odd, cos), mul(even, sin))
    return y
