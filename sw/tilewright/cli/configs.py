"""`tilewright configs`: the presets, or any configuration, and the sizes that follow from them."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tilewright.cli.options import Commands, command, examples
from tilewright.cli.table import table
from tilewright_hw.arch import PRESETS, AcceleratorConfig, InputError

F24_BYTES = 3
EXAMPLES = examples(
    ("tilewright configs", "all presets"),
    ("tilewright configs edge mine.toml", "one preset and one of your own"),
    ("tilewright configs default --toml > mine.toml", "a file to start from: change a field, pass it to --config"),
    ("tilewright configs --json", "fields and sizes as one JSON object"),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "configs", run, "list the configurations and their sizes", EXAMPLES)
    parser.add_argument("names", nargs="*", metavar="NAME|FILE.toml", help="which (default: all presets)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--toml", action="store_true", help="print one configuration as TOML")


def buffers(config: AcceleratorConfig) -> dict[str, int]:
    """Return the bytes of each on-chip memory."""
    return {
        "accumulators": 2 * config.acc_rows * config.cols * 4,
        "activations": config.act_words * config.rows,
        "rows": config.row_words * config.lanes * F24_BYTES,
        "parameters": config.param_words * config.lanes * F24_BYTES,
        "statistics": config.stat_entries * 2 * F24_BYTES,
        "weight_fifo": config.weight_fifo_bytes,
        "stream_fifo": config.stream_fifo_bytes,
    }


def describe(name: str) -> dict[str, Any]:
    """Return a configuration's fields and what follows from them."""
    config = AcceleratorConfig.resolve(name)
    sizes = buffers(config)
    return {
        "name": name,
        **config.to_dict(),
        "macs_per_cycle": config.peak_macs,
        "bus_bytes_per_cycle": config.bus_bytes,
        "buffer_bytes": sizes,
        "on_chip_bytes": sum(sizes.values()),
    }


def run(arguments: argparse.Namespace) -> int:
    """Print the configurations."""
    names = arguments.names or list(PRESETS)
    if arguments.toml:
        if len(arguments.names) != 1:
            raise InputError(f"--toml needs one configuration, not {len(arguments.names)}")
        print(AcceleratorConfig.resolve(names[0]).to_toml(), end="")
        return 0
    found = [describe(name) for name in names]
    if arguments.json:
        print(json.dumps({"schema_version": 1, "configs": found}, indent=2))
    else:
        print(_table(found))
    return 0


def _table(found: list[dict[str, Any]]) -> str:
    """Lay the configurations out side by side."""
    head = ["", *(c["name"] for c in found)]
    rows: list[list[str]] = [
        ["array (rows x columns)", *(f"{c['rows']}x{c['cols']}" for c in found)],
        ["MACs per cycle", *(f"{c['macs_per_cycle']:,}" for c in found)],
        ["bus bytes per cycle", *(f"{c['bus_bytes_per_cycle']}" for c in found)],
        ["weight rows entering per cycle", *(f"{c['ingest']}" for c in found)],
        ["vector lanes", *(f"{c['lanes']}" for c in found)],
    ]
    for buffer in found[0]["buffer_bytes"]:
        label = buffer.replace("_fifo", " FIFO") + ", KiB"
        rows.append([label, *(f"{c['buffer_bytes'][buffer] / 1024:g}" for c in found)])
    rows.append(["on-chip memory, KiB", *(f"{c['on_chip_bytes'] / 1024:g}" for c in found)])
    return table([head, *rows])
