"""`tilewright demo`: a tale written by the simulated gateware, checked bit for bit, with what it took."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tilewright.api import Generation
from tilewright.cli.options import Commands, add_device, add_sampling, command, examples, read_prompt
from tilewright.cli.progress import Progress
from tilewright.cli.session import Continuation, check_line, load_model, write_text
from tilewright.cli.table import pairs
from tilewright.cli.verilog import write
from tilewright.quantisers import DEFAULT_QUANTISER
from tilewright_hw.arch import InputError

PROMPT = "Once upon a time"
MIN_TOKENS = 64
SEED = 38
EXAMPLES = examples(
    ("tilewright demo", "a tale by the default accelerator"),
    ("tilewright demo --seed 35", "another tale"),
    ("tilewright demo --config large", "the same words from a larger accelerator, in fewer cycles"),
)
NEXT = """\
What to try next:
  tilewright demo --config edge                      another accelerator writes the same words
  tilewright generate --prompt "The old witch"       your own beginning
  tilewright configs                                 what the accelerators consist of
  tilewright doctor                                  what is installed
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "demo", run, "write a tale on the simulated gateware, and check every bit", EXAMPLES)
    parser.add_argument(
        "--prompt", default=PROMPT, metavar="TEXT|-", help="the tale's beginning (default: %(default)r)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=77, metavar="N", help="length of the tale (default: %(default)s)"
    )
    add_device(parser, default="rtl")
    add_sampling(parser, temperature=0.8, top_k=40, top_p=1.0, repetition_penalty=1.0, seed=SEED)
    parser.add_argument(
        "-o", "--output", default="build/verilog", metavar="DIR", help="where the Verilog goes (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    parser.set_defaults(
        model=None,
        stop=[],
        stop_token=[],
        weights=None,
        activations=None,
        override=[],
        kv=None,
        quantiser=DEFAULT_QUANTISER,
        calibration=None,
        first_row=None,
        context=None,
        tokenizer=None,
        check=True,
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the tale, then the table; 1 if the golden model disagrees."""
    progress = Progress(arguments.quiet)
    request = Continuation.check(arguments)
    prompt = read_prompt(arguments.prompt)
    with load_model(arguments, request, prompt, progress) as model:
        _write(f"\n{prompt}")
        generation = write_text(model, request, prompt, Progress(quiet=True), _write)
        _write("\n\n")
        config = model.device.config
    try:
        with progress.stage("Verilog written"):
            verilog = str(write(config, Path(arguments.output)))
    except InputError as e:
        verilog = f"not written: {e}"
    rows = _rows(generation)
    assert generation.check is not None
    rows.append(("golden model", check_line(generation.check, arguments.device)))
    rows.append(("Verilog", verilog))
    print(f"{config.name}, {arguments.device} device\n\n{pairs(rows)}\n\n{NEXT}", end="")
    return 0 if generation.check.exact else 1


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _rows(generation: Generation) -> list[tuple[str, str]]:
    """Return the table's measured rows."""
    stats = generation.stats
    rows = [("tokens", f"{stats.prompt_tokens} read, {stats.new_tokens} written ({generation.finish_reason})")]
    if stats.cycles:
        rows += [
            ("cycles per token", f"{stats.cycles_per_token:,.0f}"),
            ("share of the bus roofline", f"{stats.decode_roofline:.1%}"),
            ("share of peak MACs", f"{stats.mac_utilization:.1%}"),
            ("simulated cycles per second", f"{stats.cycles / max(stats.seconds, 1e-9):,.0f}"),
        ]
    rows.append(("tokens per second", f"{stats.new_tokens / max(stats.seconds, 1e-9):.1f}"))
    return rows
