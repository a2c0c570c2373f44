"""`python -m tilewright_sim.coverage FOLDER ...`: what was reached of each file of the gateware, and the holes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import tilewright_hw
from tilewright_sim.coverage.read import CoverageError, read_folder
from tilewright_sim.coverage.report import FileReport, Hole, holes, reports


def _share(reached: int, count: int) -> str:
    return f"{reached:>6} of {count:<6} {reached / count:>6.1%}" if count else f"{'-':>23}"


def _table(files: Sequence[FileReport]) -> str:
    rows = [f"{'file':<28}{'lines that ran':>24}{'bits that toggled':>26}"]
    for report in files:
        name = report.file.rpartition("/")[2]
        lines, bits = _share(report.lines_reached, len(report.lines)), _share(report.bits_reached, len(report.bits))
        rows.append(f"{name:<28}{lines:>24}{bits:>26}")
    lines = _share(sum(f.lines_reached for f in files), sum(len(f.lines) for f in files))
    bits = _share(sum(f.bits_reached for f in files), sum(len(f.bits) for f in files))
    rows.append(f"{'all':<28}{lines:>24}{bits:>26}")
    return "\n".join(rows)


def _line(hole: Hole) -> str:
    return f"{hole.place[0].rpartition('/')[2]}:{hole.place[1]}: {hole.what}" + (
        f"    {hole.text}" if hole.text else ""
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print; return 0, or 2 where there is nothing to read."""
    parser = argparse.ArgumentParser(prog="python -m tilewright_sim.coverage", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="where the counts are")
    parser.add_argument("--holes", choices=("lines", "all", "none"), default="lines", help="which to list")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    try:
        coverage = read_folder(arguments.paths)
    except CoverageError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    files = reports(coverage)
    found = holes(coverage, Path(tilewright_hw.__file__).parents[1])
    if arguments.json:
        rows = [
            {
                "file": f.file,
                "lines": len(f.lines),
                "ran": f.lines_reached,
                "bits": len(f.bits),
                "toggled": f.bits_reached,
            }
            for f in files
        ]
        print(json.dumps({"files": rows, "holes": [asdict(hole) for hole in found]}, indent=1))
        return 0
    print(_table(files))
    for hole in found:
        if arguments.holes == "all" or (arguments.holes == "lines" and hole.what == "never ran"):
            print(_line(hole))
    return 0


if __name__ == "__main__":
    sys.exit(main())
