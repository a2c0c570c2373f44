"""Every supported architecture: the shape that its configuration gives, and its tensors in canonical order."""

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest

from tilewright.importers import load_checkpoint
from tilewright.model import RopeScaling
from tilewright_hw.arch import InputError

LAYER = "model.layers.1.self_attn."


@pytest.fixture(params=sorted(families.CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_all_tensors_are_found_and_fit(family: str, tmp_path: Path) -> None:
    load_checkpoint(families.write(family, tmp_path)).check()


def test_no_tensor_is_forgotten(family: str, tmp_path: Path) -> None:
    """As many values come out as are in the file (those of a tied classifier once more)."""
    checkpoint = load_checkpoint(families.write(family, tmp_path))
    found = {name: checkpoint.tensor(name).size for name in checkpoint.spec.tensor_shapes()}
    raw = families.tensors(family)
    tied = checkpoint.spec.classifier and "lm_head.weight" not in raw
    assert sum(found.values()) - tied * found["embedding"] == sum(v.size for v in raw.values())


SPECS: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16)},
    "mistral": {"head_dim": 8, "qkv_bias": False},
    "qwen2": {"head_dim": 6, "qkv_bias": True, "o_bias": False, "rope_theta": 1000.0},
    "qwen3": {"head_dim": 10, "qk_norm": True, "qkv_bias": False},
    "gemma": {"activation": "gelu_tanh", "embedding_scale": 24**0.5, "head_dim": 16},
    "gpt2": {"norm": "layer", "rope_theta": None, "learned_positions": True, "gated": False, "activation": "gelu_tanh",
             "ffn": 96, "o_bias": True, "ffn_bias": True, "kv_heads": 3},
    "bert": {"norm_after": True, "embedding_norm": True, "final_norm": False, "classifier": False, "causal": False,
             "token_types": 2, "activation": "gelu", "norm_eps": 1e-12},
}  # fmt: skip


def test_what_the_configuration_says(family: str, tmp_path: Path) -> None:
    spec = load_checkpoint(families.write(family, tmp_path)).spec
    assert {name: getattr(spec, name) for name in SPECS[family]} == SPECS[family]


def test_query_and_key_channels_become_neighbours_with_biases_and_norms(tmp_path: Path) -> None:
    qwen2 = load_checkpoint(families.write("qwen2", tmp_path / "2"))
    bias, found = families.tensors("qwen2")[LAYER + "k_proj.bias"], qwen2.tensor("layers.1.bk")
    assert [found[i] for i in range(12)] == [bias[i] for i in (0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11)]
    assert np.array_equal(qwen2.tensor("layers.1.bv"), families.tensors("qwen2")[LAYER + "v_proj.bias"])
    qwen3 = load_checkpoint(families.write("qwen3", tmp_path / "3"))
    norm, found = families.tensors("qwen3")[LAYER + "q_norm.weight"], qwen3.tensor("layers.1.q_norm")
    assert found.tolist() == [norm[i] for i in (0, 5, 1, 6, 2, 7, 3, 8, 4, 9)]


def test_gemma_stores_the_distance_of_norms_from_one(tmp_path: Path) -> None:
    found = load_checkpoint(families.write("gemma", tmp_path)).tensor("layers.0.ffn_norm")
    raw = families.tensors("gemma")["model.layers.0.post_attention_layernorm.weight"]
    assert np.array_equal(found, raw + np.float32(1))


def test_gpt2_has_one_matrix_for_queries_keys_and_values(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(families.write("gpt2", tmp_path))
    raw = families.tensors("gpt2")
    x = np.random.default_rng(1).normal(size=24).astype(np.float32)
    at = "transformer.h.0."
    fused = x @ raw[at + "attn.c_attn.weight"] + raw[at + "attn.c_attn.bias"]
    for name, part in zip("qkv", np.split(fused, 3), strict=True):
        w, b = checkpoint.tensor(f"layers.0.w{name}"), checkpoint.tensor(f"layers.0.b{name}")
        np.testing.assert_allclose(w @ x + b, part, rtol=1e-5, atol=1e-6)
    up = checkpoint.tensor("layers.0.w_up") @ x
    np.testing.assert_allclose(up, x @ raw[at + "mlp.c_fc.weight"], rtol=1e-5, atol=1e-6)


def test_tensors_with_and_without_the_model_prefix(tmp_path: Path) -> None:
    raw = families.tensors("bert")
    families.write("bert", tmp_path)
    families.checkpoints.save_file({f"bert.{n}": v for n, v in raw.items()}, tmp_path / "model.safetensors")
    found = load_checkpoint(tmp_path).tensor("layers.1.wo")
    assert np.array_equal(found, raw["encoder.layer.1.attention.output.dense.weight"])


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mistral", {"sliding_window": 16}, "option sliding_window = 16 is not supported"),
        ("qwen2", {"use_sliding_window": True}, "option sliding_window = 8 is not supported"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "option layer_types"),
        ("gemma", {"hidden_act": "silu"}, "option hidden_act = 'silu' is not supported: must be one of"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "option scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"n_head": 5}, "n_embd (24) must be a multiple of n_head (5)"),
        ("bert", {"position_embedding_type": "relative_key"}, "option position_embedding_type = 'relative_key'"),
        ("bert", {"is_decoder": True}, "option is_decoder = True is not supported"),
    ],
)
def test_options_that_are_not_supported_are_refused(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(families.write(family, tmp_path, **changes))
    assert message in str(caught.value)


def test_a_longer_context_than_the_machine_counts_is_cut(tmp_path: Path) -> None:
    folder = families.write("qwen3", tmp_path, max_position_embeddings=131072)
    assert load_checkpoint(folder).spec.context == 65535
