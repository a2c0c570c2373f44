"""`tilewright verilog`: the accelerator as Verilog, for any FPGA toolchain."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tilewright.cli.options import Commands, add_config, command, examples
from tilewright.cli.progress import Progress
from tilewright_hw.arch import AcceleratorConfig, InputError

EXAMPLES = examples(
    ("tilewright verilog -o build/verilog", "the default accelerator, ready for an FPGA toolchain; then: make test"),
    ("tilewright verilog --config edge --mhz 75 -o edge", "a smaller one, with constraints for 75 MHz"),
    ("tilewright verilog --block SystolicArray --set rows=8 --set cols=8 -o array", "one block by itself"),
    ("tilewright configs edge --toml > mine.toml; tilewright verilog --config mine.toml -o mine", "your own"),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands, "verilog", run, "write the accelerator, or one block, as a Verilog package with its bench", EXAMPLES
    )
    add_config(parser)
    parser.add_argument("--block", metavar="NAME", help="one block by itself: SystolicArray, Softmax, VectorUnit, ...")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="changes",
        help="a parameter of the block, or a field of the configuration; may be given several times",
    )
    parser.add_argument(
        "--mhz", type=float, default=60.0, metavar="F", help="clock of the constraints (default: %(default)s)"
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="DIR",
        help="folder to write: absent, empty, or an earlier package, which is replaced",
    )
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")


def parse_changes(texts: Sequence[str]) -> dict[str, int]:
    """Read NAME=VALUE pairs of whole numbers."""
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or not value.lstrip("-").isdecimal() or not value.isascii():
            raise InputError(f"--set must be NAME=VALUE with a whole number, not {text!r}")
        changes[name] = int(value)
    return changes


def write(config: AcceleratorConfig, folder: Path) -> Path:
    """Write the Verilog, from the cache if it holds it; returns the file's path."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} must be a folder, not a file")
    try:
        from tilewright_hw.generate import verilog_file_name, write_verilog
        from tilewright_sim.cache import CacheError, get_or_build
        from tilewright_sim.rtl.build import gateware_key
    except ModuleNotFoundError as e:
        raise InputError(f"Verilog needs the package {e.name}: pip install 'tilewright[rtl]'") from e
    try:
        label = f"verilog-{config.name}"
        entry = get_or_build(["verilog 1", *gateware_key(config)], lambda to: _make(config, to), label=label)
    except CacheError:  # no cache is no reason to write nothing
        return Path(write_verilog(config, folder))
    path = folder / verilog_file_name(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copyfile(entry / path.name, temporary)
        temporary.replace(path)
    except OSError as e:
        raise InputError(f"cannot write {path}: {e.strerror}") from e
    return path


def _make(config: AcceleratorConfig, folder: Path) -> None:
    from tilewright_hw.generate import write_verilog

    write_verilog(config, folder)


def run(arguments: argparse.Namespace) -> int:
    """Write the package and print its folder."""
    config, changes = AcceleratorConfig.resolve(arguments.config), parse_changes(arguments.changes)
    try:
        from tilewright_sim.package import TOP_BLOCK, resolve, write_package
    except ModuleNotFoundError as e:
        raise InputError(f"Verilog needs the package {e.name}: pip install 'tilewright[rtl]'") from e
    block = resolve(arguments.block or TOP_BLOCK, config, changes)
    with Progress(arguments.quiet).stage(f"Verilog package of {block.name} ({config.name}) written"):
        print(write_package(block, Path(arguments.output), mhz=arguments.mhz))
    return 0
