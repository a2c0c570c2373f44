"""The table of targets: what is wanted of the accelerator, what is measured, and the command that measures it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright import bench
from tilewright.cycles import describe
from tilewright_hw.arch import InputError

if TYPE_CHECKING:
    from tilewright.cli.progress import Progress

RANDOM = "random:dim=320,ffn=864,layers=8,heads=5,kv_heads=5,vocab=4096,seed=1"
DECODE = ("decode", "--model", RANDOM, "--context", "128", "--tokens", "8")
TOGETHER = ("decode", "--model", RANDOM, "--context", "64", "--tokens", "8")
STORIES = ("stories260K.bin", "../shared/data/stories260K.bin")
"""Where the model stories260K is looked for, unless --model says where it is."""
ROWS = tuple(str(number) for number in range(1, 12))


@dataclass(frozen=True, kw_only=True)
class Target:
    """One line of the table.

    Parameters
    ----------
    number : int
        Its row.
    what : str
        The run.
    least : float
        What is wanted, in the unit of `measure`'s result.
    unit : {"share", "speedup", "faster", "cycles/s"}
        The unit: a share of the roofline; how many times as many tokens per cycle as the run `against`; how many times
        as long in seconds; or simulated cycles per second.
    command : tuple of str
        Words after `tilewright bench`.
    against : tuple of str
        Of a ratio: the command whose run is the reference.
    missing : str
        Why it cannot be run here; empty: it can.
    """

    number: int
    what: str
    least: float
    command: tuple[str, ...] = ()
    unit: str = "share"
    against: tuple[str, ...] = ()
    missing: str = ""


def _gemm(number: int, shape: str, least: float, *options: str, what: str = "int8 GEMM") -> Target:
    name = " ".join([what, shape, *options[1::2]])
    return Target(number=number, what=name, least=least, command=("gemm", "--shape", shape, *options))


def _gemvs(number: int, least: dict[str, float], *options: str) -> list[Target]:
    """Return one row times 1024 x 1024 and 4096 x 1024 weights, in each format; `least` is by format.

    4096 x 1024 may be either 4096 outputs or 4096 inputs: both are measured.
    """
    return [
        _gemm(number, shape, share, "--weights", weights, *options, what="GEMV")
        for weights, share in least.items()
        for shape in ("1x1024x1024", "1x1024x4096", "1x4096x1024")
    ]


def targets(stories: str | None = None) -> list[Target]:
    """Return all lines; `stories` is the path of stories260K.bin, if it is known."""
    built_in = ("decode", "--context", "128")
    other = ("decode", "--model", stories or STORIES[0], "--context", "128")
    no_stories = "" if stories else f"{STORIES[0]} is not here: name it with --model"
    random = "decode, random model of 11 M, context 128"
    lines = [
        _gemm(1, "256x256x256", 0.98),
        _gemm(1, "256x256x256", 0.95, "--result", "int8"),
        *(_gemm(2, *case) for case in (("64x64x64", 0.7), ("128x128x128", 0.93), ("512x512x512", 0.99))),
        _gemm(2, "100x200x300", 0.9),
        *_gemvs(3, {"int8": 0.99, "int4": 0.97}),
        Target(number=4, what=random, least=0.98, command=DECODE),
        Target(number=5, what="decode, built-in model, to context 128", least=0.8, command=built_in),
        Target(number=5, what="decode, stories260K, to context 128", least=0.8, command=other, missing=no_stories),
        Target(
            number=6, what="prefill, 128 tokens, model of row 4", least=0.9,
            command=("prefill", "--model", RANDOM, "--context", "128"),
        ),
        Target(number=7, what="row 4, 150 cycles", least=0.96, command=(*DECODE, "--memory", "latency=150")),
        Target(number=7, what="row 4, stalls", least=0.97, command=(*DECODE, "--memory", "stall=0.1,seed=1")),
    ]  # fmt: skip
    for config in ("large", "edge"):
        lines += _gemvs(8, {"int8": 0.96, "int4": 0.96}, "--config", config)
        lines.append(Target(number=8, what=f"row 4 on {config}", least=0.96, command=(*DECODE, "--config", config)))
    lines += [
        Target(number=9, what="8 prompts together, context 64", least=5, unit="speedup",
               command=(*TOGETHER, "--batch", "8"), against=TOGETHER),
        Target(number=10, what="simulation of row 5", least=500_000, command=built_in, unit="cycles/s"),
        Target(number=11, what="golden against RTL, row 5", least=1, command=built_in, unit="faster",
               against=(*built_in, "--device", "golden")),
        Target(number=11, what="golden against RTL, row 4", least=20, command=DECODE, unit="faster",
               against=(*DECODE, "--device", "golden")),
    ]  # fmt: skip
    return lines


Measure = Callable[[tuple[str, ...]], bench.Row]


def value(target: Target, measure: Measure) -> float:
    """Return what a target's run gives, in its unit."""
    row = measure(target.command)
    if target.unit == "share":
        return row.utilization
    if target.unit == "cycles/s":
        return row.cycles / max(row.seconds, 1e-9)
    other = measure(target.against)
    if target.unit == "speedup":
        return row.units / max(row.cycles, 1) * other.cycles / other.units
    return row.total_seconds / max(other.total_seconds, 1e-9)


def show(amount: float, unit: str) -> str:
    """Return a number with its unit."""
    return {"share": f"{amount:.1%}", "cycles/s": f"{amount:,.0f} cycles/s"}.get(unit, f"{amount:.1f} times")


def run(arguments: argparse.Namespace) -> int:
    """Measure the rows that are asked for, and print them."""
    from tilewright.cli.progress import Progress

    chosen = chosen_rows(arguments.row, ROWS)
    lines = [t for t in targets(_stories(arguments.model)) if str(t.number) in chosen]
    progress = Progress(arguments.quiet)
    results = []
    known: dict[tuple[str, ...], bench.Row] = {}

    def measure(words: tuple[str, ...]) -> bench.Row:
        if words not in known:
            known[words] = _measure(words, arguments, progress)
        return known[words]

    for target in lines:
        amount = None if target.missing else value(target, measure)
        results.append((target, amount))
    if arguments.json:
        print(json.dumps({"schema_version": 1, "rows": [_entry(t, amount, known) for t, amount in results]}, indent=2))
    else:
        print(_table(results))
        causes = describe([(t.what, known[t.command].counters) for t, _ in results if t.command in known])
        if causes:
            print(f"\n{causes}")
    return 0


def chosen_rows(asked: Sequence[str] | None, known: Sequence[str]) -> Sequence[str]:
    """Return the rows of a table that are asked for, or all; InputError if there is none such."""
    for number in asked or ():
        if number not in known:
            raise InputError(f"row must be one of {', '.join(known)}, not {number!r}")
    return asked or known


def _stories(given: str | None) -> str | None:
    if given is not None:
        if not Path(given).exists():
            raise InputError(f"no such file or folder: {given}")
        return given
    return next((path for path in STORIES if Path(path).exists()), None)


def _measure(words: tuple[str, ...], arguments: argparse.Namespace, progress: Progress) -> bench.Row:
    """Run one command of the table; the device is the one asked for unless the command names another."""
    from tilewright.cli import parser

    device = [] if "--device" in words else ["--device", arguments.device, *(["--check"] if arguments.check else [])]
    parsed = parser().parse_args(["bench", *words, *device])
    return bench.measure(bench.check(parsed), progress)[0]


def _command(words: tuple[str, ...]) -> str:
    return " ".join(("tilewright bench", *words))


def _entry(target: Target, amount: float | None, known: dict[tuple[str, ...], bench.Row]) -> dict[str, Any]:
    measured = known.get(target.command)
    return {
        "row": target.number,
        "run": target.what,
        "unit": target.unit,
        "at_least": target.least,
        "measured": amount,
        "reached": None if amount is None else amount >= target.least,
        "missing": target.missing or None,
        "command": _command(target.command) if target.command else None,
        "details": None if measured is None else measured.to_dict(),
    }


def _table(results: list[tuple[Target, float | None]]) -> str:
    """Return the table: the command of a line is the last column."""
    from tilewright.cli.table import table

    head = ("#", "run", "at least", "measured", "", "command, or why not")
    lines = [head]
    for t, amount in results:
        shown = "-" if amount is None else show(amount, t.unit)
        verdict = "" if amount is None else "reached" if amount >= t.least else "MISSED"
        lines.append((str(t.number), t.what, show(t.least, t.unit), shown, verdict, t.missing or _command(t.command)))
    return table(lines, left=(1, 4, 5))
