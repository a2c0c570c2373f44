"""Let pipelines of a flat design sleep in simulation while nothing changes in front of them.

A pipeline without feedback whose sources have been constant for as many cycles as it has stages stands still: its
registers would be given the values that they have. So its registers, and the logic that only they use, go into one
clocked block that is skipped then. Every register has the same value in every cycle as before; a simulator saves the
work, which for a vector unit that is idle most of the time is the larger part of a cycle.

The Verilog is what Yosys writes after `flatten`: one statement for each assignment.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SLEEPERS = (("\\top.vector.lane",), ("\\top.vector.scalar",))
"""The accelerator's pipelines that are long and often idle: the vector unit's lanes, and its unit for row results."""

_NAME = re.compile(r"\\\S+ |(?<![\w'$\\])[A-Za-z_][\w$]*")
_LITERAL = re.compile(r"\d+'s?[bdho][0-9a-fA-FxzXZ?_]+")
_DECLARATION = re.compile(
    r"^  (wire|reg|input|output)( signed)?( \[(\d+):(\d+)\])? (\\\S+ |[\w$]+)\s*(\[\d+:\d+\])?( = [^;]*)?;$"
)
_ASSIGN = re.compile(r"^  assign (.*?) = (.*);$")
_ALWAYS = "  always @(posedge clk)"
_TARGET = re.compile(r"(\\\S+ |[A-Za-z_][\w$]*)\s*(\[[^\]]*\])?\s*<=")
_WORDS = frozenset({"if", "else", "begin", "end", "posedge", "case", "casez", "endcase", "default"})


def _names(text: str) -> set[str]:
    return {name.strip() for name in _NAME.findall(_LITERAL.sub("", text))} - _WORDS


@dataclass
class _Statement:
    """An assignment: the lines that it is, the names that it gives values to, and those that it reads."""

    lines: tuple[int, int]
    targets: set[str]
    reads: set[str]
    clocked: bool


@dataclass
class _Design:
    """The statements of a flat module."""

    text: str
    lines: list[str]
    statements: list[_Statement] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    memories: set[str] = field(default_factory=set)
    ports: set[str] = field(default_factory=set)
    declared: dict[str, int] = field(default_factory=dict)
    drivers: dict[str, list[_Statement]] = field(default_factory=lambda: defaultdict(list))
    readers: dict[str, list[_Statement]] = field(default_factory=lambda: defaultdict(list))


def _parse(text: str) -> _Design:
    design = _Design(text, text.split("\n"))
    lines, i, functions = design.lines, 0, set[str]()
    while i < len(lines):
        line, first = lines[i], i
        i += 1
        if match := _DECLARATION.match(line):
            name = match[6].strip()
            design.declared[name] = first
            design.widths[name] = abs(int(match[4]) - int(match[5])) + 1 if match[4] else 1
            if match[7]:
                design.memories.add(name)
            if match[1] in ("input", "output"):
                design.ports.add(name)
        elif match := _ASSIGN.match(line):
            design.statements.append(_Statement((first, i), _names(match[1]), _names(match[2]), clocked=False))
        elif line.startswith(_ALWAYS):
            while i < len(lines) and (lines[i].startswith("    ") or lines[i] == "  end"):
                i += 1
            body = "\n".join(lines[first:i]).removeprefix(_ALWAYS)
            targets = {match[1].strip() for match in _TARGET.finditer(body)}
            reads = _names(_TARGET.sub(lambda match: match[2] or "", body))
            design.statements.append(_Statement((first, i), targets, reads, clocked=True))
        elif line.startswith("  function"):
            functions |= {line.rstrip(";").split()[-1]}
            while lines[i - 1] != "  endfunction":
                i += 1
        elif line.startswith("  initial begin"):  # contents of memories
            while lines[i - 1] != "  end":
                i += 1
        elif line.startswith("  "):
            raise ValueError(f"line {i} is nothing that a flat design has: {line.strip()[:60]!r}")
    for statement in design.statements:
        statement.reads -= functions
        for name in statement.targets:
            design.drivers[name].append(statement)
        for name in statement.reads:
            design.readers[name].append(statement)
    return design


def let_sleep(text: str, groups: Iterable[tuple[str, ...]]) -> str:
    """Return a flat design in which groups of registers sleep while nothing changes in front of them.

    Parameters
    ----------
    text : str
        Verilog of one module, as Yosys writes it.
    groups : iterable of tuple of str
        For each, the beginnings of its registers' names. Registers that depend on themselves by a detour stay awake.
    """
    for number, prefixes in enumerate(groups):
        if not any(prefix in text for prefix in prefixes):
            continue
        text = _let_group_sleep(_parse(text), prefixes, f"sleep_{number}")
    return text


def _let_group_sleep(design: _Design, prefixes: tuple[str, ...], label: str) -> str:
    registers, awake = _registers(design, prefixes), set[str]()
    while True:
        cone = _exclusive(design, registers, awake)
        order, loop = _sorted(cone, {n: set().union(*(d.reads for d in design.drivers[n])) & cone for n in cone})
        awake |= loop
        behind = {name: _behind(design, name, registers, cone) for name in registers}
        _, feedback = _sorted(registers, behind)
        registers -= feedback
        if not loop and not feedback:
            return _rewrite(design, registers, order, _depth(registers, behind), label) if registers else design.text


def _registers(design: _Design, prefixes: tuple[str, ...]) -> set[str]:
    """Return the registers of a group: those of its names, and the nameless ones that are parts of such."""

    def belongs(name: str) -> bool:
        drivers = design.drivers[name]
        if name in design.ports or not all(d.clocked and d.targets == {name} for d in drivers):
            return False
        if any(d.reads & design.memories for d in drivers):
            return False
        if name.startswith(prefixes):
            return True
        named = [t for reader in design.readers[name] for t in reader.targets if not reader.clocked]
        return name.startswith("_") and bool(named) and all(t.startswith(prefixes) for t in named)

    return {name for name in list(design.drivers) if name not in design.memories and belongs(name)}


def _exclusive(design: _Design, registers: set[str], awake: set[str]) -> set[str]:
    """Return the wires that only these registers use, through one another; not those that must stay `awake`."""
    inside = {id(d) for name in registers for d in design.drivers[name]}

    def used_inside(name: str) -> bool:
        if name in design.ports or name in awake:
            return False
        return all(id(reader) in inside for reader in design.readers.get(name, ()))

    def movable(statement: _Statement) -> bool:
        plain = not statement.clocked and not statement.reads & design.memories
        return plain and all(map(used_inside, statement.targets))

    cone = set[str]()
    waiting = {name for r in registers for d in design.drivers[r] for name in d.reads}
    grown = True
    while grown:
        grown = False
        for name in list(waiting):
            drivers = design.drivers.get(name)
            if name in registers or not drivers:
                waiting.discard(name)
            elif all(map(movable, drivers)):
                # With the other targets of its drivers, where these have drivers of their own that can come too.
                others = {t for d in drivers for t in d.targets}
                if all(movable(d) for t in others for d in design.drivers[t]):
                    cone |= others
                    waiting -= others
                    moved = [d for t in others for d in design.drivers[t]]
                    inside |= set(map(id, moved))
                    waiting |= {read for d in moved for read in d.reads} - cone
                    grown = True
    return cone


def _sorted(nodes: Iterable[str], before: Mapping[str, set[str]]) -> tuple[list[str], set[str]]:
    """Return the nodes in an order in which each comes after those before it; and those that loops keep out of it."""
    left = {node: len(before[node]) for node in nodes}
    after = defaultdict(list)
    for node in left:
        for other in before[node]:
            after[other].append(node)
    order = sorted(node for node, count in left.items() if not count)
    for node in order:
        for other in after[node]:
            left[other] -= 1
            if not left[other]:
                order.append(other)
    stuck = set(left) - set(order)
    # What merely follows a loop is no part of it.
    while ends := {node for node in stuck if not any(other in stuck for other in after[node])}:
        stuck -= ends
    return order, stuck


def _behind(design: _Design, register: str, registers: set[str], cone: set[str]) -> set[str]:
    """Return the registers of the group that one is made from."""
    found, seen = set[str](), set[str]()
    todo = [name for d in design.drivers[register] for name in d.reads]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in registers:
            found.add(name)
        elif name in cone:
            todo += [read for d in design.drivers[name] for read in d.reads]
    return found


def _depth(registers: set[str], behind: Mapping[str, set[str]]) -> int:
    """Return the stages of the longest way through the registers."""
    depth: dict[str, int] = {}
    for name in _sorted(registers, behind)[0]:
        depth[name] = 1 + max((depth[other] for other in behind[name]), default=0)
    return max(depth.values())


def _rewrite(design: _Design, registers: set[str], order: list[str], depth: int, label: str) -> str:
    """Return the text with the group's statements in one block that is skipped while it sleeps."""
    cone = set(order)
    moved = list({id(d): d for name in order for d in design.drivers[name]}.values())
    held = list({id(d): d for name in sorted(registers) for d in design.drivers[name]}.values())
    sources = sorted({n for d in (*moved, *held) for n in d.reads} - cone - registers - design.memories - {"clk"})
    text = list(design.lines)
    block = [f"  always @(posedge clk) if ({label}_awake) begin"]
    for d in moved:
        block.append("    " + text[d.lines[0]].replace("  assign ", "", 1))
    for d in held:
        block += ["  " + line for line in text[d.lines[0] : d.lines[1]]]
        block[-(d.lines[1] - d.lines[0])] = "    " + text[d.lines[0]].removeprefix("  always @(posedge clk)").strip()
    block.append("  end")
    for d in (*moved, *held):
        for i in range(*d.lines):
            text[i] = ""
    for name in cone:
        text[design.declared[name]] = text[design.declared[name]].replace("  wire", "  reg", 1)
    bits = depth.bit_length() + 1
    watch = [f"  reg [{bits - 1}:0] {label}_left = {bits}'d{depth + 1};"]
    changed = []
    for i, name in enumerate(sources):
        written = f"{name} " if name.startswith("\\") else name
        watch.append(f"  reg [{design.widths[name] - 1}:0] {label}_before_{i};")
        watch.append(f"  always @(posedge clk) {label}_before_{i} <= {written};")
        changed.append(f"({written} != {label}_before_{i})")
    watch += [
        f"  wire {label}_changed = {' | '.join(changed)};",
        f"  wire {label}_awake = {label}_changed | ({label}_left != 0);",
        f"  always @(posedge clk) if ({label}_changed) {label}_left <= {bits}'d{depth + 1};",
        f"    else if ({label}_left != 0) {label}_left <= {label}_left - 1'd1;",
    ]
    end = max(i for i, line in enumerate(text) if line == "endmodule")
    return "\n".join([*(line for line in text[:end]), *watch, *block, *text[end:]])
