"""The forward pass in floating point: against an independent one for Llama, and property by property for the others."""

from pathlib import Path

import checkpoints
import families
import numpy as np
import pytest
import reference as independent

from tilewright.importers import load_checkpoint
from tilewright.reference import Reference, cross_entropy, rotary_frequencies

IDS = [3, 250, 17, 96, 97, 5, 0, 255, 44]


def test_a_llama_equals_an_independent_one(hf_folder: Path, llama2c_file: Path) -> None:
    for path, other in (
        (hf_folder, independent.from_huggingface(hf_folder)),
        (llama2c_file, independent.from_llama2c(llama2c_file)),
    ):
        ids = [i % checkpoints.VOCAB for i in IDS]
        found = Reference(load_checkpoint(path), np.float64).logits(ids)
        np.testing.assert_allclose(found, other(ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", sorted(families.CONFIGS))
def test_later_tokens_are_seen_only_where_there_is_no_mask(family: str, tmp_path: Path) -> None:
    model = Reference(load_checkpoint(families.write(family, tmp_path)), np.float64)
    whole, part = model.hidden(IDS), model.hidden(IDS[:4])
    assert np.allclose(whole[:4], part, rtol=1e-10) == model.spec.causal


def test_float32_is_near_float64(tmp_path: Path) -> None:
    for family in families.CONFIGS:
        checkpoint = load_checkpoint(families.write(family, tmp_path / family))
        wide, narrow = Reference(checkpoint, np.float64).hidden(IDS), Reference(checkpoint).hidden(IDS)
        assert narrow.dtype == np.float32
        np.testing.assert_allclose(narrow, wide, rtol=2e-3, atol=2e-4, err_msg=family)


def test_gelu_is_the_exact_one(tmp_path: Path) -> None:
    """One BERT feed-forward network by hand."""
    checkpoint = load_checkpoint(families.write("bert", tmp_path))
    x = np.random.default_rng(2).normal(size=(3, 24))
    raw = {n: v.astype(np.float64) for n, v in families.tensors("bert").items()}
    y = x @ raw["encoder.layer.1.intermediate.dense.weight"].T + raw["encoder.layer.1.intermediate.dense.bias"]
    t = np.linspace(-9, 9, 400_001)
    cdf = np.cumsum(np.exp(-t * t / 2)) * (t[1] - t[0]) / np.sqrt(2 * np.pi)
    y = y * np.interp(y, t, cdf)
    expected = y @ raw["encoder.layer.1.output.dense.weight"].T + raw["encoder.layer.1.output.dense.bias"]
    np.testing.assert_allclose(Reference(checkpoint, np.float64)._feed_forward("layers.1.", x), expected, atol=1e-4)


def test_llama3_scaling_of_the_frequencies(tmp_path: Path) -> None:
    """Fast pairs keep their frequency, slow ones turn `factor` times slower, and it falls throughout."""
    spec = load_checkpoint(families.write("llama", tmp_path, head_dim=16)).spec
    plain = 1000.0 ** (-np.arange(8) / 8)
    found = rotary_frequencies(spec)
    turns = 16 * plain / (2 * np.pi)
    assert np.allclose(found[turns < 1], plain[turns < 1] / 8)
    assert np.allclose(found[turns > 4], plain[turns > 4])
    assert (np.diff(found) < 0).all()
    assert ((found > plain / 8) & (found < plain))[(turns > 1) & (turns < 4)].all()


def test_observers_see_the_inputs_of_matrices(hf_folder: Path) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    model = Reference(load_checkpoint(hf_folder), observe=lambda name, x: seen.update({name: x.shape}))
    model.logits(IDS)
    shapes = model.spec.tensor_shapes()
    assert seen == {n: (len(IDS), s[1]) for n, s in shapes.items() if len(s) == 2 and n != "embedding"}


def test_cross_entropy() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    assert cross_entropy(logits, [0, 1]) == pytest.approx(-np.log(0.5) - np.log(0.8))


def test_a_model_without_classifier_has_no_logits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no classifier"):
        Reference(load_checkpoint(families.write("bert", tmp_path))).logits(IDS)
