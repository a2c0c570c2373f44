"""Choosing the next token from logits, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.model import Floats
from tilewright_hw.arch import InputError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose.

    Parameters
    ----------
    temperature : float
        0 takes the most probable token (lowest id on a tie); above 0 samples from softmax(logits / temperature).
    top_k : int
        Only the k most probable tokens; 0: all.
    top_p : float
        Only the smallest set of most probable tokens whose probability reaches p; 1: all.
    repetition_penalty : float
        Logits of tokens that prompt or text hold already are divided by it where they are above 0, and multiplied
        elsewhere (CTRL, arXiv:1909.05858); 1: nothing.
    seed : int
        Seed of the random numbers.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be a number from 0 on, not {self.temperature!r}")
        if not _is_integer(self.top_k) or self.top_k < 0:
            raise InputError(f"top_k must be an integer from 0 on, not {self.top_k!r}")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")
        if not _is_number(self.repetition_penalty) or not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty must be a number above 0, not {self.repetition_penalty!r}")
        if not _is_integer(self.seed) or self.seed < 0:
            raise InputError(f"seed must be an integer from 0 on, not {self.seed!r}")

    @property
    def takes_the_largest(self) -> bool:
        """Whether the choice is the largest logit as it comes: the device makes it."""
        return self.temperature == 0 and self.repetition_penalty == 1


def _is_number(x: object) -> bool:
    return isinstance(x, (int, float, np.number)) and not isinstance(x, bool)


def _is_integer(x: object) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


class Sampler:
    """Draws tokens; two samplers of equal settings and equal logits draw equal tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def __call__(self, logits: Floats, seen: Sequence[int] = ()) -> int:
        """Return the next token for logits (vocab,), where the tokens `seen` are in prompt and text."""
        s = self.sampling
        logits = _penalised(logits, seen, s.repetition_penalty)
        if s.temperature == 0:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")[: s.top_k or None]
        p = _softmax(logits[order].astype(np.float64) / s.temperature)
        if s.top_p < 1:
            keep = int(np.searchsorted(np.cumsum(p), s.top_p)) + 1
            order, p = order[:keep], p[:keep] / p[:keep].sum()
        pick = int(np.searchsorted(np.cumsum(p), self._random.random(), side="right"))
        return int(order[min(pick, len(order) - 1)])


def _penalised(logits: Floats, seen: Sequence[int], penalty: float) -> Floats:
    if penalty == 1 or not len(seen):
        return logits
    at, out, factor = np.unique(np.asarray(seen, np.int64)), logits.copy(), np.float32(penalty)
    out[at] = np.where(out[at] > 0, out[at] / factor, out[at] * factor)
    return out


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())
