"""`tilewright eval`: cross-entropy of a text, in the accelerator's arithmetic and in float32."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tilewright.api import check_fits, read_model
from tilewright.cli.options import Commands, add_config, add_model, add_output, command, examples, formats
from tilewright.cli.progress import Progress
from tilewright.cli.table import pairs
from tilewright.devices import open_device
from tilewright.evaluate import Quality, evaluate, windows
from tilewright.formats import DEFAULT
from tilewright.runtime import Engine
from tilewright_hw.arch import AcceleratorConfig, InputError

MAX_TEXT = 1 << 30
"""Bytes of the largest text that is read."""
EXAMPLES = examples(
    ("tilewright eval --text book.txt --tokens 2000", "the built-in model on the first 2,000 tokens of a text"),
    ("tilewright eval path/to/folder --text book.txt --window 256 --json", "another model, as JSON"),
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
    add_config(parser)
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    config = AcceleratorConfig.resolve(arguments.config)
    if arguments.tokens is not None and arguments.tokens < 1:
        raise InputError(f"tokens must be at least 1, not {arguments.tokens}")
    wanted = formats(arguments) or DEFAULT
    text = read_text(Path(arguments.text))
    checkpoint, tokenizer = read_model(arguments.model, arguments.tokenizer, arguments.context)
    if checkpoint.stored is not None:
        raise InputError(f"{arguments.model} is compiled: give the checkpoint, whose own weights are the measure")
    window = min(checkpoint.spec.context, 256) if arguments.window is None else arguments.window
    if window > checkpoint.spec.context:
        raise InputError(f"window must be at most the model's context of {checkpoint.spec.context}, not {window}")
    parts = windows(tokenizer, text, window)
    if arguments.tokens is not None:
        parts = parts[: -(-arguments.tokens // (window - 1))]
    check_fits(checkpoint.spec, config, None, wanted)
    progress = Progress(arguments.quiet)
    with progress.stage(f"model {checkpoint.name} quantised and loaded") as stage:
        engine = Engine(checkpoint, open_device("golden", config), progress=stage.update, formats=wanted)
    with progress.stage(f"{len(parts)} windows of {window} tokens predicted") as stage:
        quality = evaluate(engine, checkpoint, parts, stage.update)
    if arguments.json:
        head = {"schema_version": 1, "model": checkpoint.name, "text": arguments.text, "weights": wanted.weights}
        head |= {"activations": wanted.activations, "overrides": dict(wanted.overrides)}
        print(json.dumps(head | quality.to_dict()))
    else:
        print(_table(quality, f"{wanted.weights} weights, {wanted.activations} bits"))
    return 0


def read_text(path: Path) -> str:
    """Return a text file's content; InputError if it is absent, absurdly large, empty or not UTF-8."""
    try:
        if path.stat().st_size > MAX_TEXT:
            raise InputError(f"{path} must be at most {MAX_TEXT >> 20} MiB, not {path.stat().st_size} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path} must be UTF-8: {e.reason} at byte {e.start}") from e
    if not text:
        raise InputError(f"{path} must not be empty")
    return text


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
