"""What an architecture family says of itself: how its configuration becomes a ModelSpec, and its tensors canonical."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilewright.importers.configuration import Configuration
from tilewright.importers.rope import interleave_heads
from tilewright.model import Floats, ModelSpec

__all__ = ["Family", "Tensor", "columns", "heads", "plus_one", "transposed"]

Change = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Tensor:
    """Where a canonical tensor comes from.

    Parameters
    ----------
    name : str
        Its name in the checkpoint.
    change : callable, optional
        What makes the canonical tensor of it. It is given any shape, and must leave a wrong one wrong: the canonical
        tensor's shape is checked afterwards.
    """

    name: str
    change: Change | None = None


@dataclass(frozen=True)
class Family:
    """One architecture family; adding one is adding a file with such an object (docs/models.md).

    Parameters
    ----------
    architectures : tuple of str
        Names in `architectures` of config.json.
    spec : callable
        Returns the ModelSpec of a configuration; refuses by its name each option that it does not know to be harmless.
    tensors : callable
        Returns where each canonical tensor comes from (`ModelSpec.tensor_shapes`).
    prefixes : tuple of str
        What the names of all tensors of a checkpoint may begin with (a model saved without its head leaves it out).
    """

    architectures: tuple[str, ...]
    spec: Callable[[Configuration], ModelSpec]
    tensors: Callable[[ModelSpec, Configuration], dict[str, Tensor]]
    prefixes: tuple[str, ...] = ("",)


def heads(count: int) -> Change:
    """Bring the channels of so many heads from halves (j with j + d/2) to neighbours; see `interleave_heads`."""

    def change(value: Floats) -> Floats:
        whole = value.ndim > 0 and value.shape[0] % (2 * count) == 0
        return interleave_heads(value, count) if whole else value

    return change


def plus_one(value: Floats) -> Floats:
    """Norm weights that are stored as their distance from 1."""
    return np.asarray(value + np.float32(1), dtype=np.float32)


def transposed(value: Floats) -> Floats:
    """A matrix stored (in, out)."""
    return np.ascontiguousarray(value.T)


def columns(part: int, parts: int) -> Change:
    """Return one of several equal parts of the last axis, a matrix transposed: (in, parts * out) -> (out, in)."""

    def change(value: Floats) -> Floats:
        size = value.shape[-1] // parts if value.ndim else 0
        return np.ascontiguousarray(value[..., part * size : (part + 1) * size].T)

    return change
