"""The scheduler: merges the instructions of several blocks of rows into one program that keeps the array busy.

Blocks of rows know nothing of each other. Each records its instructions, in order, in a `Lane`. `merge` then decides
which lane's instruction comes next in the program. The units start their instructions in program order, so this
decides what the array works on while the vector unit makes the next operands for another block.

The model of the machine that it simulates meanwhile:

* The sequencer issues one instruction after another; each needs a free place in its unit's queue. An instruction
  starts when its unit has come to it and its dependencies (as `Emitter` finds them) have completed.
* The array takes max(rows, R/ingest) cycles for a tile, and no tile before the bus has brought it. The bus brings
  tiles while it has nothing else to do, as far ahead as the weight FIFO reaches.
* The vector unit takes a word per cycle, or as long as the store unit takes what it makes; some cycles pass from one
  instruction to the next.
* Loads and stores take a cycle per beat, and the memory's latency.

It picks what could start first. Of several that could start at once it takes what empties an accumulator bank, then
the lane with the least work left for the array before it needs the vector unit again: what can fill the array at any
time is kept for later. Results do not depend on any of this; a wrong estimate costs cycles only.

Two things are ordered for good. What passes a FIFO stays together with its taker: WEIGHT or LOAD with MATMUL, VECTOR
with STORE; and so do the registers of a block's tokens and the loads that use them. And a block sees the keys and
values of earlier blocks: it is held back until their stores are in the program. The accumulator banks, finally, are
handed out here: a lane's own alternation is only a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewright.compiler.emit import Emitter, Region, Value
from tilewright.compiler.layout import ceil_div
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import UNIT_OF, Dest, Element, LoadDest, Op, Unit, assemble

ISSUE = 8
"""Cycles of the sequencer per instruction, about."""
VECTOR_LATENCY = 45
"""Cycles from the last word of a VECTOR to the first of the next, about."""
MEMORY_LATENCY = 60
"""Cycles from a request to the first beat, about."""
BANKS = ("acc0", "acc1")


@dataclass(frozen=True)
class Draft:
    """An instruction that has no place in the program yet: what `Emitter.emit` takes."""

    op: Op
    reads: tuple[Region, ...]
    writes: tuple[Region, ...]
    comment: str
    operands: dict[str, Any]
    block: int


@dataclass
class Lane:
    """Records the instructions of blocks that follow one another; stands in for an `Emitter`.

    `aliases` names regions of memory whose accesses are told apart by token instead of by address: see `Alias`.
    """

    drafts: list[Draft] = field(default_factory=list)
    bank: int = 0
    block: int = 0
    aliases: Sequence[Alias] = ()

    def emit(
        self, op: Op, reads: Iterable[Region] = (), writes: Iterable[Region] = (), comment: str = "", **operands: Any
    ) -> None:
        """Record an instruction of one of the units."""
        renamed = tuple(self._rename(r, False) for r in reads), tuple(self._rename(w, True) for w in writes)
        self.drafts.append(Draft(op, *renamed, comment, operands, self.block))

    def control(self, op: Op, **operands: int) -> None:
        """Record an instruction of the sequencer's own."""
        self.drafts.append(Draft(op, (), (), "", operands, self.block))

    def _rename(self, region: Region, write: bool) -> Region:
        if region.space == "mem":
            for alias in self.aliases:
                if alias.memory.start <= region.start and region.end <= alias.memory.end:
                    return alias.written if write else alias.read
        return region


@dataclass(frozen=True)
class Alias:
    """What a block accesses of a region of the cache, in tokens: it stores some, and loads all up to these."""

    memory: Region
    written: Region
    read: Region


class Program(bytes):
    """An assembled program that still knows what its instructions are for.

    Members
    -------
    comments : tuple of str
        One for each instruction; may be empty.
    """

    comments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """A program without its END, and about how many cycles it takes."""

    emitter: Emitter
    cycles: int

    def assemble(self) -> Program:
        """Return the program, ended."""
        self.emitter.control(Op.END)
        program = Program(assemble(self.emitter.program))
        program.comments = tuple(instruction.comment for instruction in self.emitter.program)
        return program


def merge(lanes: Sequence[Lane], config: AcceleratorConfig) -> Schedule:
    """Put the lanes' instructions into one program."""
    queues = [_items(lane.drafts, config) for lane in lanes]
    _hold_back(queues)
    machine = _Machine(config)
    heads = [_Head(queue) for queue in queues]
    while any(head.item for head in heads):
        allowed = [h for h in heads if h.item and all(heads[i].at > n for i, n in h.item.after) and machine.bank_for(h)]
        assert allowed, "no lane can go on: each waits for an accumulator bank that another holds"
        best = min(allowed, key=machine.urgency) if len(allowed) > 1 else allowed[0]
        machine.place(best)
        best.at += 1
    return Schedule(machine.emitter, max((times[-1] for times in machine.done.values() if times), default=0))


@dataclass
class _Item:
    """Drafts that stay together, and what the scheduler wants to know of them."""

    drafts: list[Draft]
    cycles: list[int]
    values: list[int | None]
    """Which of the lane's accumulator values each draft makes or reads."""
    last: list[bool]
    """Whether each draft is the last that touches its value."""
    run: int = 0
    """Cycles of the array, from here on, until it needs something that the vector unit makes from its results."""
    after: list[tuple[int, int]] = field(default_factory=list)
    """(lane, item) pairs that must be in the program before."""

    @property
    def main(self) -> int:
        """The draft whose unit's time matters: the taker from a FIFO of tiles, else the first."""
        return len(self.drafts) - 1 if self.drafts[-1].op == Op.MATMUL else 0

    @property
    def drains(self) -> bool:
        """Whether it empties an accumulator bank."""
        return self.drafts[0].op == Op.VECTOR and self.values[0] is not None


@dataclass
class _Head:
    """A lane's next item, and the banks of its values."""

    items: list[_Item]
    at: int = 0
    banks: dict[int, int] = field(default_factory=dict)
    ready: tuple[int, int] = (-1, 0)
    """The item of which it is known, and when what that depends on is done."""

    @property
    def item(self) -> _Item | None:
        return self.items[self.at] if self.at < len(self.items) else None


class _Machine:
    """Simulates the machine while the program grows."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.emitter = Emitter()
        self.owner: list[_Head | None] = [None, None]
        self.drained = [0, 0]
        self.issued = 0  # when the last instruction left the sequencer
        self.free = dict.fromkeys(Unit, 0)
        self.started: dict[Unit, list[int]] = {unit: [] for unit in Unit}
        self.done: dict[Unit, list[int]] = {unit: [] for unit in Unit}
        self.latency = config.rows + config.cols + 6  # of the array
        self.bus = 0  # when the bus has brought all weights asked for so far

    def bank_for(self, head: _Head) -> bool:
        """Return whether there is a bank for what the item makes."""
        assert head.item is not None
        return None in self.owner or all(v is None or v in head.banks for v in head.item.values)

    def urgency(self, head: _Head) -> tuple[int, ...]:
        """Order of the items that may come next: the least goes first."""
        item = head.item
        assert item is not None
        if head.ready[0] != head.at:
            head.ready = (head.at, max(self._ready(d, head, v) for d, v in zip(item.drafts, item.values, strict=True)))
        draft, value = item.drafts[item.main], item.values[item.main]
        start = max(self.issued, head.ready[1])
        if draft.op in UNIT_OF:
            start = max(start, self.free[UNIT_OF[draft.op]])
        if draft.op == Op.MATMUL and value not in head.banks:
            start = max(start, min(t for t, owner in zip(self.drained, self.owner, strict=True) if owner is None))
        if item.drains:  # ahead of what the array may do next, which its own lane may offer after it
            start -= self.latency
        return start, not item.drains, item.run, draft.block

    def _ready(self, draft: Draft, head: _Head, value: int | None) -> int:
        if draft.op not in UNIT_OF:
            return 0
        bank = head.banks.get(value) if value is not None else None
        reads, writes = _in_bank(draft.reads, bank), _in_bank(draft.writes, bank)
        last = self.emitter.dependencies(UNIT_OF[draft.op], reads, writes)
        return max((self.done[unit][number] for unit, number in last.items()), default=0)

    def place(self, head: _Head) -> None:
        """Append the item to the program."""
        item = head.item
        assert item is not None
        asked = -1  # when weights were asked for
        for draft, cycles, value, last in zip(item.drafts, item.cycles, item.values, item.last, strict=True):
            self.issued += ISSUE
            if draft.op not in UNIT_OF:
                self.emitter.control(draft.op, **draft.operands)
                continue
            if value is not None and value not in head.banks:
                free = [i for i in (0, 1) if self.owner[i] is None]
                head.banks[value] = bank = min(free, key=lambda i: self.drained[i])
                self.owner[bank] = head
            unit = UNIT_OF[draft.op]
            queue = self.started[unit]
            if len(queue) >= self.config.queue_depth:
                self.issued = max(self.issued, queue[-self.config.queue_depth])
            start = max(self.issued, self.free[unit], self._ready(draft, head, value))
            if draft.op == Op.WEIGHT:
                asked = start
            if draft.op == Op.MATMUL:
                done = self._multiply(draft, start, cycles, asked)
                if asked < 0:  # its tiles come from a load, which is done when the last one is taken
                    self.done[Unit.LOAD][-1] = self.free[Unit.LOAD] = done
            else:
                self.free[unit] = done = start + cycles
            queue.append(start)
            self.done[unit].append(done + (MEMORY_LATENCY if unit in (Unit.LOAD, Unit.STORE) else 0))
            self._emit(draft, head.banks.get(value) if value is not None else None)
            if value is not None and last:
                bank = head.banks.pop(value)
                self.owner[bank], self.drained[bank] = None, done

    def _multiply(self, draft: Draft, start: int, cycles: int, asked: int) -> int:
        """Let the array work; return when it is done."""
        config = self.config
        tiles = _tiles(draft)
        beats = config.tile_bytes // config.bus_bytes
        ahead = config.weight_fifo_bytes // config.tile_bytes
        begin = max(self.bus, start - ahead * beats, asked) if asked >= 0 else start
        end = max(start + cycles, begin + tiles * beats + cycles // tiles)
        self.free[Unit.MATRIX] = end
        if asked >= 0:
            self.bus = max(begin + tiles * beats, end - ahead * cycles // tiles)
        return end + self.latency

    def _emit(self, draft: Draft, bank: int | None) -> None:
        operands = draft.operands if bank is None else draft.operands | {"bank": bank}
        self.emitter.emit(
            draft.op, _in_bank(draft.reads, bank), _in_bank(draft.writes, bank), draft.comment, **operands
        )


def _in_bank(regions: Sequence[Region], bank: int | None) -> list[Region]:
    """Return the regions, with that of accumulators in its bank, or without it as long as it has none."""
    if bank is None:
        return [r for r in regions if r.space not in BANKS]
    return [replace(r, space=BANKS[bank]) if r.space in BANKS else r for r in regions]


def _items(drafts: Sequence[Draft], config: AcceleratorConfig) -> list[_Item]:
    items: list[_Item] = []
    open_ = False  # a FIFO holds what the next draft must take
    token = None  # the last register that LDREGS loaded, and no draft has used yet
    for draft, value in zip(drafts, _values(drafts), strict=True):
        if not items or not (open_ or token is not None or draft.op == Op.STORE):
            items.append(_Item([], [], [], []))
        items[-1].drafts.append(draft)
        items[-1].values.append(value)
        open_ = _pushes(draft) or (open_ and draft.op not in (Op.MATMUL, Op.STORE))
        if draft.op == Op.LDREGS:
            token = draft.operands["count"] - 1
        elif any(isinstance(v, Value) and v.register == token for v in draft.operands.values()):
            token = None
    seen: set[int | None] = set()
    run, following = 0, None
    for item in reversed(items):
        item.cycles = _cycles(item.drafts, config)
        for value in reversed(item.values):
            item.last.insert(0, value not in seen)
            seen.add(value)
        for draft, cycles in zip(item.drafts, item.cycles, strict=True):
            if draft.op == Op.MATMUL:
                run, following = (run if following == draft.reads else 0) + cycles, draft.reads
            elif any(w.space == "act" for w in draft.writes):
                following = None
        item.run = run
    return items


def _pushes(draft: Draft) -> bool:
    """Whether it fills a FIFO that the following draft empties."""
    operands = draft.operands
    return (
        draft.op == Op.WEIGHT
        or (draft.op == Op.LOAD and operands["dest"] == LoadDest.STREAM)
        or (draft.op == Op.VECTOR and operands.get("dest", Dest.NONE) >= Dest.STORE_INT8)
    )


def _values(drafts: Sequence[Draft]) -> list[int | None]:
    """Number the contents of the accumulators: a MATMUL into a bank that was read since the last one begins another."""
    values: list[int | None] = []
    current: dict[str, int] = {}
    read = dict.fromkeys(BANKS, True)
    count = 0
    for draft in drafts:
        value = None
        for region in draft.writes:
            if region.space in BANKS:
                if read[region.space]:
                    current[region.space], count = count, count + 1
                    read[region.space] = False
                value = current[region.space]
        for region in draft.reads:
            if region.space in BANKS:
                read[region.space] = True
                value = current[region.space]
        values.append(value)
    return values


def _hold_back(queues: list[list[_Item]]) -> None:
    """Let each item that reads what an earlier block of another lane writes to memory come after that."""
    writes: dict[str, list[tuple[int, int, Draft, Region]]] = {}
    for lane, queue in enumerate(queues):
        for number, item in enumerate(queue):
            for draft in item.drafts:
                for region in draft.writes:
                    if region.space not in _ON_CHIP:
                        writes.setdefault(region.space, []).append((lane, number, draft, region))
    for lane, queue in enumerate(queues):
        for item in queue:
            last: dict[int, int] = {}
            for draft in item.drafts:
                for region in draft.reads:
                    for other, number, writer, written in writes.get(region.space, ()):
                        meet = written.start < region.end and region.start < written.end
                        if meet and other != lane and writer.block < draft.block:
                            last[other] = max(last.get(other, -1), number)
            item.after = list(last.items())


_ON_CHIP = ("act", "row", "param", "stat", *BANKS)


def _cycles(drafts: Sequence[Draft], config: AcceleratorConfig) -> list[int]:
    """Estimate how long each of the drafts of an item keeps its unit busy."""
    return [_duration(d, drafts[i + 1 :], config) for i, d in enumerate(drafts)]


def _duration(draft: Draft, rest: Sequence[Draft], config: AcceleratorConfig) -> int:
    o = draft.operands
    if draft.op == Op.MATMUL:
        rows = _int(o["rows_outer"]) * _int(o["rows_inner"]) * (2 if o.get("pair") else 1)
        return _tiles(draft) * max(rows, config.rows // config.ingest)
    if draft.op == Op.VECTOR:
        words = _int(o["m"]) * _int(o["h"]) * ceil_div(_int(o["n"]), config.lanes)
        words <<= int(bool(o.get("wide")) or o.get("dest") == Dest.ACT16)  # these go at half the rate
        stored = sum(_duration(d, (), config) for d in rest if d.op == Op.STORE)
        return max(words, stored) + VECTOR_LATENCY
    if draft.op == Op.STORE:
        run = _int(o["run"])
        at_once = min(config.lanes, run & -run, config.bus_bytes >> int(o.get("element", Element.INT8)))
        return _int(o["m"]) * _int(o["h"]) * ceil_div(_int(o["n"]), at_once)
    if draft.op == Op.LOAD:
        return _int(o["count"]) * ceil_div(_int(o["bytes"]), config.bus_bytes)
    return 0


def _tiles(draft: Draft) -> int:
    return _int(draft.operands["k"]) * _int(draft.operands["n"]) * _int(draft.operands["groups"])


def _int(value: int | Value) -> int:
    """Return an operand, or 1 for what only a register knows."""
    if isinstance(value, Value):
        return max(value.constant, 1)
    return int(value)
