r"""Read what Verilator counted, and say which line of Python each count belongs to.

Verilator's coverage.dat has a line for each point: `C '` and fields, each of \x01, a letter or name, \x02 and a text;
then `'` and how often it was reached:

    C '\x01f\x02a.v\x01l\x0212\x01t\x02toggle\x01page\x02v_toggle/m\x01o\x02x:0->1\x01h\x02TOP.m' 7

f is the file, l the line, t the kind (`toggle`, `line`, `branch`, ...), o the signal or the kind of block, h the
instance.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tilewright_hw.arch import InputError

__all__ = ["Coverage", "CoverageError", "Point", "read_folder", "source_lines"]

_FIELD = re.compile(r"\x01([^\x02]*)\x02([^\x01]*)")
_SOURCE = re.compile(r'src = "([^"|]*):(\d+)(?:\.\d+-\d+\.\d+)?(?:\|[^"]*)?"')
_STATEMENT = re.compile(r"^\s*(?:always|if|case|casez|else|end|[\w\\$'?]+:|default:)")

Place = tuple[str, int]
"""A Python file, from its package on, and a line."""


class CoverageError(InputError):
    """Coverage that cannot be read."""


@dataclass(frozen=True)
class Point:
    """Something that is reached or not.

    Parameters
    ----------
    kind : str
        `toggle`, `line` or `branch`.
    verilog : str
        The Verilog file, by its name.
    line : int
        Its line.
    what : str
        For a toggle, the signal's bit and direction.
    module : str
        The module.
    """

    kind: str
    verilog: str
    line: int
    what: str
    module: str


@dataclass
class Coverage:
    """Points with their counts, and where they come from.

    Parameters
    ----------
    counts : Counter of Point
        How often each was reached; those that never were are there with 0.
    sources : mapping
        For each Verilog file, the Python line of each of its lines that has one.
    """

    counts: Counter[Point] = field(default_factory=Counter)
    sources: dict[str, dict[int, Place]] = field(default_factory=dict)

    def place(self, point: Point) -> Place | None:
        """Return the Python line of a point; None where it has none."""
        return self.sources.get(point.verilog, {}).get(point.line)


def read_points(path: Path) -> Counter[Point]:
    """Return the counts of a coverage.dat; CoverageError says what is wrong with it."""
    counts: Counter[Point] = Counter()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as e:
        raise CoverageError(f"cannot read {path}: {e.strerror}") from e
    for number, line in enumerate(lines, 1):
        if not line.startswith("C '"):
            continue
        text, quote, count = line[3:].rpartition("' ")
        fields = dict(_FIELD.findall(text))
        if not quote or not count.strip().isdigit() or "l" not in fields:
            raise CoverageError(f"{path}:{number} is no coverage point")
        module = fields.get("page", "").rpartition("/")[2]
        kind = fields.get("t") or fields.get("page", "").partition("/")[0].removeprefix("v_")
        verilog = Path(fields.get("f", "")).name
        # The same line of another instance of a module is the same point.
        point = Point(kind, verilog, int(fields["l"]), fields.get("o", ""), module)
        counts[point] += int(count)
    return counts


def source_lines(verilog: str) -> dict[int, Place]:
    """Return the Python line that each line of Yosys's Verilog comes from.

    An attribute `src` stands before what it is of: a declaration, an instance, or a statement with its branches.
    """
    places: dict[int, Place] = {}
    now: Place | None = None
    for number, line in enumerate(verilog.splitlines(), 1):
        if found := _SOURCE.search(line):
            now = (_shortened(found[1]), int(found[2]))
        elif line.startswith(("module ", "endmodule")):
            now = None
        if now is not None:
            places[number] = now
    return places


def _shortened(path: str) -> str:
    for package in ("tilewright_hw/", "amaranth/"):
        if package in path:
            return package + path.rpartition(package)[2]
    return path


def read_folder(paths: Iterable[Path]) -> Coverage:
    """Return the sum of all coverage below some folders, with the Verilog beside it.

    Raises
    ------
    CoverageError
        There is none, or a file cannot be read.
    """
    coverage = Coverage()
    files: list[Path] = []
    for path in paths:
        files += sorted(path.rglob("*.dat")) if path.is_dir() else [path]
    if not files:
        raise CoverageError("there is no coverage (*.dat): run `make coverage`")
    for file in files:
        verilog = file.with_name(f"{file.name.split('.')[0]}.v")
        for point, count in read_points(file).items():
            # All configurations' Verilog is called the same while it is simulated.
            coverage.counts[Point(point.kind, verilog.name, point.line, point.what, point.module)] += count
        if verilog.name not in coverage.sources and verilog.exists():
            coverage.sources[verilog.name] = source_lines(verilog.read_text(encoding="utf-8"))
    return coverage


def totals(points: Mapping[Point, int]) -> tuple[int, int]:
    """Return how many points were reached, and how many there are."""
    return sum(count > 0 for count in points.values()), len(points)
