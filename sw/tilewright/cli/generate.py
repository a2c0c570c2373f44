"""`tilewright generate`: continue a prompt on a device."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tilewright.api import Generation, Model
from tilewright.cli.options import (
    Commands,
    add_device,
    add_model,
    add_output,
    add_sampling,
    add_stops,
    command,
    examples,
    read_prompt,
)
from tilewright.cli.progress import Progress
from tilewright.cli.session import Continuation, check_line, load_model, report, write_text
from tilewright.devices import check_logs
from tilewright.unit_trace import check_writable, write_unit_trace

EXAMPLES = examples(
    ('tilewright generate --prompt "Once upon a time"', "the built-in model on the simulated gateware, greedily"),
    (
        'tilewright generate --device golden --prompt "The king" --temperature 0.8 --top-k 40 --seed 7',
        "sampled, on the golden model",
    ),
    (
        "tilewright generate stories260K.bin --prompt - --check --json < prompt.txt",
        "a llama2.c file with the tok*.bin beside it, compared with the golden model bit for bit",
    ),
    (
        'tilewright generate path/to/folder --config edge --memory latency=150,stall=0.1,seed=1 --prompt "Hello"',
        "a Hugging Face folder, another accelerator, a slow memory",
    ),
    (
        'tilewright generate --prompt "Once" --max-new-tokens 2 --trace-units units.json',
        "what each unit did and waited for, in cycles: open the file in ui.perfetto.dev or chrome://tracing",
    ),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "generate", run, "continue a prompt with a model on a device", EXAMPLES)
    add_model(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT|-", help="the text to continue; -: read it from stdin")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="at most so many (default: %(default)s)"
    )
    add_stops(parser)
    add_device(parser, default="rtl")
    add_sampling(parser)
    parser.add_argument(
        "--check", action="store_true", help="run the golden model beside it and compare tokens and memory image"
    )
    parser.add_argument(
        "--trace-units", type=Path, metavar="FILE",
        help="write what each unit of the simulated accelerator did, cycle by cycle, for Chrome's or Perfetto's viewer",
    )  # fmt: skip
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generate; 1 if --check found a difference."""
    progress = Progress(arguments.quiet)
    request = Continuation.check(arguments)
    traced = arguments.trace_units is not None
    check_logs(arguments.device, traced)
    if traced:
        check_writable(arguments.trace_units)
    prompt = read_prompt(arguments.prompt)
    with load_model(arguments, request, prompt, progress, log_units=traced) as model:
        emit = _discard if arguments.json else _write
        generation = write_text(model, request, prompt, progress, emit)
        if arguments.json:
            print(json.dumps(report(model, request, generation)), flush=True)
        else:
            _write("\n")
        for line in _summary(generation, model.device.name):
            progress.note(line)
        if traced:
            _write_trace(arguments.trace_units, model, progress)
    return 0 if generation.check is None or generation.check.exact else 1


def _write_trace(path: Path, model: Model, progress: Progress) -> None:
    logs = getattr(model.device, "unit_logs", None) or []
    with progress.stage(f"trace of {len(logs)} programs written to {path}"):
        write_unit_trace(path, logs, model.engine.comments())


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _discard(text: str) -> None:
    pass


def _summary(generation: Generation, device: str) -> list[str]:
    """Return what it took, in a line, and the result of --check in another."""
    stats = generation.stats
    parts = [f"{stats.new_tokens} tokens ({generation.finish_reason})"]
    if stats.cycles:
        parts += [
            f"{stats.cycles_per_token:,.0f} cycles per token",
            f"{stats.bus_utilization:.0%} of the bus",
            f"{stats.mac_utilization:.0%} of the MACs",
            f"{stats.cycles / max(stats.seconds, 1e-9):,.0f} simulated cycles per second",
        ]
    lines = [", ".join([*parts, f"{stats.seconds:.1f} s"])]
    if generation.check is not None:
        lines.append(check_line(generation.check, device))
    return lines
