"""Tiny random checkpoints with tokenizers, written as files for tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# No dimension divides a 16x16 array.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 258,
    "max_position_embeddings": 48,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
Tensors = dict[str, NDArray[np.float32]]


def tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    """Return random weights of a model's usual sizes, by their Hugging Face names."""
    random = np.random.default_rng(seed)
    dim, ffn, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d

    def matrix(n: int, k: int) -> NDArray[np.float32]:
        return (random.normal(size=(n, k)) / np.sqrt(k)).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return random.uniform(0.5, 1.5, dim).astype(np.float32)

    out: Tensors = {"model.embed_tokens.weight": random.normal(size=(config["vocab_size"], dim)).astype(np.float32)}
    for i in range(config["num_hidden_layers"]):
        out |= {
            f"model.layers.{i}.{name}.weight": value
            for name, value in {
                "input_layernorm": norm(),
                "self_attn.q_proj": matrix(q, dim),
                "self_attn.k_proj": matrix(kv, dim),
                "self_attn.v_proj": matrix(kv, dim),
                "self_attn.o_proj": matrix(dim, q),
                "post_attention_layernorm": norm(),
                "mlp.gate_proj": matrix(ffn, dim),
                "mlp.up_proj": matrix(ffn, dim),
                "mlp.down_proj": matrix(dim, ffn),
            }.items()
        }
    out["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = matrix(config["vocab_size"], dim)
    return out


def write_large(folder: Path, **sizes: int) -> int:
    """Write a Llama's folder of any size, tensor by tensor; returns how many parameters it has.

    sizes: dim, ffn, layers, heads, kv_heads, vocab, context.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {"dim": "hidden_size", "ffn": "intermediate_size", "layers": "num_hidden_layers",
             "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "vocab": "vocab_size",
             "context": "max_position_embeddings"}  # fmt: skip
    config = CONFIG | {names[key]: value for key, value in sizes.items()}
    d = config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder / "tokenizer.json")
    dim, ffn, q, kv = (
        config["hidden_size"], config["intermediate_size"], config["num_attention_heads"] * d,
        config["num_key_value_heads"] * d,
    )  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], dim)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (dim,), "self_attn.q_proj": (q, dim), "self_attn.k_proj": (kv, dim),
            "self_attn.v_proj": (kv, dim), "self_attn.o_proj": (dim, q), "post_attention_layernorm": (dim,),
            "mlp.gate_proj": (ffn, dim), "mlp.up_proj": (ffn, dim), "mlp.down_proj": (dim, ffn),
        }.items():  # fmt: skip
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    shapes |= {"model.norm.weight": (dim,), "lm_head.weight": (config["vocab_size"], dim)}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw, random = json.dumps(header).encode(), np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(raw)) + raw)
        for shape in shapes.values():
            step = max(1, (1 << 20) // shape[-1])
            for first in range(0, shape[0], step):
                rows = (min(step, shape[0] - first), *shape[1:])
                norm = len(shape) == 1
                value = np.ones(rows) if norm else random.standard_normal(rows, np.float32) / shape[-1] ** 0.5
                f.write(value.astype("<f4").tobytes())
    return at // 4


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer.json of the 256 bytes, <bos> (256) and <eos> (257)."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.save(str(path))


def write_huggingface(folder: Path, config: dict[str, Any] | None = None, weights: Tensors | None = None) -> Path:
    """Write a Llama's folder; fields of `config` replace those of CONFIG."""
    return write_folder(folder, CONFIG | (config or {}), tensors(CONFIG) if weights is None else weights)


def write_folder(folder: Path, config: dict[str, Any], weights: Tensors) -> Path:
    """Write any configuration and tensors, with the tokenizer of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    write_tokenizer(folder / "tokenizer.json")
    return folder


def write_safetensors(path: Path, header: dict[str, Any], data: bytes) -> None:
    """Write a safetensors file with any header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def llama2c_tokenizer(words: list[tuple[bytes, float]]) -> bytes:
    """Return a llama2.c tokenizer: <unk>, <s>, </s>, the 256 bytes, and words with their scores."""
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    pieces += [(b"<0x%02X>" % i, 0.0) for i in range(256)]
    pieces += words
    longest = max(len(piece) for piece, _ in pieces)
    return struct.pack("<i", longest) + b"".join(
        struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces
    )


WORDS = [(b" ", -1.0), (b"he", -1.5), (b"ll", -1.2), (b" hell", -3.0)]
WORDS += [(bytes([c]), -2.0 - c / 100) for c in b"abcdehlo"]
VOCAB = 259 + len(WORDS)


def llama2c(shape: tuple[int, ...] = (24, 40, 2, 3, 1, VOCAB, 32), seed: int = 0, floats: int | None = None) -> bytes:
    """Return a llama2.c v0 file; `floats` overrides how many values follow the header."""
    dim, ffn, layers, heads, kv_heads, vocab, context = shape
    d = dim // heads
    random = np.random.default_rng(seed)
    stacks: list[NDArray[np.float64]] = [random.normal(size=abs(vocab) * dim)]

    def add(n: int, k: int) -> None:
        stacks.append(random.normal(size=layers * n * k) / np.sqrt(k))

    stacks.append(random.uniform(0.5, 1.5, layers * dim))
    for n, k in ((dim, dim), (kv_heads * d, dim), (kv_heads * d, dim), (dim, dim)):
        add(n, k)
    stacks.append(random.uniform(0.5, 1.5, layers * dim))
    for n, k in ((ffn, dim), (dim, ffn), (ffn, dim)):
        add(n, k)
    stacks.append(random.uniform(0.5, 1.5, dim))
    stacks.append(np.zeros(context * d))
    if vocab < 0:
        stacks.append(random.normal(size=-vocab * dim))
    values = np.concatenate(stacks).astype("<f4")[:floats]
    return struct.pack("<7i", *shape) + values.tobytes()


def write_llama2c(folder: Path) -> Path:
    """Write model.bin with tok.bin beside it; returns the model's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(llama2c())
    (folder / "tok.bin").write_bytes(llama2c_tokenizer(WORDS))
    return folder / "model.bin"
