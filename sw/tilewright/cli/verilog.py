"""`tilewright verilog`: the accelerator as Verilog, for any FPGA toolchain."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from tilewright.cli.options import Commands, add_config, command, examples
from tilewright.cli.progress import Progress
from tilewright_hw.arch import AcceleratorConfig, InputError

EXAMPLES = examples(
    ("tilewright verilog -o build/verilog", "the default accelerator"),
    ("tilewright verilog --config edge -o edge", "a smaller one"),
    ("tilewright configs edge --toml > mine.toml; tilewright verilog --config mine.toml -o mine", "your own"),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "verilog", run, "write the accelerator's Verilog", EXAMPLES)
    add_config(parser)
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write to; made if it is absent")
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")


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
    """Write the Verilog and print where."""
    config = AcceleratorConfig.resolve(arguments.config)
    with Progress(arguments.quiet).stage(f"Verilog of {config.name} written"):
        path = write(config, Path(arguments.output))
    print(path)
    return 0
