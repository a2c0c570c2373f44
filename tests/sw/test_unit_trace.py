"""The trace of the units: events made from a log by hand; the simulated accelerator's own are in tests/sim."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from console import Done

from tilewright.unit_trace import execution, unit_events, write_unit_trace
from tilewright_hw.arch import DeviceError, InputError, Instruction, Op, Unit, assemble
from tilewright_hw.arch.unit_log import DONE, ISSUED, MATRIX_WAITS_TILE, TAKEN, WAITS, UnitLog

Command = Callable[..., Done]
PROGRAM = [
    Instruction(Op.LDREGS, {"count": 4}),
    Instruction(Op.WEIGHT, {"bytes": 64, "count": 1}),
    Instruction(Op.WEIGHT, {"bytes": 64, "count": 1}),
    Instruction(Op.MATMUL, {"k": 1, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1}, {Unit.LOAD: 1}),
    Instruction(Op.MATMUL, {"k": 1, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1}),
    Instruction(Op.END),
]
COMMENTS = ["", "queries", "keys", "scores", "", ""]


def log(changes: dict[int, tuple[int, ...]], program: list[Instruction] = PROGRAM, end: int = 100) -> UnitLog:
    """Return a log from the bits that are set in each logged cycle."""
    rows = [(cycle, sum(1 << bit for bit in bits)) for cycle, bits in sorted(changes.items())]
    beats = np.array([(10, 32, 8, 0), (74, 13, 0, 26)], np.uint64)
    return UnitLog(assemble(program), 10, end, np.array(rows, np.uint64).reshape(-1, 2), beats)


W, M = Unit.WEIGHT, Unit.MATRIX
WAIT = WAITS + M
CHANGES: dict[int, tuple[int, ...]] = {
    14: (ISSUED,),  # LDREGS
    20: (ISSUED,),  # WEIGHT
    22: (TAKEN + W,),
    24: (ISSUED,),  # WEIGHT
    26: (TAKEN + W,),  # while the first is under way
    28: (ISSUED, WAIT),  # MATMUL
    33: (ISSUED, WAIT),
    40: (WAIT, DONE + W),
    41: (),
    42: (TAKEN + M,),
    43: (MATRIX_WAITS_TILE,),
    50: (MATRIX_WAITS_TILE, DONE + W),
    52: (),
    55: (TAKEN + M, MATRIX_WAITS_TILE),
    58: (MATRIX_WAITS_TILE, DONE + M),
    60: (ISSUED,),  # END
    70: (DONE + M,),
}


def spans(events: list[dict[str, object]], track: int) -> list[tuple[object, ...]]:
    return [(e["name"], e["cat"], e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == track]


def test_events_by_hand() -> None:
    made = log(CHANGES)
    events = list(unit_events([made], {made.program: COMMENTS}))
    assert spans(events, 0) == [("run 0", "run", 10, 90)]
    assert spans(events, 1) == [
        ("LDREGS", "instruction", 10, 5),
        ("WEIGHT queries", "issue", 15, 6),
        ("WEIGHT keys", "issue", 21, 4),
        ("MATMUL scores", "issue", 25, 4),
        ("MATMUL", "issue", 29, 5),
        ("END", "instruction", 34, 27),
        ("wait: all that was issued", "wait", 61, 39),
    ]
    assert spans(events, 10) == [("WEIGHT queries", "instruction", 22, 19)]
    assert spans(events, 11) == [("WEIGHT keys", "instruction", 26, 25)]
    assert spans(events, 30) == [
        ("wait: dependency", "wait", 28, 13),
        ("MATMUL scores", "instruction", 42, 17),
        ("wait: tile", "wait", 43, 9),
    ]
    assert spans(events, 31) == [("MATMUL", "instruction", 55, 16), ("wait: tile", "wait", 55, 5)]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {0: "runs", 1: "sequencer", 10: "weight", 11: "weight (2)", 30: "matrix", 31: "matrix (2)"}
    scores = next(e for e in events if e["name"] == "MATMUL scores" and e["cat"] == "instruction")
    assert scores["args"] == {"index": 3, "text": str(PROGRAM[3])}
    bus = [e["args"] for e in events if e["ph"] == "C"]
    assert bus == [
        {"data": 38, "instructions": 12, "written": 0},  # of 64 cycles
        {"data": 50, "instructions": 0, "written": 100},  # of the 26 that are left
    ]


def test_programs_without_comments_have_opcodes() -> None:
    for comments in ({}, {assemble(PROGRAM): COMMENTS[:-1]}, {b"another": COMMENTS}):
        names = {e["name"] for e in unit_events([log(CHANGES)], comments) if e.get("cat") == "instruction"}
        assert names == {"LDREGS", "WEIGHT", "MATMUL", "END"}


@pytest.mark.parametrize(
    ("cycle", "message"),
    [
        (33, "5 instructions issued, of 6"),
        (55, "1 instructions begun by MATRIX, of 2"),
        (40, "1 instructions completed by WEIGHT, of 2"),
    ],
)
def test_a_log_of_another_program_is_refused(cycle: int, message: str) -> None:
    changes = {at: bits for at, bits in CHANGES.items() if at != cycle}
    with pytest.raises(DeviceError, match=re.escape(f"the unit log does not fit its program: {message}")):
        execution(log(changes))


def test_intervals_end_with_the_run() -> None:
    made = log({20: (WAIT,), 30: (), 40: (WAIT,), 41: (WAIT, ISSUED)})
    assert made.intervals(WAIT) == [(20, 30), (40, 100)]
    assert made.intervals(MATRIX_WAITS_TILE) == []


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "units.json"
    write_unit_trace(path, [log(CHANGES), log(CHANGES)])
    found = json.loads(path.read_text())
    assert found["traceEvents"] == list(unit_events([log(CHANGES), log(CHANGES)], {}))
    with pytest.raises(InputError, match="cannot write"):
        write_unit_trace(tmp_path / "absent" / "units.json", [])
    before = path.read_bytes()
    with pytest.raises(DeviceError, match="does not fit its program"):
        write_unit_trace(path, [log(CHANGES), log({})])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_command_refuses_what_it_cannot_trace(command: Command, tmp_path: Path) -> None:
    words = ("generate", "--prompt", "Once", "--trace-units")
    done = command(*words, tmp_path / "units.json", "--device", "golden")
    assert done.code == 2
    assert "only the rtl device has cycles, of which units can be traced: not 'golden'" in done.err
    done = command(*words, tmp_path / "absent" / "units.json")
    assert done.code == 2
    assert f"the trace's folder must exist: {tmp_path / 'absent'} does not" in done.err
    done = command(*words, tmp_path)
    assert done.code == 2
    assert f"the trace must be a file, not the folder {tmp_path}" in done.err
    assert list(tmp_path.iterdir()) == []
