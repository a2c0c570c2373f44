"""`tilewright compile`: a model's weights, tables, programs and tokenizer in one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from tilewright.api import check_fits, read_model, settle
from tilewright.calibration import check_quantiser
from tilewright.cli.options import Commands, add_model, command, configuration, examples, formats
from tilewright.cli.progress import Progress
from tilewright.cli.session import calibrate, note_loss
from tilewright.compiled import save
from tilewright_hw.arch import InputError

EXAMPLES = examples(
    (
        "tilewright compile path/to/folder -o model.twi",
        "for the default accelerator; then: tilewright generate model.twi",
    ),
    (
        "tilewright compile path/to/folder --config edge --weights int4 --context 512 -o small.twi",
        "for another one, in four bits, with room for 512 tokens",
    ),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "compile", run, "quantise and lay out a model once, into one file", EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "--config", metavar="NAME|FILE.toml", help="preset or TOML file of the accelerator (default: default)"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the file to write; an older one is replaced at the end"
    )
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")


def run(arguments: argparse.Namespace) -> int:
    """Compile, and print the file's path."""
    config, wanted = configuration(arguments), formats(arguments)
    check_quantiser(arguments.quantiser, arguments.calibration, arguments.first_row)
    output = Path(arguments.output)
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise InputError(f"{output} must be a file in a folder that exists")
    progress = Progress(arguments.quiet)
    with progress.stage("checkpoint read and checked"):
        checkpoint, tokenizer = read_model(arguments.model, arguments.tokenizer, arguments.context)
        config, wanted = settle(checkpoint, config, wanted)
        check_fits(checkpoint.spec, config, None, wanted)
    checkpoint, quantiser = calibrate(arguments, checkpoint, tokenizer, progress)
    with progress.stage(f"model {checkpoint.name} compiled for {config.name}") as stage:
        size = save(output, checkpoint, tokenizer, config, wanted, stage.update, quantiser)
    note_loss(quantiser, progress)
    progress.note(f"{size:,} bytes")
    print(output)
    return 0
