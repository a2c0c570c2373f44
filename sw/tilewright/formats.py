"""The host's side of the number formats: what weights, tables and parameters look like in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilewright_hw.arch import InputError

WEIGHTS = ("int8", "int4")
"""Formats of weights."""
ACTIVATIONS = (8, 16)
"""Bits of quantised rows; 16 stands for a pair of int8, 15 bits of value."""
KV = ("int8",)
"""Formats of the KV cache."""
GROUP = 32
"""Inputs that share a group scale of int4 weights."""


@dataclass(frozen=True, kw_only=True)
class Formats:
    """Number formats of a model on the accelerator.

    Parameters
    ----------
    weights : {"int8", "int4"}
        Of all matrices.
    activations : {8, 16}
        Bits of what is multiplied by a matrix, of queries and of probabilities.
    kv : {"int8"}
        Of the KV cache.
    overrides : mapping of str to str
        Weight formats of single matrices: a pattern of names (`*`, `?` and `[...]` as in a shell; `layers.0.w_down`,
        `classifier`) to a format. The last pattern that matches counts. Queries, keys and values are one matrix,
        `layers.N.qkv`.
    """

    weights: str = "int8"
    activations: int = 8
    kv: str = "int8"
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("weights", WEIGHTS), ("activations", ACTIVATIONS), ("kv", KV)):
            value = getattr(self, name)
            if value not in known or isinstance(value, bool):
                raise InputError(f"{name} must be {' or '.join(str(k) for k in known)}, not {value!r}")
        for pattern, value in self.overrides.items():
            if value not in WEIGHTS:
                raise InputError(f"the format of {pattern} must be {' or '.join(WEIGHTS)}, not {value!r}")

    def of(self, matrix: str) -> str:
        """Return the weight format of a matrix."""
        found = [value for pattern, value in self.overrides.items() if fnmatchcase(matrix, pattern)]
        return found[-1] if found else self.weights

    @property
    def parts(self) -> int:
        """Words of int8 that hold one word of quantised activations."""
        return 2 if self.activations == 16 else 1


DEFAULT = Formats()
"""8 bits everywhere."""

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
    return round_int8(w, s).astype(np.int8), s


def round_int8(w: NDArray[np.float32], s: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return clip(rint(w / s), +-127) of (n, k) weights and scales (n,), as float32; 0 where s = 0."""
    q = np.clip(np.rint(w / np.where(s > 0, s, np.float32(1.0))[:, None]), -127, 127)
    q[s == 0] = 0
    return q
