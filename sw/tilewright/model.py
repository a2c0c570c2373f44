"""What the compiler wants to know of a model: its shape, and its tensors by canonical names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import InputError

Floats = NDArray[np.float32]
MAX_LAYERS = 4096
MAX_SIZE = 1 << 24
"""No size of a real model is above these: a file that says so is broken."""


@dataclass(frozen=True, kw_only=True)
class LlamaSpec:
    """Shape of a Llama-architecture decoder.

    Parameters
    ----------
    dim, layers, heads, kv_heads, head_dim, ffn, vocab : int
        Sizes; heads is a multiple of kv_heads, head_dim is even.
    context : int
        Positions that the model may use.
    rope_theta, norm_eps : float
        RoPE base and RMSNorm epsilon.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise InputError(f"model: {name} must be a positive integer, not {value!r}")
            most = MAX_LAYERS if name == "layers" else MAX_SIZE
            if value > most:
                raise InputError(f"model: {name} must be at most {most}, not {value}")
        if self.heads % self.kv_heads:
            raise InputError(f"model: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise InputError(f"model: head_dim must be even, not {self.head_dim}")
        if self.context > 65535:
            raise InputError(f"model: context must be at most 65535, not {self.context}")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"model: {name} must be a number above 0, not {value!r}")

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical tensor names and their shapes (weights are (out, in)).

        Query and key channels are in interleaved RoPE order: elements 2j and 2j+1 of a head are a pair.
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocab, self.dim)}
        for i in range(self.layers):
            shapes |= {
                f"layers.{i}.attn_norm": (self.dim,),
                f"layers.{i}.wq": (q, self.dim),
                f"layers.{i}.wk": (kv, self.dim),
                f"layers.{i}.wv": (kv, self.dim),
                f"layers.{i}.wo": (self.dim, q),
                f"layers.{i}.ffn_norm": (self.dim,),
                f"layers.{i}.w_gate": (self.ffn, self.dim),
                f"layers.{i}.w_up": (self.ffn, self.dim),
                f"layers.{i}.w_down": (self.dim, self.ffn),
            }
        return shapes | {"final_norm": (self.dim,), "classifier": (self.vocab, self.dim)}


@dataclass(frozen=True)
class Checkpoint:
    """A model's shape and a way to its tensors.

    `read(name)` returns the float32 tensor of a canonical name (see `LlamaSpec.tensor_shapes`); it may read from disk
    at each call. `tensor` checks shape and finiteness.
    """

    spec: LlamaSpec
    read: Callable[[str], Floats] = field(repr=False)
    name: str = "model"

    def tensor(self, name: str) -> Floats:
        """Return a tensor; InputError names it if its shape is wrong or a value is not finite."""
        value = np.asarray(self.read(name), dtype=np.float32)
        shape = self.spec.tensor_shapes()[name]
        if value.shape != shape:
            raise InputError(f"{self.name}: tensor {name} must have shape {shape}, not {value.shape}")
        if not np.isfinite(value).all():
            raise InputError(f"{self.name}: tensor {name} holds NaN or infinity")
        return value

    def check(self) -> None:
        """Read every tensor, so that a bad one is known before anything is written."""
        for name in self.spec.tensor_shapes():
            self.tensor(name)
