"""What is lost where weights that a file holds in another format are quantised anew."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.int4 import Int4
from tilewright.model import Floats
from tilewright.quantisers import Quantiser

__all__ = ["Loss", "Measured"]


@dataclass
class Loss:
    """Sums over weights w of a file, of which w + e became.

    Parameters
    ----------
    weights, errors, products : float
        Sums of w^2, e^2 and w e.
    """

    weights: float = 0.0
    errors: float = 0.0
    products: float = 0.0

    def add(self, w: Floats, made: Floats) -> None:
        """Add weights, and what they became."""
        w, e = w.reshape(-1), (made - w).reshape(-1)
        self.weights += float(np.dot(w, w))
        self.errors += float(np.dot(e, e))
        self.products += float(np.dot(w, e))

    @property
    def relative_error(self) -> float:
        """|e| / |w|."""
        return math.sqrt(self.errors / self.weights) if self.weights else 0.0

    @property
    def cosine(self) -> float:
        """Cosine of the angle between w and w + e."""
        made = self.weights + 2 * self.products + self.errors
        return (self.weights + self.products) / math.sqrt(self.weights * made) if self.weights * made > 0 else 1.0


class Measured:
    """A quantiser that makes the weights of another one, and measures them.

    Parameters
    ----------
    inner : Quantiser
        Makes them.
    types : mapping of str to int
        How many matrices of each type the file holds.
    """

    def __init__(self, inner: Quantiser, types: Mapping[str, int]) -> None:
        self.inner, self.types = inner, dict(types)
        self.losses: dict[str, Loss] = {}
        """By format, of all matrices made so far."""

    @property
    def whole(self) -> bool:
        """As the other one wants it."""
        return self.inner.whole

    def int8(self, name: str, w: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Return what the other one makes."""
        q, s = self.inner.int8(name, w)
        self.losses.setdefault("int8", Loss()).add(w, q * s[:, None])
        return q, s

    def int4(self, name: str, w: Floats) -> tuple[NDArray[np.int8], NDArray[np.uint8], Floats]:
        """Return what the other one makes."""
        q, g, s = self.inner.int4(name, w)
        self.losses.setdefault("int4", Loss()).add(w, Int4(q, g, s).dequantised())
        return q, g, s

    def __str__(self) -> str:
        """Say it in a line."""
        types = ", ".join(f"{name} ({count})" for name, count in self.types.items())
        losses = [
            f"{name} (relative error {loss.relative_error:.2%}, cosine {loss.cosine:.6f})"
            for name, loss in self.losses.items()
        ]
        return f"matrices: {types} in the file, quantised to {', '.join(losses)}"

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        losses = {n: {"relative_error": x.relative_error, "cosine": x.cosine} for n, x in self.losses.items()}
        return {"types": self.types, "losses": losses}
