"""`tilewright embed`: vectors of texts, from an encoder."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tilewright.api import Check, Model, read_model
from tilewright.calibration import FIRST_ROWS
from tilewright.cli.options import Commands, add_device, add_formats, add_output, command, examples
from tilewright.cli.progress import Progress
from tilewright.cli.session import Setup, check_line, open_model
from tilewright.model import Floats
from tilewright_hw.arch import InputError

EXAMPLES = examples(
    ('tilewright embed path/to/all-MiniLM-L6-v2 --text "a sentence"', "its vector, on the golden model"),
    (
        "tilewright embed path/to/folder --text - --device rtl --check --json < lines.txt",
        "a vector of each line, on the simulated gateware, compared bit for bit",
    ),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "embed", run, "make vectors of texts", EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder of a BERT or sentence-transformers encoder")
    parser.add_argument(
        "--text", action="append", required=True, metavar="TEXT|-",
        help="a text; may be given several times; -: each line of stdin is one",
    )  # fmt: skip
    add_formats(parser)
    add_device(parser, default="golden")
    parser.add_argument("--check", action="store_true", help="run the golden model beside it and compare memory images")
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the vectors; 1 if --check found a difference."""
    setup = Setup.check(arguments)
    texts = read_texts(arguments.text)
    progress = Progress(arguments.quiet)
    checkpoint, tokenizer = read_model(arguments.model, arguments.tokenizer, arguments.context)
    if checkpoint.spec.causal:
        raise InputError(f"{arguments.model} continues texts (tilewright generate): only an encoder makes vectors")
    with open_model(arguments, setup, checkpoint, tokenizer, progress) as model:
        ids = [model.text_ids(text) for text in texts]
        with progress.stage(f"{len(texts)} texts of {sum(len(i) for i, _ in ids)} tokens encoded"):
            vectors = model.embed(texts)
        check = model.compare()
        if arguments.json:
            print(json.dumps(_report(model, ids, vectors, check)))
        else:
            for vector in vectors:
                print(" ".join(f"{value:.9g}" for value in vector))
        if cut := sum(was_cut for _, was_cut in ids):
            progress.note(f"{cut} texts were cut to {model.recipe.max_tokens if model.recipe else 0} tokens")
        if check is not None:
            progress.note(check_line(check, model.device.name, "vectors"))
    return 0 if check is None or check.exact else 1


def read_texts(words: list[str]) -> list[str]:
    """Return the texts; `-` stands for the lines of stdin."""
    texts: list[str] = []
    for word in words:
        if word != "-":
            texts.append(word)
            continue
        try:
            texts += sys.stdin.buffer.read().decode("utf-8").splitlines()
        except UnicodeDecodeError as e:
            raise InputError(f"the texts on stdin must be UTF-8: {e.reason} at byte {e.start}") from e
    if not texts:
        raise InputError("there must be at least one text")
    return texts


def _report(model: Model, ids: list[tuple[list[int], bool]], vectors: Floats, check: Check | None) -> dict[str, Any]:
    """Return the object that --json prints."""
    assert model.recipe is not None
    return {
        "schema_version": 1,
        "model": model.name,
        "device": model.device.name,
        "config": model.device.config.name,
        "weights": model.formats.weights,
        "activations": model.formats.activations,
        "overrides": dict(model.formats.overrides),
        "first_row": FIRST_ROWS[model.spec.first_rows],
        "poolings": list(model.recipe.poolings),
        "normalised": model.recipe.normalise,
        "dim": vectors.shape[1],
        "tokens": [len(i) for i, _ in ids],
        "cut": [was_cut for _, was_cut in ids],
        "embeddings": [[float(value) for value in vector] for vector in vectors],
        "cycles": model.engine.counters["CYCLES"],
        "seconds": model.device.seconds,
        "bit_exact": None if check is None else check.exact,
    }
