"""RoPE pairings: checkpoints that pair channel j with j + d/2 are brought to pairs of neighbours."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


def interleave_heads(weights: NDArray[T], heads: int) -> NDArray[T]:
    """Reorder each head's channels (first axis) from halves to interleaved pairs: j, j + d/2 become 2j, 2j + 1."""
    d = weights.shape[0] // heads
    split = weights.reshape(heads, 2, d // 2, *weights.shape[1:])
    return np.ascontiguousarray(np.swapaxes(split, 1, 2)).reshape(weights.shape)
