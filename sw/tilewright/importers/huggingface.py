"""Hugging Face folders of Llama-architecture models: config.json, safetensors (one file, or several with an index)."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.importers.rope import interleave_heads
from tilewright.model import Checkpoint, Floats, LlamaSpec
from tilewright_hw.arch import InputError

ARCHITECTURES = ("LlamaForCausalLM",)
MAX_JSON = 64 << 20
"""Bytes of the largest JSON text (a configuration, an index, a safetensors header) that is read."""

_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "wq": "self_attn.q_proj.weight",
    "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight",
    "wo": "self_attn.o_proj.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
}


def read_json(path: Path) -> Any:
    """Return a JSON file's content; InputError if it is absent, absurdly large or not JSON."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise InputError(f"{path} must be at most {MAX_JSON >> 20} MiB, not {path.stat().st_size} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is not valid JSON: {e}") from e


def read_spec(folder: Path) -> tuple[LlamaSpec, bool]:
    """Return the shape that config.json gives and whether the classifier is tied to the embedding.

    InputError names an architecture or an option that is not supported: nothing is run wrongly.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'} must hold a JSON object")
    _refuse_options(config)
    try:
        heads = _integer(config, "num_attention_heads")
        dim = _integer(config, "hidden_size")
        rope = config.get("rope_parameters") or {}
        spec = LlamaSpec(
            dim=dim,
            layers=_integer(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=_integer(config, "num_key_value_heads", heads),
            head_dim=_integer(config, "head_dim", dim // heads),
            ffn=_integer(config, "intermediate_size"),
            vocab=_integer(config, "vocab_size"),
            context=_integer(config, "max_position_embeddings"),
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        )
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise InputError(f"{folder / 'config.json'}: {e}") from e
    return spec, bool(config.get("tie_word_embeddings", False))


def _integer(config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name, default)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise InputError(f"{name} must be a positive integer, not {value!r}")
    return value


def _refuse_options(config: dict[str, Any]) -> None:
    names = config.get("architectures") or []
    if not isinstance(names, list) or not any(n in ARCHITECTURES for n in names):
        raise InputError(f"architecture {names!r} is not supported: must be one of {', '.join(ARCHITECTURES)}")
    refused = {
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "rope_scaling": config.get("rope_scaling"),
        "sliding_window": config.get("sliding_window"),
        "num_local_experts": config.get("num_local_experts"),
        "quantization_config": config.get("quantization_config"),
    }
    for name, value in refused.items():
        if value:
            raise InputError(f"option {name} = {value!r} is not supported")
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise InputError(f"option rope_parameters = {rope!r} is not supported: rope_type must be 'default'")
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise InputError(f"option hidden_act = {act!r} is not supported: must be 'silu'")


def tensor_names(spec: LlamaSpec, tied: bool) -> dict[str, str]:
    """Return {canonical name: name in the checkpoint}."""
    names = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight"}
    for i in range(spec.layers):
        for ours, theirs in _LAYER.items():
            names[f"layers.{i}.{ours}"] = f"model.layers.{i}.{theirs}"
    return names | {"classifier": names["embedding"] if tied else "lm_head.weight"}


class SafeTensors:
    """Tensors of one safetensors file, read by memory map after its header has been checked against its size."""

    SIZES = {"F32": 4, "F16": 2, "BF16": 2}  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as f:
                head = f.read(8)
                length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
                if not 2 <= length <= min(size - 8, MAX_JSON):
                    raise InputError(f"{path} is not a safetensors file: its header length is {length} of {size} bytes")
                header = json.loads(f.read(length))
        except OSError as e:
            raise InputError(f"cannot read {path}: {e.strerror}") from e
        except (ValueError, RecursionError) as e:
            raise InputError(f"{path} is not a safetensors file: {e}") from e
        if not isinstance(header, dict):
            raise InputError(f"{path} is not a safetensors file: its header is no object")
        self.entries = {k: v for k, v in header.items() if k != "__metadata__"}
        self.data = (
            np.memmap(path, np.uint8, mode="r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
        )
        self._check_entries()

    def _check_entries(self) -> None:
        spans = []
        for name, entry in self.entries.items():
            try:
                begin, end = (int(v) for v in entry["data_offsets"])
                shape, dtype = [int(v) for v in entry["shape"]], str(entry["dtype"])
            except (KeyError, TypeError, ValueError) as e:
                raise InputError(f"{self.path}: tensor {name!r} has a broken header entry: {entry!r}") from e
            if not 0 <= begin <= end <= len(self.data) or any(v < 0 for v in shape):
                raise InputError(f"{self.path}: tensor {name!r} lies outside the file: truncated?")
            elements = 1
            for v in shape:
                elements *= v
            if dtype in self.SIZES and elements * self.SIZES[dtype] != end - begin:
                raise InputError(f"{self.path}: tensor {name!r} of shape {shape} does not have {end - begin} bytes")
            spans.append((begin, end, name))
        spans.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            if begin < end:
                raise InputError(f"{self.path}: tensors {first!r} and {second!r} overlap")

    def read(self, name: str) -> Floats:
        """Return a tensor as float32; InputError if it is absent or of an unsupported type."""
        entry = self.entries[name]
        dtype = str(entry["dtype"])
        if dtype not in self.SIZES:
            raise InputError(f"{self.path}: tensor {name!r} must be F32, F16 or BF16, not {dtype}")
        begin, end = entry["data_offsets"]
        raw: NDArray[np.uint8] = self.data[begin:end]
        if dtype == "BF16":
            value = (np.frombuffer(raw.tobytes(), "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            value = np.frombuffer(raw.tobytes(), "<f4" if dtype == "F32" else "<f2").astype(np.float32)
        return value.reshape(entry["shape"])


def _open_files(folder: Path) -> Callable[[str], Floats]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict):
            raise InputError(f"{index} has no weight_map")
        for file in weight_map.values():
            if not isinstance(file, str) or Path(file).name != file:
                raise InputError(f"{index}: {file!r} must be a file in the same folder")
        files = {name: SafeTensors(folder / name) for name in set(weight_map.values())}
        where = {name: files[file] for name, file in weight_map.items()}
    else:
        single = folder / "model.safetensors"
        if not single.exists():
            if any(folder.glob("pytorch_model*.bin")):
                raise InputError(f"{folder} holds pickled weights, which can run code; convert them to safetensors")
            raise InputError(f"{folder} must hold model.safetensors or model.safetensors.index.json")
        file = SafeTensors(single)
        where = dict.fromkeys(file.entries, file)

    def read(name: str) -> Floats:
        if name not in where or name not in where[name].entries:
            raise InputError(f"{folder}: tensor {name!r} is missing")
        return where[name].read(name)

    read.names = set(where)  # type: ignore[attr-defined]
    return read


def load(folder: Path) -> Checkpoint:
    """Open a folder; InputError if anything needed is missing, of the wrong kind, or not supported."""
    spec, tied = read_spec(folder)
    names = tensor_names(spec, tied)
    read_raw = _open_files(folder)
    for name in names.values():
        if name not in read_raw.names:  # type: ignore[attr-defined]
            raise InputError(f"{folder}: tensor {name!r} is missing")

    def read(name: str) -> Floats:
        value = read_raw(names[name])
        if name.endswith((".wq", ".wk")):
            heads = spec.heads if name.endswith(".wq") else spec.kv_heads
            if value.shape != spec.tensor_shapes()[name]:
                return value  # reported by name and shape in Checkpoint.tensor
            return interleave_heads(value, heads)
        return value

    return Checkpoint(spec, read, folder.name)
