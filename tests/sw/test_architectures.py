"""Every family of models: the same bits on every configuration and tiling, near a forward pass in floating point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tilewright.compiler.plan import Tiling
from tilewright.formats import Formats, bf16, quantise_int8
from tilewright.int4 import search
from tilewright.model import Checkpoint, ModelSpec, RopeScaling
from tilewright.reference import Reference
from tilewright.runtime import Engine
from tilewright_hw.arch import AcceleratorConfig
from tilewright_sim.golden import GoldenDevice

CONFIGS = {
    "default": AcceleratorConfig(),
    "tiny": AcceleratorConfig.preset("tiny"),
    "6x10x2": AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1),
    "wide bus": AcceleratorConfig(rows=16, cols=4, lanes=4, bus_bits=256, ingest=4),
    "16 lanes": AcceleratorConfig(rows=32, cols=16, lanes=16, bus_bits=64, ingest=2),
}
SIZES = {"dim": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 10, "ffn": 52, "vocab": 70, "context": 40}
GPT2 = {
    "kv_heads": 4, "norm": "layer", "rope_theta": None, "learned_positions": True, "qkv_bias": True, "o_bias": True,
    "ffn_bias": True, "gated": False, "activation": "gelu_tanh",
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama 3": {"rope_scaling": RopeScaling(factor=8.0, original_context=16)},
    "qwen 2": {"qkv_bias": True},
    "qwen 3": {"qk_norm": True},
    "gemma": {"embedding_scale": 4.9, "activation": "gelu_tanh", "score_scale": 0.4},
    "gpt-2": GPT2,
    "relu, no final norm": GPT2 | {"activation": "relu", "final_norm": False, "o_bias": False},
    "bert": GPT2 | {
        "activation": "gelu", "norm_after": True, "embedding_norm": True, "final_norm": False, "token_types": 2,
        "causal": False, "classifier": False,
    },
    "norms before, all keys": {"causal": False, "classifier": False, "qk_norm": True},
}  # fmt: skip
FORMATS = {
    "W8A8": Formats(),
    "W8A16": Formats(activations=16),
    "W4A8": Formats(weights="int4"),
    "W4A16": Formats(weights="int4", activations=16, overrides={"*.w_down": "int8"}),
}
TOKENS = 13
CASES = [(family, formats) for family in FAMILIES for formats in ("W8A8", "W4A16")]
CASES += [(family, formats) for family in ("llama 3", "bert") for formats in ("W8A16", "W4A8")]
OTHERS = [name for name in CONFIGS if name != "default"]


def checkpoint(family: str, seed: int = 1) -> Checkpoint:
    spec = ModelSpec(**SIZES | FAMILIES[family])
    rng = np.random.default_rng(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        is_norm = name.endswith("norm")
        size = 0.3 if is_norm or len(shape) == 1 else 1.0 if name == "embedding" else shape[-1] ** -0.5
        return rng.normal(1.0 if is_norm else 0.0, size, shape).astype(np.float32)

    tensors = {name: tensor(name, shape) for name, shape in spec.tensor_shapes().items()}
    return Checkpoint(spec, tensors.__getitem__, family)


def as_stored(ckpt: Checkpoint, formats: Formats) -> Checkpoint:
    """Return the checkpoint with the weights that the accelerator's formats make of it."""

    def read(name: str) -> NDArray[np.float32]:
        w = ckpt.tensor(name)
        last = name.rpartition(".")[2]
        if name == "embedding":
            return bf16(w)
        if w.ndim == 1 or name in ("positions", "token_types"):
            return w
        matrix = name.replace(last, "qkv") if last in ("wq", "wk", "wv") else name
        if formats.of(matrix) == "int8":
            q, s = quantise_int8(w)
            return q * s[:, None]
        if last != "wo":
            return four_bits(w)
        # In four bits a head's channels are padded to 16 of the inputs.
        heads = w.reshape(len(w), -1, ckpt.spec.head_dim)
        padded = np.pad(heads, ((0, 0), (0, 0), (0, -ckpt.spec.head_dim % 16)))
        return four_bits(padded.reshape(len(w), -1)).reshape(padded.shape)[..., : heads.shape[2]].reshape(w.shape)

    return Checkpoint(ckpt.spec, read, ckpt.name)


def four_bits(w: NDArray[np.float32]) -> NDArray[np.float32]:
    return search(w).dequantised()


def run(
    ckpt: Checkpoint, config: AcceleratorConfig, formats: Formats, tiling: Tiling | None = None
) -> NDArray[np.float32]:
    engine = Engine(ckpt, GoldenDevice(config, check=True), tiling, formats=formats)
    tokens = np.random.default_rng(5).integers(0, ckpt.spec.vocab, TOKENS).tolist()
    return engine.feed(tokens, "all") if ckpt.spec.causal else engine.encode(tokens)


def cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.min(np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


@pytest.mark.parametrize(("family", "formats"), CASES)
def test_same_bits_everywhere_and_near_floating_point(family: str, formats: str) -> None:
    ckpt, seed = checkpoint(family), 11
    found = run(ckpt, CONFIGS["default"], FORMATS[formats])
    tokens = np.random.default_rng(5).integers(0, ckpt.spec.vocab, TOKENS).tolist()
    model = Reference(as_stored(ckpt, FORMATS[formats]))
    expected = model.logits(tokens) if ckpt.spec.classifier else model.hidden(tokens)
    assert cosine(found, expected) > (0.9999 if FORMATS[formats].activations == 16 else 0.99)
    rng = np.random.default_rng(seed)
    turn = CASES.index((family, formats))  # each configuration meets every second case
    for name in (OTHERS[turn % len(OTHERS)], OTHERS[(turn + 1) % len(OTHERS)]):
        block, chunk, kv, keys = (int(v) for v in rng.integers(1, (8, 6, 4, 20)))
        tiling = Tiling(block_rows=block, chunk_tiles=chunk, kv_heads=kv, keys=keys)
        got = run(ckpt, CONFIGS[name], FORMATS[formats], tiling)
        np.testing.assert_array_equal(got, found, err_msg=f"{name} {tiling} seed {seed}")
