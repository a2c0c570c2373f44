"""Llama and what shares its shape: Mistral, Qwen2, Qwen3, Gemma (and SmolLM, which calls itself Llama)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.importers.configuration import Configuration
from tilewright.importers.family import Family, Tensor, llama_layers, plus_one
from tilewright.model import MAX_CONTEXT, ModelSpec, RopeScaling

__all__ = ["FAMILIES"]

_REFUSED = ("num_local_experts", "num_experts", "quantization_config", "attn_logit_softcapping",
            "final_logit_softcapping", "partial_rotary_factor")  # fmt: skip
_SILU = {"silu": "silu", "swish": "silu"}
# The first Gemma checkpoints say "gelu" and mean the tanh form, as transformers does with them.
_GEMMA = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu_tanh"}


_PLACES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    **{part: f"self_attn.{part}_proj" for part in "qkvo"},
    **{part: f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    **{norm: f"self_attn.{norm}" for norm in ("q_norm", "k_norm")},
}  # fmt: skip


def _spec(config: Configuration, **more: Any) -> ModelSpec:
    """Return the spec of the fields that all of these have."""
    config.refuse(_REFUSED)
    count = config.integer("num_attention_heads")
    dim = config.integer("hidden_size")
    values: dict[str, Any] = {
        "dim": dim,
        "layers": config.integer("num_hidden_layers"),
        "heads": count,
        "kv_heads": config.integer("num_key_value_heads", default=count),
        "head_dim": config.integer("head_dim", default=max(dim // count, 1)),
        "ffn": config.integer("intermediate_size"),
        "vocab": config.integer("vocab_size"),
        "context": min(config.integer("max_position_embeddings"), MAX_CONTEXT),
        "norm_eps": config.number("rms_norm_eps", default=1e-6),
        **_rope(config),
    }
    if "activation" not in more:
        values["activation"] = config.choice("hidden_act", _SILU, "silu")
    return ModelSpec(**values | more)


def _rope(config: Configuration) -> dict[str, Any]:
    """Return RoPE's base and scaling; newer files keep both in `rope_parameters`, older ones in fields of their own."""
    new, old = config.table("rope_parameters"), config.table("rope_scaling")
    name = "rope_parameters" if new else "rope_scaling"
    fields = Configuration(config.path, {**old, **new})
    theta = config.get("rope_theta", default=fields.get("rope_theta", default=10000.0))
    kind = fields.get("rope_type", "type", default="default")
    base = Configuration(config.path, {"rope_theta": theta}).number("rope_theta")
    if kind == "default":
        return {"rope_theta": base}
    if kind != "llama3":
        raise config.refused(name, "rope_type must be 'default' or 'llama3'")
    return {
        "rope_theta": base,
        "rope_scaling": RopeScaling(
            factor=fields.number("factor"),
            low_freq_factor=fields.number("low_freq_factor", default=1.0),
            high_freq_factor=fields.number("high_freq_factor", default=4.0),
            original_context=fields.integer("original_max_position_embeddings", default=8192),
        ),
    }


def _refuse_window(config: Configuration, used: bool) -> None:
    """Refuse a window of attention that is in use and shorter than the context."""
    window = config.get("sliding_window")
    if used and window and window < config.integer("max_position_embeddings"):
        raise config.refused("sliding_window", "must be absent, or at least max_position_embeddings")
    kinds = config.get("layer_types", default=[])
    if isinstance(kinds, list) and any(kind != "full_attention" for kind in kinds):
        raise config.refused("layer_types", "every layer must be 'full_attention'")


def _biases(config: Configuration) -> dict[str, bool]:
    """Return the biases that a configuration may ask for."""
    attention = config.flag("attention_bias")
    return {"qkv_bias": attention, "o_bias": attention, "ffn_bias": config.flag("mlp_bias")}


def _llama(config: Configuration) -> ModelSpec:
    _refuse_window(config, True)
    return _spec(config, **_biases(config))


def _qwen2(config: Configuration) -> ModelSpec:
    _refuse_window(config, bool(config.get("use_sliding_window", default=False)))
    return _spec(config, qkv_bias=True)


def _qwen3(config: Configuration) -> ModelSpec:
    _refuse_window(config, bool(config.get("use_sliding_window", default=False)))
    return _spec(config, qk_norm=True, **_biases(config))


def _gemma(config: Configuration) -> ModelSpec:
    name = "hidden_activation" if config.get("hidden_activation") is not None else "hidden_act"
    activation = config.choice(name, _GEMMA, "gelu_pytorch_tanh")
    scale = float(config.integer("hidden_size")) ** 0.5
    return _spec(config, activation=activation, embedding_scale=scale, **_biases(config))


def _names(norm: Callable[[str], Tensor]) -> Callable[[ModelSpec, Configuration], dict[str, Tensor]]:
    """Return the family's table of tensors; `norm` is how a norm's weight is stored."""

    def tensors(spec: ModelSpec, config: Configuration) -> dict[str, Tensor]:
        table = {"embedding": Tensor("model.embed_tokens.weight"), "final_norm": norm("model.norm.weight")}
        table |= llama_layers(spec, "model.layers.{}", _PLACES, norm)
        # Gemma ties where nothing is said.
        tied = config.flag("tie_word_embeddings", default=norm is _distance)
        return table | {"classifier": table["embedding"] if tied else Tensor("lm_head.weight")}

    return tensors


def _plain(name: str) -> Tensor:
    return Tensor(name)


def _distance(name: str) -> Tensor:
    return Tensor(name, plus_one)


FAMILIES = (
    Family(("LlamaForCausalLM", "MistralForCausalLM"), _llama, _names(_plain)),
    Family(("Qwen2ForCausalLM",), _qwen2, _names(_plain)),
    Family(("Qwen3ForCausalLM",), _qwen3, _names(_plain)),
    Family(("GemmaForCausalLM",), _gemma, _names(_distance)),
)
