"""Quantisers by name: what compensation is told of each matrix, and that it helps on the rows that it saw."""

from pathlib import Path

import encoders
import families
import numpy as np
import pytest

from tilewright.api import read_model
from tilewright.calibration import quantiser_for, texts
from tilewright.error_feedback import compensate_int8
from tilewright.formats import Formats, quantise_int8
from tilewright.importers import load_checkpoint
from tilewright.quantisers import Compensated, Plain, make, observe
from tilewright.reference import Reference
from tilewright.tokenizer import load_tokenizer
from tilewright_hw.arch import InputError


def test_int8_with_compensation_serves_the_inputs_it_was_given() -> None:
    random = np.random.default_rng(0)
    w = random.normal(size=(24, 96)).astype(np.float32)
    x = random.normal(size=(300, 24)) @ random.normal(size=(24, 96)) + 0.1 * random.normal(size=(300, 96))
    errors = []
    for q, s in (quantise_int8(w), compensate_int8(w, x.T @ x)):
        assert q.dtype == np.int8
        assert np.abs(q.astype(int)).max() <= 127
        errors.append(np.sum((x @ (q * s[:, None] - w).T) ** 2))
    assert errors[1] < 0.5 * errors[0]
    with pytest.raises(InputError, match=r"moments must be of shape \(96, 96\), not \(3, 3\)"):
        compensate_int8(w, np.eye(3))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_moments_are_those_of_every_matrix_s_inputs(tmp_path: Path, family: str) -> None:
    families.write(family, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    ids = [[1, 5, 3, 2], [7, 4]]
    seen: dict[str, list[np.ndarray]] = {}
    reference = Reference(checkpoint, observe=lambda name, rows: seen.setdefault(name, []).append(rows))
    for each in ids:
        _ = reference.logits(each) if checkpoint.spec.classifier else reference.hidden(each)
    steps: list[tuple[int, int]] = []
    moments = observe(checkpoint, ids, lambda *done: steps.append(done))
    assert steps == [(1, 2), (2, 2)]
    assert moments.keys() == {name for name in seen if not name.endswith((".wk", ".wv"))}
    for name, found in moments.items():
        rows = np.concatenate(seen[name])
        np.testing.assert_allclose(found, rows.T @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["layers.0.qkv", "layers.0.q", "layers.0.v"])
def test_queries_keys_and_values_have_one_input(name: str, tmp_path: Path) -> None:
    families.write("llama", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    made = make("compensate", checkpoint, lambda: [[1, 2, 3]])
    assert isinstance(made, Compensated)
    w = np.random.default_rng(0).normal(size=(6, checkpoint.spec.dim)).astype(np.float32)
    expected = compensate_int8(w, made.moments["layers.0.wq"].astype(np.float64))
    for got, wanted in zip(made.int8(name, w), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_padded_heads_have_weights_of_zero(tmp_path: Path) -> None:
    """A head of 12 channels takes 16 inputs of wo on some configurations."""
    families.write("llama", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    spec = checkpoint.spec
    wo = checkpoint.tensor("layers.0.wo").reshape(spec.dim, spec.heads, spec.head_dim)
    padded = np.pad(wo, ((0, 0), (0, 0), (0, 4))).reshape(spec.dim, -1)
    made = make("compensate", checkpoint, lambda: [[1, 2, 3, 4, 5, 6, 7]])
    q = made.int8("layers.0.wo", padded)[0].reshape(spec.dim, spec.heads, -1)
    assert not q[..., spec.head_dim :].any()
    np.testing.assert_array_equal(
        q[..., : spec.head_dim].reshape(spec.dim, -1), made.int8("layers.0.wo", wo.reshape(spec.dim, -1))[0]
    )


def test_plain_quantisers_look_at_no_text(hf_folder: Path) -> None:
    checkpoint = load_checkpoint(hf_folder)

    def texts() -> list[list[int]]:
        raise AssertionError

    w = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    parts = [make(name, checkpoint, texts) for name in ("round", "search")]
    errors = [
        np.sum((np.repeat(g, 32, axis=1) * q * s[:, None] - w) ** 2) for q, g, s in (p.int4("", w) for p in parts)
    ]
    assert errors[1] < errors[0]
    assert isinstance(parts[0], Plain)
    with pytest.raises(InputError, match="quantiser must be one of round, search, compensate, not 'best'"):
        make("best", checkpoint, texts)


def test_a_quantiser_by_blocks_of_rows_gives_the_same(hf_folder: Path) -> None:
    w = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    plain = Plain()
    assert not plain.whole
    for make_parts in (plain.int8, plain.int4):
        halves = [np.concatenate(pair) for pair in zip(make_parts("", w[:4]), make_parts("", w[4:]), strict=True)]
        for got, wanted in zip(halves, make_parts("", w), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_texts_of_an_encoder_are_sentences(tmp_path: Path) -> None:
    checkpoint, tokenizer = read_model(encoders.write(tmp_path))
    found = texts(checkpoint, tokenizer, "The cat sat. The dog ran!  It was happy\n\nin the park; and a mat\n")
    assert [len(ids) for ids in found] == [6, 6, 5, 6, 5]
    assert all((ids[0], ids[-1]) == (encoders.CLS, encoders.SEP) for ids in found)


def test_texts_are_windows_and_need_a_tokenizer(hf_folder: Path) -> None:
    checkpoint, tokenizer = load_checkpoint(hf_folder), load_tokenizer(hf_folder, 258)
    window = min(256, checkpoint.spec.context)
    assert all(len(t) <= window for t in texts(checkpoint, tokenizer, "a long text " * 30))
    with pytest.raises(InputError, match="needs a tokenizer"):
        quantiser_for("compensate", checkpoint, None)
    assert Formats(weights="int4").of("classifier") == "int4"
