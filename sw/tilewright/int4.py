"""Weights of four bits: w is about s * g * q, with q in -8..7, and g in 1..15 for each group of 32 inputs.

s is one F24 per output channel, g a four-bit integer per channel and group (docs/architecture.md). Three quantisers of
rising cost: plain rounding, a search over the scales, and the search with error compensation, which needs the inputs
that the matrix meets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.error_feedback import check_moments, round_with_feedback
from tilewright.formats import GROUP, f24
from tilewright.model import Floats
from tilewright_hw.arch import InputError

__all__ = ["GROUP", "Int4", "compensate", "round_to_int4", "search"]

LOW, HIGH = -8, 7
"""Range of q."""
MAX_G = 15
"""Largest g."""
_SHRINK = np.linspace(0.70, 1.0, 7)
"""Channel scales that the search tries, as parts of the one that clips nothing."""
_ROUNDS = 2
"""How often the search fits s to q and g, and chooses these again."""
_BLOCK = 1 << 18
"""Weights that are searched at once: what the search works on stays in a cache."""


@dataclass(frozen=True)
class Int4:
    """A matrix in four bits.

    Parameters
    ----------
    q : int8 array (n, k)
        -8 to 7.
    g : uint8 array (n, ceil(k / 32))
        1 to 15.
    scale : float32 array (n,)
        F24 values; 0 for a channel of zeros.
    """

    q: NDArray[np.int8]
    g: NDArray[np.uint8]
    scale: Floats

    @property
    def parts(self) -> tuple[NDArray[np.int8], NDArray[np.uint8], Floats]:
        """q, g and scale."""
        return self.q, self.g, self.scale

    def int8(self) -> NDArray[np.int8]:
        """Return g * q, (n, k): what the array multiplies with."""
        each = np.repeat(self.g, GROUP, axis=1)[:, : self.q.shape[1]]
        return np.asarray(self.q * each.astype(np.int8), dtype=np.int8)

    def dequantised(self) -> Floats:
        """Return s * g * q, float32 (n, k)."""
        return np.asarray(self.int8().astype(np.float32) * self.scale[:, None])


def round_to_int4(w: Floats) -> Int4:
    """Quantise (n, k) weights by plain rounding: nothing is clipped, every g is the smallest that reaches its group."""
    groups = _grouped(w)
    peaks = _peaks(groups)
    s = _largest_scale(peaks)
    return _finish(w, groups, s, _reaching(peaks, s))


def search(w: Floats, importance: Floats | None = None) -> Int4:
    """Quantise (n, k) weights with the s and g that leave the least squared error.

    Parameters
    ----------
    w : float32 array (n, k)
        Weights.
    importance : float32 array (k,), optional
        Weight of each input's error: the mean square of the values that meet it. Default: all the same.

    Raises
    ------
    InputError
        `importance` is of another length, or negative.
    """
    weight = _importance(importance, w.shape[1])
    rows = max(1, _BLOCK // max(w.shape[1], 1))
    parts = [_search(w[i : i + rows], weight) for i in range(0, len(w), rows)]
    return Int4(
        np.concatenate([p.q for p in parts]),
        np.concatenate([p.g for p in parts]),
        np.concatenate([p.scale for p in parts]),
    )


def compensate(w: Floats, moments: NDArray[np.float64]) -> Int4:
    """Quantise (n, k) weights input by input, and let the inputs to come make up for each one's error.

    Source: GPTQ (arXiv:2210.17323), with this format's scales: s from `search`, each g chosen when its group begins.

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
    n, k = w.shape
    check_moments(moments, k)
    diagonal = np.diag(moments).copy()
    s = search(w, diagonal.astype(np.float32)).scale
    g = np.ones((n, -(-k // GROUP)), np.uint8)

    def begin(first: int, end: int, left: NDArray[np.float64]) -> NDArray[np.float64]:
        chosen = _choose_g(left, s, diagonal[first:end])
        g[:, first // GROUP] = chosen
        return np.asarray(s.astype(np.float64) * chosen)

    q = round_with_feedback(w, moments, begin, LOW, HIGH)
    return Int4(q, g, s)


def _importance(importance: Floats | None, k: int) -> Floats:
    if importance is None:
        return np.ones(k, np.float32)
    if importance.shape != (k,) or (importance < 0).any():
        raise InputError(f"importance must be {k} numbers from 0 on, not of shape {importance.shape}")
    mean = float(importance.mean())
    # Inputs that were never met still count a little.
    return np.asarray(importance / mean + 1e-3 if mean > 0 else np.ones(k), dtype=np.float32)


def _grouped(w: Floats) -> Floats:
    """Return (n, groups, 32), the last group padded with zeros."""
    n, k = w.shape
    padded = np.zeros((n, -(-k // GROUP) * GROUP), np.float32)
    padded[:, :k] = w
    return padded.reshape(n, -1, GROUP)


def _peaks(groups: Floats) -> Floats:
    """Return the largest magnitude of each group, (n, groups)."""
    return np.asarray(np.abs(groups).max(axis=2))


def _largest_scale(peaks: Floats) -> Floats:
    """Return the s with which the largest weight of each channel is 15 * 7 steps, as F24."""
    return f24(peaks.max(axis=1) / np.float32(MAX_G * HIGH))


def _reaching(peaks: Floats, s: Floats) -> NDArray[np.uint8]:
    """Return the smallest g with which no weight of a group lies beyond +-7 steps."""
    safe = np.where(s > 0, s, np.float32(1))
    steps = peaks / (HIGH * safe[:, None])
    return np.asarray(np.clip(np.ceil(steps - 1e-6), 1, MAX_G), dtype=np.uint8)


def _finish(w: Floats, groups: Floats, s: Floats, g: NDArray[np.uint8]) -> Int4:
    q = _rounded(groups, s[:, None] * g).reshape(len(w), -1)[:, : w.shape[1]]
    return Int4(np.ascontiguousarray(q), g, np.asarray(s, dtype=np.float32))


def _rounded(groups: Floats, step: Floats) -> NDArray[np.int8]:
    safe = np.where(step > 0, step, np.float32(1))[..., None]
    q = np.clip(np.rint(groups / safe), LOW, HIGH)
    return np.where(step[..., None] > 0, q, 0).astype(np.int8)


def _search(w: Floats, importance: Floats) -> Int4:
    groups = _grouped(w)
    weight = _grouped(importance[None])[0]
    candidates = _Candidates(groups, weight)
    largest = _largest_scale(candidates.peaks)
    best_s = largest
    best_g, best = candidates.best(best_s)

    def offer(s: Floats) -> None:
        """Take s, and the g that go with it, for the channels in which they are better."""
        nonlocal best_s
        g, error = candidates.best(s)
        better = error.sum(axis=1) < best.sum(axis=1)
        best_s = np.where(better, s, best_s)
        best_g[better], best[better] = g[better], error[better]

    for part in _SHRINK[:-1]:
        offer(f24(largest * np.float32(part)))
    for _ in range(_ROUNDS):
        offer(_fitted(groups, best_s, best_g, weight))
    return _finish(w, groups, best_s, best_g)


class _Candidates:
    """Groups of weights, and what their errors would be.

    The search spends its time here. Weights are in double precision, as steps are, with the 32 of a group on the first
    axis: NumPy's inner loops are then as long as there are groups, and all is done in place.

    Parameters
    ----------
    groups : float32 array (n, groups, 32)
        Weights.
    weight : float32 array (groups, 32)
        Weight of each input's error.
    """

    def __init__(self, groups: Floats, weight: Floats) -> None:
        self.peaks = _peaks(groups)
        self._weights = np.ascontiguousarray(groups.transpose(2, 0, 1), dtype=np.float64)
        self._error = np.empty_like(self._weights)
        # Nearly always 1 for all; the product would be the same.
        self._importance = None if (weight == 1).all() else weight.T.astype(np.float64)[:, None, :]

    def best(self, s: Floats) -> tuple[NDArray[np.uint8], Floats]:
        """Return the best g of each group near the one that clips nothing, and its error: (n, groups) both."""
        top = _reaching(self.peaks, s).astype(np.int64)
        best_g = top.astype(np.uint8)
        best = np.full(top.shape, np.inf, np.float32)
        for less in range(min(5, int(top.max(initial=1)))):  # any more would be g = 1 again
            g = np.clip(top - less, 1, MAX_G)
            total = self._total(s.astype(np.float64)[:, None] * g)
            better = total < best
            np.copyto(best_g, g, where=better, casting="unsafe")
            np.copyto(best, total, where=better, casting="same_kind")
        return best_g, best

    def _total(self, step: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the squared error of each group with a step for each."""
        error = self._error
        np.divide(self._weights, np.where(step > 0, step, 1.0), out=error)
        np.rint(error, out=error)
        np.clip(error, LOW, HIGH, out=error)
        error *= np.maximum(step, 0.0)  # a channel without a scale has q = 0
        np.subtract(self._weights, error, out=error)
        error *= error
        if self._importance is not None:
            error *= self._importance
        return np.asarray(error.sum(axis=0))


def _fitted(groups: Floats, s: Floats, g: NDArray[np.uint8], weight: Floats) -> Floats:
    """Return the s of each channel that fits its g * q best."""
    units = _rounded(groups, s[:, None] * g) * g[..., None].astype(np.float32)
    over = np.einsum("ngi,gi->n", units * groups, weight)
    under = np.einsum("ngi,gi->n", units * units, weight)
    return f24(np.where(under > 0, over / np.where(under > 0, under, 1), s))


def _choose_g(part: NDArray[np.float64], s: Floats, weight: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the best g of one group for every channel."""
    groups = _grouped(part.astype(np.float32))
    padded = _grouped(weight.astype(np.float32)[None])[0]
    return _Candidates(groups, padded + np.float32(1e-3) * padded.max(initial=1e-12)).best(s)[0][:, 0]
