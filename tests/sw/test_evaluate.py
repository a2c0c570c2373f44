"""Quality of a model: windows, and cross-entropy on the machine beside float32."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import encoders
import numpy as np
import pytest
import reference as independent
from console import Done

from tilewright.devices import open_device
from tilewright.evaluate import Quality, evaluate, select, windows
from tilewright.importers import load_checkpoint
from tilewright.runtime import Engine
from tilewright.tokenizer import load_tokenizer
from tilewright_hw.arch import InputError


def test_windows_cover_the_text_once(hf_folder: Path) -> None:
    tokenizer = load_tokenizer(hf_folder, 258)
    text = "abcdefghijklmnopq"
    parts = windows(tokenizer, text, 6)
    assert all(part[0] == tokenizer.bos and len(part) <= 6 for part in parts)
    assert "".join(tokenizer.decode(part[1:]) for part in parts) == text


@pytest.mark.parametrize(
    ("text", "window", "message"),
    [("abc", 1, "window must be at least 2 tokens, not 1"), ("", 8, "the text must have at least two tokens, not 1")],
)
def test_nothing_to_predict(hf_folder: Path, text: str, window: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        windows(load_tokenizer(hf_folder, 258), text, window)


def test_cross_entropies_against_an_independent_model(hf_folder: Path) -> None:
    checkpoint, tokenizer = load_checkpoint(hf_folder), load_tokenizer(hf_folder, 258)
    parts = windows(tokenizer, "Once upon a time there was a king", 12)
    model, total = independent.from_huggingface(hf_folder), 0.0
    for part in parts:
        model.reset()
        total += independent.cross_entropy(model(part[:-1]), part[1:])
    seen: list[tuple[int, int]] = []
    engine = Engine(checkpoint, open_device("golden", "tiny"))
    quality = evaluate(engine, checkpoint, parts, lambda *done: seen.append(done))
    assert quality.tokens == sum(len(part) - 1 for part in parts)
    assert quality.cross_entropy_float == pytest.approx(total / quality.tokens, rel=1e-5)
    assert quality.loss == pytest.approx(quality.cross_entropy / quality.cross_entropy_float - 1)
    assert 0 < abs(quality.loss) < 0.02
    assert seen == [(i + 1, len(parts)) for i in range(len(parts))]


def test_selected_windows_are_whole_ones_after_those_left_out() -> None:
    parts = [[0, *range(1 + 4 * i, 5 + 4 * i)] for i in range(6)]  # 4 predicted tokens each
    assert select(parts) == parts
    assert select(parts, 5, 6) == parts[2:4]
    assert select(parts, 8) == parts[2:]
    with pytest.raises(InputError, match="skip must leave a window: the text has 6 of 4 predicted tokens"):
        select(parts, 24)


def test_what_follows_from_cross_entropy() -> None:
    quality = Quality(tokens=10, window=5, cross_entropy=2.02, cross_entropy_float=2.0)
    assert quality.perplexity == pytest.approx(math.exp(2.02))
    assert quality.loss == pytest.approx(0.01)


def test_the_command(command: Callable[..., Done], hf_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("There was once a poor tailor, who had a son. " * 3)
    done = command("eval", hf_folder, "--text", text, "--window", "16", "--tokens", "30", "--config", "tiny", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["tokens"] == 30
    assert found["window"] == 16
    assert found["perplexity"] == pytest.approx(np.exp(found["cross_entropy"]))
    shown = command("eval", hf_folder, "--text", text, "--window", "16", "--tokens", "30", "--config", "tiny")
    assert f"{found['cross_entropy']:.4f} nats" in shown.out


def test_bad_texts(refused: Callable[..., str], hf_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "empty").write_bytes(b"")
    for name, message in (
        ("none", "cannot read"),
        ("latin", "must be UTF-8"),
        ("empty", "must not be empty"),
    ):
        assert message in refused("eval", hf_folder, "--text", tmp_path / name)
    (tmp_path / "good").write_text("abc")
    assert "window must be at most the model's context of 48, not 49" in refused(
        "eval", hf_folder, "--text", tmp_path / "good", "--window", "49"
    )


@pytest.mark.parametrize("quantiser", ["round", "search", "compensate"])
def test_quantisers_of_the_command(
    command: Callable[..., Done], hf_folder: Path, tmp_path: Path, quantiser: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("There was once a poor tailor, who had a son. " * 4)
    words = ["eval", hf_folder, "--text", text, "--window", "16", "--tokens", "30", "--config", "tiny", "--json"]
    words += ["--weights", "int4", "--quantiser", quantiser, *(["--calibration", text] * (quantiser == "compensate"))]
    done = command(*words)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["quantiser"], found["weights"], found["kv"]) == (quantiser, "int4", "int8")
    assert 0 < abs(found["loss"]) < 0.2
    assert json.loads(command(*words, "--skip", "30").out)["cross_entropy_float"] != found["cross_entropy_float"]


def test_bad_quantisers(refused: Callable[..., str], hf_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc")
    for words, message in (
        (("--quantiser", "magic"), "quantiser must be one of round, search, compensate, not 'magic'"),
        (("--calibration", text), "calibration texts go with the quantiser compensate, not search"),
        (("--quantiser", "compensate", "--calibration", tmp_path / "none"), "cannot read"),
        (("--kv", "int16"), "kv must be int8, not 'int16'"),
        (("--skip", "-1"), "skip must be 0 or more, not -1"),
    ):
        assert message in refused("eval", hf_folder, "--text", text, *words)


def test_an_encoder_is_measured_by_its_vectors(command: Callable[..., Done], tmp_path: Path) -> None:
    encoders.write(tmp_path / "encoder")
    text = tmp_path / "lines.txt"
    text.write_text("the cat sat\n\nit was very happy\n")
    done = command("eval", tmp_path / "encoder", "--text", text, "--json", "--quantiser", "compensate")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["tokens"] == [5, 6]
    assert found["cosine_least"] == min(found["cosines"])
    assert 0.99 < found["cosine_least"] < 1
    assert f"{found['cosine_mean']:.5f}" in command("eval", tmp_path / "encoder", "--text", text, "--quantiser",
                                                   "compensate").out  # fmt: skip
