"""The host's side of the number formats: what weights, tables and parameters look like in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LARGEST = np.float32(np.ldexp(2.0 - 2.0**-15, 127))
"""Largest finite F24."""


def _round_bits(x: ArrayLike, drop: int) -> NDArray[np.float32]:
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    bits = bits + (1 << (drop - 1)) - 1 + ((bits >> np.uint64(drop)) & np.uint64(1))
    bits &= ~np.uint64((1 << drop) - 1)
    value = bits.astype(np.uint32).view(np.float32).copy()
    value[np.abs(value) < np.float32(2.0**-126)] = 0.0
    return value


def f24(x: ArrayLike) -> NDArray[np.float32]:
    """Round float32 to F24 (nearest even, subnormals to zero, overflow to the largest finite value).

    Values stay in float32 containers of the same shape; their low eight bits are zero.
    """
    return np.clip(_round_bits(x, 8), -LARGEST, LARGEST).astype(np.float32)


def bf16(x: ArrayLike) -> NDArray[np.float32]:
    """Round float32 to bfloat16 (nearest even, subnormals to zero), in float32 containers."""
    largest = np.float32(np.ldexp(2.0 - 2.0**-7, 127))
    return np.clip(_round_bits(x, 16), -largest, largest).astype(np.float32)


def bf16_bits(x: ArrayLike) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 and return the 16 bits as they lie in memory."""
    return (bf16(x).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def f24_bits(x: float) -> int:
    """Return the 32 bits of F24(x), as an instruction's const1 wants them."""
    return int(f24([x]).view(np.uint32)[0])


def bf16_field(x: float) -> int:
    """Return the 16 bits of bfloat16(x), as an instruction's const2 wants them."""
    return int(bf16_bits([x])[0])


def quantise_int8(w: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise (n, k) weights to int8 per output channel: returns q (n, k) and F24 scales (n,).

    s = F24(max|w| / 127), q = clip(rint(w / s), +-127); an all-zero channel has s = 0 and q = 0.
    """
    s = f24(np.max(np.abs(w), axis=1) / np.float32(127.0))
    safe = np.where(s > 0, s, np.float32(1.0))
    q = np.clip(np.rint(w / safe[:, None]), -127, 127)
    q[s == 0] = 0
    return q.astype(np.int8), s
