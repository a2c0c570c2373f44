"""The statements of a flat design: Verilog of one module as Yosys writes it after `flatten`, one per assignment."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

__all__ = ["Assignment", "Design", "Statement", "assignment", "parse", "written"]

_NAME = re.compile(r"\\\S+ |(?<![\w'$\\])[A-Za-z_][\w$]*")
_LITERAL = re.compile(r"\d+'s?[bdho][0-9a-fA-FxzXZ?_]+")
_DECLARATION = re.compile(
    r"^  (wire|reg|input|output)( signed)?( \[(\d+):(\d+)\])? (\\\S+ |[\w$]+)\s*(\[\d+:\d+\])?( = [^;]*)?;$"
)
_ASSIGN = re.compile(r"^  assign (.*?) = (.*);$")
_ALWAYS = "  always @(posedge clk)"
_TARGET = re.compile(r"(\\\S+ |[A-Za-z_][\w$]*)\s*(.*)$")
_WORDS = frozenset({"if", "else", "begin", "end", "posedge", "case", "casez", "endcase", "default"})


def _names(text: str) -> set[str]:
    return {name.strip() for name in _NAME.findall(_LITERAL.sub("", text))} - _WORDS


def written(name: str) -> str:
    """Return a name as Verilog wants it: one that begins with a backslash ends with a space."""
    return f"{name} " if name.startswith("\\") else name


@dataclass
class Assignment:
    """A line of a clocked statement that gives a register a value: what stands before it, and its parts."""

    before: str
    name: str
    part: str
    value: str


@dataclass
class Statement:
    """An assignment: the lines that it is, the names that it gives values to, and those that it reads."""

    lines: tuple[int, int]
    targets: set[str]
    reads: set[str]
    clocked: bool


@dataclass
class Design:
    """The statements of a flat module, and what it declares.

    A register is what a clocked statement gives values to, memories among them; a wire is what another does.
    """

    lines: list[str]
    statements: list[Statement] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    memories: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    declared: dict[str, int] = field(default_factory=dict)
    drivers: dict[str, list[Statement]] = field(default_factory=lambda: defaultdict(list))
    readers: dict[str, list[Statement]] = field(default_factory=lambda: defaultdict(list))

    @property
    def registers(self) -> list[str]:
        """What clocked statements give values to, in the order of these."""
        return [name for name, drivers in self.drivers.items() if drivers[0].clocked]

    @property
    def wires(self) -> list[str]:
        """What other statements give values to, in the order of these."""
        return [name for name, drivers in self.drivers.items() if not drivers[0].clocked]

    def reads(self, name: str) -> set[str]:
        """Return the names that one is made from."""
        return set().union(*(driver.reads for driver in self.drivers[name]))

    @property
    def clocked(self) -> list[Statement]:
        """The statements that give registers values."""
        return [statement for statement in self.statements if statement.clocked]

    def body(self, lines: tuple[int, int]) -> list[str]:
        """Return the lines of a clocked statement without its `always`."""
        first, end = lines
        return [self.lines[first].replace(_ALWAYS, "   ", 1), *self.lines[first + 1 : end]]

    def expression(self, statement: Statement) -> str:
        """Return an assignment of a wire without its `assign`."""
        return self.lines[statement.lines[0]].strip().removeprefix("assign ")

    def remove(self, statement: Statement) -> None:
        """Take a statement out of the lines; their numbers stay."""
        first, end = statement.lines
        self.lines[first:end] = [""] * (end - first)


def _after_condition(line: str, at: int) -> int:
    """Return where the condition that begins at a bracket has ended."""
    depth = 0
    while True:
        if line[at] == "\\":
            at = line.index(" ", at)
        depth += (line[at] == "(") - (line[at] == ")")
        at += 1
        if not depth:
            return at


def assignment(line: str) -> Assignment | None:
    """Return the assignment in a line of a clocked statement, or None."""
    at = len(line) - len(line.lstrip())
    while line.startswith(("else ", "if (", "begin "), at):
        at = _after_condition(line, at + 3) + 1 if line.startswith("if", at) else line.index(" ", at) + 1
    match = _TARGET.match(line[at:])
    if not match or not line.endswith(";"):
        return None
    rest, end, depth = match[2], 0, 0
    while depth or not rest.startswith("<=", end):
        if end >= len(rest):
            return None
        if rest[end] == "\\":
            end = rest.index(" ", end)
        depth += (rest[end : end + 1] == "[") - (rest[end : end + 1] == "]")
        end += 1
    return Assignment(line[:at], match[1].strip(), rest[:end].strip(), rest[end + 2 : -1].strip() + " ")


def _clocked(lines: tuple[int, int], body: list[str]) -> Statement:
    targets, reads = set[str](), set[str]()
    for line in body:
        if found := assignment(line):
            targets.add(found.name)
            reads |= _names(found.before) | _names(found.part) | _names(found.value)
        else:
            reads |= _names(line)
    return Statement(lines, targets, reads, clocked=True)


def _declare(design: Design, match: re.Match[str], line: int) -> None:
    name = match[6].strip()
    design.declared[name] = line
    design.widths[name] = abs(int(match[4]) - int(match[5])) + 1 if match[4] else 1
    if match[7]:
        design.memories.add(name)
    if match[8]:
        design.initial[name] = match[8]
    if match[1] in ("input", "output"):
        (design.inputs if match[1] == "input" else design.outputs).add(name)


def parse(text: str) -> Design:
    """Return the design that a text is.

    Raises
    ------
    ValueError
        A line is nothing that Yosys writes for a flat design, or a name has clocked statements and others.
    """
    design, functions, i = Design(text.split("\n")), set[str](), 0
    lines = design.lines
    while i < len(lines):
        line, first = lines[i], i
        i += 1
        if match := _DECLARATION.match(line):
            _declare(design, match, first)
        elif match := _ASSIGN.match(line):
            design.statements.append(Statement((first, i), _names(match[1]), _names(match[2]), clocked=False))
        elif line.startswith(_ALWAYS):
            while lines[i].startswith("    ") or lines[i] == "  end":
                i += 1
            design.statements.append(_clocked((first, i), design.body((first, i))))
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
        for name in sorted(statement.targets):
            design.drivers[name].append(statement)
        for name in sorted(statement.reads):
            design.readers[name].append(statement)
    for name, drivers in design.drivers.items():
        if len({driver.clocked for driver in drivers}) > 1:
            raise ValueError(f"{name} is given values by clocked statements and by others")
    return design
