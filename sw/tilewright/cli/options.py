"""What the commands share: the parser, common options, and checks that need no file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tilewright.devices import open_device
from tilewright.formats import Formats
from tilewright.quantisers import DEFAULT_QUANTISER
from tilewright.request import Options
from tilewright_hw.arch import AcceleratorConfig, Device, InputError
from tilewright_hw.arch.memory_model import MemoryModel

Commands = Any  # argparse keeps the type of subparsers to itself


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and whose epilog keeps its lines."""

    def __init__(self, **keywords: Any) -> None:
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        keywords.setdefault("allow_abbrev", False)
        super().__init__(**keywords)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help tells more)\n")


def examples(*lines: tuple[str, str]) -> str:
    """Return an epilog: commands, each with what it does."""
    return "examples:\n" + "\n".join(f"  {command}\n      {what}" for command, what in lines)


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, epilog: str
) -> Parser:
    """Add a command and return its parser."""
    made: Parser = commands.add_parser(name, help=summary, description=summary, epilog=epilog)
    made.set_defaults(run=run)
    return made


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config."""
    parser.add_argument(
        "--config", default="default", metavar="NAME|FILE.toml", help="preset or TOML file (default: %(default)s)"
    )


def add_device(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --device, --config and --memory."""
    parser.add_argument(
        "--device",
        default=default,
        metavar="NAME[:ARGS]",
        help="golden (NumPy model) or rtl (the simulated gateware) (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE.toml",
        help="preset or TOML file (default: default, or what a compiled MODEL is for)",
    )
    parser.add_argument(
        "--memory",
        default="",
        metavar="KEY=VALUE,...",
        help="timing of the simulated memory, such as latency=40,stall=0.1,seed=1 (results do not depend on it)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, with --tokenizer and its number formats."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="Hugging Face folder, GGUF file, llama2.c .bin, or a file of tilewright compile (default: the built-in "
        "model)",
    )
    add_formats(parser)


def add_formats(parser: argparse.ArgumentParser) -> None:
    """Add what says how a model is quantised, --context and --tokenizer."""
    parser.add_argument("--weights", metavar="FORMAT", help="int8 or int4 (default: int8, or as MODEL was compiled)")
    parser.add_argument(
        "--activations", type=int, metavar="BITS", help="8 or 16 (default: 8, or as MODEL was compiled)"
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="LAYER=FORMAT",
        help="another weight format for some matrices, such as '*.w_down=int8'; may be given several times",
    )
    parser.add_argument(
        "--context", type=int, metavar="N", help="only the first N positions, for a smaller cache (default: all)"
    )
    parser.add_argument("--kv", metavar="FORMAT", help="of the KV cache: int8")
    parser.add_argument(
        "--quantiser",
        default=DEFAULT_QUANTISER,
        metavar="NAME",
        help="how weights are quantised: round, search (over the scales), or compensate (errors, as the texts "
        "of --calibration have it) (default: %(default)s)",
    )
    parser.add_argument(
        "--first-row",
        metavar="HOW",
        help="how the first row of a text is quantised: plain, or known: as its distance from what it is in the texts "
        "of --calibration (default: known for encoders, plain for others, or as MODEL was compiled)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="compensate, known: a few texts, UTF-8 (default: some tales that come along)",
    )
    parser.add_argument("--tokenizer", metavar="FILE", help="instead of the one that comes with the model")


def add_sampling(parser: argparse.ArgumentParser, seed: int = 0, **defaults: float) -> None:
    """Add --temperature, --top-k, --top-p, --repetition-penalty and --seed; without defaults the model's own count."""

    def add(name: str, kind: type, metavar: str, text: str, otherwise: str) -> None:
        key = name.removeprefix("--").replace("-", "_")
        shown = "%(default)s" if key in defaults else f"the model's generation_config.json, else {otherwise}"
        parser.add_argument(
            name, type=kind, default=defaults.get(key), metavar=metavar, help=f"{text} (default: {shown})"
        )

    add("--temperature", float, "T", "0 is greedy, above 0 samples", "0")
    add("--top-k", int, "K", "only the K most probable tokens; 0: all", "0")
    add("--top-p", float, "P", "only the most probable P", "1")
    add("--repetition-penalty", float, "R", "above 1: tokens that were seen already become less probable", "1")
    parser.add_argument(
        "--seed", type=int, default=seed, metavar="S", help="seed of the random numbers (default: %(default)s)"
    )


def add_stops(parser: argparse.ArgumentParser) -> None:
    """Add --stop and --stop-token."""
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    parser.add_argument(
        "--stop-token", action="append", type=int, default=[], metavar="ID",
        help="end at this token, as at the model's own; may be given several times",
    )  # fmt: skip


def sampling_options(arguments: argparse.Namespace) -> Options:
    """Return what `add_sampling` and `add_stops` were given."""
    return Options(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
        stop=arguments.stop,
        stop_tokens=arguments.stop_token,
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add --json and --quiet."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")


def formats(arguments: argparse.Namespace) -> Formats | None:
    """Return the number formats that the options ask for; None if they ask for none."""
    overrides = {}
    for text in arguments.override:
        pattern, equals, value = text.partition("=")
        if not equals or not pattern:
            raise InputError(f"--override must be LAYER=FORMAT, not {text!r}")
        overrides[pattern] = value
    if all(value is None for value in (arguments.weights, arguments.activations, arguments.kv)) and not overrides:
        return None
    return Formats(
        weights=arguments.weights or "int8",
        activations=8 if arguments.activations is None else arguments.activations,
        kv=arguments.kv or "int8",
        overrides=overrides,
    )


def configuration(arguments: argparse.Namespace) -> AcceleratorConfig | None:
    """Return the configuration that --config names; None if it names none."""
    return None if arguments.config is None else AcceleratorConfig.resolve(arguments.config)


def memory_model(text: str) -> MemoryModel:
    """Return the timing that --memory gives."""
    return MemoryModel.parse(text) if text else MemoryModel()


def open_checked(
    name: str,
    config: AcceleratorConfig,
    memory: MemoryModel,
    progress: Callable[[str], None] | None = None,
    log_units: bool = False,
) -> Device:
    """Open a device; what keeps it from being opened (no compiler, no room) is the user's to mend: InputError."""
    try:
        return open_device(name, config, memory=memory, progress=progress, log_units=log_units)
    except InputError:
        raise
    except (RuntimeError, OSError) as e:
        raise InputError(f"cannot open the {name} device: {e}") from e


def read_prompt(prompt: str) -> str:
    """Return the prompt; `-` reads it from stdin, without the newline that ends it."""
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as e:
        raise InputError(f"the prompt on stdin must be UTF-8: {e.reason} at byte {e.start}") from e
