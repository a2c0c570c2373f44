"""GGUF files beside llama.cpp itself: its tokens of texts, its probabilities, its greedy continuations.

Needs the extra compare.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import families
import gguf_files
import numpy as np
import pytest

from tilewright.api import BUILTIN, read_model
from tilewright.importers.gguf.vocabulary import PRE_TOKENIZERS
from tilewright.reference import Reference

xllamacpp = pytest.importorskip("xllamacpp", reason="needs the extra [compare]")
pytestmark = pytest.mark.slow
Ask = Callable[[str, dict[str, Any]], dict[str, Any]]
TEXTS = [
    "", " ", "a", "Once upon a time, there was a little girl named Lily.", "  two  spaces\n\n\tand a tab ",
    "x \n \n y\r\n", "über Straße 東京 🙂 naïve Ελληνικά русский हिन्दी", "1234567 12 don't I'LL we're you'Ve 'tis",
    "HTMLPage//\n/**/ a+=b;", "a\u0301\u200d\x7f", "under_score -- em—dash… “quotes”",
]  # fmt: skip


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Ask]]:
    """Open a file in llama.cpp's server, and return what asks it."""
    servers = []

    def opened(path: Path) -> Ask:
        parameters = xllamacpp.CommonParams()
        parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(path), 256, 1
        parameters.warmup, parameters.cpuparams.n_threads = False, 2
        server = xllamacpp.Server(parameters)
        servers.append(server)

        def ask(what: str, body: dict[str, Any]) -> dict[str, Any]:
            where = f"{server.listening_address}/{what}"
            request = urllib.request.Request(where, json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return dict(json.load(answer))

        return ask

    yield opened
    servers.clear()


def samples(seed: int) -> list[str]:
    """Return the texts above, and random ones of letters, digits, spaces and marks."""
    random = np.random.default_rng(seed)
    alphabet = list("etaoinshrdlu ETAOIN  \n'.,;-_/0123456789éßñ€東京я")
    return TEXTS + ["".join(random.choice(alphabet, 60)) for _ in range(30)]


def tokens_agree(ask: Ask, path: Path) -> None:
    tokenizer = read_model(path)[1]
    for text in samples(5):
        theirs = ask("tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"]
        assert tokenizer.encode(text) == theirs, text


def continuations_agree(ask: Ask, path: Path, prompt: str, tolerance: float) -> None:
    """Compare logarithms of probabilities, and what they choose; here in floating point, there nearly so."""
    checkpoint, tokenizer = read_model(path)
    ids = tokenizer.encode(prompt)
    count = min(40, checkpoint.spec.context - len(ids) - 1)
    body = {"prompt": ids, "n_predict": count, "temperature": 0, "top_k": 1, "n_probs": 5, "cache_prompt": False,
            "ignore_eos": True}  # fmt: skip
    found = ask("completion", body)["completion_probabilities"]
    assert len(found) == count
    logits = Reference(checkpoint).logits([*ids, *(step["id"] for step in found)]).astype(np.float64)
    rows = logits - np.log(np.exp(logits).sum(axis=1))[:, None]
    for row, step in zip(rows[len(ids) - 1 :], found, strict=False):
        assert row[step["id"]] >= np.delete(row, list(tokenizer.eos)).max() - tolerance
        for other in step["top_logprobs"]:
            assert row[other["id"]] == pytest.approx(other["logprob"], abs=tolerance)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma"])
def test_families(family: str, tmp_path: Path, serve: Callable[[Path], Ask]) -> None:
    folder = gguf_files.give_letters(families.write(family, tmp_path / family))
    file = gguf_files.convert(folder, tmp_path / "model.gguf")
    continuations_agree(serve(file), file, "hello", 0.01)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("F32", 0.01), ("F16", 0.02), ("BF16", 0.1), ("Q8_0", 0.2), ("Q4_0", 0.2)]
)
def test_types_of_tensors(
    kind: str, tolerance: float, shared_data: Path, tmp_path: Path, serve: Callable[[Path], Ask]
) -> None:
    """llama.cpp rounds the rows that it multiplies to the type of the matrix, to Q8_0 where that is quantised."""
    model, tokenizer = shared_data / "stories260K.bin", shared_data / "tok512.bin"
    file = gguf_files.convert_llama2c(model, tokenizer, tmp_path / "model.gguf", kind)
    ask = serve(file)
    continuations_agree(ask, file, "Once upon a time", tolerance)
    tokens_agree(ask, file)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_splits(pre: str, tmp_path: Path, serve: Callable[[Path], Ask]) -> None:
    file = gguf_files.convert(BUILTIN, tmp_path / "model.gguf", pre=pre)
    tokens_agree(serve(file), file)
