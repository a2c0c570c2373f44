# ruff: noqa: E402
"""The cycle model's latencies are those that the gateware's blocks state of themselves."""

from __future__ import annotations

import pytest

pytest.skip("the vector unit was rebuilt; the model's latencies follow it next: NOTES.md", allow_module_level=True)

from tilewright.perf import timing
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import Reduce
from tilewright_hw.gateware import burst, lane, reader, results, sequencer, store
from tilewright_hw.gateware.fifo import StreamFifo
from tilewright_hw.gateware.float import FloatAdd, FloatMul, FloatToInt8, IntToFloat, RoundBf16, Scale2
from tilewright_hw.gateware.functions import Exp2Sigmoid, ReciprocalUnit
from tilewright_hw.gateware.matrix import MatrixUnit
from tilewright_hw.gateware.reader import ReadIssue
from tilewright_hw.gateware.reduce import AlignToInt, RowReduce, RowScalar, Square

PRESETS = ("tiny", "edge", "default", "large")


def test_blocks() -> None:
    assert timing.MULTIPLY == FloatMul.LATENCY
    assert timing.ADD == FloatAdd.LATENCY
    assert timing.INT_TO_FLOAT == IntToFloat.LATENCY
    assert timing.FLOAT_TO_INT8 == FloatToInt8.LATENCY
    assert timing.SCALE2 == Scale2.LATENCY
    assert timing.ROUND_BF16 == RoundBf16.LATENCY
    assert timing.FUNCTION == Exp2Sigmoid.LATENCY
    assert timing.RECIPROCAL == ReciprocalUnit.LATENCY
    assert timing.ALIGN == AlignToInt.LATENCY
    assert timing.SQUARE == Square.LATENCY
    assert timing.ACC_LATENCY == lane.ACC_LATENCY
    assert timing.FIFO_LATENCY == StreamFifo.LATENCY
    assert timing.RUN_LATENCY == burst.RunGenerator.LATENCY
    assert timing.SPLIT_LATENCY == burst.BurstSplitter.LATENCY


def test_queues() -> None:
    assert timing.PREFETCH == sequencer.PREFETCH
    assert timing.EPOCH == sequencer.EPOCH
    assert timing.LOADS_BEFORE_WEIGHT == ReadIssue.LOADS_BEFORE_WEIGHT
    assert timing.LOAD_COMMANDS == reader.COMMANDS
    assert timing.STORE_DEPTH == results.STORE_DEPTH
    assert timing.STORE_FIFO == store.FIFO_WORDS
    assert timing.STORE_RUNS == store.RUNS


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_that_follow_from_the_configuration(name: str) -> None:
    config = AcceleratorConfig.preset(name)
    issue = ReadIssue(config)
    assert timing.weight_window(config) == issue.weight_window
    assert timing.load_room(config) == issue.load_room
    assert timing.largest_burst(config.burst_beats, issue.load_room) == burst.largest_burst(
        config.burst_beats, issue.load_room
    )
    assert timing.matmul_done(config) == MatrixUnit(config).DONE_LATENCY


@pytest.mark.parametrize("kind", [kind for kind in Reduce if kind != Reduce.NONE])
def test_reductions(kind: Reduce) -> None:
    config = AcceleratorConfig()
    fields = dict.fromkeys(("source", "scale", "param", "add", "func", "mul", "dest"), 0) | {"reduce": int(kind)}
    expected = timing.x5_delay(fields) + 1 + RowReduce(lanes=config.lanes).latency(kind) + RowScalar.latency(kind)
    assert timing.entry_delay(config, fields) == expected
