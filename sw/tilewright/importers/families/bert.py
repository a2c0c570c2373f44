"""BERT and the sentence-transformers encoders made of it: norms after the additions, erf-GELU, no causal mask."""

from __future__ import annotations

from tilewright.importers.configuration import Configuration
from tilewright.importers.family import Family, Tensor
from tilewright.model import ModelSpec

__all__ = ["FAMILY"]

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def _spec(config: Configuration) -> ModelSpec:
    config.refuse(("is_decoder", "add_cross_attention", "quantization_config"))
    kind = config.get("position_embedding_type", default="absolute")
    if kind != "absolute":
        raise config.refused("position_embedding_type", "must be 'absolute'")
    dim, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if dim % heads:
        raise config.error(f"hidden_size ({dim}) must be a multiple of num_attention_heads ({heads})")
    return ModelSpec(
        dim=dim,
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        ffn=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        context=config.integer("max_position_embeddings"),
        norm="layer",
        norm_eps=config.number("layer_norm_eps", default=1e-12),
        norm_after=True,
        embedding_norm=True,
        final_norm=False,
        rope_theta=None,
        learned_positions=True,
        token_types=config.integer("type_vocab_size", default=2),
        qkv_bias=True,
        o_bias=True,
        ffn_bias=True,
        causal=False,
        gated=False,
        activation=config.choice("hidden_act", _ACTIVATIONS, "gelu"),
        classifier=False,
    )


def _linear(ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"w{ours}": Tensor(f"{theirs}.weight"), f"b{ours}": Tensor(f"{theirs}.bias")}


def _norm(ours: str, theirs: str) -> dict[str, Tensor]:
    return {ours: Tensor(f"{theirs}.weight"), f"{ours}_bias": Tensor(f"{theirs}.bias")}


def _tensors(spec: ModelSpec, config: Configuration) -> dict[str, Tensor]:
    table = {
        "embedding": Tensor("embeddings.word_embeddings.weight"),
        "positions": Tensor("embeddings.position_embeddings.weight"),
        "token_types": Tensor("embeddings.token_type_embeddings.weight"),
        **_norm("embedding_norm", "embeddings.LayerNorm"),
    }
    for i in range(spec.layers):
        at = f"encoder.layer.{i}"
        layer = {
            **_linear("q", f"{at}.attention.self.query"),
            **_linear("k", f"{at}.attention.self.key"),
            **_linear("v", f"{at}.attention.self.value"),
            **_linear("o", f"{at}.attention.output.dense"),
            **_norm("attn_norm", f"{at}.attention.output.LayerNorm"),
            **_linear("_up", f"{at}.intermediate.dense"),
            **_linear("_down", f"{at}.output.dense"),
            **_norm("ffn_norm", f"{at}.output.LayerNorm"),
        }
        table |= {f"layers.{i}.{name}": tensor for name, tensor in layer.items()}
    return table


FAMILY = Family(("BertModel",), _spec, _tensors, prefixes=("", "bert."))
