"""What was reached, file by file of the gateware, and the lines and signals that never were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tilewright_sim.coverage.read import Coverage, Place

__all__ = ["FileReport", "Hole", "holes", "reports"]

GATEWARE = "tilewright_hw/gateware/"


@dataclass
class FileReport:
    """What was reached of a Python file, on one instance or another of its components.

    Parameters
    ----------
    file : str
        From its package on.
    branches : dict
        Branches by the Python line that they are of and what they are, and whether they were taken.
    bits : dict
        Bits of signals by the line that makes them, and whether each went up and down.
    """

    file: str
    branches: dict[tuple[int, str], bool] = field(default_factory=dict)
    bits: dict[tuple[int, str], bool] = field(default_factory=dict)

    @property
    def lines(self) -> dict[int, bool]:
        """Lines with branches, and whether all of these were taken."""
        lines: dict[int, bool] = {}
        for (line, _), taken in self.branches.items():
            lines[line] = lines.get(line, True) and taken
        return lines

    @property
    def lines_reached(self) -> int:
        """Lines all of whose branches were taken."""
        return sum(self.lines.values())

    @property
    def branches_reached(self) -> int:
        """Branches that were taken."""
        return sum(self.branches.values())

    @property
    def bits_reached(self) -> int:
        """Bits that toggled."""
        return sum(self.bits.values())


@dataclass(frozen=True)
class Hole:
    """A line some of whose branches were never taken, or a signal of which some bits never toggled.

    Parameters
    ----------
    place : (str, int)
        The Python line.
    kind : str
        `branch` or `toggle`.
    what : str
        How much of it.
    text : str
        The line, where its file is at hand.
    """

    place: Place
    kind: str
    what: str
    text: str


def _reached(points: Iterable[tuple[str, int]]) -> dict[str, bool]:
    """Return the names of points, and whether each was reached, in both directions where it has two."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, count in points:
        name, _, direction = name.partition(":")
        counts[name][direction] += count
    return {name: all(each.values()) for name, each in counts.items()}


def reports(coverage: Coverage) -> list[FileReport]:
    """Return what was reached, file by file."""
    branches: dict[Place, list[tuple[str, int]]] = defaultdict(list)
    bits: dict[Place, list[tuple[str, int]]] = defaultdict(list)
    for point, count in coverage.counts.items():
        source = coverage.source(point)
        if source is None or not source.place[0].startswith(GATEWARE):
            continue
        if point.kind == "toggle":
            bits[source.place].append((point.what, count))
        else:
            branches[source.place].append((f"{source.block} +{source.offset} {point.what}", count))
    files: dict[str, FileReport] = {}
    for place in sorted({*branches, *bits}):
        report = files.setdefault(place[0], FileReport(place[0]))
        report.branches.update({(place[1], name): taken for name, taken in _reached(branches[place]).items()})
        report.bits.update({(place[1], name): taken for name, taken in _reached(bits[place]).items()})
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
        lines: dict[tuple[str, int, str], list[bool]] = defaultdict(list)
        for (line, _), taken in report.branches.items():
            lines["branch", line, "branches were never taken"].append(taken)
        for (line, bit), taken in report.bits.items():
            lines["toggle", line, f"bits of {bit.split('[')[0]} never toggled"].append(taken)
        for (kind, line, what), taken_ones in lines.items():
            if not all(taken_ones):
                quoted = text[line - 1].strip() if line <= len(text) else ""
                count = f"{taken_ones.count(False)} of {len(taken_ones)} {what}"
                found.append(Hole((report.file, line), kind, count, quoted))
    return sorted(found, key=lambda hole: (hole.place, hole.kind, hole.what))
