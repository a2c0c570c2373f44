"""A trace of the accelerator's units for Chrome's and Perfetto's viewers, from the logs of a simulated device.

One microsecond in the viewer is one cycle. Each unit has a track with its instructions, from the cycle in which it
takes one to that in which it is completed; what overlaps goes to a second track of the unit. Between instructions
stands what the next one waits for, and within them what the unit itself waits for. The sequencer's track shows each
instruction from the issue of the one before to its own issue, and a counter the share of the bus that is used.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilewright_hw.arch import DeviceError, InputError, Instruction, Unit
from tilewright_hw.arch.files import replacing
from tilewright_hw.arch.isa import BYTES, UNIT_OF
from tilewright_hw.arch.unit_log import (
    BEATS_CYCLES,
    DONE,
    ISSUED,
    MATRIX_WAITS_TILE,
    TAKEN,
    VECTOR_WAITS_STORE,
    WAITS,
    UnitLog,
)

Event = dict[str, Any]
Comments = Mapping[bytes, Sequence[str]]
"""For programs: what each instruction is for."""

_STALLS = {Unit.MATRIX: (MATRIX_WAITS_TILE, "tile"), Unit.VECTOR: (VECTOR_WAITS_STORE, "room in the store stream")}
"""What a unit may wait for within an instruction."""
_SEQUENCER = 1
_TRACKS = 10
"""Track numbers of a unit: its own and those of what overlaps."""


@dataclass(frozen=True)
class Executed:
    """One instruction of a run: cycles of its issue, and where it is a unit's, of its start and its completion."""

    index: int
    instruction: Instruction
    comment: str
    issued: int
    taken: int = 0
    done: int = 0

    @property
    def unit(self) -> Unit | None:
        """The unit that executes it; None: the sequencer."""
        return UNIT_OF.get(self.instruction.op)

    @property
    def name(self) -> str:
        """What a viewer shows."""
        return f"{self.instruction.op.name} {self.comment}".rstrip()

    def event(self, track: int, start: int, end: int, kind: str = "instruction") -> Event:
        """Return its event on a track."""
        arguments = {"index": self.index, "text": str(self.instruction)}
        return _event(self.name, kind, track, start, end, **arguments)


def write_unit_trace(path: Path, logs: Sequence[UnitLog], comments: Comments | None = None) -> None:
    """Write a trace of the programs that ran.

    Parameters
    ----------
    path : Path
        The JSON file.
    logs : sequence of UnitLog
        Of the device, in order.
    comments : mapping of bytes to sequence of str
        For programs: what each instruction is for. Those of other programs have their opcode only.

    Raises
    ------
    InputError
        The file cannot be written.
    DeviceError
        A log does not fit its program.
    """
    try:
        with replacing(path) as file:
            file.write(b'{"displayTimeUnit": "ns", "traceEvents": [\n')
            for i, event in enumerate(unit_events(logs, comments or {})):
                file.write(((",\n" if i else "") + json.dumps(event)).encode())
            file.write(b"\n]}\n")
    except OSError as e:
        raise InputError(f"cannot write {path}: {e.strerror}") from e


def check_writable(path: Path) -> None:
    """Check, before anything is run, that a trace can be written; InputError if not."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"the trace's folder must exist: {folder} does not")
    if path.is_dir():
        raise InputError(f"the trace must be a file, not the folder {path}")


def unit_events(logs: Sequence[UnitLog], comments: Comments) -> Iterator[Event]:
    """Yield the events of all runs: those of a track in order, and each within or beside the one before it."""
    tracks: dict[int, str] = {0: "runs", _SEQUENCER: "sequencer"}
    for number, log in enumerate(logs):
        executed = execution(log, comments.get(log.program, ()))
        yield _event(f"run {number}", "run", 0, log.start, log.end, instructions=len(executed))
        yield from _sequencer_events(log, executed)
        for unit in Unit:
            for event in _unit_events(log, unit, [e for e in executed if e.unit is unit]):
                second = event["tid"] % _TRACKS
                tracks[event["tid"]] = f"{unit.name.lower()}{f' ({second + 1})' if second else ''}"
                yield event
        yield from _bus_events(log)
    yield {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "tilewright"}}
    for track, name in sorted(tracks.items()):
        yield {"ph": "M", "pid": 0, "tid": track, "name": "thread_name", "args": {"name": name}}
        yield {"ph": "M", "pid": 0, "tid": track, "name": "thread_sort_index", "args": {"sort_index": track}}


def execution(log: UnitLog, comments: Sequence[str] = ()) -> list[Executed]:
    """Return what a run executed, in program order; DeviceError if the log does not fit the program."""
    program = [Instruction.decode(log.program[at : at + BYTES]) for at in range(0, len(log.program), BYTES)]
    named = comments if len(comments) == len(program) else [""] * len(program)
    issued = iter(_matching(log, ISSUED, len(program), "instructions issued"))
    taken, done = {}, {}
    for unit in Unit:
        count = sum(UNIT_OF.get(instruction.op) is unit for instruction in program)
        taken[unit] = iter(_matching(log, TAKEN + unit, count, f"instructions begun by {unit.name}"))
        done[unit] = iter(_matching(log, DONE + unit, count, f"instructions completed by {unit.name}"))
    executed = []
    for index, (instruction, comment) in enumerate(zip(program, named, strict=True)):
        one = Executed(index, instruction, comment, next(issued))
        if one.unit is not None:
            one = replace(one, taken=next(taken[one.unit]), done=next(done[one.unit]))
        executed.append(one)
    return executed


def _matching(log: UnitLog, bit: int, count: int, what: str) -> list[int]:
    cycles = log.cycles(bit)
    if len(cycles) != count:
        raise DeviceError(f"the unit log does not fit its program: {len(cycles)} {what}, of {count}")
    return cycles


def _event(name: str, kind: str, track: int, start: int, end: int, **arguments: object) -> Event:
    return {
        "ph": "X", "pid": 0, "tid": track, "name": name, "cat": kind, "ts": start, "dur": max(end - start, 1),
        "args": arguments,
    }  # fmt: skip


def _sequencer_events(log: UnitLog, executed: Iterable[Executed]) -> Iterator[Event]:
    """Yield every instruction from the issue before it to its own; those of the units count as issues only."""
    start = log.start
    for one in executed:
        yield one.event(_SEQUENCER, start, one.issued + 1, "instruction" if one.unit is None else "issue")
        start = one.issued + 1
    if start < log.end:
        yield _event("wait: all that was issued", "wait", _SEQUENCER, start, log.end)


def _unit_events(log: UnitLog, unit: Unit, executed: Sequence[Executed]) -> Iterator[Event]:
    """Yield a unit's instructions, what they wait for before they begin, and what it waits for within them."""
    first = _TRACKS * (unit + 1)
    events = [_event("wait: dependency", "wait", first, start, end) for start, end in log.intervals(WAITS + unit)]
    free: list[int] = []  # of each of the unit's tracks: the first free cycle
    placed = []
    for one in executed:
        end = max(one.done, one.taken) + 1
        track = next((i for i, cycle in enumerate(free) if cycle <= one.taken), len(free))
        free[track : track + 1] = [end]
        placed.append((one.taken, end, first + track))
        events.append(one.event(first + track, one.taken, end))
    if unit in _STALLS:
        bit, what = _STALLS[unit]
        events += _stalls(log.intervals(bit), placed, f"wait: {what}")
    yield from sorted(events, key=lambda e: (e["tid"], e["ts"], -e["dur"]))


def _stalls(intervals: Sequence[tuple[int, int]], placed: Sequence[tuple[int, int, int]], name: str) -> Iterator[Event]:
    """Yield what a unit waits for, each within the instruction that it took last; `placed` is (start, end, track)."""
    nexts = [start for start, _, _ in placed[1:]]
    windows = [(start, min(end, *nexts[i : i + 1], end), track) for i, (start, end, track) in enumerate(placed)]
    starts = [start for start, _, _ in placed]
    for first, last in intervals:
        for begin, end, track in windows[max(bisect_right(starts, first) - 1, 0) : bisect_left(starts, last)]:
            if max(first, begin) < min(last, end):
                yield _event(name, "wait", track, max(first, begin), min(last, end))


def _bus_events(log: UnitLog) -> Iterator[Event]:
    """Yield the shares of the bus's cycles that carry data, instructions and writes."""
    for cycle, read, fetched, written in log.beats.tolist():
        span = max(min(BEATS_CYCLES, log.end - cycle), 1)
        shares = {"data": read - fetched, "instructions": fetched, "written": written}
        yield {
            "ph": "C", "pid": 0, "name": "bus, per cent of cycles", "ts": cycle,
            "args": {what: round(100 * beats / span) for what, beats in shares.items()},
        }  # fmt: skip
