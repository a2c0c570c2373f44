"""The cycle model's latencies and depths are those that the gateware's blocks state of themselves."""

from __future__ import annotations

import itertools

import pytest

from tilewright.perf import timing
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import FIELDS, Dest, LoadDest, LoadFormat, Op, Reduce, Source
from tilewright_hw.gateware import burst, expand, lane, reader, reduce, results, sequencer, store
from tilewright_hw.gateware.fifo import ReadyBuffer, StreamFifo
from tilewright_hw.gateware.float import FloatAdd, FloatMul, FloatToInt, IntToFloat, RoundBf16, Scale2
from tilewright_hw.gateware.functions import LaneFunction, ReciprocalUnit
from tilewright_hw.gateware.loader import rows_together
from tilewright_hw.gateware.matrix import MatrixUnit
from tilewright_hw.gateware.reader import ReadIssue
from tilewright_hw.gateware.reduce import AlignToInt, RowReduce, RowScalar, Square, Variance

PRESETS = ("tiny", "edge", "default", "large")
ODD = AcceleratorConfig(
    rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, acc_rows=256, weight_fifo_bytes=2048, stream_fifo_bytes=1024,
    reads_in_flight=3, burst_beats=8,
)  # fmt: skip
CONFIGS = [*map(AcceleratorConfig.preset, PRESETS), ODD]


def vector_fields(**values: int) -> timing.Fields:
    """Return the operands of a VECTOR, 0 but for `values`."""
    return {field.name: 0 for field in FIELDS[Op.VECTOR]} | {"source": Source.ROW} | values


def test_blocks() -> None:
    assert timing.MULTIPLY == FloatMul.LATENCY
    assert timing.ADD == FloatAdd.LATENCY
    assert timing.INT_TO_FLOAT == IntToFloat.LATENCY
    assert timing.FLOAT_TO_INT == FloatToInt.LATENCY
    assert timing.SCALE2 == Scale2.LATENCY
    assert timing.ROUND_BF16 == RoundBf16.LATENCY
    assert timing.FUNCTION == LaneFunction.LATENCY
    assert timing.TABLE_FUNCTION == LaneFunction.TABLE_LATENCY
    assert timing.RECIPROCAL == ReciprocalUnit.LATENCY
    assert timing.ALIGN == AlignToInt.LATENCY
    assert timing.SQUARE == Square.LATENCY
    assert timing.VARIANCE == Variance.LATENCY
    assert timing.ACC_LATENCY == lane.ACC_LATENCY
    assert timing.FIFO_LATENCY == StreamFifo.LATENCY
    assert timing.RUN_LATENCY == burst.RunGenerator.LATENCY
    assert timing.SPLIT_LATENCY == burst.BurstSplitter.LATENCY
    assert ReadyBuffer.LATENCY == 0


def test_queues() -> None:
    assert timing.PREFETCH == sequencer.PREFETCH
    assert timing.EPOCH == sequencer.EPOCH
    assert timing.LOADS_BEFORE_WEIGHT == ReadIssue.LOADS_BEFORE_WEIGHT
    assert timing.LOAD_COMMANDS == reader.COMMANDS
    assert timing.EXPANSION == expand.EXPANSION
    assert timing.GROUP == expand.GROUP
    assert timing.STORE_DEPTH == results.STORE_DEPTH
    assert timing.STORE_FIFO == store.FIFO_WORDS
    assert timing.STORE_RUNS == store.RUNS


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_sizes_that_follow_from_the_configuration(config: AcceleratorConfig) -> None:
    issue = ReadIssue(config)
    assert timing.weight_window(config) == issue.weight_window
    assert timing.weight_room(config) == issue.weight_room
    assert timing.stream_room(config) == issue.stream_room
    assert timing.load_room(config) == issue.load_room
    for room in (issue.weight_room // expand.EXPANSION, min(issue.stream_room, issue.load_room)):
        assert timing.largest_burst(config.burst_beats, room) == burst.largest_burst(config.burst_beats, room)
    assert timing.matmul_done(config) == MatrixUnit(config).DONE_LATENCY
    assert timing.rows_together(config) == rows_together(config)


def test_kinds_of_reductions() -> None:
    assert timing.SUMS == reduce.SUMS
    assert timing.SQUARES == reduce.SQUARES
    assert timing.MULTIPLIED == reduce.MULTIPLIED
    assert timing.INVERTED == reduce.INVERTED


@pytest.mark.parametrize("kind", [kind for kind in Reduce if kind != Reduce.NONE])
def test_reductions(kind: Reduce) -> None:
    config = AcceleratorConfig()
    fields = vector_fields(reduce=kind)
    expected = timing.x5_delay(fields) + 1 + RowReduce(lanes=config.lanes).latency(kind) + RowScalar.latency(kind)
    assert timing.entry_delay(config, fields) == expected


def test_the_longest_path() -> None:
    """From x0's register to x5's token, past every stage; a token is a cycle ahead of its register."""
    fields = vector_fields(scale=1, param=1, add=1, func=3, mul=1)
    assert timing.x5_delay(fields) == lane.X0_TO_X5 + 1


def test_words_of_a_row() -> None:
    config = AcceleratorConfig(rows=16, lanes=4)
    for n, dest in itertools.product((1, 4, 5, 16, 17), (Dest.ROW, Dest.ACT, Dest.ACT16)):
        padded = -(-n // 16) * 16 if dest != Dest.ROW else n
        assert timing.row_words(config, vector_fields(n=n, dest=dest)) == -(-padded // 4)


def test_beats_of_loads() -> None:
    """A beat of 16 bytes: 4 floats or 8 halves for lanes of 2, two rows of 8 bytes, half of one of 32, 4 segments."""
    config = AcceleratorConfig(rows=8, cols=32, lanes=2, bus_bits=128)
    loads = {
        (LoadDest.ROW, LoadFormat.FP32, 0): (2, 1),
        (LoadDest.PARAM, LoadFormat.BF16, 0): (4, 1),
        (LoadDest.ACT, 0, 0): (2, 0),
        (LoadDest.STREAM, 0, 0): (1, 1),
        (LoadDest.STREAM, 0, 1): (2, 0),
        (LoadDest.TABLE, 0, 0): (4, 0),
    }
    for (dest, kind, transpose), expected in loads.items():
        fields = {"dest": int(dest), "format": int(kind), "transpose": transpose}
        assert timing.load_beat(config, fields) == expected, (dest, kind, transpose)
