"""GPT-2: learned positions, LayerNorm, one fused projection of queries, keys and values, matrices stored (in, out)."""

from __future__ import annotations

from tilewright.importers.configuration import Configuration
from tilewright.importers.family import Family, Tensor, columns, transposed
from tilewright.model import ModelSpec

__all__ = ["FAMILY"]

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def _spec(config: Configuration) -> ModelSpec:
    config.refuse(("add_cross_attention", "scale_attn_by_inverse_layer_idx", "quantization_config"))
    if not config.flag("scale_attn_weights", default=True):
        raise config.refused("scale_attn_weights", "must be true")
    dim, heads = config.integer("n_embd"), config.integer("n_head")
    if dim % heads:
        raise config.error(f"n_embd ({dim}) must be a multiple of n_head ({heads})")
    return ModelSpec(
        dim=dim,
        layers=config.integer("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        ffn=config.integer("n_inner", default=4 * dim),
        vocab=config.integer("vocab_size"),
        context=config.integer("n_positions", "n_ctx"),
        norm="layer",
        norm_eps=config.number("layer_norm_epsilon", default=1e-5),
        rope_theta=None,
        learned_positions=True,
        qkv_bias=True,
        o_bias=True,
        ffn_bias=True,
        gated=False,
        activation=config.choice("activation_function", _ACTIVATIONS, "gelu_new"),
    )


def _tensors(spec: ModelSpec, config: Configuration) -> dict[str, Tensor]:
    table = {
        "embedding": Tensor("wte.weight"),
        "positions": Tensor("wpe.weight"),
        "final_norm": Tensor("ln_f.weight"),
        "final_norm_bias": Tensor("ln_f.bias"),
    }
    for i in range(spec.layers):
        at = f"h.{i}"
        layer = {
            "attn_norm": Tensor(f"{at}.ln_1.weight"),
            "attn_norm_bias": Tensor(f"{at}.ln_1.bias"),
            "wo": Tensor(f"{at}.attn.c_proj.weight", transposed),
            "bo": Tensor(f"{at}.attn.c_proj.bias"),
            "ffn_norm": Tensor(f"{at}.ln_2.weight"),
            "ffn_norm_bias": Tensor(f"{at}.ln_2.bias"),
            "w_up": Tensor(f"{at}.mlp.c_fc.weight", transposed),
            "b_up": Tensor(f"{at}.mlp.c_fc.bias"),
            "w_down": Tensor(f"{at}.mlp.c_proj.weight", transposed),
            "b_down": Tensor(f"{at}.mlp.c_proj.bias"),
        }
        for part, name in enumerate("qkv"):
            layer[f"w{name}"] = Tensor(f"{at}.attn.c_attn.weight", columns(part, 3))
            layer[f"b{name}"] = Tensor(f"{at}.attn.c_attn.bias", columns(part, 3))
        table |= {f"layers.{i}.{name}": tensor for name, tensor in layer.items()}
    tied = config.flag("tie_word_embeddings", default=True)
    return table | {"classifier": table["embedding"] if tied else Tensor("lm_head.weight")}


FAMILY = Family(("GPT2LMHeadModel",), _spec, _tensors, prefixes=("transformer.", ""))
