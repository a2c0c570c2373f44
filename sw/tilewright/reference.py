"""A model in floating point, in NumPy: what a checkpoint says before anything is quantised.

It computes all that a `ModelSpec` can describe, from canonical tensors, a whole text at a time. Quality is measured
against it (`tilewright eval`), and quantisers that look at activations take them from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tilewright.model import Checkpoint, Floats, ModelSpec, RopeFactors

__all__ = ["Observer", "Reference", "cross_entropy", "rotary_frequencies"]

Observer = Callable[[str, Floats], None]
"""Told the name of a matrix and the rows (tokens, inputs) that it is multiplied with."""


def rotary_frequencies(spec: ModelSpec) -> NDArray[np.float64]:
    """Return the rotary frequency of each pair of channels, in radians per position, (head_dim / 2,).

    A spec without RoPE gives zeros: no rotation. Source: RoFormer (arXiv:2104.09864); for `rope_scaling`, the reference
    code of Llama 3.1.
    """
    pairs = np.arange(spec.head_dim // 2, dtype=np.float64)
    if spec.rope_theta is None:
        return np.zeros_like(pairs)
    frequency = spec.rope_theta ** (-2.0 * pairs / spec.head_dim)
    scaling = spec.rope_scaling
    if scaling is None:
        return np.asarray(frequency)
    if isinstance(scaling, RopeFactors):
        return np.asarray(frequency / scaling.factors)
    turns = scaling.original_context * frequency / (2 * math.pi)  # over the original context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return np.asarray((1 - smooth) * frequency / scaling.factor + smooth * frequency)


class Reference:
    """A model's forward pass.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model; a tensor is read when it is needed.
    dtype : numpy dtype
        Arithmetic: float32 (what quality is measured against) or float64.
    observe : callable, optional
        Told of each matrix product's input.
    keep : bool
        Keep the tensors that have been read (the whole model in float).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: type[np.floating] = np.float32,
        observe: Observer | None = None,
        keep: bool = True,
    ) -> None:
        self.checkpoint, self.spec, self.dtype = checkpoint, checkpoint.spec, dtype
        self.observe, self.keep = observe, keep
        self._read: dict[str, Floats] = {}

    def hidden(self, ids: Sequence[int], types: Sequence[int] | None = None) -> Floats:
        """Return the rows after the last layer (and the final norm, if there is one), (tokens, dim)."""
        spec = self.spec
        x = self.embed(ids, types)
        for i in range(spec.layers):
            at = f"layers.{i}."
            if spec.norm_after:
                x = self._norm(at + "attn_norm", x + self._attention(at, x))
                x = self._norm(at + "ffn_norm", x + self._feed_forward(at, x))
            else:
                x = x + self._attention(at, self._norm(at + "attn_norm", x))
                x = x + self._feed_forward(at, self._norm(at + "ffn_norm", x))
        return self._norm("final_norm", x) if spec.final_norm else x

    def logits(self, ids: Sequence[int]) -> Floats:
        """Return logits (tokens, vocab); of a model without a classifier there are none (ValueError)."""
        if not self.spec.classifier:
            raise ValueError("the model has no classifier")
        return self._product("classifier", self.hidden(ids))

    def embed(self, ids: Sequence[int], types: Sequence[int] | None = None) -> Floats:
        """Return the rows that enter the first layer, (tokens, dim)."""
        spec, index = self.spec, np.asarray(ids, dtype=np.int64)
        x = self._tensor("embedding")[index] * self.dtype(spec.embedding_scale)
        if spec.learned_positions:
            x = x + self._tensor("positions")[: len(index)]
        if spec.token_types:
            kinds = np.zeros(len(index), np.int64) if types is None else np.asarray(types, dtype=np.int64)
            x = x + self._tensor("token_types")[kinds]
        return self._norm("embedding_norm", x) if spec.embedding_norm else np.asarray(x)

    def _tensor(self, name: str) -> Floats:
        if name in self._read:
            return self._read[name]
        value = self.checkpoint.tensor(name).astype(self.dtype)
        if self.keep:
            self._read[name] = value
        return value

    def _product(self, name: str, x: Floats, bias: str | None = None) -> Floats:
        """Return x @ W^T, plus a bias."""
        if self.observe is not None:
            self.observe(name, x)
        y = x @ self._tensor(name).T
        return np.asarray(y if bias is None else y + self._tensor(bias))

    def _norm(self, name: str, x: Floats) -> Floats:
        spec = self.spec
        if spec.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.dtype(spec.norm_eps)) * self._tensor(name)
        return np.asarray(y + self._tensor(f"{name}_bias") if spec.norm == "layer" else y)

    def _attention(self, at: str, x: Floats) -> Floats:
        spec = self.spec
        q, k, v = (
            self._split(self._product(f"{at}w{part}", x, f"{at}b{part}" if spec.qkv_bias else None))
            for part in ("q", "k", "v")
        )  # (heads, tokens, d)
        if spec.qk_norm:
            q, k = (self._head_norm(f"{at}{part}_norm", y) for part, y in (("q", q), ("k", k)))
        if spec.rope_theta is not None:
            q, k = self._rotate(q), self._rotate(k)
        scale = spec.score_scale or spec.head_dim**-0.5
        later = np.triu(np.ones((len(x), len(x)), bool), 1) if spec.causal else np.zeros((len(x), len(x)), bool)
        out = np.empty_like(q)
        for h in range(spec.heads):
            score = q[h] @ k[h // spec.group].T * self.dtype(scale)
            score[later] = -np.inf
            p = np.exp(score - score.max(axis=1, keepdims=True))
            out[h] = p / p.sum(axis=1, keepdims=True) @ v[h // spec.group]
        merged = np.swapaxes(out, 0, 1).reshape(len(x), -1)
        return self._product(f"{at}wo", merged, f"{at}bo" if spec.o_bias else None)

    def _split(self, x: Floats) -> Floats:
        return np.ascontiguousarray(np.swapaxes(x.reshape(len(x), -1, self.spec.head_dim), 0, 1))

    def _head_norm(self, name: str, x: Floats) -> Floats:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + self.dtype(self.spec.norm_eps)) * self._tensor(name))

    def _rotate(self, x: Floats) -> Floats:
        """Rotate pairs of neighbouring channels by position times frequency."""
        angle = np.arange(x.shape[1])[:, None] * rotary_frequencies(self.spec)
        cos, sin = np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)
        a, b = x[..., ::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)

    def _feed_forward(self, at: str, x: Floats) -> Floats:
        spec = self.spec

        def bias(part: str) -> str | None:
            return f"{at}b_{part}" if spec.ffn_bias else None

        first = "gate" if spec.gated else "up"
        y = _activate(spec.activation, self._product(f"{at}w_{first}", x, bias(first)))
        if spec.gated:
            y = y * self._product(f"{at}w_up", x, bias("up"))
        return self._product(f"{at}w_down", y, bias("down"))


def _activate(name: str, x: Floats) -> Floats:
    if name == "relu":
        return np.maximum(x, x.dtype.type(0))
    if name == "silu":
        return np.asarray(x / (1 + np.exp(-x)))
    if name == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(x * _normal_cdf(x).astype(x.dtype))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _normal_cdf(x: Floats) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + _erf(x / math.sqrt(2))))


def cross_entropy(logits: NDArray[np.floating], targets: Sequence[int]) -> float:
    """Return the sum, in nats, of -log softmax(logits)[target] over rows; logits (rows, vocab)."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    chosen = x[np.arange(len(targets)), np.asarray(targets, dtype=np.int64)]
    return float((np.log(np.exp(x).sum(axis=1)) - chosen).sum())
