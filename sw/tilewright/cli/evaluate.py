"""`tilewright eval`: cross-entropy of a text (of an encoder: vectors), in the accelerator's arithmetic and float32."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tilewright.api import Model, check_fits, read_model
from tilewright.calibration import FIRST_ROWS, check_quantiser, read_text
from tilewright.cli.options import Commands, add_config, add_model, add_output, command, examples, formats
from tilewright.cli.progress import Progress
from tilewright.cli.session import calibrate, note_loss
from tilewright.cli.table import pairs
from tilewright.devices import open_device
from tilewright.evaluate import Quality, evaluate, select, windows
from tilewright.formats import DEFAULT, Formats
from tilewright.likeness import compare_vectors
from tilewright.model import Checkpoint
from tilewright.requantise import Measured
from tilewright.runtime import Engine
from tilewright.tokenizer import Tokenizer
from tilewright_hw.arch import AcceleratorConfig, InputError

EXAMPLES = examples(
    ("tilewright eval --text book.txt --tokens 2000", "the built-in model on the first 2,000 tokens of a text"),
    ("tilewright eval path/to/folder --text book.txt --window 256 --json", "another model, as JSON"),
    ("tilewright eval path/to/encoder --text lines.txt", "an encoder: cosines between the vectors of each line"),
    ("tilewright eval --text book.txt --weights int4 --quantiser compensate", "four bits, with the best quantiser"),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "eval", run, "measure how well a model predicts a text, beside float32", EXAMPLES)
    add_model(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="the text, UTF-8")
    parser.add_argument(
        "--window", type=int, metavar="N", help="tokens seen at most (default: the context, 256 at most)"
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="predict about so many tokens from the beginning (default: all)"
    )
    parser.add_argument(
        "--skip", type=int, default=0, metavar="N", help="leave out about so many tokens before (default: %(default)s)"
    )
    add_config(parser)
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    config = AcceleratorConfig.resolve(arguments.config)
    if arguments.tokens is not None and arguments.tokens < 1:
        raise InputError(f"tokens must be at least 1, not {arguments.tokens}")
    if arguments.skip < 0:
        raise InputError(f"skip must be 0 or more, not {arguments.skip}")
    wanted = formats(arguments) or DEFAULT
    check_quantiser(arguments.quantiser, arguments.calibration, arguments.first_row)
    text = read_text(arguments.text)
    checkpoint, tokenizer = read_model(arguments.model, arguments.tokenizer, arguments.context)
    if checkpoint.stored is not None:
        raise InputError(f"{arguments.model} is compiled: give the checkpoint, whose own weights are the measure")
    if not checkpoint.spec.classifier:
        return _vectors(arguments, config, wanted, checkpoint, tokenizer, text)
    window = min(checkpoint.spec.context, 256) if arguments.window is None else arguments.window
    if window > checkpoint.spec.context:
        raise InputError(f"window must be at most the model's context of {checkpoint.spec.context}, not {window}")
    parts = select(windows(tokenizer, text, window), arguments.skip, arguments.tokens)
    check_fits(checkpoint.spec, config, None, wanted)
    progress = Progress(arguments.quiet)
    checkpoint, quantiser = calibrate(arguments, checkpoint, tokenizer, progress)
    with progress.stage(f"model {checkpoint.name} quantised and loaded") as stage:
        device = open_device("golden", config)
        engine = Engine(checkpoint, device, progress=stage.update, formats=wanted, quantiser=quantiser)
    note_loss(quantiser, progress)
    with progress.stage(f"{len(parts)} windows of {window} tokens predicted") as stage:
        quality = evaluate(engine, checkpoint, parts, stage.update)
    if arguments.json:
        head = _head(arguments, wanted, checkpoint) | {"skip": arguments.skip}
        head["requantised"] = quantiser.to_dict() if isinstance(quantiser, Measured) else None
        print(json.dumps(head | quality.to_dict()))
    else:
        print(_table(quality, f"{wanted.weights} weights, {wanted.activations} bits"))
    return 0


def _vectors(
    arguments: argparse.Namespace, config: AcceleratorConfig, wanted: Formats, checkpoint: Checkpoint,
    tokenizer: Tokenizer, text: str,
) -> int:  # fmt: skip
    """Measure an encoder: each line of the text is a text of its own."""
    texts = [line for line in text.splitlines() if line.strip()]
    check_fits(checkpoint.spec, config, None, wanted)
    progress = Progress(arguments.quiet)
    checkpoint, quantiser = calibrate(arguments, checkpoint, tokenizer, progress)
    with progress.stage(f"model {checkpoint.name} quantised and loaded") as stage:
        device = open_device("golden", config)
        model = Model(checkpoint, tokenizer, device, progress=stage.update, formats=wanted, quantiser=quantiser)
    with progress.stage(f"{len(texts)} texts encoded") as stage:
        likeness = compare_vectors(model, checkpoint, texts, stage.update)
    if arguments.json:
        print(json.dumps(_head(arguments, wanted, checkpoint) | likeness.to_dict()))
    else:
        cells = [("texts", f"{len(texts)} of {sum(likeness.tokens)} tokens")]
        cells += [("least cosine to float32", f"{likeness.least:.5f}"), ("mean cosine", f"{likeness.mean:.5f}")]
        print(pairs(cells))
    return 0


def _head(arguments: argparse.Namespace, wanted: Formats, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "schema_version": 1, "model": checkpoint.name, "text": arguments.text, "weights": wanted.weights,
        "activations": wanted.activations, "kv": wanted.kv, "overrides": dict(wanted.overrides),
        "quantiser": arguments.quantiser, "calibration": arguments.calibration,
        "first_row": FIRST_ROWS[checkpoint.spec.first_rows],
    }  # fmt: skip


def _table(quality: Quality, formats: str) -> str:
    return pairs(
        [
            ("tokens predicted", f"{quality.tokens:,} in windows of {quality.window}"),
            ("cross-entropy, float32", f"{quality.cross_entropy_float:.4f} nats"),
            (f"cross-entropy, {formats}", f"{quality.cross_entropy:.4f} nats"),
            ("loss", f"{quality.loss:+.3%}"),
            ("perplexity, float32", f"{quality.perplexity_float:.3f}"),
            (f"perplexity, {formats}", f"{quality.perplexity:.3f}"),
        ]
    )
