"""What was reached, file by file of the gateware, and the lines and signals that never were."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tilewright_sim.coverage.read import Coverage, Place, Point

__all__ = ["FileReport", "Hole", "holes", "reports"]

LINES = ("line", "branch", "block", "if", "else", "elsif", "case")
GATEWARE = "tilewright_hw/gateware/"


@dataclass
class FileReport:
    """What was reached of a Python file.

    Parameters
    ----------
    file : str
        From its package on.
    lines : dict
        Python lines with statements, and whether every branch of theirs ran on some instance.
    bits : dict
        Bits of its signals, by the line that made them, and whether each went up and down on some instance.
    """

    file: str
    lines: dict[int, bool] = field(default_factory=dict)
    bits: dict[tuple[int, str], bool] = field(default_factory=dict)

    @property
    def lines_reached(self) -> int:
        """Lines that ran."""
        return sum(self.lines.values())

    @property
    def bits_reached(self) -> int:
        """Bits that toggled."""
        return sum(self.bits.values())


@dataclass(frozen=True)
class Hole:
    """A line that never ran, or a signal of which some bits never toggled.

    Parameters
    ----------
    place : (str, int)
        The Python line.
    what : str
        `a branch never ran`, or the signal and how many of its bits stood still.
    text : str
        The line, where its file is at hand.
    """

    place: Place
    what: str
    text: str


def _gateware(coverage: Coverage) -> dict[Place, list[tuple[Point, int]]]:
    """Return the points of the gateware's own lines."""
    found: dict[Place, list[tuple[Point, int]]] = defaultdict(list)
    for point, count in coverage.counts.items():
        place = coverage.place(point)
        if place is not None and place[0].startswith(GATEWARE):
            found[place].append((point, count))
    return found


def _bits(points: list[tuple[Point, int]]) -> dict[str, bool]:
    """Return the bits of signals that a line makes, and whether each has gone up and down."""
    counts: dict[str, list[int]] = defaultdict(list)
    for point, count in points:
        if point.kind == "toggle":
            counts[point.what].append(count)
    reached: dict[str, list[bool]] = defaultdict(list)
    for what, numbers in counts.items():  # one for each direction, where Verilator tells them apart
        reached[what.split(":")[0]].append(any(numbers))
    return {bit: all(each) for bit, each in reached.items()}


def _ran(points: list[tuple[Point, int]]) -> bool | None:
    """Return whether every branch of a line ran in one module or another; None where there is none."""
    branches: dict[tuple[str, str], int] = defaultdict(int)
    for point, count in points:
        if point.kind != "toggle":
            branches[point.module.split("tilewright")[-1], f"{point.verilog}:{point.line}"] += count
    return any(branches.values()) if branches else None


def reports(coverage: Coverage) -> list[FileReport]:
    """Return what was reached, file by file."""
    files: dict[str, FileReport] = {}
    for (name, line), points in sorted(_gateware(coverage).items()):
        report = files.setdefault(name, FileReport(name))
        if (ran := _ran(points)) is not None:
            report.lines[line] = ran
        report.bits.update({(line, bit): reached for bit, reached in _bits(points).items()})
    return list(files.values())


def holes(coverage: Coverage, root: Path | None = None) -> list[Hole]:
    """Return what was never reached, in the order of files and lines.

    Parameters
    ----------
    coverage : Coverage
        What was counted.
    root : Path, optional
        The folder that holds `tilewright_hw`, to quote its lines.
    """
    found = []
    for report in reports(coverage):
        path = root / report.file if root else None
        text = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []

        def quoted(line: int, text: list[str] = text) -> str:
            return text[line - 1].strip() if 0 < line <= len(text) else ""

        for line, ran in report.lines.items():
            if not ran:
                found.append(Hole((report.file, line), "never ran", quoted(line)))
        still: dict[tuple[int, str], list[bool]] = defaultdict(list)
        for (line, bit), reached in report.bits.items():
            still[line, bit.split("[")[0]].append(reached)
        for (line, signal), bits in still.items():
            if not all(bits):
                what = f"{signal}: {bits.count(False)} of {len(bits)} bits never toggled"
                found.append(Hole((report.file, line), what, quoted(line)))
    return sorted(found, key=lambda hole: hole.place)
