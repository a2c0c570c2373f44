"""A Llama forward pass in float64 NumPy with a KV cache: what the accelerator's logits are compared with.

Written from the model's definition; nothing of Tilewright is used, not even to read the files.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float64]
LAYER = {
    "input_layernorm": "norm1",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "post_attention_layernorm": "norm2",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}


@dataclass
class Llama:
    """One sequence of a model; `half` says how channels pair in RoPE: j with j + d/2, or else 2j with 2j + 1."""

    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    eps: float
    half: bool
    embedding: Array
    layers: list[dict[str, Array]]
    norm: Array
    classifier: Array
    cache: list[tuple[Array, Array]] = field(default_factory=list)

    def reset(self) -> None:
        """Forget the sequence."""
        self.cache.clear()

    def __call__(self, ids: list[int]) -> Array:
        """Append tokens to the sequence; returns their logits (tokens, vocab)."""
        if not self.cache:
            empty = np.zeros((self.kv_heads, 0, self.head_dim))
            self.cache = [(empty, empty) for _ in self.layers]
        x = self.embedding[ids]
        for i, w in enumerate(self.layers):
            x = x + self._attention(i, w, self._norm(x, w["norm1"]))
            y = self._norm(x, w["norm2"])
            gate = y @ w["gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ w["up"].T)) @ w["down"].T
        logits: Array = self._norm(x, self.norm) @ self.classifier.T
        return logits

    def _norm(self, x: Array, weight: Array) -> Array:
        result: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * weight
        return result

    def _attention(self, i: int, w: dict[str, Array], x: Array) -> Array:
        before = self.cache[i][0].shape[1]
        q = self._rotate(self._split(x @ w["q"].T, self.heads), before)  # (heads, tokens, d)
        k = self._rotate(self._split(x @ w["k"].T, self.kv_heads), before)
        v = self._split(x @ w["v"].T, self.kv_heads)
        k, v = (np.concatenate(pair, axis=1) for pair in zip(self.cache[i], (k, v), strict=True))
        self.cache[i] = (k, v)
        group = self.heads // self.kv_heads
        out = np.empty_like(q)
        hidden = np.arange(k.shape[1])[None, :] > before + np.arange(len(x))[:, None]  # (tokens, keys)
        for h in range(self.heads):
            score = q[h] @ k[h // group].T / np.sqrt(self.head_dim)
            score[hidden] = -np.inf
            p = np.exp(score - score.max(axis=1, keepdims=True))
            out[h] = p / p.sum(axis=1, keepdims=True) @ v[h // group]
        merged: Array = np.swapaxes(out, 0, 1).reshape(len(x), -1) @ w["o"].T
        return merged

    def _split(self, x: Array, heads: int) -> Array:
        return np.swapaxes(x.reshape(len(x), heads, self.head_dim), 0, 1)

    def _rotate(self, x: Array, before: int) -> Array:
        pairs = self.head_dim // 2
        angle = (before + np.arange(x.shape[1]))[:, None] * self.theta ** (-np.arange(pairs) / pairs)
        first = slice(0, pairs) if self.half else slice(0, None, 2)
        second = slice(pairs, None) if self.half else slice(1, None, 2)
        a, b = x[..., first], x[..., second]
        out = np.empty_like(x)
        out[..., first] = a * np.cos(angle) - b * np.sin(angle)
        out[..., second] = b * np.cos(angle) + a * np.sin(angle)
        return out


def from_huggingface(folder: Path) -> Llama:
    """Read a folder with one safetensors file."""
    c = json.loads((folder / "config.json").read_text())
    w = {n: v.astype(np.float64) for n, v in load_file(folder / "model.safetensors").items()}
    embedding = w["model.embed_tokens.weight"]
    return Llama(
        heads=c["num_attention_heads"], kv_heads=c["num_key_value_heads"], head_dim=c["head_dim"],
        theta=c["rope_theta"], eps=c["rms_norm_eps"], half=True, embedding=embedding, norm=w["model.norm.weight"],
        layers=[
            {ours: w[f"model.layers.{i}.{theirs}.weight"] for theirs, ours in LAYER.items()}
            for i in range(c["num_hidden_layers"])
        ],
        classifier=w.get("lm_head.weight", embedding),
    )  # fmt: skip


def from_llama2c(path: Path) -> Llama:
    """Read a llama2.c v0 file."""
    raw = path.read_bytes()
    dim, ffn, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", raw)
    values = np.frombuffer(raw, "<f4", offset=28).astype(np.float64)
    d = dim // heads
    at = 0

    def take(*shape: int) -> Array:
        nonlocal at
        at += int(np.prod(shape))
        return values[at - int(np.prod(shape)) : at].reshape(shape)

    embedding = take(abs(vocab), dim)
    shapes = {
        "norm1": (dim,), "q": (dim, dim), "k": (kv_heads * d, dim), "v": (kv_heads * d, dim), "o": (dim, dim),
        "norm2": (dim,), "gate": (ffn, dim), "down": (dim, ffn), "up": (ffn, dim),
    }  # fmt: skip
    stacks = {name: take(layers, *shape) for name, shape in shapes.items()}
    norm = take(dim)
    take(context, d)  # old RoPE tables
    classifier = embedding if vocab > 0 else take(-vocab, dim)
    return Llama(
        heads=heads, kv_heads=kv_heads, head_dim=d, theta=10000.0, eps=1e-5, half=False, embedding=embedding,
        layers=[{name: stack[i] for name, stack in stacks.items()} for i in range(layers)], norm=norm,
        classifier=classifier,
    )  # fmt: skip


def cross_entropy(logits: NDArray[np.floating], targets: list[int]) -> float:
    """Return the sum, in nats, of -log softmax(logits)[target] over rows."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return float((np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(targets)), targets]).sum())
