"""Tiny random checkpoints of every supported family, by their Hugging Face names, written as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]
_DECODER = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 258, "max_position_embeddings": 32, "rms_norm_eps": 1e-6,
    "rope_theta": 1000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 256, "eos_token_id": 257,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "architectures": ["LlamaForCausalLM"], "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}},
    "mistral": {**_DECODER, "architectures": ["MistralForCausalLM"], "sliding_window": None, "head_dim": 8},
    "qwen2": {**_DECODER, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "sliding_window": 8},
    "qwen3": {**_DECODER, "architectures": ["Qwen3ForCausalLM"], "head_dim": 10, "tie_word_embeddings": True},
    "gemma": {**{k: v for k, v in _DECODER.items() if k != "tie_word_embeddings"},
              "architectures": ["GemmaForCausalLM"], "head_dim": 16, "hidden_act": "gelu_pytorch_tanh"},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32,
             "vocab_size": 258, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
             "bos_token_id": 256, "eos_token_id": 257},
    "bert": {"architectures": ["BertModel"], "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
             "num_attention_heads": 3, "vocab_size": 258, "max_position_embeddings": 32, "type_vocab_size": 2,
             "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
}  # fmt: skip
"""config.json of each family."""


def _shapes(family: str, c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors that transformers would write, with their shapes."""
    if family == "gpt2":
        d = c["n_embd"]
        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (c["vocab_size"], d), "wpe.weight": (c["n_positions"], d)}
        for i in range(c["n_layer"]):
            for name, k, n in (("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d),
                               ("mlp.c_proj", 4 * d, d)):  # fmt: skip
                shapes |= {f"h.{i}.{name}.weight": (k, n), f"h.{i}.{name}.bias": (n,)}
            for name in ("ln_1", "ln_2"):
                shapes |= {f"h.{i}.{name}.{part}": (d,) for part in ("weight", "bias")}
        return {f"transformer.{k}": v for k, v in (shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}).items()}
    d, f = c["hidden_size"], c["intermediate_size"]
    if family == "bert":
        at = "embeddings."
        shapes = {
            f"{at}word_embeddings.weight": (c["vocab_size"], d),
            f"{at}position_embeddings.weight": (c["max_position_embeddings"], d),
            f"{at}token_type_embeddings.weight": (c["type_vocab_size"], d),
        }
        names = ["embeddings.LayerNorm"]
        for i in range(c["num_hidden_layers"]):
            at = f"encoder.layer.{i}."
            names += [at + "attention.output.LayerNorm", at + "output.LayerNorm"]
            for name, n, k in (("attention.self.query", d, d), ("attention.self.key", d, d),
                               ("attention.self.value", d, d), ("attention.output.dense", d, d),
                               ("intermediate.dense", f, d), ("output.dense", d, f)):  # fmt: skip
                shapes |= {f"{at}{name}.weight": (n, k), f"{at}{name}.bias": (n,)}
        return shapes | {f"{name}.{part}": (d,) for name in names for part in ("weight", "bias")}
    head = c.get("head_dim", d // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, n, k in (("self_attn.q_proj", q, d), ("self_attn.k_proj", kv, d), ("self_attn.v_proj", kv, d),
                           ("self_attn.o_proj", d, q), ("mlp.gate_proj", f, d), ("mlp.up_proj", f, d),
                           ("mlp.down_proj", d, f)):  # fmt: skip
            shapes[f"{at}{name}.weight"] = (n, k)
            if family == "qwen2" and name[-6] in "qkv" and "self_attn" in name:
                shapes[f"{at}{name}.bias"] = (n,)
        shapes |= {f"{at}{name}.weight": (d,) for name in ("input_layernorm", "post_attention_layernorm")}
        if family == "qwen3":
            shapes |= {f"{at}self_attn.{name}_norm.weight": (head,) for name in "qk"}
    if not c.get("tie_word_embeddings", family == "gemma"):
        shapes["lm_head.weight"] = (c["vocab_size"], d)
    return shapes


def tensors(family: str, seed: int = 0) -> Tensors:
    """Return random weights: matrices and biases normal, norms about 1 (Gemma's about 0)."""
    random = np.random.default_rng(seed)
    out: Tensors = {}
    for name, shape in _shapes(family, CONFIGS[family]).items():
        norm = "norm" in name.lower() or ".ln_" in name
        if norm and name.endswith("weight"):
            value = random.uniform(-0.3, 0.3, shape) + (family != "gemma")
        else:
            value = random.normal(size=shape) * (0.1 if len(shape) == 1 else shape[-1] ** -0.5)
        out[name] = value.astype(np.float32)
    return out


def write(family: str, folder: Path, **changes: Any) -> Path:
    """Write a family's folder; `changes` replace fields of its configuration."""
    config = CONFIGS[family] | changes
    return checkpoints.write_folder(folder, config, tensors(family))
