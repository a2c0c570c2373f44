"""Let parts of a flat design sleep in simulation while nothing that they depend on has changed.

The registers of a design are put into regions. A region wakes in a cycle when a register that its next state depends
on, one of its own or another, took another value at the last clock edge; else it would be given the values that it
has, and is skipped. So are wires: those that depend on the same registers are worked out together, when one of these
has changed. Every signal has the same value in every cycle as before; a simulator saves the work, which in a vector
unit that waits is most of a cycle. The idea is that of ESSENT (Beamer and Donofrio, "Efficiently exploiting low
activity factors to accelerate RTL simulation", DAC 2020), for regions that a person names, in Verilog.

How a region is written: what only it uses comes first in its clocked block, then its registers' next values, each
compared with the one before. These are variables that keep their values (`sleep_value_N`), from which the registers
follow by an `always @*` that runs only after a cycle awake. A nonblocking assignment would cost two copies of each
register in every cycle, asleep or not: Verilator keeps a shadow of what is read elsewhere at the same edge.

What changes in nearly every cycle has no region (it is awake), nor has what depends on it directly. Of these registers,
those that regions depend on are compared with copies of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from tilewright_sim.rtl.flat import Assignment, Design, Statement, assignment, parse, written

__all__ = ["RESTLESS", "SLEEPERS", "Region", "let_sleep"]

Region = tuple[str, str]
"""A pattern that the beginning of a register's name matches, and the region's name, which may refer to its groups."""

SLEEPERS: tuple[Region, ...] = (
    (r"\\top\.vector\.lane\d+\.(?:([a-z]\w*?)\d?\.)?", r"lane_\1"),
    (r"\\top\.vector\.(scalar|reduce)\b", r"\1"),
    (r"\\top\.(vector|store|sequencer|registers)\.", r"\1"),
    (r"\\top\.reader\.(sink)\.", r"\1"),
    (r"\\top\.reader\.(?:weight|load|fetch)_(?:runs|bursts)\.", "bursts"),
    (r"m_axi_(?:aw|w|b)", "store"),
    (r"s_axil_", "registers"),
)
"""The accelerator's regions; the array, the accumulators and the way of the weights have work in nearly every cycle."""

RESTLESS: tuple[str, ...] = (r"\\top\.reader\.i__payload", r"\\top\.registers\.(?:count|event)_")
"""Registers that change in nearly every cycle (beats read, counters); so do words read from memories that are awake."""

_AWAKE = ""
_FEW = 4
"""Wires, and registers with the same enable, of which fewer than this are left as they are."""


def let_sleep(text: str, sleepers: Iterable[Region], restless: Iterable[str] = ()) -> str:
    """Return a flat design in which regions of registers sleep while nothing that they depend on changes.

    Parameters
    ----------
    text : str
        Verilog of one module, as Yosys writes it after `flatten`.
    sleepers : iterable of Region
        The regions; the first pattern that matches counts. A nameless register goes where the name is that it feeds.
    restless : iterable of str
        Patterns of registers that change in nearly every cycle.

    Raises
    ------
    ValueError
        The text is no such design.
    """
    design = parse(text)
    plan = _Plan(design, _regions(design, tuple(sleepers), tuple(restless)))
    return _write(plan) if plan.regions else text


def _components(nodes: Iterable[str], after: Callable[[str], Iterable[str]]) -> list[list[str]]:
    """Return the strongly connected components of a graph, each after those that it leads to (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []
    open_: set[str] = set()

    def enter(node: str) -> tuple[str, Iterable[str]]:
        index[node] = low[node] = len(index)
        stack.append(node)
        open_.add(node)
        return node, iter(after(node))

    for root in nodes:
        work = [enter(root)] if root not in index else []
        while work:
            node, others = work[-1]
            for other in others:
                if other not in index:
                    work.append(enter(other))
                    break
                if other in open_:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    at = stack.index(node)
                    found.append(stack[at:])
                    open_.difference_update(stack[at:])
                    del stack[at:]
    return found


def _regions(design: Design, sleepers: Sequence[Region], restless: Sequence[str]) -> dict[str, str]:
    """Return the region of each register, `_AWAKE` where it has none; those of one statement have the same."""

    def named(name: str) -> str:
        for pattern, label in sleepers:
            if match := re.match(pattern, name):
                return re.sub(r"\W", "_", match.expand(label))
        return _AWAKE

    def region(name: str) -> str:
        if not name.startswith("_"):
            return named(name)
        users = [target for reader in design.readers[name] for target in reader.targets]
        return next(filter(None, map(named, sorted(users))), _AWAKE)

    found = {name: region(name) for name in design.registers}
    wild = {name for name in found if any(re.match(pattern, name) for pattern in restless)}
    clocked = design.clocked
    for statement in clocked:
        if len({found[name] for name in statement.targets}) > 1:
            wild |= statement.targets
    found |= dict.fromkeys(wild, _AWAKE)
    for statement in clocked:
        if statement.reads & design.memories:
            wild |= {name for name in statement.targets if found[name] == _AWAKE}
    while True:
        # What depends on those is awake, but no further: others may depend on it and sleep. A memory that is awake
        # cannot be compared with what it was, so what reads it is awake too.
        reached = _reached(design, wild | {name for name in design.memories if found.get(name) == _AWAKE})
        more = {name for s in clocked if s.reads & reached for name in s.targets if found[name] != _AWAKE}
        if not more:
            return found
        found |= dict.fromkeys(more, _AWAKE)


def _reached(design: Design, names: Collection[str]) -> set[str]:
    """Return names and the wires that depend on them."""
    found, todo = set(names), list(names)
    while todo:
        for reader in design.readers[todo.pop()]:
            if not reader.clocked:
                todo += reader.targets - found
                found |= reader.targets
    return found


@dataclass
class _Source:
    """Registers of one region (or awake, or one input) that the same regions depend on: a bit says that one changed."""

    region: str
    names: list[str] = field(default_factory=list)


class _Plan:
    """What goes where: who depends on what, what only one region uses, and which wires are worked out together."""

    def __init__(self, design: Design, region: dict[str, str]) -> None:
        self.design, self.region = design, region
        self.regions = sorted(set(region.values()) - {_AWAKE})
        wires = set(design.wires)
        self.order = _components(design.wires, lambda name: sorted(design.reads(name) & wires))
        self.looped = {n for part in self.order if len(part) > 1 or part[0] in design.reads(part[0]) for n in part}
        self.sources: list[_Source] = []
        self.source: dict[str, int] = {}
        self._find_sources()
        self.origins = self._origins()
        self.awake = {label: 0 for label in self.regions}
        for statement in self.design.clocked:
            if (label := self.of(statement)) != _AWAKE:
                for name in statement.reads | statement.targets:
                    self.awake[label] |= self.origins.get(name, 0)
        self.watched = 0
        for mask in self.awake.values():
            self.watched |= mask
        self.only: dict[str, list[str]] = {label: [] for label in self.regions}
        self.together: dict[int, list[str]] = {}
        self._place_wires()

    def of(self, statement: Statement) -> str:
        """Return the region of a clocked statement."""
        return self.region[next(iter(statement.targets))]

    def _find_sources(self) -> None:
        """Group registers and inputs by the regions whose next state depends on them."""
        design, regions = self.design, {label: 1 << i for i, label in enumerate(self.regions)}
        behind: dict[str, int] = defaultdict(int)
        for statement in self.design.clocked:
            for name in statement.reads:
                behind[name] |= regions.get(self.of(statement), 0)
        for part in reversed(self.order):
            mask = 0
            for name in part:
                mask |= behind[name]
            for name in part:
                for read in design.reads(name):
                    behind[read] |= mask
                behind[name] = mask
        found: dict[tuple[str, int, str], int] = {}
        for name in (*design.registers, *sorted(design.inputs - {"clk"})):
            alone = name if name in design.inputs else ""
            key = (self.region.get(name, _AWAKE), behind[name], alone)
            if key not in found:
                found[key] = len(self.sources)
                self.sources.append(_Source(key[0]))
            self.source[name] = found[key]
            self.sources[found[key]].names.append(name)

    def _origins(self) -> dict[str, int]:
        """Return the sources that each name depends on in the same cycle, as bits."""
        found = {name: 1 << source for name, source in self.source.items()}
        for part in self.order:
            mask = 0
            for name in part:
                for read in self.design.reads(name):
                    mask |= found.get(read, 0)
            found |= dict.fromkeys(part, mask)
        return found

    def _place_wires(self) -> None:
        """Find the wires that only one region uses, and those that depend on the same watched sources."""
        design, user = self.design, self._users()
        known = self.watched
        for i, source in enumerate(self.sources):
            known |= (source.region != _AWAKE) << i
        together: dict[int, list[str]] = defaultdict(list)
        for part in self.order:
            for name in part:
                origins = self.origins[name]
                if alone := user[name]:
                    self.only[alone].append(name)
                elif alone is None and origins and not origins & ~known:
                    together[origins].append(name)
        for origins, names in together.items():
            statements = {id(driver): driver for name in names for driver in design.drivers[name]}
            given = {target for statement in statements.values() for target in statement.targets}
            if len(statements) >= _FEW and given == set(names):
                self.together[origins] = names

    def _users(self) -> dict[str, str | None]:
        """Return the region (or `_AWAKE`) that alone uses a wire, through others or itself; None where several do."""
        design = self.design
        user: dict[str, str | None] = {}

        def users(name: str) -> set[str | None]:
            found: set[str | None] = {None} if name in design.outputs or name in self.looped else set()
            for reader in design.readers[name]:
                found |= {self.of(reader)} if reader.clocked else {user.get(target) for target in reader.targets}
            return found

        for part in reversed(self.order):
            for name in part:
                found = users(name)
                user[name] = next(iter(found)) if len(found) == 1 else None
        while True:
            # A statement that gives several names values stays whole.
            mixed = {
                name
                for statement in design.statements
                if not statement.clocked and len({user[name] for name in statement.targets}) > 1
                for name in statement.targets
                if user[name] is not None
            }
            mixed |= {name for name in user if user[name] is not None and users(name) != {user[name]}}
            if not mixed:
                # Ports are never variables, and loops have no order: both stay where they are.
                stay = design.outputs | self.looped
                return {name: (_AWAKE if name in stay else found) for name, found in user.items()}
            user |= dict.fromkeys(mixed, None)


class _Writer:
    """Writes a plan: takes statements out of a design's lines, and puts blocks after them."""

    def __init__(self, plan: _Plan) -> None:
        self.plan, self.design = plan, plan.design
        self.declarations: list[str] = []
        self.blocks: list[str] = []
        self.values: dict[str, str] = {}
        self.places: dict[int, int] = {}  # of a source among those of its region
        sizes: dict[str, int] = defaultdict(int)
        for i, source in enumerate(plan.sources):
            if source.region != _AWAKE:
                self.places[i] = sizes[source.region]
                sizes[source.region] += 1
        self.sizes = sizes
        self.rank = {name: i for i, part in enumerate(plan.order) for name in part}

    def moved(self, sources: int) -> str:
        """Return whether one of some sources changed at the last edge, as an expression."""
        terms, masks = [], defaultdict[str, int](int)
        for i, source in enumerate(self.plan.sources):
            if sources >> i & 1:
                if source.region == _AWAKE:
                    terms.append(f"sleep_moved_{i}")
                else:
                    masks[source.region] |= 1 << self.places[i]
        for label, mask in masks.items():
            size = self.sizes[label]
            terms.append(f"(|(sleep_moved_{label} & {size}'h{mask:x}))")
        return " | ".join(terms)

    def wires(self, names: Iterable[str], indent: str) -> list[str]:
        """Return wires as assignments of a block, each after those it reads; they are variables now."""
        lines, done = [], set[int]()
        for name in sorted(names, key=self.rank.__getitem__):
            declared = self.design.declared[name]
            self.design.lines[declared] = self.design.lines[declared].replace("  wire", "  reg", 1)
            for statement in self.design.drivers[name]:
                if id(statement) not in done:
                    done.add(id(statement))
                    lines.append(f"{indent}{self.design.expression(statement)}")
                    self.design.remove(statement)
        return lines

    def watch(self) -> None:
        """Compare inputs, and registers that are awake, with what they were."""
        for i, source in enumerate(self.plan.sources):
            if source.region != _AWAKE or not self.plan.watched >> i & 1:
                continue
            changed = []
            for k, name in enumerate(source.names):
                before, bits = f"sleep_before_{i}_{k}", self.design.widths[name] - 1
                self.declarations.append(f"  reg [{bits}:0] {before};")
                self.blocks.append(f"  always @(posedge clk) {before} <= {written(name)};")
                changed.append(f"({written(name)} != {before})")
            self.declarations += [f"  reg sleep_first_{i} = 1'h1;", f"  wire sleep_moved_{i};"]
            self.blocks.append(f"  always @(posedge clk) sleep_first_{i} <= 1'h0;")
            self.blocks.append(f"  assign sleep_moved_{i} = {' | '.join([f'sleep_first_{i}', *changed])};")

    def next_value(self, found: Assignment) -> str:
        """Return what gives a register its next value, and notes whether that is another."""
        name, value = found.name, found.value
        changed = f"sleep_changed_{self.plan.source[name]}"
        if name in self.design.memories:
            return f"{found.before}begin {changed} = 1'h1; {written(name)}{found.part} <= {value}; end"
        if name not in self.values:
            self.values[name] = f"sleep_value_{len(self.values)}"
            initial = self.design.initial.get(name, "")
            self.declarations.append(f"  reg [{self.design.widths[name] - 1}:0] {self.values[name]}{initial};")
        kept = f"{self.values[name]}{found.part}"
        bounds = [int(bound) for bound in found.part.strip("[] ").split(":")] if found.part else [0]
        width = abs(bounds[0] - bounds[-1]) + 1 if found.part else self.design.widths[name]
        # Through a variable of the register's width, as an assignment cuts a value and a comparison does not.
        new = f"sleep_next_{len(self.declarations)}"
        self.declarations.append(f"  reg [{width - 1}:0] {new};")
        return f"{found.before}begin {new} = {value}; {changed} = {changed} | ({new} != {kept}); {kept} = {new}; end"

    def region(self, label: str) -> None:
        """Write a region's block, and the registers that follow from its values."""
        plan, awake, moved = self.plan, f"sleep_awake_{label}", f"sleep_moved_{label}"
        size, earlier = self.sizes[label], len(self.values)
        mine = [i for i, source in enumerate(plan.sources) if source.region == label]
        self.declarations += [
            f"  wire {awake};",
            f"  reg sleep_fresh_{label} = 1'h1;",
            f"  reg [{size - 1}:0] {moved} = ~{size}'h0;",
            *(f"  reg sleep_changed_{i};" for i in mine),
        ]
        body = [f"      sleep_changed_{i} = 1'h0;" for i in mine] + self.wires(plan.only[label], "      ")
        for statement in self.design.clocked:
            if plan.of(statement) == label:
                for line in self.design.body(statement.lines):
                    found = assignment(line)
                    body.append(f"  {self.next_value(found) if found else line}")
                self.design.remove(statement)
        self.blocks += [
            f"  assign {awake} = {self.moved(plan.awake[label])};",
            "  always @(posedge clk) begin",
            f"    sleep_fresh_{label} <= {awake};",
            f"    {moved} <= {size}'h0;",
            f"    if ({awake}) begin",
            *body,
            f"      {moved} <= {{{', '.join(f'sleep_changed_{i}' for i in reversed(mine))}}};",
            "    end",
            "  end",
            f"  always @* if (sleep_fresh_{label}) begin",
            *(f"    {written(name)} = {value};" for name, value in list(self.values.items())[earlier:]),
            "  end",
        ]

    def shared_wires(self) -> None:
        """Write the wires that depend on the same sources."""
        for origins, names in self.plan.together.items():
            self.blocks += [f"  always @* if ({self.moved(origins)}) begin", *self.wires(names, "    "), "  end"]

    def enables(self) -> None:
        """Put registers that are awake and have the same enable into one statement, as the array's are."""
        groups: dict[str, list[Statement]] = defaultdict(list)
        for statement in self.design.clocked:
            first, end = statement.lines
            if self.plan.of(statement) == _AWAKE and end - first == 2:
                found = assignment(self.design.lines[first + 1])
                if found and re.fullmatch(r"    if \(.*\) ", found.before):
                    groups[found.before].append(statement)
        for before, statements in groups.items():
            if len(statements) >= _FEW:
                self.blocks.append(f"  always @(posedge clk) {before.strip()} begin")
                for statement in statements:
                    line = self.design.lines[statement.lines[0] + 1]
                    self.blocks.append(f"    {line.removeprefix(before)}")
                    self.design.remove(statement)
                self.blocks.append("  end")


def _write(plan: _Plan) -> str:
    writer = _Writer(plan)
    writer.watch()
    for label in plan.regions:
        writer.region(label)
    writer.shared_wires()
    writer.enables()
    lines = plan.design.lines
    end = max(i for i, line in enumerate(lines) if line == "endmodule")
    kept = [line for line in lines[:end] if line]
    return "\n".join([*kept, *writer.declarations, *writer.blocks, *lines[end:]])
