"""The emitter: collects instructions and finds the dependencies among them.

Every instruction declares what it reads and writes (a space, and an interval of words or bytes in it). From that the
emitter derives the dependency distances, so that a program is ordered by construction; the golden model checks it
again by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tilewright_hw.arch.isa import MAX_WAIT, UNIT_OF, Instruction, Op, Unit


@dataclass(frozen=True)
class Region:
    """An interval of a buffer or of memory: `space` is 'mem', 'act', 'row', 'param', 'acc0', 'acc1' or 'stat'."""

    space: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """First address past the interval."""
        return self.start + self.size

    def part(self, offset: int, size: int) -> Region:
        """Return an interval inside this one."""
        assert 0 <= offset <= offset + size <= self.size, (self, offset, size)
        return Region(self.space, self.start + offset, size)


@dataclass(frozen=True)
class Value:
    """An operand known at compile time up to a sequencer register: constant + registers[register]."""

    constant: int
    register: int | None = None

    def __add__(self, other: int) -> Value:
        return Value(self.constant + other, self.register)


Operand = int | Value


class Sink(Protocol):
    """What building blocks emit instructions into: an `Emitter`, or a scheduler's lane."""

    bank: int
    """Accumulator bank of the next product: products take turns, so that one is drained while the next is made."""
    part: str
    """What of the model the instructions are for, such as `layers.0.qkv`; for those who ask where time goes."""

    def emit(
        self, op: Op, reads: Iterable[Region] = (), writes: Iterable[Region] = (), comment: str = "", **operands: Any
    ) -> None:
        """Take an instruction of one of the units."""

    def control(self, op: Op, **operands: int) -> None:
        """Take an instruction of the sequencer's own."""


#: Units that finish one instruction before they start the next.
_SERIAL = (Unit.VECTOR, Unit.STORE)
#: Spaces that a unit accesses in instruction order although its instructions overlap.
_IN_ORDER = {
    Unit.MATRIX: ("acc0", "acc1", "act"),
    Unit.LOAD: ("act", "row", "param", "mem"),
    Unit.WEIGHT: ("mem",),
}


@dataclass
class _Access:
    start: int
    end: int
    unit: Unit
    number: int
    write: bool


@dataclass
class Emitter:
    """Collects a program; see the module's text."""

    program: list[Instruction] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    """The `part` of each instruction of the program."""
    bank: int = 0
    part: str = ""
    _issued: dict[Unit, int] = field(default_factory=lambda: dict.fromkeys(Unit, 0))
    _accesses: dict[str, list[_Access]] = field(default_factory=dict)

    def emit(
        self,
        op: Op,
        reads: Iterable[Region] = (),
        writes: Iterable[Region] = (),
        comment: str = "",
        **operands: Any,
    ) -> None:
        """Append an instruction of one of the units; operands that are a `Value` with a register become patches."""
        unit = UNIT_OF[op]
        reads, writes = tuple(reads), tuple(writes)
        last = self.dependencies(unit, reads, writes)
        waits = {other: min(self._issued[other] - number, MAX_WAIT) for other, number in last.items()}
        fields, patches = _split(operands)
        self._append(Instruction(op, fields, waits, patches, comment))
        number = self._issued[unit]
        self._issued[unit] = number + 1
        for region in reads:
            self._record(region, unit, number, False)
        for region in writes:
            self._record(region, unit, number, True)

    def dependencies(self, unit: Unit, reads: Iterable[Region], writes: Iterable[Region]) -> dict[Unit, int]:
        """Return, per unit, the number of its last instruction that one with these accesses must wait for."""
        last: dict[Unit, int] = {}
        for region, write in [(r, False) for r in reads] + [(w, True) for w in writes]:
            for a in self._accesses.get(region.space, ()):
                if a.start >= region.end or region.start >= a.end or not (write or a.write):
                    continue
                if a.unit == unit and (unit in _SERIAL or region.space in _IN_ORDER.get(unit, ())):
                    continue
                last[a.unit] = max(last.get(a.unit, 0), a.number)
        return last

    def control(self, op: Op, **operands: int) -> None:
        """Append an instruction of the sequencer's own."""
        self._append(Instruction(op, operands))

    def _append(self, instruction: Instruction) -> None:
        self.program.append(instruction)
        self.parts.append(self.part)

    def _record(self, region: Region, unit: Unit, number: int, write: bool) -> None:
        accesses = self._accesses.setdefault(region.space, [])
        # A write waits for all older accesses of its interval, so what waits for it waits for them; and a later read
        # by the same unit makes an older one superfluous.
        accesses[:] = [
            a
            for a in accesses
            if not (region.start <= a.start and a.end <= region.end and (write or (a.unit == unit and not a.write)))
        ]
        accesses.append(_Access(region.start, region.end, unit, number, write))


def _split(operands: dict[str, Operand]) -> tuple[dict[str, int], Sequence[tuple[str, int]]]:
    fields: dict[str, int] = {}
    patches: list[tuple[str, int]] = []
    for name, value in operands.items():
        if isinstance(value, Value):
            if value.constant:
                fields[name] = value.constant
            if value.register is not None:
                patches.append((name, value.register))
        elif value:
            fields[name] = int(value)
    return fields, tuple(patches)
