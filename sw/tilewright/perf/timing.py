"""Latencies of the gateware that the cycle model is made of, in cycles; tests compare them with the gateware's own."""

from __future__ import annotations

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import Add, Dest, Func, LoadDest, LoadFormat, Mul, Reduce, Scale, Source

Fields = dict[str, int]

# Sequencer (gateware/sequencer.py)
PREFETCH = 8
EPOCH = 128
# Read side (reader.py, burst.py)
LOADS_BEFORE_WEIGHT = 3
LOAD_COMMANDS = 8
RUN_LATENCY = 2
SPLIT_LATENCY = 1
# FIFO of a block memory (fifo.py): from write to offer
FIFO_LATENCY = 2
# Arithmetic (float.py, functions.py)
MULTIPLY = 3
ADD = 5
INT_TO_FLOAT = 4
FLOAT_TO_INT8 = 2
SCALE2 = 1
ROUND_BF16 = 1
FUNCTION = 6
RECIPROCAL = 5
# Vector unit (lane.py, reduce.py, results.py)
ACC_LATENCY = 2
ALIGN = 2
SQUARE = 1
STORE_DEPTH = 32
# Store unit (store.py)
STORE_FIFO = 64
STORE_RUNS = 8
ROW_LATENCY = 2
RUN_WALK_LATENCY = 1

SUMS = (Reduce.EXPSUM, Reduce.SUMSQ, Reduce.SUM)
MULTIPLIED = (Reduce.QSCALE, Reduce.SUMSQ, Reduce.SUM)
INVERTED = (Reduce.QSCALE, Reduce.EXPSUM, Reduce.SUMSQ)


def weight_window(config: AcceleratorConfig) -> int:
    """Return the beats of weights that may be asked for and not yet there."""
    return max(256, 2 * config.burst_beats)


def load_room(config: AcceleratorConfig) -> int:
    """Return the beats of the load FIFO."""
    return min(config.reads_in_flight * config.burst_beats, max(256, 2 * config.burst_beats))


def largest_burst(burst_beats: int, room_beats: int) -> int:
    """Return the beats of the longest burst into a FIFO of `room_beats`."""
    return min(burst_beats, 1 << ((room_beats // 2).bit_length() - 1))


def matmul_done(config: AcceleratorConfig) -> int:
    """Return the cycles from the issue of a MATMUL's last row to its completion."""
    return config.rows + config.cols + 3


def words_of(config: AcceleratorConfig, fields: Fields) -> int:
    """Return the words of all rows of a VECTOR."""
    words = -(-fields["n"] // config.lanes)
    if fields["dest"] == Dest.ACT:
        parts = config.rows // config.lanes
        words = -(-words // parts) * parts
    return words * fields["m"] * fields["h"]


def stores(fields: Fields) -> bool:
    """Return whether a VECTOR's words enter the store stream."""
    return fields["dest"] >= Dest.STORE_INT8


def result_delay(fields: Fields) -> int:
    """Return the cycles from the issue of a word to its write (the store FIFO's, for the store stream)."""
    if fields["dest"] == Dest.STORE_RAW:
        return ACC_LATENCY
    quantised = fields["dest"] in (Dest.ACT, Dest.STORE_INT8)
    return x5_delay(fields) + 1 + FLOAT_TO_INT8 * quantised


def x5_delay(fields: Fields) -> int:
    """Return the cycles from the issue of a word to its token at x5."""
    rotate = fields["add"] == Add.ROTATE
    return (
        (ACC_LATENCY - 1 + INT_TO_FLOAT) * (fields["source"] == Source.ACC)
        + MULTIPLY * (fields["scale"] != Scale.NONE and not rotate)
        + MULTIPLY * bool(fields["param"] or rotate)
        + ADD * (fields["add"] != Add.NONE)
        + 1  # x3's token comes two cycles before its register
        + FUNCTION * (fields["func"] != Func.NONE)
        + MULTIPLY * (fields["mul"] != Mul.NONE)
        + 2
    )


def entry_delay(config: AcceleratorConfig, fields: Fields) -> int:
    """Return the cycles from the issue of a row's last word to its statistics entry; 0 without a reduction."""
    kind = Reduce(fields["reduce"])
    if kind == Reduce.NONE:
        return 0
    tree = (config.lanes - 1).bit_length()
    reduce = (ALIGN + SQUARE) * (kind in SUMS) + tree + 1
    scalar = (
        (INT_TO_FLOAT + SCALE2) * (kind in SUMS)
        + MULTIPLY * (kind in MULTIPLIED)
        + ROUND_BF16 * (kind == Reduce.QSCALE)
        + ADD * (kind == Reduce.SUMSQ)
        + RECIPROCAL * (kind in INVERTED)
    )
    return x5_delay(fields) + 1 + reduce + scalar


def load_beat(config: AcceleratorConfig, fields: Fields) -> tuple[int, int]:
    """Return the cycles that a LOAD's beat takes at its converter, and those from there to the word it completes."""
    bus = config.bus_bytes
    if fields["dest"] in (LoadDest.ROW, LoadDest.PARAM):
        elements = bus // (4 if fields["format"] == LoadFormat.FP32 else 2)
        return max(1, elements // config.lanes), 1
    slot = config.col_slot if fields["dest"] == LoadDest.STREAM else config.row_slot
    return max(1, bus // slot), int(slot > bus)


def weight_beat(config: AcceleratorConfig) -> tuple[int, int]:
    """Return the same for a beat of weights."""
    return max(1, config.bus_bytes // config.col_slot), int(config.col_slot > config.bus_bytes)
