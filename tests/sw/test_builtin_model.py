"""The built-in model as a folder, in NumPy alone: nothing of Tilewright's own code is used here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

FOLDER = Path(__file__).parents[2] / "sw/tilewright/models/fairytales"
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
    return content


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    file = load_file(FOLDER / "model.safetensors")
    return {name.removeprefix("model."): value.astype(np.float32) for name, value in file.items()}


TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def forward(c: dict[str, Any], w: dict[str, Array], ids: NDArray[np.int64]) -> Array:
    """Return the logits of a batch of windows, in float32."""
    (batch, length), dim = ids.shape, c["head_dim"]
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    half = np.arange(dim // 2)
    angle = np.arange(length)[:, None] * c["rope_theta"] ** (-half / len(half))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    mask = np.triu(np.full((length, length), -np.inf, np.float32), 1)

    def norm(x: Array, weight: Array) -> Array:
        mean = np.square(x).mean(-1, keepdims=True, dtype=np.float32)
        return x / np.sqrt(mean + np.float32(c["rms_norm_eps"])) * weight

    def split(x: Array, count: int) -> Array:
        return x.reshape(batch, length, count, dim).swapaxes(1, 2)

    def rope(x: Array) -> Array:
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)

    x = w["embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        layer = {n.removeprefix(f"layers.{i}."): v.T for n, v in w.items() if f"layers.{i}." in n}
        y = norm(x, layer["input_layernorm.weight"])
        q = rope(split(y @ layer["self_attn.q_proj.weight"], heads))
        k = rope(split(y @ layer["self_attn.k_proj.weight"], kv_heads))
        v = split(y @ layer["self_attn.v_proj.weight"], kv_heads)
        k, v = (np.repeat(z, heads // kv_heads, axis=1) for z in (k, v))
        score = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(dim)) + mask
        p = np.exp(score - score.max(-1, keepdims=True))
        y = (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(batch, length, -1)
        x = x + y @ layer["self_attn.o_proj.weight"]
        y = norm(x, layer["post_attention_layernorm.weight"])
        gate = y @ layer["mlp.gate_proj.weight"]
        y = gate / (1 + np.exp(-gate)) * (y @ layer["mlp.up_proj.weight"])
        x = x + y @ layer["mlp.down_proj.weight"]
    return norm(x, w["norm.weight"]) @ w["embed_tokens.weight"].T


def test_folder_is_complete_and_small() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names >= {
        "MODEL_CARD.md",
        "config.json",
        "generation_config.json",
        "heldout.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (FOLDER / "model.safetensors").stat().st_size <= 3_000_000
    assert (FOLDER / "heldout.txt").stat().st_size <= 60_000
    assert (FOLDER.parent / "train.py").is_file()


def test_shape_suits_the_hardware(config: dict[str, Any], weights: dict[str, Array]) -> None:
    assert 400_000 <= sum(value.size for value in weights.values()) <= 800_000
    assert all(np.isfinite(value).all() for value in weights.values())
    assert weights["embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    assert config["vocab_size"] == TOKENIZER.get_vocab_size()
    assert config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]
    assert all(size % 32 == 0 for value in weights.values() for size in value.shape)


def test_special_tokens(config: dict[str, Any]) -> None:
    ids = TOKENIZER.encode("Once upon a time").ids
    assert ids[0] == config["bos_token_id"] == TOKENIZER.token_to_id("<|bos|>")
    assert config["eos_token_id"] == TOKENIZER.token_to_id("<|eos|>")
    assert ids[1:] == TOKENIZER.encode("Once upon a time", add_special_tokens=False).ids


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_cross_entropy_on_held_out_text(config: dict[str, Any], weights: dict[str, Array]) -> None:
    text = (FOLDER / "heldout.txt").read_text()
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    context = config["max_position_embeddings"]
    total = 0.0
    for start in range(0, len(ids), 8 * context):
        part = np.array(ids[start : start + 8 * context])
        padded = np.resize(part, (-(-len(part) // context), context))
        inputs = np.roll(padded, 1, axis=1)
        inputs[:, 0] = config["bos_token_id"]
        logits = (
            forward(config, weights, inputs)
            .astype(np.float64)
            .reshape(-1, len(weights["embed_tokens.weight"]))[: len(part)]
        )
        logits -= logits.max(-1, keepdims=True)
        chosen = logits[np.arange(len(part)), part]
        total += float((np.log(np.exp(logits).sum(-1)) - chosen).sum())
    # Measured: 0.9395 nats a character; more says that the weights or the tokenizer changed.
    assert total / len(text) == pytest.approx(0.93947, abs=0.0005)
    assert total / len(text) <= 1.00


def test_once_upon_a_time_goes_on_as_tales_do(config: dict[str, Any], weights: dict[str, Array]) -> None:
    ids = TOKENIZER.encode("Once upon a time").ids
    logits = forward(config, weights, np.array([ids]))[0, -1]
    likeliest = [TOKENIZER.decode([int(i)]) for i in np.argsort(-logits)[:3]]
    assert " there" in likeliest
