r"""Read what Verilator counted, and say which line of Python each count belongs to.

Verilator's coverage.dat has a line for each point: `C '` and fields, each of \x01, a letter or name, \x02 and a text;
then `'` and how often it was reached:

    C '\x01f\x02a.v\x01l\x0212\x01t\x02toggle\x01page\x02v_toggle/m\x01o\x02x:0->1\x01h\x02TOP.m' 7

f is the file, l the line, t the kind (`toggle`, `line`, `branch`, ...), o the signal or the kind of block, h the
instance.
"""

from __future__ import annotations

import functools
import gzip
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tilewright_hw.arch import InputError

__all__ = ["Coverage", "CoverageError", "Point", "read_folder", "source_lines"]

_FIELD = re.compile(r"\x01([^\x02]*)\x02([^\x01]*)")
_SOURCE = re.compile(r'\(\* src = "([^"|]*):(\d+)(?:\.\d+-\d+\.\d+)?(?:\|[^"]*)?" \*\)')
_NAME = r"(\\\S+|[A-Za-z_]\w*)"
_DECLARED = re.compile(rf"^  (?:wire|reg) (?:\[[^\]]*\] )?{_NAME}")
_ASSIGNED = re.compile(rf"^\s+(?:\{{ *)?{_NAME} ?(?:\[[^\]]*\])? *<?= ")
_REGISTER = re.compile(rf"^\s+{_NAME} ?(?:\[[^\]]*\])? <= {_NAME} ?(?:\[[^\]]*\])? ?;")

Place = tuple[str, int]
"""A Python file, from its package on, and a line."""


@dataclass(frozen=True)
class Source:
    """Where a line of Verilog comes from.

    Parameters
    ----------
    place : Place
        The line of Python: where a signal is made, or an operator applied.
    block : str
        The signal whose block of assignments the line is in, else empty.
    offset : int
        Lines from the block's first one on: the same in all instances of a component.
    """

    place: Place
    block: str = ""
    offset: int = 0


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
        For each Verilog file, where each of its lines comes from, if that is known.
    """

    counts: Counter[Point] = field(default_factory=Counter)
    sources: dict[str, dict[int, Source]] = field(default_factory=dict)

    def source(self, point: Point) -> Source | None:
        """Return where a point comes from; None where that is not known."""
        return self.sources.get(point.verilog, {}).get(point.line)


def read_points(path: Path) -> Counter[Point]:
    """Return the counts of a coverage.dat; CoverageError says what is wrong with it."""
    verilog = path.with_name(f"{path.name.split('.')[0]}.v").name
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except OSError as e:
        raise CoverageError(f"cannot read {path}: {e.strerror}") from e
    counts: Counter[Point] = Counter()
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.startswith("C '"):
            continue
        text, quote, count = line[3:].rpartition("' ")
        point = _point(text, verilog) if quote and count.strip().isdigit() else None
        if point is None:
            raise CoverageError(f"{path}:{number} is no coverage point")
        counts[point] += int(count)
    return counts


@functools.cache
def _point(text: str, verilog: str) -> Point | None:
    """Return the point that the fields say; None where they do not. The files of many runs have the same points."""
    fields = dict(_FIELD.findall(text))
    if "l" not in fields:
        return None
    group, _, module = fields.get("page", "").partition("/")
    kind = fields.get("t") or group.removeprefix("v_")
    # The same line of another instance of a module is the same point. All Verilog has the same name when it is
    # simulated; that of the file with the counts says which it is.
    return Point(kind, verilog, int(fields["l"]), fields.get("o", ""), module)


def source_lines(verilog: str) -> dict[int, Source]:
    """Return where each line of Yosys's Verilog comes from.

    An attribute `src` stands before a declaration or a register, or inside an expression. A block of assignments has
    none: it is of the signal that it assigns, or of the register whose next value that is.
    """
    sources: dict[int, Source] = {}
    lines = verilog.splitlines()
    first = 0
    for number, line in enumerate(lines, 1):
        if line.startswith("module "):
            first = number
        elif line.startswith("endmodule"):
            _module_sources(lines[first:number], first + 1, sources)
    return sources


def _module_sources(lines: list[str], first: int, sources: dict[int, Source]) -> None:
    """Add the sources of one module's lines, the first of which has number `first`."""
    of_name: dict[str, tuple[Place, str]] = {}
    before: Place | None = None  # the attribute in the line before
    register = False
    for number, line in enumerate(lines, first):
        found = _SOURCE.search(line)
        here = (_shortened(found[1]), int(found[2])) if found else None
        if register:
            register = False
            if (moved := _REGISTER.match(line)) and before:
                of_name[moved[2]] = (before, moved[1])
        elif line.startswith("  always @(posedge"):
            register = True
            continue
        elif (declared := _DECLARED.match(line)) and before:
            of_name.setdefault(declared[1], (before, declared[1]))
            sources[number] = Source(before)
        elif here and not line.strip().endswith("*)"):
            sources[number] = Source(here)
        before = here
    begin = 0
    for number, line in enumerate(lines, first):
        if line.startswith("  always @* begin"):
            begin = number
        elif begin and line.startswith("  end"):
            block = lines[begin - first : number - first + 1]
            target = next((match[1] for text in block if (match := _ASSIGNED.match(text))), "")
            if target in of_name:
                place, name = of_name[target]
                sources.update({begin + i: Source(place, name, i) for i in range(len(block))})
            begin = 0


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
        files += sorted(path.rglob("*.dat*")) if path.is_dir() else [path]
    if not files:
        raise CoverageError("there is no coverage (*.dat, *.dat.gz): run `make coverage`")
    for file in files:
        verilog = file.with_name(f"{file.name.split('.')[0]}.v")
        coverage.counts.update(read_points(file))
        if verilog.name not in coverage.sources and verilog.exists():
            coverage.sources[verilog.name] = source_lines(verilog.read_text(encoding="utf-8"))
    return coverage


def totals(points: Mapping[Point, int]) -> tuple[int, int]:
    """Return how many points were reached, and how many there are."""
    return sum(count > 0 for count in points.values()), len(points)
