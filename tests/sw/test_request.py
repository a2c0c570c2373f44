"""What a generation is asked: options, and the defaults of generation_config.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from console import Done

import tilewright as tw
from tilewright.files import FolderFiles
from tilewright.request import check_request, read_defaults
from tilewright.sampling import Sampling
from tilewright_hw.arch import InputError


def folder(path: Path, config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "generation_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.7, "top_k": 5, "do_sample": False}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.9, "num_beams": 1},
         {"temperature": 0.7, "top_k": 0, "top_p": 0.9}),
        ({"do_sample": False, "repetition_penalty": 1.1, "top_p": None}, {"repetition_penalty": 1.1}),
    ],
)  # fmt: skip
def test_defaults_of_a_model(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read_defaults(FolderFiles(folder(tmp_path, config))) == expected


def test_no_file_no_defaults(tmp_path: Path) -> None:
    assert read_defaults(FolderFiles(tmp_path)) == {}
    assert check_request(3).sampling == Sampling()


def test_what_is_given_counts_before_the_defaults() -> None:
    defaults = {"temperature": 0.7, "top_k": 40, "repetition_penalty": 1.2}
    found = check_request(3, defaults, temperature=0.0, top_k=None, seed=4).sampling
    assert found == Sampling(temperature=0.0, top_k=40, repetition_penalty=1.2, seed=4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_sample": True, "temperature": "hot"}, "temperature must be a number from 0 on, not 'hot'"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0, not 0"),
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_bad_defaults_are_refused(tmp_path: Path, refused: Callable[..., str], config: Any, message: str) -> None:
    checkpoints.write_huggingface(tmp_path)
    error = refused("generate", folder(tmp_path, config), "--prompt", "a", "--device", "golden")
    assert message in error
    assert "generation_config.json" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_tokens": [258]}, "stop_tokens must be 0 to 257, not 258"),
        ({"stop_tokens": [-1]}, "stop_tokens must be 0 to 257, not -1"),
        ({"stop_tokens": ["a"]}, "stop_tokens must be 0 to 257, not 'a'"),
        ({"stop_tokens": 3}, "stop_tokens must be a list, not 3"),
        ({"stop": [""]}, "none of them empty"),
        ({"stop": 3}, "stop must be a list, not 3"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0, not 0"),
        ({"repetition_penalty": True}, "repetition_penalty must be a number above 0, not True"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_request(3, vocab=258, **options)


def test_a_models_defaults_reach_its_text(tmp_path: Path, hf_folder: Path) -> None:
    checkpoints.write_huggingface(tmp_path)
    folder(tmp_path, {"do_sample": True, "temperature": 1.5, "top_k": 0, "repetition_penalty": 1.3})
    options = {"max_new_tokens": 8, "seed": 3}
    with tw.load(tmp_path) as model, tw.load(hf_folder) as plain:
        found = model.generate("ab", **options)  # type: ignore[arg-type]
        same = plain.generate("ab", temperature=1.5, repetition_penalty=1.3, **options)  # type: ignore[arg-type]
        greedy = model.generate("ab", temperature=0, repetition_penalty=1, **options)  # type: ignore[arg-type]
        without = plain.generate("ab", **options)  # type: ignore[arg-type]
    for made in (found, same, greedy, without):
        assert isinstance(made, tw.Generation)
    assert found.token_ids == same.token_ids  # type: ignore[union-attr]
    assert found.token_ids != greedy.token_ids == without.token_ids  # type: ignore[union-attr]
    assert found.sampling == Sampling(temperature=1.5, repetition_penalty=1.3, seed=3)  # type: ignore[union-attr]


def test_stop_tokens_end_a_text(hf_folder: Path) -> None:
    with tw.load(hf_folder, check=True) as model:
        free = model.generate("ab", max_new_tokens=8)
        assert isinstance(free, tw.Generation)
        at = next(i for i, token in enumerate(free.token_ids) if token not in free.token_ids[:i] and i > 2)
        made = model.generate("ab", max_new_tokens=8, stop_tokens=[free.token_ids[at]])
        together = model.generate(["ab", "b"], max_new_tokens=8, stop_tokens=[free.token_ids[at]])
    assert isinstance(made, tw.Generation)
    assert (made.token_ids, made.finish_reason) == (free.token_ids[:at], "stop")
    assert isinstance(together, list)
    assert together[0].token_ids == made.token_ids


def test_a_repetition_penalty_ends_repetition(hf_folder: Path) -> None:
    """A greedy text of random weights repeats itself; with a large penalty no token comes twice."""
    with tw.load(hf_folder, check=True) as model:
        free = model.generate("ab", max_new_tokens=14)
        made = model.generate("ab", max_new_tokens=14, repetition_penalty=1e6)
        assert isinstance(made, tw.Generation)
        assert isinstance(free, tw.Generation)
        assert made.check is not None
        assert made.check.exact
    assert len(set(free.token_ids)) < 14
    assert len({*model.tokenizer.encode("ab"), *made.token_ids}) == 17  # type: ignore[union-attr]


def test_options_of_the_command(command: Callable[..., Done], hf_folder: Path) -> None:
    words = (
        "generate",
        hf_folder,
        "--prompt",
        "ab",
        "--device",
        "golden",
        "--max-new-tokens",
        "8",
        "--json",
        "--quiet",
    )
    free = json.loads(command(*words).out)["token_ids"]
    found = json.loads(command(*words, "--stop-token", free[4], "--stop-token", "0").out)
    assert found["token_ids"] == free[: min(i for i, t in enumerate(free) if t in (free[4], 0))]
    penalised = json.loads(command(*words, "--repetition-penalty", "1e6").out)
    assert penalised["sampling"]["repetition_penalty"] == 1e6
    assert len(set(penalised["token_ids"])) == 8
