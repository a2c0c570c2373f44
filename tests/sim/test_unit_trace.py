"""The trace of the units, of the simulated accelerator: it agrees with the hardware's counters to the cycle."""

import json
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.ops import matmul_counted
from tilewright.random_model import random_checkpoint
from tilewright.runtime import Engine
from tilewright.unit_trace import write_unit_trace
from tilewright_hw.arch import AcceleratorConfig, InputError, Instruction, Unit
from tilewright_hw.arch.isa import BYTES, UNIT_OF
from tilewright_hw.arch.memory_model import MemoryModel
from tilewright_hw.arch.unit_log import MATRIX_WAITS_TILE, VECTOR_WAITS_STORE, WAITS
from tilewright_sim.rtl import RtlDevice, Trace

pytestmark = pytest.mark.slow  # a simulator of its own is built
CONFIG = AcceleratorConfig.preset("tiny")


def length(intervals):
    return sum(end - start for start, end in intervals)


def check_nesting(events):
    """Check that the events of a track are in order, and each lies within or after the one before it."""
    open_until: dict[int, list[int]] = {}
    before: dict[int, int] = {}
    for e in events:
        if e["ph"] != "X":
            continue
        track, start, end = e["tid"], e["ts"], e["ts"] + e["dur"]
        assert start >= before.get(track, 0), e
        before[track] = start
        stack = open_until.setdefault(track, [])
        while stack and stack[-1] <= start:
            stack.pop()
        assert not stack or end <= stack[-1], e
        stack.append(end)
        assert e["cat"] != "instruction" or len(stack) == 1, f"within another: {e}"


def check_instructions(log, events):
    """Check that each instruction stands once, and on a track of its unit."""
    program = [Instruction.decode(log.program[i : i + BYTES]) for i in range(0, len(log.program), BYTES)]
    found = [e for e in events if e.get("cat") == "instruction" and log.start <= e["ts"] < log.end]
    assert sorted(e["args"]["index"] for e in found) == list(range(len(program)))
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    for e in found:
        instruction = program[e["args"]["index"]]
        unit = UNIT_OF.get(instruction.op)
        assert tracks[e["tid"]].split()[0] == (unit.name.lower() if unit is not None else "sequencer")
        assert e["args"]["text"] == str(instruction)
        assert e["name"].split()[0] == instruction.op.name
        assert e["ts"] + e["dur"] <= log.end + 1


def check_counters(log, counters, events):
    """Check the log's sums against what the hardware counted, and that the trace shows them."""
    busy = {unit: set() for unit in Unit}
    for e in events:
        if e.get("cat") == "instruction" and e["tid"] >= 10:
            # An instruction counts from the cycle after it was taken to that in which it is completed.
            busy[Unit(e["tid"] // 10 - 1)].update(range(e["ts"] + 1, e["ts"] + e["dur"]))
    for unit in Unit:
        assert len(busy[unit]) == counters[f"{unit.name}_BUSY"], unit.name
    waits = {
        "MATRIX_WAIT_DEPENDENCY": WAITS + Unit.MATRIX,
        "MATRIX_WAIT_TILE": MATRIX_WAITS_TILE,
        "VECTOR_WAIT_DEPENDENCY": WAITS + Unit.VECTOR,
        "VECTOR_WAIT_STORE": VECTOR_WAITS_STORE,
    }
    shown = {"dependency": 0, "tile": 0}
    for e in events:
        if e.get("cat") == "wait" and e["tid"] // 10 - 1 == Unit.MATRIX:
            shown[e["name"].removeprefix("wait: ")] += e["dur"]
    for name, bit in waits.items():
        assert length(log.intervals(bit)) == counters[name], name
    assert shown == {"dependency": counters["MATRIX_WAIT_DEPENDENCY"], "tile": counters["MATRIX_WAIT_TILE"]}
    read, fetched, written = log.beats.sum(axis=0)[1:].tolist()
    assert [read, fetched, written] == [counters[f"{name}_BEATS"] for name in ("READ", "FETCH", "WRITE")]
    assert counters["CYCLES"] <= log.end - log.start <= counters["CYCLES"] + 20


@pytest.mark.parametrize("memory", [MemoryModel(), MemoryModel(latency=150, stall=0.2, seed=3)], ids=["fast", "slow"])
def test_a_matrix_product(memory, tmp_path):
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((13, 40), (40, 29)))
    device = RtlDevice(CONFIG, memory, log_units=True)
    result, counters = matmul_counted(a, b, device)
    assert np.array_equal(result, a.astype(np.int32) @ b)
    (log,) = device.unit_logs
    write_unit_trace(tmp_path / "units.json", [log])
    events = json.loads((tmp_path / "units.json").read_text())["traceEvents"]
    check_nesting(events)
    check_instructions(log, events)
    check_counters(log, counters, events)
    waits = {e["name"] for e in events if e.get("cat") == "wait"}
    assert {"wait: dependency", "wait: tile", "wait: all that was issued"} <= waits


def test_tokens_of_a_model(tmp_path):
    checkpoint = random_checkpoint("random:dim=16,ffn=24,layers=2,heads=2,kv_heads=1,vocab=48,seed=1")
    device = RtlDevice(CONFIG, log_units=True)
    engine = Engine(checkpoint, device)
    golden = Engine(checkpoint, tw.open_device("golden", CONFIG))
    counters = []
    for tokens in ([3, 1, 4], [1], [5]):
        before = dict(engine.counters.values)
        assert np.array_equal(engine.feed(tokens), golden.feed(tokens))
        counters.append({name: value - before[name] for name, value in engine.counters.values.items()})
    logs = device.unit_logs
    assert len(logs) == 3
    assert logs[1].program == logs[2].program
    write_unit_trace(tmp_path / "units.json", logs, engine.comments())
    events = json.loads((tmp_path / "units.json").read_text())["traceEvents"]
    check_nesting(events)
    for log, counted in zip(logs, counters, strict=True):
        check_instructions(log, events)
        of_run = [e for e in events if "ts" not in e or log.start <= e["ts"] < log.end]
        check_counters(log, counted, of_run)
    names = {e["name"] for e in events if e.get("cat") == "instruction"}
    assert {"VECTOR rotate queries and keys", "VECTOR probabilities, times the value scales", "END"} <= names


def test_only_a_simulator_of_its_own_logs():
    with pytest.raises(InputError, match="log_units needs a simulator of its own"):
        RtlDevice(CONFIG, trace=Trace(path=Path("x.vcd")), log_units=True)
    with pytest.raises(InputError, match="only the rtl device has cycles"):
        tw.open_device("golden", CONFIG, log_units=True)
