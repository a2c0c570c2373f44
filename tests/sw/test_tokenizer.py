"""Text to ids and back."""

import itertools
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.api import BUILTIN
from tilewright.tokenizer import HuggingFaceTokenizer, Llama2cTokenizer, load_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
BUILTIN_TOKENIZER = load_tokenizer(BUILTIN, 1024)


@pytest.fixture(scope="module")
def byte_tokenizer(llama2c_file: Path) -> Llama2cTokenizer:
    return Llama2cTokenizer(llama2c_file.parent / "tok.bin")


@given(TEXT)
def test_the_builtin_models_tokenizer(text: str) -> None:
    ids = BUILTIN_TOKENIZER.encode(text)
    assert ids[0] == BUILTIN_TOKENIZER.bos
    assert ids.count(0) == 1
    assert BUILTIN_TOKENIZER.decode(ids) == text


def test_special_ids_come_from_the_configuration(hf_folder: Path) -> None:
    tokenizer = load_tokenizer(hf_folder, 258)
    assert tokenizer.bos == 256
    assert tokenizer.eos == {257}
    assert tokenizer.encode("ab")[0] == 256
    assert len(tokenizer.encode("ab")) == 3
    assert tokenizer.decode([256, *tokenizer.encode("ab")[1:], 257]) == "ab"


def test_without_bos(hf_folder: Path) -> None:
    tokenizer = HuggingFaceTokenizer(hf_folder / "tokenizer.json", None, frozenset())
    assert len(tokenizer.encode("ab")) == 2
    assert tokenizer.encode("") == []


def test_an_unfinished_character_is_replaced(hf_folder: Path) -> None:
    tokenizer = load_tokenizer(hf_folder, 258)
    ids = tokenizer.encode("é")
    assert tokenizer.decode(ids[:-1]) == "\ufffd"
    assert tokenizer.decode(ids) == "é"


@pytest.mark.parametrize("text", ["hello", "hello hello", "", "Zoë", "日本", "tab\tand\nline", "  two"])
def test_llama2c_round_trip(byte_tokenizer: Llama2cTokenizer, text: str) -> None:
    ids = byte_tokenizer.encode(text)
    assert ids[0] == 1
    assert byte_tokenizer.decode(ids) == text


def test_llama2c_merges_the_best_pair_first(byte_tokenizer: Llama2cTokenizer) -> None:
    pieces = [byte_tokenizer.pieces[i] for i in byte_tokenizer.encode("hello")[1:]]
    assert pieces == [b" ", b"he", b"ll", b"o"]


def test_llama2c_falls_back_to_bytes(byte_tokenizer: Llama2cTokenizer) -> None:
    assert byte_tokenizer.encode("é")[2:] == [0xC3 + 3, 0xA9 + 3]


def test_the_tokenizer_beside_the_file_with_the_right_size(tmp_path: Path) -> None:
    model = checkpoints.write_llama2c(tmp_path)
    (tmp_path / "tok_other.bin").write_bytes(checkpoints.llama2c_tokenizer(checkpoints.WORDS[:3]))
    (tmp_path / "tok_broken.bin").write_bytes(b"\1\0\0\0xyz")
    assert load_tokenizer(model, checkpoints.VOCAB).vocab == checkpoints.VOCAB


def test_another_tokenizer_by_name(llama2c_file: Path, hf_folder: Path) -> None:
    tokenizer = load_tokenizer(llama2c_file, checkpoints.VOCAB, hf_folder / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert tokenizer.bos == 256


def test_the_shared_tokenizer_gives_the_reference_ids(shared_data: Path, stories_reference: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(shared_data / "stories260K.bin", 512)
    for case in stories_reference["greedy"]:
        ids = case["token_ids"]
        assert tokenizer.encode(case["prompt"]) == ids[: case["prompt_tokens"]]
        assert tokenizer.decode(ids) == case["text"]
    text = (shared_data / "tinyshakespeare.txt").read_text()[:2000]
    assert len(tokenizer.encode(text)) - 1 == stories_reference["cross_entropy"]["tinyshakespeare.txt[:2000]"]["tokens"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merging_is_the_one_that_looks_for_the_best_pair_each_time(llama2c_file: Path) -> None:
    """Against the definition, which takes quadratic time; scores tie often, so the first of equals matters."""
    tokenizer = load_tokenizer(llama2c_file, checkpoints.VOCAB)
    assert isinstance(tokenizer, Llama2cTokenizer)
    random = np.random.default_rng(7)
    print("seed 7")
    for _ in range(50):
        text = "".join(random.choice(list("hello he lcab"), random.integers(1, 60)))
        ids = [tokenizer.pieces.index(c.encode()) for c in " " + text]
        while True:
            pairs = [tokenizer.pieces[a] + tokenizer.pieces[b] for a, b in itertools.pairwise(ids)]
            scores = [tokenizer.scores[tokenizer.pieces.index(p)] if p in tokenizer.pieces else -1e10 for p in pairs]
            if not scores or max(scores) <= -1e10:
                break
            at = int(np.argmax(scores))
            ids[at : at + 2] = [tokenizer.pieces.index(pairs[at])]
        assert tokenizer.encode(text) == [1, *ids], text
