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
    total = FileReport("all")
    rows = [f"{'file':<18}{'lines':>24}{'branches':>24}{'bits':>24}"]
    for report in files:
        total.branches |= {(id(report), f"{key}"): taken for key, taken in report.branches.items()}
        total.bits |= {(id(report), f"{key}"): taken for key, taken in report.bits.items()}
        rows.append(_row(report, report.lines_reached, len(report.lines)))
    rows.append(_row(total, sum(f.lines_reached for f in files), sum(len(f.lines) for f in files)))
    return "\n".join(rows)


def _row(report: FileReport, reached: int, lines: int) -> str:
    parts = (
        _share(reached, lines),
        _share(report.branches_reached, len(report.branches)),
        _share(report.bits_reached, len(report.bits)),
    )
    return f"{report.file.rpartition('/')[2]:<18}" + "".join(f"{part:>24}" for part in parts)


def _line(hole: Hole) -> str:
    return f"{hole.place[0].rpartition('/')[2]}:{hole.place[1]}: {hole.what}" + (
        f"    {hole.text}" if hole.text else ""
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print; return 0, or 2 where there is nothing to read."""
    parser = argparse.ArgumentParser(prog="python -m tilewright_sim.coverage", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="where the counts are")
    parser.add_argument("--holes", choices=("branch", "toggle", "none"), default="branch", help="which to list")
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
                "lines": [f.lines_reached, len(f.lines)],
                "branches": [f.branches_reached, len(f.branches)],
                "bits": [f.bits_reached, len(f.bits)],
            }
            for f in files
        ]
        print(json.dumps({"files": rows, "holes": [asdict(hole) for hole in found]}, indent=1))
        return 0
    print(_table(files))
    for hole in found:
        if hole.kind == arguments.holes:
            print(_line(hole))
    return 0


if __name__ == "__main__":
    sys.exit(main())
