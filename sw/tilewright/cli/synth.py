"""`tilewright synth`: what a configuration takes of an FPGA, block by block, and how fast it can be clocked there."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tilewright.cli.options import Commands, add_config, add_output, command, examples
from tilewright.cli.progress import Progress
from tilewright.cli.table import table
from tilewright_hw.arch import AcceleratorConfig, InputError

if TYPE_CHECKING:
    from tilewright_sim.synth import Placed, Resources, Synthesized

TARGETS = ("ecp5-85k", "xc7a100t")
COLUMNS = {"luts": "LUT", "flip_flops": "flip-flops", "dsps": "DSP", "block_rams": "block RAM"}
SHOWN = 0.01  # a block inside a unit has a line of its own if it takes this share of the tables, or a DSP or a RAM
EXAMPLES = examples(
    ("tilewright synth --config edge", "what `edge` takes of an ECP5 LFE5U-85F, block by block"),
    ("tilewright synth --config edge --pnr", "and the clock that it reaches, with the path that limits it"),
    ("tilewright synth --block array", "the array of `default` by itself"),
    ("tilewright synth --target xc7a100t --json", "on a Xilinx 7, as JSON"),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "synth", run, "say what the accelerator takes of an FPGA, and its clock", EXAMPLES)
    add_config(parser)
    parser.add_argument("--block", metavar="NAME", help="only this block, such as array or vector.reduce, by itself")
    parser.add_argument("--target", choices=TARGETS, default=TARGETS[0], help="the FPGA (default: %(default)s)")
    parser.add_argument("--pnr", action="store_true", help="place and route it too (ECP5; many minutes)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of --pnr (default: %(default)s)")
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Synthesise, and print what came out."""
    config = AcceleratorConfig.resolve(arguments.config)
    if arguments.pnr and arguments.target != TARGETS[0]:
        raise InputError(f"--pnr needs --target {TARGETS[0]}, not {arguments.target}")
    if arguments.seed < 0:
        raise InputError(f"seed must be at least 0, not {arguments.seed}")
    try:
        design, placed = _made(config, arguments)
    except ModuleNotFoundError as e:
        raise InputError(f"synthesis needs the package {e.name}: pip install 'tilewright[rtl,fpga]'") from e
    if arguments.json:
        print(json.dumps(_object(design, arguments.target, placed), indent=2))
    else:
        print(_text(design, placed))
    return 0


def _made(config: AcceleratorConfig, arguments: argparse.Namespace) -> tuple[Synthesized, Placed | None]:
    """Synthesise, and place if it is wanted; what is missing or does not fit is the user's to mend: InputError."""
    from tilewright_sim.synth import SynthesisError, place, synthesize_blocks
    from tilewright_sim.toolchain import ToolchainError

    what = f"{arguments.block} of {config.name}" if arguments.block else config.name
    progress, placed = Progress(arguments.quiet), None
    try:
        with progress.stage(f"{what} synthesised for {arguments.target}") as stage:
            design = synthesize_blocks(
                config, arguments.target, block=arguments.block, fit=arguments.pnr, tell=stage.say
            )
        if arguments.pnr:
            with progress.stage(f"{what} placed and routed") as stage:
                placed = place(design, seed=arguments.seed, tell=stage.say)
    except (ToolchainError, SynthesisError) as e:
        raise InputError(str(e)) from e
    return design, placed


def _object(design: Synthesized, target: str, placed: Placed | None) -> dict[str, Any]:
    """Return what --json prints."""
    made: dict[str, Any] = {
        "schema_version": 1,
        "config": design.config.name,
        "block": design.block,
        "target": target,
        "device": design.target.device,
        "total": asdict(design.total),
        "available": asdict(design.target.has),
        "share": _shares(design),
        "fits": not design.total.lacking(design.target.has),
        "macs": design.macs,
        "luts_per_mac": design.total.luts / design.macs,
        "blocks": {cost.name: asdict(cost.used) for cost in design.blocks},
    }
    if placed is not None:
        path = [asdict(step) for step in placed.path]
        made["pnr"] = {"mhz": placed.mhz, "seed": placed.seed, "critical_path": path}
    return made


def _shares(design: Synthesized) -> dict[str, float]:
    has = asdict(design.target.has)
    return {name: used / has[name] for name, used in asdict(design.total).items()}


def _row(name: str, used: Resources) -> list[str]:
    return [name, *(f"{value:,g}" for value in asdict(used).values())]


def _shown(design: Synthesized) -> list[list[str]]:
    """Return the rows of the units and of the larger blocks inside them; equal blocks side by side are one row."""
    rows, groups = [], _grouped(design)
    for name, (used, count) in groups.items():
        depth = name.count(".")
        large = used.luts >= SHOWN * design.total.luts or used.dsps or used.block_rams
        if depth == 0 or (depth == 1 and large):
            times = f" ({count})" if count > 1 else ""
            rows.append(_row("  " * depth + name.rpartition(".")[2] + times, used))
    return rows


def _grouped(design: Synthesized) -> dict[str, tuple[Resources, int]]:
    """Return what blocks take, `lane0` to `lane7` together as `lane`; how many they are is beside it."""
    groups: dict[str, tuple[Resources, int]] = {}
    for cost in design.blocks:
        name = ".".join(part.rstrip("0123456789").rstrip("_") for part in cost.name.split("."))
        used, count = groups.get(name, (None, 0))
        groups[name] = (cost.used if used is None else used + cost.used, count + 1)
    return groups


def _text(design: Synthesized, placed: Placed | None) -> str:
    """Return the table, what it means, and the critical path."""
    has = design.target.has
    rows = [["block", *COLUMNS.values()], *_shown(design), _row("all", design.total), _row(design.target.device, has)]
    rows.append(["share", *(f"{share:.1%}" for share in _shares(design).values())])
    lines = [table(rows), ""]
    lines.append(f"{design.total.luts / design.macs:.1f} LUT per MAC ({design.macs} MACs)")
    if lacking := design.total.lacking(has):
        lines.append(f"does not fit {design.target.device}: it needs {', '.join(lacking)}")
    lines += _path(placed) if placed else []
    return "\n".join(lines)


def _path(placed: Placed) -> list[str]:
    """Return the clock and the path that limits it."""
    head = ["critical path", "cells", "logic ns", "routing ns"]
    steps = [[step.signal, str(step.cells), f"{step.logic:.2f}", f"{step.routing:.2f}"] for step in placed.path]
    logic, routing = sum(step.logic for step in placed.path), sum(step.routing for step in placed.path)
    return [
        f"{placed.mhz:.1f} MHz (placed and routed with seed {placed.seed}, every port on a register)",
        "",
        table([head, *steps, ["all", "", f"{logic:.2f}", f"{routing:.2f}"]]),
    ]
