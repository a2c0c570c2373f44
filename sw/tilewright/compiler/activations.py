"""Activation functions as the vector unit computes them: a factor in 0..1 from a table, times the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

SEGMENTS = 512
_OUT = 17
"""Fraction bits of the factor: the steepest segment's slope still has 12 bits."""


@dataclass(frozen=True)
class Table:
    """Contents of the vector unit's table (docs/numerics.md, "table"): 512 words, input and output shift."""

    words: NDArray[np.uint32]
    in_shift: int
    out_shift: int

    @property
    def shifts(self) -> int:
        """The `dst` operand of LOAD."""
        return self.in_shift | (self.out_shift & 255) << 8


def _gelu(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


_FACTORS: dict[str, Callable[[float], float]] = {"gelu": _gelu, "gelu_tanh": _gelu_tanh}


def _sampled(f: Callable[[float], float]) -> Table:
    """Return the table of f between -8 and 8, beyond which the factor is 0 or 1."""
    ends = [math.floor(f((j - SEGMENTS // 2) / 32) * (1 << _OUT) + 0.5) for j in range(SEGMENTS + 1)]
    return _table(ends, 20)


def _table(ends: list[int], in_shift: int) -> Table:
    values = np.array(ends, np.int64)
    words = (values[:-1] << 12) | (np.diff(values) & 0xFFF)
    return Table((words & 0xFFFFFFFF).astype(np.uint32), in_shift, _OUT)


@cache
def table_of(activation: str) -> Table | None:
    """Return the table of an activation's factor; None for SiLU, whose factor is the built-in sigmoid."""
    if activation in _FACTORS:
        return _sampled(_FACTORS[activation])
    if activation == "relu":
        words = np.where(np.arange(SEGMENTS) < SEGMENTS // 2, 0, 1 << _OUT + 12).astype(np.uint32)
        return Table(words, 31, _OUT)
    return None
