"""Rounding input by input, where the inputs to come make up for each one's error.

Source: GPTQ (arXiv:2210.17323). What the weights are rounded to is the caller's: int8 here, int4 in `tilewright.int4`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tilewright.formats import GROUP, f24, quantise_int8, round_int8
from tilewright.model import Floats
from tilewright_hw.arch import InputError

__all__ = ["Begin", "check_moments", "compensate_int8", "round_with_feedback", "search_int8"]

Wide = NDArray[np.float64]
Begin = Callable[[int, int, Wide], Wide]
"""Told the first and last + 1 of a group of inputs and their weights (n, inputs) as they are by then; returns the
step of each channel for these inputs (n,), 0 where all weights are 0."""
_DAMPING = 0.01
"""What is added to the diagonal of the inputs' second moments, as a part of its mean."""
_FACTORS = np.exp2(-np.arange(24, dtype=np.float32) / 4)
"""Scales that are tried, as parts of that of plain rounding."""


def compensate_int8(w: Floats, moments: Wide) -> tuple[NDArray[np.int8], Floats]:
    """Quantise (n, k) weights to int8 per output channel with error feedback: returns q (n, k) and F24 scales (n,).

    The scales are those of plain rounding, or smaller ones where it serves the inputs to clip a few large weights.

    Parameters
    ----------
    w : float32 array (n, k)
        Weights.
    moments : float64 array (k, k)
        Sum over rows of x^T x of the inputs that meet the matrix.

    Raises
    ------
    InputError
        `moments` is not (k, k).
    """
    check_moments(moments, w.shape[1])
    scales = _search_scales(w, np.diag(moments))
    step = scales.astype(np.float64)
    return round_with_feedback(w, moments, lambda first, end, left: step, -127, 127), scales


def search_int8(w: Floats, squares: Wide) -> tuple[NDArray[np.int8], Floats]:
    """Quantise (n, k) weights to int8 per output channel by rounding: returns q (n, k) and F24 scales (n,).

    The scales are those that make the least squared error for inputs of these mean squares, float64 (k,): a few large
    weights may be clipped.
    """
    scales = _search_scales(w, squares)
    return round_int8(w, scales).astype(np.int8), scales


def _search_scales(w: Floats, squares: Wide) -> Floats:
    """Return the F24 scale of each channel that makes the least squared error, for inputs of these mean squares."""
    widest = quantise_int8(w)[1]
    best, least = widest.copy(), np.full(len(w), np.inf)
    for factor in _FACTORS:
        scales = f24(widest * factor)
        # A sum of its own for each row, so that how many there are does not matter, to the last bit.
        error = np.sum((w - round_int8(w, scales) * scales[:, None]) ** 2 * squares, axis=1)
        better = error < least
        best[better], least[better] = scales[better], error[better]
    return best


def round_with_feedback(w: Floats, moments: Wide, begin: Begin, low: int, high: int) -> NDArray[np.int8]:
    """Round w / step to integers of low..high, group of inputs after group; returns them, (n, k).

    InputError if `moments` is not (k, k).
    """
    n, k = w.shape
    check_moments(moments, k)
    upper = _inverse_factor(moments)
    left = w.astype(np.float64).copy()
    q = np.zeros((n, k), np.int8)
    for start in range(0, k, GROUP):
        end = min(start + GROUP, k)
        step = begin(start, end, left[:, start:end])
        safe = np.where(step > 0, step, 1.0)
        errors = np.empty((n, end - start))
        for j in range(start, end):
            q[:, j] = np.where(step > 0, np.clip(np.rint(left[:, j] / safe), low, high), 0)
            errors[:, j - start] = (left[:, j] - q[:, j] * step) / upper[j, j]
            left[:, j + 1 : end] -= np.outer(errors[:, j - start], upper[j, j + 1 : end])
        left[:, end:] -= errors @ upper[start:end, end:]
    return q


def check_moments(moments: Wide, k: int) -> None:
    """InputError unless the moments are those of k inputs."""
    if moments.shape != (k, k):
        raise InputError(f"moments must be of shape {(k, k)}, not {moments.shape}")


def _inverse_factor(moments: Wide) -> Wide:
    """Return the upper Cholesky factor of the inverse of the (damped) moments."""
    damped = moments + np.eye(len(moments)) * max(_DAMPING * float(np.mean(np.diag(moments))), 1e-12)
    inverse = np.linalg.inv(damped)
    return np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)
