"""`python -m tilewright_sim.benches NAME`: run one bench, and show what cocotb says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tilewright_hw.arch import TilewrightError
from tilewright_sim.benches.runner import BENCHES, run_bench
from tilewright_sim.toolchain import ToolchainError


def _parameter(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE; a number becomes one."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, not {text!r}")
    return name, int(value) if value.isdecimal() else value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tilewright_sim.benches", description="Run one cocotb bench.")
    parser.add_argument("name", choices=BENCHES, metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("parameters", nargs="*", type=_parameter, metavar="PARAMETER=VALUE", help="such as rows=4")
    parser.add_argument("--simulator", choices=("verilator", "icarus"), default="verilator")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tests", metavar="REGEX", help="run the tests whose names match")
    parser.add_argument("--waves", action="store_true", help="dump all signals into the folder of -o")
    parser.add_argument("--verilog", metavar="FILE", help="test this Verilog in place of the gateware's")
    parser.add_argument("-o", dest="directory", metavar="FOLDER", help="build here, and keep everything")
    arguments = vars(parser.parse_args(argv))
    name, parameters = arguments.pop("name"), dict(arguments.pop("parameters"))
    if arguments["waves"] and not arguments["directory"]:
        parser.error("--waves needs -o FOLDER")
    try:
        print(f"{run_bench(name, **arguments, **parameters)} tests passed")
    except (TilewrightError, ToolchainError, OSError, TypeError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
