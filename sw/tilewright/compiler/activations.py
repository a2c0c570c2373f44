"""Activation functions as the vector unit computes them: a factor in 0..1 from a table, times the argument."""

from __future__ import annotations

from functools import cache

import numpy as np

from tilewright.tables import SEGMENTS, Table, gelu, gelu_tanh

_OUT = 17


@cache
def _relu() -> Table:
    """Return the step from 0 to 1, whose middle is one argument of the table wide: 2^-23."""
    words = np.where(np.arange(SEGMENTS) < SEGMENTS // 2, 0, 1 << _OUT + 12).astype(np.uint32)
    return Table("relu", (-np.inf, np.inf), words, 31, _OUT, 2.0**-23, "lipschitz", times_x=True)


_TABLES = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": _relu}


def table_of(activation: str) -> Table | None:
    """Return the table of an activation's factor; None for SiLU, whose factor is the built-in sigmoid."""
    return _TABLES[activation]() if activation in _TABLES else None
