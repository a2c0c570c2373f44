"""Small random models whose first token is what trained ones make of theirs: a row with one enormous channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.model import Checkpoint, Floats, ModelSpec

FIRST = 5
"""The token that begins every text."""
_SIZES = {"dim": 96, "layers": 2, "heads": 4, "kv_heads": 4, "head_dim": 10, "ffn": 160, "vocab": 70, "context": 24}
_GPT2 = {
    "norm": "layer", "rope_theta": None, "learned_positions": True, "qkv_bias": True, "o_bias": True, "ffn_bias": True,
    "gated": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "gpt-2": _GPT2 | {"activation": "gelu_tanh"},
    "bert": _GPT2 | {
        "activation": "gelu", "norm_after": True, "embedding_norm": True, "final_norm": False, "token_types": 2,
        "causal": False, "classifier": False,
    },
    "bert, norms alone": _GPT2 | {
        "activation": "gelu", "norm_after": True, "final_norm": False, "learned_positions": False, "qkv_bias": False,
        "o_bias": False, "ffn_bias": False, "causal": False, "classifier": False,
    },
}  # fmt: skip
_CHANNEL, _UNIT, _SMALL, _LARGE = 3, 7, 0.1, 4.0


def checkpoint(family: str, seed: int = 0) -> Checkpoint:
    """Return a model where one channel of the first token's row is far above all others, and small in other rows.

    Without a gate, one unit of each feed-forward network answers to that channel alone, and makes it anew by a weight
    far above all others, as in all-MiniLM-L6-v2.
    """
    spec, random = ModelSpec(**_SIZES | FAMILIES[family]), np.random.default_rng(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> Floats:
        last, norm = name.rpartition(".")[2], name.endswith("norm")
        size = 1.0 if name == "embedding" else shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        value = random.normal(float(norm), size, shape)
        if norm:
            value[_CHANNEL] = _LARGE
        if name in ("embedding", "positions", "token_types"):
            value[:, _CHANNEL] *= _SMALL
        if name == "embedding":
            value[FIRST, _CHANNEL] = 40.0
        if last in ("wo", "w_down"):
            value[_CHANNEL] *= _SMALL
        if not spec.gated:
            if last == "w_up":
                value[_UNIT] = 0.0
                value[_UNIT, _CHANNEL] = 1.0
            elif last == "b_up":
                value[_UNIT] = -12.0
            elif last == "w_down":
                value[:, _UNIT] = 0.0
                value[_CHANNEL, _UNIT] = 4.0
        return value.astype(np.float32)

    tensors = {name: tensor(name, shape) for name, shape in spec.tensor_shapes().items()}
    return Checkpoint(spec, tensors.__getitem__, family)


def texts(count: int, tokens: int, seed: int) -> list[list[int]]:
    """Return random texts that begin with the first token."""
    random = np.random.default_rng(seed)
    return [[FIRST, *(int(t) for t in random.integers(6, _SIZES["vocab"], tokens - 1))] for _ in range(count)]
