"""Architectures as GGUF files name them: how metadata becomes a ModelSpec, and which tensors are the canonical ones.

Source: llama.cpp's converters (conversion/llama.py, qwen.py, gemma.py) and what it computes with their files.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.importers.configuration import Configuration
from tilewright.importers.family import Tensor, llama_layers
from tilewright.importers.gguf.tensors import GgufTensors
from tilewright.model import MAX_CONTEXT, ModelSpec, RopeFactors

__all__ = ["ARCHITECTURES", "read_spec", "read_tensors"]

ROPE_FREQUENCIES = "rope_freqs.weight"
"""Divisors of the rotary frequencies: how Llama 3's scaling comes."""
_KNOWN = frozenset(
    {
        "attention.causal", "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.value_length", "block_count",
        "context_length", "embedding_length", "feed_forward_length", "rope.dimension_count", "rope.freq_base",
        "rope.scaling.finetuned", "rope.scaling.original_context_length", "rope.scaling.type", "tensor_data_layout",
        "vocab_size",
    }
)  # fmt: skip
"""Fields of an architecture that are understood, or say nothing of the mathematics; others must be 0 or false."""

_PLACES = {
    "attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "o": "attn_output", **{part: f"attn_{part}" for part in "qkv"},
    **{part: f"ffn_{part}" for part in ("gate", "up", "down")},
    **{norm: f"attn_{norm}" for norm in ("q_norm", "k_norm")},
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """What is particular to an architecture.

    Parameters
    ----------
    halves : bool
        Rotary channel j of a head is a pair with j + d/2 (llama.cpp's "neox"); else they are neighbours, as here: the
        converter has brought Llama's queries and keys to that order.
    qk_norm : bool
        Query and key heads are normed.
    activation : str
        Of the feed-forward network.
    scaled : bool
        The token embedding is multiplied with the square root of its size.
    frequencies : bool
        The file may hold divisors of the rotary frequencies.
    """

    halves: bool
    qk_norm: bool = False
    activation: str = "silu"
    scaled: bool = False
    frequencies: bool = False


ARCHITECTURES = {
    "llama": Architecture(halves=False, frequencies=True),
    "qwen2": Architecture(halves=True),
    "qwen3": Architecture(halves=True, qk_norm=True),
    "gemma": Architecture(halves=True, activation="gelu_tanh", scaled=True),
}
"""By `general.architecture`. Mistral's and SmolLM's files say llama."""


def read_spec(config: Configuration, tensors: GgufTensors) -> ModelSpec:
    """Return the shape of a file's model; InputError names an architecture or an option that is not supported."""
    name = config.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise config.error(f"architecture {name!r} is not supported: must be one of {', '.join(ARCHITECTURES)}")
    _refuse(config, name)
    which = ARCHITECTURES[name]
    dim, count = config.integer(f"{name}.embedding_length"), config.integer(f"{name}.attention.head_count")
    head_dim = _head_dim(config, name, dim, count)
    return ModelSpec(
        dim=dim,
        layers=config.integer(f"{name}.block_count"),
        heads=count,
        kv_heads=config.integer(f"{name}.attention.head_count_kv", default=count),
        head_dim=head_dim,
        ffn=config.integer(f"{name}.feed_forward_length"),
        vocab=tensors.shape("token_embd.weight")[0],
        context=min(config.integer(f"{name}.context_length"), MAX_CONTEXT),
        norm_eps=config.number(f"{name}.attention.layer_norm_rms_epsilon"),
        rope_theta=config.number(f"{name}.rope.freq_base", default=10000.0),
        rope_scaling=_factors(which, tensors),
        embedding_scale=float(dim) ** 0.5 if which.scaled else 1.0,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        qk_norm=which.qk_norm,
        activation=which.activation,
    )


def _refuse(config: Configuration, name: str) -> None:
    """Refuse by its name every option that is not known to be harmless."""
    if config.get("general.type", default="model") != "model":
        raise config.refused("general.type", "must be 'model'")
    if config.get("split.count", default=1) not in (0, 1):
        raise config.refused("split.count", "join its parts first (llama-gguf-split --merge)")
    for field in config.fields:
        if field.startswith(f"{name}.") and field.removeprefix(f"{name}.") not in _KNOWN:
            config.refuse((field,))
    if not config.flag(f"{name}.attention.causal", default=True):
        raise config.refused(f"{name}.attention.causal", "must be true")
    config.choice(f"{name}.rope.scaling.type", {"none": ""}, "none")
    config.choice(f"{name}.tensor_data_layout", {"Meta AI original pth": ""}, "Meta AI original pth")
    window = config.get(f"{name}.attention.sliding_window")
    if window and (not isinstance(window, int) or window < config.integer(f"{name}.context_length")):
        raise config.refused(f"{name}.attention.sliding_window", "must be absent, or at least the context_length")


def _head_dim(config: Configuration, name: str, dim: int, count: int) -> int:
    """Return the size of a head, of which all channels must rotate."""
    if config.get(f"{name}.attention.key_length") is None and dim % count:
        raise config.error(f"embedding_length ({dim}) must be a multiple of attention.head_count ({count})")
    head_dim = config.integer(f"{name}.attention.key_length", default=max(dim // count, 1))
    for field in ("attention.value_length", "rope.dimension_count"):
        if config.integer(f"{name}.{field}", default=head_dim) != head_dim:
            raise config.refused(f"{name}.{field}", f"must be {head_dim}, the size of a head")
    return head_dim


def _factors(which: Architecture, tensors: GgufTensors) -> RopeFactors | None:
    if not which.frequencies or ROPE_FREQUENCIES not in tensors:
        return None
    factors = tuple(float(factor) for factor in tensors.read(ROPE_FREQUENCIES).reshape(-1))
    return None if set(factors) == {1.0} else RopeFactors(factors=factors)


def read_tensors(config: Configuration, spec: ModelSpec, tensors: GgufTensors) -> dict[str, Tensor]:
    """Return where each canonical tensor comes from.

    InputError if one is missing, or the file holds others: what they would do is not known.
    """
    name = config.get("general.architecture")
    which = ARCHITECTURES[name]
    tensors.shape(f"blk.{spec.layers - 1}.attn_norm.weight")  # the table is as long as the file says that it has layers
    table = {"embedding": Tensor("token_embd.weight"), "final_norm": Tensor("output_norm.weight")}
    table |= llama_layers(spec, "blk.{}", _PLACES, Tensor, halves=which.halves)
    head = Tensor("output.weight")
    table["classifier"] = head if head.name in tensors else table["embedding"]
    for tensor in table.values():
        tensors.shape(tensor.name)
    used = {tensor.name for tensor in table.values()} | ({ROPE_FREQUENCIES} if which.frequencies else set())
    for other in tensors:
        if other not in used:
            raise config.error(f"tensor {other!r} is not supported: {name} is not known to have it")
    return table
