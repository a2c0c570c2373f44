"""What an architecture family says of itself: how its configuration becomes a ModelSpec, and its tensors canonical."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tilewright.files import Files
from tilewright.importers.configuration import Configuration
from tilewright.importers.rope import interleave_heads
from tilewright.model import Checkpoint, Floats, ModelSpec

__all__ = [
    "Family", "Source", "Tensor", "columns", "heads", "llama_layers", "open_checkpoint", "plus_one", "transposed",
]  # fmt: skip

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


class Source(Protocol):
    """Tensors in files, by their names there; rows are those of the first axis."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def read(self, name: str) -> Floats:
        """Return a tensor as float32; InputError if it is of an unsupported type."""

    def read_rows(self, name: str, first: int, count: int) -> Floats:
        """Return `count` rows from row `first` on, as float32; only these are in memory."""


def open_checkpoint(
    spec: ModelSpec, table: Mapping[str, Tensor], source: Source, name: str, files: Files
) -> Checkpoint:  # fmt: skip
    """Return the checkpoint whose canonical tensors come from these places of a source; nothing is read yet."""
    shapes = spec.tensor_shapes()

    def read(tensor: str) -> Floats:
        place = table[tensor]
        value = source.read(place.name)
        return value if place.change is None else place.change(value)

    def rows(tensor: str, first: int, count: int) -> Floats | None:
        place = table[tensor]
        if place.change is not None or source.shape(place.name) != shapes[tensor]:
            return None
        return source.read_rows(place.name, first, count)

    return Checkpoint(spec, read, name, files, read_rows=rows)


def llama_layers(
    spec: ModelSpec, at: str, names: Mapping[str, str], norm: Callable[[str], Tensor], *, halves: bool = True
) -> dict[str, Tensor]:
    """Return where the tensors of all layers of a model in Llama's shape come from.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    at : str
        What the names of a layer's tensors begin with; `{}` is its number.
    names : mapping of str to str
        What follows, without ".weight" or ".bias", by `attn_norm`, `ffn_norm`, `q`, `k`, `v`, `o`, `gate`, `up`,
        `down`, `q_norm`, `k_norm`.
    norm : callable
        Returns how a norm's weight of this name is stored.
    halves : bool
        Rotary channel j of a head is stored as a pair with j + d/2, not with its neighbour.
    """
    table: dict[str, Tensor] = {}
    for i in range(spec.layers):
        place = {ours: f"{at.format(i)}.{theirs}" for ours, theirs in names.items()}
        layer = {name: norm(f"{place[name]}.weight") for name in ("attn_norm", "ffn_norm")}
        layer["wo"] = Tensor(f"{place['o']}.weight")
        if spec.o_bias:
            layer["bo"] = Tensor(f"{place['o']}.bias")
        for part in ("gate", "up", "down"):
            layer[f"w_{part}"] = Tensor(f"{place[part]}.weight")
            if spec.ffn_bias:
                layer[f"b_{part}"] = Tensor(f"{place[part]}.bias")
        for part, count in (("q", spec.heads), ("k", spec.kv_heads), ("v", None)):
            change = heads(count) if halves and count is not None else None
            layer[f"w{part}"] = Tensor(f"{place[part]}.weight", change)
            if spec.qkv_bias:
                layer[f"b{part}"] = Tensor(f"{place[part]}.bias", change)
            if spec.qk_norm and count is not None:
                layer[f"{part}_norm"] = Tensor(f"{place[f'{part}_norm']}.weight", heads(1))
        table |= {f"layers.{i}.{ours}": tensor for ours, tensor in layer.items()}
    return table


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
