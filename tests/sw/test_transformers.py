"""The accelerator's numbers against transformers: an implementation of every architecture that is not ours.

Small random checkpoints, written by transformers itself, run on the golden model with 15-bit activations; transformers
runs them on the CPU, with our dequantised weights and with the original ones. Needs the extra `compare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.devices import open_device
from tilewright.formats import Formats, bf16, quantise_int8
from tilewright.importers import load_checkpoint
from tilewright.importers.configuration import Configuration
from tilewright.importers.families import ARCHITECTURES
from tilewright.importers.family import Tensor
from tilewright.runtime import Engine

pytestmark = pytest.mark.slow

SEED = 5
TOKENS = 24
_SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64, "initializer_range": 0.02,
    "tie_word_embeddings": False,
}  # fmt: skip
_ENCODER = {k: v for k, v in _SHAPE.items() if k not in ("num_key_value_heads", "tie_word_embeddings")}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": _SHAPE,
    "MistralForCausalLM": {**_SHAPE, "sliding_window": None},
    "Qwen2ForCausalLM": _SHAPE,
    "Qwen3ForCausalLM": {**_SHAPE, "head_dim": 24},
    "GemmaForCausalLM": {**_SHAPE, "head_dim": 32},
    "GPT2LMHeadModel": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 300,
                        "initializer_range": 0.02, "tie_word_embeddings": False},
    "BertModel": _ENCODER,
}  # fmt: skip


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("transformers", reason="needs transformers (pip install tilewright[compare])")
    return pytest.importorskip("torch", reason="needs torch (pip install tilewright[compare])")


def make(name: str, folder: Path, torch: Any) -> Any:
    """Write a random checkpoint; norms and biases, which transformers begins with ones and zeros, are random too."""
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(SEED)
    model = kind(kind.config_class(**MODELS[name])).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim == 1:
                value += torch.randn_like(value) * (0.02 if key.endswith("bias") else 0.2)
    model.save_pretrained(folder)
    return model


def rows(model: Any, ids: list[int], torch: Any) -> np.ndarray:
    """Return transformers' logits, or an encoder's hidden rows."""
    with torch.no_grad():
        out = model(torch.tensor([ids]))
    found = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found[0].double().numpy()


def dequantise(folder: Path, model: Any, torch: Any) -> None:
    """Put into transformers' model the weights that the accelerator computes with.

    A matrix of ours is a permutation of the elements of one of theirs: where each comes from is read off a tensor of
    indices that goes through the importer's change.
    """
    checkpoint, config = load_checkpoint(folder), Configuration.read(folder)
    family = ARCHITECTURES[config.fields["architectures"][0]]
    table = family.tensors(checkpoint.spec, config)
    state = model.state_dict()
    for name, shape in checkpoint.spec.tensor_shapes().items():
        if len(shape) != 2:
            continue
        place: Tensor = table[name]
        key = next(p + place.name for p in (*family.prefixes, "") if p + place.name in state)
        value = checkpoint.tensor(name)
        if name == "embedding":
            value = bf16(value)
        elif name not in ("positions", "token_types"):
            q, scales = quantise_int8(value)
            value = q * scales[:, None]
        theirs = state[key]
        index = np.arange(theirs.numel(), dtype=np.float32).reshape(tuple(theirs.shape))
        index = (index if place.change is None else place.change(index)).astype(np.int64)
        theirs.view(-1)[torch.from_numpy(index.reshape(-1))] = torch.from_numpy(value.reshape(-1))
    model.load_state_dict(state)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))


@pytest.mark.parametrize("name", MODELS)
def test_against_transformers(
    name: str, tmp_path: Path, torch: Any, record_property: pytest.RecordProperty, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(name, tmp_path, torch)
    checkpoint = load_checkpoint(tmp_path)
    ids = np.random.default_rng(SEED).integers(0, checkpoint.spec.vocab, TOKENS).tolist()
    engine = Engine(checkpoint, open_device("golden", "default"), formats=Formats(activations=16))
    ours = (engine.feed(ids, logits="all") if checkpoint.spec.causal else engine.encode(ids)).astype(np.float64)
    original = rows(model, ids, torch)
    dequantise(tmp_path, model, torch)
    theirs = rows(model, ids, torch)
    assert ours.shape == theirs.shape
    likeness = float(cosines(ours, theirs).min())
    with capsys.disabled():
        print(
            f"\n{name}: least cosine {likeness:.6f} with our weights, {cosines(ours, original).min():.6f} with the "
            "original ones"
        )
    record_property("cosine", likeness)
    assert likeness >= 0.9999, f"seed {SEED}"
    if checkpoint.spec.classifier:
        top = np.sort(theirs, axis=1)
        clear = top[:, -1] - top[:, -2] > 0.01 * (top[:, -1] - top[:, 0])
        assert clear.sum() > TOKENS // 2
        assert (ours.argmax(axis=1) == theirs.argmax(axis=1))[clear].all(), f"seed {SEED}"
