"""GGUF files written by the package gguf, with names, order and values as llama.cpp's converters write them.

PYTHONPATH=tests/sw python -m gguf_files stories260K.bin tok512.bin Q4_0 stories-Q4_0.gguf
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import checkpoints
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tilewright.importers import load_checkpoint
from tilewright.tokenizer import Llama2cTokenizer

Tensors = Mapping[str, NDArray[np.float32]]
Fields = dict[str, Any]
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2",
                 "Qwen3ForCausalLM": "qwen3", "GemmaForCausalLM": "gemma"}  # fmt: skip
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    **{f"self_attn.{p}_proj": f"attn_{p}" for p in "qkv"},
    **{f"mlp.{p}_proj": f"ffn_{p}" for p in ("gate", "up", "down")},
}  # fmt: skip


def permuted(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows of queries or keys as llama.cpp's LlamaModel.permute orders them."""
    split = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weights.shape))


def tensors(config: dict[str, Any], weights: Tensors) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a Hugging Face model by their GGUF names."""
    architecture = ARCHITECTURES[config["architectures"][0]]
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    found: dict[str, NDArray[np.float32]] = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        if architecture == "gemma" and stem.endswith("norm"):
            value = value + np.float32(1)
        part = stem.rpartition(".")[2].removesuffix("_proj")
        if architecture == "llama" and part in heads:
            value = permuted(value, heads[part])
        if stem in _TOP:
            found[f"{_TOP[stem]}.{kind}"] = value
        else:
            layer, inner = stem.removeprefix("model.layers.").split(".", 1)
            found[f"blk.{layer}.{_LAYER[inner]}.{kind}"] = value
    scaling = config.get("rope_scaling")
    if scaling is not None:
        found["rope_freqs.weight"] = rope_factors(config, scaling)
    return found


def rope_factors(config: dict[str, Any], scaling: dict[str, Any]) -> NDArray[np.float32]:
    """Return what llama.cpp's converter makes of Llama 3's scaling."""
    d = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    original, low, high = (
        scaling[n] for n in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    factors = []
    for j in range(0, d, 2):
        length = 2 * np.pi * config["rope_theta"] ** (j / d)
        if length < original / high:
            factors.append(1.0)
        elif length > original / low:
            factors.append(scaling["factor"])
        else:
            smooth = (original / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def fields(config: dict[str, Any]) -> Fields:
    """Return the metadata of a Hugging Face model."""
    name = ARCHITECTURES[config["architectures"][0]]
    d = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    own: Fields = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "attention.key_length": d,
        "attention.value_length": d,
    }
    if name == "llama":
        own |= {"vocab_size": config["vocab_size"], "rope.dimension_count": d}
    return {"general.type": "model", "general.name": "tiny"} | {f"{name}.{key}": value for key, value in own.items()}


def byte_level(path: Path, pre: str, bos: int, eos: int) -> Fields:
    """Return the metadata of a byte-level tokenizer.json."""
    content = json.loads(path.read_text(encoding="utf-8"))
    ids = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    special = {token["id"] for token in content["added_tokens"]}
    tokens = sorted(ids, key=lambda token: ids[token])
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if i in special else 1 for i in range(len(tokens))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": eos,
    }


def sentencepiece(tokenizer: Llama2cTokenizer) -> Fields:
    """Return the metadata of a llama2.c tokenizer, whose pieces are SentencePiece's."""
    tokens = ["<unk>", "<s>", "</s>"] + [p.decode().replace(" ", "▁") for p in tokenizer.pieces[3:]]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(score) for score in tokenizer.scores],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def write(
    path: Path, architecture: str, metadata: Fields, weights: Tensors, kind: str = "F32",
    raw: Mapping[str, tuple[NDArray[np.uint8], str]] | None = None,
) -> Path:  # fmt: skip
    """Write a file; matrices whose rows are whole blocks are of type `kind`, others F16, vectors F32.

    `raw` are tensors that are quantised already, (rows, bytes), with their types.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in metadata.items():
        if value is not None:
            _add(writer, name, value)
    block, _ = gguf.GGML_QUANT_SIZES[Type[kind]]
    for name, value in weights.items():
        wanted = Type.F32 if value.ndim == 1 else Type[kind] if value.shape[-1] % block == 0 else Type.F16
        writer.add_tensor(name, gguf.quantize(value, wanted), raw_dtype=wanted)
    for name, (rows, type_) in (raw or {}).items():
        writer.add_tensor(name, rows, raw_dtype=Type[type_])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def give_merges(folder: Path) -> Path:
    """Give a test's folder a tokenizer of bytes with two merges, in place of two bytes: GGUF wants some."""
    return _give(folder, sorted(pre_tokenizers.ByteLevel.alphabet())[:-2], [("h", "e"), ("l", "l")])


def give_letters(folder: Path) -> Path:
    """Give a test's folder a tokenizer of printable ASCII and merges of it: every token is whole characters."""
    letters = [chr(c) for c in range(33, 127)] + ["Ġ"]
    pairs = [(a, b) for a in "abcdefghijklm" for b in "nopqrstuvwxyz"]
    return _give(folder, letters, pairs[: 256 - len(letters)])


def _give(folder: Path, letters: list[str], merges: list[tuple[str, str]]) -> Path:
    vocab = [*letters, *(a + b for a, b in merges)]
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(vocab)}, merges=merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<bos>", "<eos>"])
    made.save(str(folder / "tokenizer.json"))
    return folder


def convert(folder: Path, path: Path, kind: str = "F32", changes: Fields | None = None, pre: str = "gpt-2") -> Path:
    """Convert a Hugging Face folder as llama.cpp does; `changes` replace fields, None removes one."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    metadata = fields(config)
    metadata |= byte_level(folder / "tokenizer.json", pre, config["bos_token_id"], config["eos_token_id"])
    metadata["tokenizer.ggml.add_bos_token"] = True
    weights = tensors(config, load_file(folder / "model.safetensors"))
    return write(path, ARCHITECTURES[config["architectures"][0]], metadata | (changes or {}), weights, kind)


def convert_llama2c(
    model: Path, tokenizer: Path, path: Path, kind: str = "F32", changes: Fields | None = None
) -> Path:  # fmt: skip
    """Convert a llama2.c model, whose tensors have the order of GGUF's already; `changes` as in `convert`."""
    checkpoint = load_checkpoint(model)
    spec = checkpoint.spec
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": spec.layers, "hidden_size": spec.dim,
        "max_position_embeddings": spec.context, "intermediate_size": spec.ffn, "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads, "rms_norm_eps": spec.norm_eps, "rope_theta": spec.rope_theta,
        "vocab_size": spec.vocab,
    }  # fmt: skip
    names = {"embedding": "token_embd", "final_norm": "output_norm", "classifier": "output"}
    layer = {"attn_norm": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output",
             "ffn_norm": "ffn_norm", "w_gate": "ffn_gate", "w_up": "ffn_up", "w_down": "ffn_down"}  # fmt: skip
    names |= {f"layers.{i}.{ours}": f"blk.{i}.{theirs}" for i in range(spec.layers) for ours, theirs in layer.items()}
    weights = {f"{names[name]}.weight": checkpoint.tensor(name) for name in spec.tensor_shapes()}
    if np.array_equal(weights["output.weight"], weights["token_embd.weight"]):
        del weights["output.weight"]
    metadata = fields(config) | sentencepiece(Llama2cTokenizer(tokenizer)) | (changes or {})
    return write(path, "llama", metadata, weights, kind)


def header(fields: Sequence[bytes] = (), tensors: Sequence[bytes] = (), counts: tuple[int, int] | None = None) -> bytes:
    """Return a header of any fields and tensors, as bytes; `counts` (tensors, fields) may lie."""
    return struct.pack("<4sIQQ", b"GGUF", 3, *(counts or (len(tensors), len(fields)))) + b"".join([*fields, *tensors])


def text(value: str | bytes) -> bytes:
    """Return a string as it lies in a file."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def tiny(folder: Path) -> Path:
    """Write the tests' tiny model, with its tokenizer of bytes."""
    source = give_merges(checkpoints.write_huggingface(folder / "source"))
    return convert(source, folder / "tiny.gguf")


if __name__ == "__main__":
    model, tokenizer, kind, target = sys.argv[1:]
    print(convert_llama2c(Path(model), Path(tokenizer), Path(target), kind))
