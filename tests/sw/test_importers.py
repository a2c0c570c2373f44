"""What comes out of checkpoint files: shapes, values, orders of channels."""

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from safetensors.numpy import save_file

from tilewright.importers import load_checkpoint
from tilewright.importers.rope import interleave_heads


def test_the_shape_of_a_folder(hf_folder: Path) -> None:
    spec = load_checkpoint(hf_folder).spec
    assert (spec.dim, spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == (40, 2, 4, 2, 12)
    assert (spec.ffn, spec.vocab, spec.context) == (56, 258, 48)
    assert (spec.rope_theta, spec.norm_eps) == (10000.0, 1e-5)


def test_the_values_of_a_folder(hf_folder: Path) -> None:
    checkpoint = load_checkpoint(hf_folder)
    raw = checkpoints.tensors(checkpoints.CONFIG)
    for ours, theirs in {
        "embedding": "model.embed_tokens",
        "layers.1.wv": "model.layers.1.self_attn.v_proj",
        "layers.0.w_gate": "model.layers.0.mlp.gate_proj",
        "layers.1.w_up": "model.layers.1.mlp.up_proj",
        "layers.0.w_down": "model.layers.0.mlp.down_proj",
        "layers.1.ffn_norm": "model.layers.1.post_attention_layernorm",
        "final_norm": "model.norm",
        "classifier": "lm_head",
    }.items():
        assert np.array_equal(checkpoint.tensor(ours), raw[theirs + ".weight"]), ours
    checkpoint.check()


def test_query_and_key_channels_become_neighbours(hf_folder: Path) -> None:
    checkpoint = load_checkpoint(hf_folder)
    raw = checkpoints.tensors(checkpoints.CONFIG)["model.layers.0.self_attn.k_proj.weight"]
    found = checkpoint.tensor("layers.0.wk")
    for head in range(2):
        for j in range(6):
            assert np.array_equal(found[12 * head + 2 * j], raw[12 * head + j])
            assert np.array_equal(found[12 * head + 2 * j + 1], raw[12 * head + 6 + j])


def test_interleave_keeps_the_order_of_heads() -> None:
    assert interleave_heads(np.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_tied_classifier_is_the_embedding(tmp_path: Path) -> None:
    config = checkpoints.CONFIG | {"tie_word_embeddings": True}
    checkpoints.write_huggingface(tmp_path, config, checkpoints.tensors(config))
    checkpoint = load_checkpoint(tmp_path)
    assert np.array_equal(checkpoint.tensor("classifier"), checkpoint.tensor("embedding"))


@pytest.mark.parametrize(("dtype", "error"), [("F16", 1e-3), ("BF16", 1e-2)])
def test_narrow_types_widen(tmp_path: Path, dtype: str, error: float) -> None:
    weights = checkpoints.tensors(checkpoints.CONFIG)
    checkpoints.write_huggingface(tmp_path)
    header, data = {}, b""
    for name, value in weights.items():
        raw = value.astype("<f2").tobytes()
        if dtype == "BF16":
            raw = (value.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
        header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    checkpoints.write_safetensors(tmp_path / "model.safetensors", header, data)
    found = load_checkpoint(tmp_path).tensor("embedding")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, weights["model.embed_tokens.weight"], rtol=error, atol=1e-4)


def test_several_files_with_an_index(tmp_path: Path, hf_folder: Path) -> None:
    weights = checkpoints.tensors(checkpoints.CONFIG)
    checkpoints.write_huggingface(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for i, part in enumerate((names[:7], names[7:])):
        save_file({name: weights[name] for name in part}, tmp_path / f"part-{i}.safetensors")
        index |= dict.fromkeys(part, f"part-{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    whole, split = load_checkpoint(hf_folder), load_checkpoint(tmp_path)
    for name in whole.spec.tensor_shapes():
        assert np.array_equal(whole.tensor(name), split.tensor(name)), name


def test_the_new_place_of_the_rope_base(tmp_path: Path) -> None:
    config = {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    checkpoints.write_huggingface(tmp_path, config)
    assert load_checkpoint(tmp_path).spec.rope_theta == 500.0


def test_llama2c_layout(tmp_path: Path) -> None:
    path = checkpoints.write_llama2c(tmp_path)
    checkpoint = load_checkpoint(path)
    spec = checkpoint.spec
    assert (spec.dim, spec.ffn, spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == (24, 40, 2, 3, 1, 8)
    assert (spec.vocab, spec.context) == (checkpoints.VOCAB, 32)
    values = np.frombuffer(path.read_bytes(), "<f4", offset=28)
    at = spec.vocab * 24
    assert np.array_equal(checkpoint.tensor("layers.1.attn_norm"), values[at + 24 : at + 48])
    at += 2 * 24
    assert np.array_equal(checkpoint.tensor("layers.0.wq").ravel(), values[at : at + 576])
    at += 2 * (576 + 192 + 192 + 576)
    at += 2 * 24
    assert np.array_equal(checkpoint.tensor("layers.1.w_gate").ravel(), values[at + 960 : at + 1920])
    at += 2 * 960
    assert np.array_equal(checkpoint.tensor("layers.0.w_down"), values[at : at + 960].reshape(24, 40))
    at += 2 * 960
    assert np.array_equal(checkpoint.tensor("layers.0.w_up"), values[at : at + 960].reshape(40, 24))
    assert np.array_equal(checkpoint.tensor("classifier"), checkpoint.tensor("embedding"))


def test_llama2c_with_a_classifier_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(checkpoints.llama2c((24, 40, 1, 3, 3, -checkpoints.VOCAB, 32)))
    checkpoint = load_checkpoint(tmp_path / "model.bin")
    values = np.frombuffer((tmp_path / "model.bin").read_bytes(), "<f4", offset=28)
    assert np.array_equal(checkpoint.tensor("classifier").ravel(), values[-checkpoints.VOCAB * 24 :])
    assert not np.array_equal(checkpoint.tensor("classifier"), checkpoint.tensor("embedding"))


def test_the_shared_checkpoint(shared_data: Path) -> None:
    checkpoint = load_checkpoint(shared_data / "stories260K.bin")
    spec = checkpoint.spec
    assert (spec.dim, spec.ffn, spec.layers, spec.heads, spec.kv_heads, spec.vocab) == (64, 172, 5, 8, 4, 512)
    checkpoint.check()
