"""What generate, demo and embed do alike: check everything, load the model with progress, stream a text, report it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tilewright.api import (
    Check,
    Generation,
    Model,
    check_continues,
    check_fits,
    prompt_ids,
    read_model,
    settle,
)
from tilewright.calibration import check_quantiser, first_rows_for, knows_first_rows, quantiser_for
from tilewright.cli.options import configuration, formats, memory_model, open_checked, sampling_options
from tilewright.cli.progress import Progress
from tilewright.devices import device_kind
from tilewright.formats import Formats
from tilewright.model import Checkpoint
from tilewright.quantisers import Quantiser, looks_at_texts
from tilewright.requantise import Measured
from tilewright.request import Options, check_request
from tilewright.tokenizer import Tokenizer
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.memory_model import MemoryModel


@dataclass(frozen=True)
class Setup:
    """Where and in which formats a model runs: what can be checked before any file is read.

    None: the defaults, or what the model was compiled for.
    """

    config: AcceleratorConfig | None
    memory: MemoryModel
    formats: Formats | None

    @classmethod
    def check(cls, arguments: argparse.Namespace) -> Setup:
        """Check the options; InputError says which is wrong."""
        config = configuration(arguments)
        device_kind(arguments.device)
        check_quantiser(arguments.quantiser, arguments.calibration, arguments.first_row)
        return Setup(config, memory_model(arguments.memory), formats(arguments))


@dataclass(frozen=True)
class Continuation(Setup):
    """The same, and how a text is to be continued."""

    max_new_tokens: int
    options: Options

    @classmethod
    def check(cls, arguments: argparse.Namespace) -> Continuation:
        """Check the options; InputError says which is wrong."""
        setup = Setup.check(arguments)
        options = sampling_options(arguments)
        check_request(arguments.max_new_tokens, **options)
        return cls(setup.config, setup.memory, setup.formats, arguments.max_new_tokens, options)


def load_model(
    arguments: argparse.Namespace, request: Continuation, prompt: str, progress: Progress, log_units: bool = False
) -> Model:
    """Read checkpoint and tokenizer, check the prompt and that the model fits, open the device, load: in this order."""
    checkpoint, tokenizer = read_model(arguments.model, arguments.tokenizer, arguments.context)
    check_continues(checkpoint)
    prompt_ids(prompt, checkpoint.spec, tokenizer)
    return open_model(arguments, request, checkpoint, tokenizer, progress, log_units)


def open_model(
    arguments: argparse.Namespace,
    setup: Setup,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    progress: Progress,
    log_units: bool = False,
) -> Model:
    """Check that a model fits, open the device, and load it there."""
    config, found = settle(checkpoint, setup.config, setup.formats)
    check_fits(checkpoint.spec, config, None, found)
    checkpoint, quantiser = calibrate(arguments, checkpoint, tokenizer, progress)
    with progress.stage(f"{arguments.device} device ({config.name}) opened") as stage:
        device = open_checked(arguments.device, config, setup.memory, stage.say, log_units)
    try:
        how = "quantised and loaded" if checkpoint.stored is None else "loaded"
        with progress.stage(f"model {checkpoint.name} {how}") as stage:
            model = Model(
                checkpoint, tokenizer, device, check=arguments.check, progress=stage.update, formats=found,
                quantiser=quantiser,
            )  # fmt: skip
        note_loss(quantiser, progress)
        return model
    except BaseException:
        device.close()
        raise


def calibrate(
    arguments: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer, progress: Progress
) -> tuple[Checkpoint, Quantiser]:
    """Return the model, its first rows known if the options say so, and their quantiser.

    What looks at texts runs the model on them.
    """
    name, calibration, how = arguments.quantiser, arguments.calibration, arguments.first_row
    if knows_first_rows(checkpoint, tokenizer, how):
        with progress.stage("first rows read by the model in float32") as stage:
            checkpoint = first_rows_for(checkpoint, tokenizer, how, calibration, stage.update)
    if not looks_at_texts(name, checkpoint):
        return checkpoint, quantiser_for(name, checkpoint, tokenizer)
    with progress.stage("calibration texts read by the model in float32") as stage:
        return checkpoint, quantiser_for(name, checkpoint, tokenizer, calibration, stage.update)


def note_loss(quantiser: Quantiser, progress: Progress) -> None:
    """Say what was lost where a file's weights were quantised anew."""
    if isinstance(quantiser, Measured):
        progress.note(str(quantiser))


def write_text(
    model: Model, request: Continuation, prompt: str, progress: Progress, emit: Callable[[str], None]
) -> Generation:
    """Generate, handing each piece of text to `emit` as it is made."""
    run = model.start(prompt, request.max_new_tokens, **request.options)
    pieces = iter(run)
    with progress.stage(f"prompt read ({len(run.prompt)} tokens)"):
        first = next(pieces, "")
    emit(first)
    for piece in pieces:
        emit(piece)
    return run.result()


def check_line(check: Check, device: str, results: str = "tokens") -> str:
    """Say whether the golden model produced the same bits."""
    tokens = f"the same {results}" if check.tokens_equal else f"OTHER {results.upper()}"
    if check.hash_device == check.hash_golden:
        image = f"the same memory image ({check.bytes_compared:,} bytes, sha256 {check.hash_device[:16]} on both)"
    else:
        image = (
            f"ANOTHER MEMORY IMAGE ({check.bytes_compared:,} bytes: sha256 {check.hash_device[:16]} on {device}, "
            f"{check.hash_golden[:16]} on golden)"
        )
    return f"{'bit-exact' if check.exact else 'MISMATCH'}: golden gave {tokens} and {image}"


def report(model: Model, request: Continuation, generation: Generation) -> dict[str, Any]:
    """Return the object that --json prints."""
    stats, check = generation.stats, generation.check
    return {
        "schema_version": 1,
        "text": generation.text,
        "token_ids": generation.token_ids,
        "prompt_tokens": stats.prompt_tokens,
        "new_tokens": stats.new_tokens,
        "finish_reason": generation.finish_reason,
        "device": model.device.name,
        "config": model.device.config.name,
        "cycles": stats.cycles,
        "cycles_per_token": stats.cycles_per_token,
        "bus_bytes_read": stats.bus_bytes_read,
        "bus_bytes_written": stats.bus_bytes_written,
        "bus_utilization": stats.bus_utilization,
        "mac_utilization": stats.mac_utilization,
        "seconds": stats.seconds,
        "bit_exact": None if check is None else check.exact,
        "decode_roofline": stats.decode_roofline,
        "model": model.name,
        "weights": model.formats.weights,
        "activations": model.formats.activations,
        "overrides": dict(model.formats.overrides),
        "configuration": model.device.config.to_dict(),
        "memory": asdict(request.memory),
        "sampling": asdict(generation.sampling),
        "requantised": None if model.requantised is None else model.requantised.to_dict(),
        "check": None if check is None else asdict(check),
        "counters": stats.counters,
    }
