"""Where the multipliers and block RAMs of the accelerator go on an ECP5.

nextpnr's static placer first lets all cells float and only then puts multipliers and block RAMs on their sites, each on
the nearest one that is free. On `edge`, which takes 85 % of the multipliers of an LFE5U-85F, that made all wires
together 78 % longer, and no route was found. So the whole accelerator gets a floorplan, as an engineer would draw it:

    RAM row 3    read-only tables by their lanes; statistics and tables of reciprocals in the middle
    RAM row 2    parameters in the middle; row buffer and loaded tables, each slice by its lane
    DSP row 2    lanes from left to right, reductions and scalars in their middle
    RAM row 1    accumulators, below their column's last sums
    DSP row 1    later rows of the array  } its columns from left to right: sums run to the right and up,
    RAM row 0    activations, weights     } activations to the right
    DSP row 0    first rows of the array  }

What has no place here, and all logic, is the placer's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Sites", "floorplan"]

Netlist = Mapping[str, Any]

_DSP, _RAM = "MULT18X18D", "DP16KD"


class Sites:
    """The sites of one kind on a device, in rows across it; each is given away once.

    Parameters
    ----------
    rows : tuple of int
        Their Y coordinates.
    offsets : dict of int to str
        The sites of a group of nine tiles: offset in X, and name.
    groups : tuple of int
        The X coordinates of the groups.
    """

    def __init__(self, rows: tuple[int, ...], offsets: Mapping[int, str], groups: tuple[int, ...]) -> None:
        self.rows = rows
        self._names = [(x + offset, name) for x in groups for offset, name in offsets.items()]
        self._taken: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        """Return how many a row has."""
        return len(self._names)

    def take(self, row: int, place: float) -> str | None:
        """Return the free site that is nearest to a place in a row, counted in sites; None if the row is full."""
        free = [i for i in range(len(self)) if (row, i) not in self._taken]
        if not free:
            return None
        index = min(free, key=lambda i: (abs(i - place), i))
        self._taken.add((row, index))
        x, name = self._names[index]
        return f"X{x}/Y{self.rows[row]}/{name}"


_GROUPS = (4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114)


def _sites_of_lfe5u_85f() -> tuple[Sites, Sites]:
    """Return the sites of multipliers and of block RAMs."""
    return (
        Sites((10, 34, 58), {0: "MULT18_0", 1: "MULT18_1", 4: "MULT18_4", 5: "MULT18_5"}, _GROUPS),
        Sites((22, 46, 70, 82), {0: "EBR0", 2: "EBR1", 4: "EBR2", 6: "EBR3"}, _GROUPS),
    )


def floorplan(netlist: Netlist) -> dict[str, str]:
    """Return the sites of multipliers and block RAMs by their cells' names.

    Parameters
    ----------
    netlist : dict
        The mapped design, as Yosys writes it to JSON, of the accelerator in its shell.

    Returns
    -------
    dict
        Empty where a plan is no help: for single blocks, and where the array takes less than half of the multipliers
        that two of the three rows have, or more than these (a few may be left for the placer).
    """
    module = next(m for m in netlist["modules"].values() if int(str(m["attributes"].get("top", "0")), 2))
    dsps, rams = _sites_of_lfe5u_85f()
    cells = _array_cells(module)
    if not len(dsps) <= len(cells) <= 2 * len(dsps) + 4:
        return {}
    plan = _Plan(module, dsps, rams)
    columns = plan.array(cells)
    plan.matrix_memories(columns)
    plan.vector()
    return plan.sites


def _array_cells(module: Netlist) -> dict[tuple[int, int], str]:
    """Return the multipliers of the array by row and column: those that have a cell's weight at an input."""
    weight = re.compile(r"array\.cell_(\d+)_(\d+)\.weight$")
    owner: dict[int, tuple[int, int]] = {}
    for name, net in module["netnames"].items():
        if found := weight.search(name):
            owner |= dict.fromkeys(net["bits"], (int(found[1]), int(found[2])))
    made: dict[tuple[int, int], str] = {}
    for name, cell in module["cells"].items():
        if cell["type"] == _DSP:
            bits = [bit for side in "AB" for bit in cell["connections"].get(f"{side}17", ())]
            made |= {owner[bit]: name for bit in bits if bit in owner}
    return made


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


class _Plan:
    """A plan in the making."""

    def __init__(self, module: Netlist, dsps: Sites, rams: Sites) -> None:
        self.sites: dict[str, str] = {}
        self._dsps, self._rams = dsps, rams
        self._cells: dict[str, list[str]] = defaultdict(list)
        for name, cell in module["cells"].items():
            self._cells[cell["type"]].append(name)

    def _put(self, names: Iterable[str], sites: Sites, row: int, begin: float, step: float = 1) -> None:
        """Put cells at free sites near a place and on from there."""
        for index, name in enumerate(names):
            if (site := sites.take(row, begin + step * index)) is not None:
                self.sites[name] = site

    def _find(self, kind: str, pattern: str) -> list[str]:
        return sorted((n for n in self._cells[kind] if re.match(rf"dut\.{pattern}", n)), key=_numbers)

    def array(self, cells: Mapping[tuple[int, int], str]) -> dict[int, float]:
        """Put the array in the first two rows, half of each column in either; return the places of its columns."""
        used, columns = [0, 0], {}
        for column in sorted({c for _, c in cells}):
            names = [cells[at] for at in sorted(cells) if at[1] == column]
            first = min(len(names), max(0, round((used[1] + len(names) - used[0]) / 2)))
            begin = min(used)
            for row, part in enumerate((names[:first], names[first:])):
                self._put(part, self._dsps, row, used[row])
                used[row] += len(part)
            columns[column] = (begin + max(used)) / 2
        return columns

    def matrix_memories(self, columns: Mapping[int, float]) -> None:
        """Put accumulators above their columns, activations where they enter, and weights along the array."""
        for column, place in columns.items():
            banks = self._find(_RAM, rf"matrix\.accumulators\.column_{column}\.")
            self._put(banks, self._rams, 1, place, 0)
        self._put(self._find(_RAM, r"act\."), self._rams, 0, 0)
        width = len(self._rams)
        for queue, begin, end in (("weight", 0.17, 0.77), ("stream", 0.2, 0.35)):
            names = self._find(_RAM, rf"matrix\.loader\.{queue}_fifo\.")
            step = width * (end - begin) / max(1, len(names) - 1)
            self._put(names, self._rams, 0, width * begin, step)

    def vector(self) -> None:
        """Put each lane's multipliers in a row, memories above them; reductions and scalars in the middle of the lanes.

        From there, the end of a reduction is near to the taking of the next command, which all lanes wait for.
        """
        lanes = len({_numbers(name)[0] for name in self._find(_DSP, r"vector\.lane\d+\.")})
        reductions = sorted(self._find(_DSP, r"vector\.(reduce|scalar)"))
        width = len(self._dsps)
        start, pitch = 0.1 * width, (0.8 * width - len(reductions)) / max(1, lanes)
        middle = start + pitch * (lanes // 2)

        def place(lane: float) -> float:
            return start + pitch * lane + (len(reductions) if lane >= lanes // 2 else 0)

        self._put(reductions, self._dsps, 2, middle)
        self._put(self._find(_RAM, r"vector\.param"), self._rams, 2, width / 2 - 3)
        for lane in range(lanes):
            own = rf"vector\.lane{lane}\."
            self._put(sorted(self._find(_DSP, own)), self._dsps, 2, place(lane) + 2)
            self._put(self._find(_RAM, rf"{own}.*\.ram"), self._rams, 2, place(lane))
            self._put(self._find(_RAM, rf"{own}.*\.rom"), self._rams, 3, place(lane))
        rows = self._find(_RAM, r"vector\.row\$")
        slices = len(rows) // 2 or 1  # two halves of the words; in each, slices of the bits of all lanes
        rows.sort(key=lambda name: _numbers(name)[-1] % slices)
        for index, name in enumerate(rows):
            self._put([name], self._rams, 2, place(lanes * index / len(rows)) + 2)
        self._put(self._find(_RAM, r"vector\.scalar"), self._rams, 3, middle)
        self._put(self._find(_RAM, r"vector\.statistics"), self._rams, 3, middle + 4)
