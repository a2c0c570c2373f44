"""`tilewright profile`: where the cycles of a run go, as the cycle model predicts them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tilewright.api import BUILTIN, check_fits, prompt_ids, tokenizer_of
from tilewright.bench import PREFILL_TOKENS, RESULTS, parse_shape
from tilewright.cli.options import Commands, add_config, add_output, command, examples, formats, memory_model
from tilewright.cli.progress import Progress
from tilewright.cli.table import table
from tilewright.compiled import is_compiled
from tilewright.formats import DEFAULT
from tilewright.importers import load_checkpoint
from tilewright.model import Checkpoint
from tilewright.perf.profile import (
    COLUMNS,
    SEQUENCER,
    Profile,
    Run,
    Spent,
    decode_run,
    prefill_runs,
    product_run,
    profile,
)
from tilewright.random_model import is_random, random_checkpoint
from tilewright_hw.arch import AcceleratorConfig, InputError

RUNS = ("decode", "prefill")
LEGEND = """\
Each cycle counts for the first instruction, in program order, that is not complete in it: for what that is for (rows)
and for its unit (columns; weight and load wait for memory). A part may take less than its own roofline, as its weights
come while the part before it is worked on."""
_WAITS = f"""\
holds: share of the cycles with an instruction; moves: with a beat, a row of the array or a word of lanes; for ...:
cycles without an instruction, while the next one waits for that unit's, or (for {SEQUENCER}) to be issued.
The array had an instruction but no tile in {{MATRIX_WAIT_TILE:,}} cycles; the vector unit no room for its stores in
{{VECTOR_WAIT_STORE:,}}; no read was outstanding in {{READ_IDLE:,}}."""
EXAMPLES = examples(
    ("tilewright profile", "a token of the built-in model at context 128"),
    (
        "tilewright profile path/to/folder --config large --context 512 --plot roofline.png",
        "another model, with a plot",
    ),
    ("tilewright profile --run prefill --memory latency=150 --weights int4", "a prompt of 128 tokens, slow memory"),
    ("tilewright profile random:dim=320,ffn=864,layers=8,heads=5,vocab=4096 --batch 8 --json", "8 texts together"),
    ("tilewright profile --shape 256x256x256 --config edge", "a matrix product"),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "profile", run, "say where the cycles of a run go, without running it", EXAMPLES)
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="Hugging Face folder, GGUF file, llama2.c .bin, or random:... as for bench (default: the built-in model)",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="FORMAT", help="int8 or int4 (default: int8)")
    parser.add_argument("--activations", type=int, metavar="BITS", help="8 or 16 (default: 8)")
    parser.add_argument(
        "--override", action="append", default=[], metavar="LAYER=FORMAT",
        help="another weight format for some matrices, such as '*.w_down=int8'; may be given several times",
    )  # fmt: skip
    parser.add_argument("--tokenizer", metavar="FILE", help="--prompt: instead of the one that comes with the model")
    parser.set_defaults(kv=None)
    parser.add_argument(
        "--run", dest="run_kind", choices=RUNS,
        help="one token, or a prompt (default: decode; prefill for an encoder, which takes a whole text)",
    )  # fmt: skip
    parser.add_argument(
        "--context", type=int, metavar="N",
        help=f"tokens that the context holds in the end (default: {PREFILL_TOKENS}, or what the model can hold)",
    )  # fmt: skip
    parser.add_argument("--prompt", metavar="TEXT", help="instead of --context: the prompt, or what a token follows")
    parser.add_argument("--batch", type=int, metavar="N", help="decode: texts together (default: 1)")
    parser.add_argument("--shape", metavar="MxKxN", help="instead of a model: one int8 matrix product")
    parser.add_argument("--result", default="int32", choices=RESULTS, help="--shape: int32, or int8 with scales")
    add_config(parser)
    parser.add_argument(
        "--memory", default="", metavar="KEY=VALUE,...", help="timing of the memory, such as latency=150,bandwidth=0.5"
    )
    parser.add_argument("--layers", action="store_true", help="a line for each part of each layer, not for each kind")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the roofline, and a bar for each kind of operation")
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict and print."""
    config, memory = AcceleratorConfig.resolve(arguments.config), memory_model(arguments.memory)
    picture = _picture(arguments.plot)
    what, runs = _product(arguments, config) if arguments.shape is not None else _model(arguments, config)
    progress = Progress(arguments.quiet)
    with progress.stage(f"{what} predicted"):
        result = profile(what, runs, config, memory)
    if picture is not None:
        from tilewright.perf.plot import draw

        draw(result, picture)
    if arguments.json:
        print(json.dumps({"schema_version": 1} | result.to_dict()))
    else:
        print(report(result, layers=arguments.layers))
    if picture is not None:
        progress.note(f"{picture} written")
    return 0


def _picture(name: str | None) -> Path | None:
    """Return where to draw; InputError before anything is computed if that is not possible."""
    if name is None:
        return None
    from tilewright.perf.plot import check_target

    return check_target(Path(name))


def _product(arguments: argparse.Namespace, config: AcceleratorConfig) -> tuple[str, list[Run]]:
    for name in ("model", "run_kind", "context", "prompt", "batch"):
        if getattr(arguments, name) is not None:
            raise InputError(f"{name.removesuffix('_kind')} must not be given together with shape")
    m, k, n = parse_shape(arguments.shape)
    quantise = arguments.result == "int8"
    what = f"product {m}x{k}x{n}, {arguments.result} result"
    return what, [product_run(config, m, k, n, quantise=quantise)]


def _model(arguments: argparse.Namespace, config: AcceleratorConfig) -> tuple[str, list[Run]]:
    wanted, batch = formats(arguments) or DEFAULT, arguments.batch
    for name in ("context", "batch"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    checkpoint = _checkpoint(arguments.model)
    spec = checkpoint.spec
    kind = arguments.run_kind or ("decode" if spec.causal else "prefill")
    if kind == "decode" and not spec.causal:
        raise InputError(f"run must be prefill: {checkpoint.name} takes a whole text at a time")
    if kind == "prefill" and batch is not None:
        raise InputError("batch must be given with --run decode only")
    check_fits(spec, config, None, wanted)
    context = _context(arguments, checkpoint, kind)
    name = f"{checkpoint.name}, weights {wanted.weights}, activations {wanted.activations} bits"
    if kind == "prefill":
        return f"prefill of {context} tokens, {name}", prefill_runs(spec, config, context, formats=wanted)
    together = "" if batch is None else f", {batch} texts together"
    one = decode_run(spec, config, context - 1, formats=wanted, batch=batch or 1)
    return f"decode at context {context}{together}, {name}", [one]


def _checkpoint(name: str | None) -> Checkpoint:
    """Return the model: only its shape is looked at."""
    if is_random(name):
        assert name is not None
        return random_checkpoint(name)
    path = BUILTIN if name is None else Path(name)
    if is_compiled(path):
        raise InputError(f"profile takes the model itself, not what was compiled from it: {path}")
    return load_checkpoint(path)


def _context(arguments: argparse.Namespace, checkpoint: Checkpoint, kind: str) -> int:
    """Return the tokens in the context in the end."""
    spec, context = checkpoint.spec, arguments.context
    if arguments.prompt is not None:
        if context is not None:
            raise InputError("context and prompt must not be given together")
        if is_random(arguments.model):
            raise InputError("prompt must not be given for a random model, which has no tokenizer: give a context")
        path = BUILTIN if arguments.model is None else Path(arguments.model)
        tokenizer = tokenizer_of(checkpoint, path, arguments.tokenizer)
        context = len(prompt_ids(arguments.prompt, spec, tokenizer)) + (kind == "decode")
    elif context is None:
        context = min(PREFILL_TOKENS, spec.context)
    if context > spec.context:
        raise InputError(f"context must be at most the model's {spec.context}, not {context}")
    return int(context)


def report(result: Profile, *, layers: bool = False) -> str:
    """Return the tables: by part, by unit, and the counters of waiting."""
    c, memory = result.config, result.memory
    share = result.roofline / result.cycles
    head = (
        f"{result.what}, on {c.name}, memory {memory}\n"
        f"{result.cycles:,} cycles predicted; {result.roofline:,.0f} are the roofline: {share:.1%}"
    )
    return "\n\n".join([head, _parts(result, result.parts if layers else result.kinds()), LEGEND, _units(result)])


def _parts(result: Profile, parts: Sequence[Spent]) -> str:
    total = Spent("all", {column: sum(part.waited[column] for part in parts) for column in COLUMNS}, result.roofline)
    rows = [["part", "cycles", "share", "roofline", "of roofline", *COLUMNS]]
    for part in [*parts, total]:
        reached = f"{part.roofline / part.cycles:.0%}" if part.roofline and part.cycles else "-"
        rows.append(
            [
                part.name,
                f"{part.cycles:,}",
                f"{part.cycles / result.cycles:.1%}",
                f"{part.roofline:,.0f}",
                reached,
                *(_count(part.waited[column]) for column in COLUMNS),
            ]
        )
    return table(rows)


def _units(result: Profile) -> str:
    rows = [["unit", "holds", "moves", *(f"for {column}" for column in COLUMNS)]]
    for unit in result.units:
        shares = [f"{part / result.cycles:.1%}" for part in (unit.busy, unit.works)]
        rows.append([unit.name, *shares, *(_count(unit.waits[column]) for column in COLUMNS)])
    return table(rows) + "\n\n" + _WAITS.format_map(result.counters)


def _count(cycles: int) -> str:
    return f"{cycles:,}" if cycles else "-"
