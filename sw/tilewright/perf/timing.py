"""Latencies of the gateware that the cycle model is made of, in cycles; tests compare them with the gateware's own."""

from __future__ import annotations

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import Add, Dest, Func, LoadDest, LoadFormat, Mul, Reduce, Scale, Source, WeightFormat

Fields = dict[str, int]

# Sequencer (sequencer.py)
PREFETCH = 8
EPOCH = 128
# Read side (reader.py, burst.py, expand.py)
LOADS_BEFORE_WEIGHT = 3
LOAD_COMMANDS = 8
RUN_LATENCY = 2
SPLIT_LATENCY = 1
WEIGHT_DONE = 2
"""From a WEIGHT's last beat to its completion."""
EXPANSION = 2
GROUP = 32
# FIFO of a block memory (fifo.py): from write to offer
FIFO_LATENCY = 2
LOAD_LATENCY = 3
"""The same of the load FIFO, which a register follows (reader.py)."""
# Arithmetic (float.py, functions.py)
MULTIPLY = 3
ADD = 5
INT_TO_FLOAT = 4
FLOAT_TO_INT = 2
SCALE2 = 1
ROUND_BF16 = 1
FUNCTION = 6
TABLE_FUNCTION = 7
RECIPROCAL = 5
# Vector unit (lane.py, reduce.py, results.py)
ACC_LATENCY = 2
ALIGN = 2
SQUARE = 1
VARIANCE = 3
STORE_DEPTH = 32
# Store unit (store.py)
STORE_FIFO = 64
STORE_RUNS = 8
STORE_CHOICE = 1
"""Cycles in which a STORE is offered before it is taken."""
ROW_LATENCY = 2
RUN_WALK_LATENCY = 1

SUMS = (Reduce.EXPSUM, Reduce.SUMSQ, Reduce.SUM, Reduce.VAR)
SQUARES = (Reduce.SUMSQ, Reduce.VAR)
MULTIPLIED = (Reduce.QSCALE, Reduce.SUMSQ, Reduce.SUM, Reduce.VAR)
INVERTED = (Reduce.QSCALE, Reduce.EXPSUM, Reduce.SUMSQ, Reduce.VAR)
ACTIVATIONS = (Dest.ACT, Dest.ACT16)


def weight_window(config: AcceleratorConfig) -> int:
    """Return the beats of weights that may be asked for and not yet there (reader.py, ReadIssue)."""
    return max(256, 2 * config.burst_beats)


def load_room(config: AcceleratorConfig) -> int:
    """Return the beats of the load FIFO (reader.py, load_fifo_beats)."""
    return min(config.reads_in_flight * config.burst_beats, max(256, 2 * config.burst_beats))


def weight_room(config: AcceleratorConfig) -> int:
    """Return the beats of the weight FIFO (reader.py, ReadIssue)."""
    return config.weight_fifo_bytes // config.tile_bytes * (config.tile_bytes // config.bus_bytes)


def stream_room(config: AcceleratorConfig) -> int:
    """Return the beats of the stream FIFO, counted as tiles of the smaller kind (reader.py, ReadIssue)."""
    tiles = config.stream_fifo_bytes // config.tile_bytes
    return tiles * min(config.tile_bytes, config.transposed_tile_bytes) // config.bus_bytes


def largest_burst(burst_beats: int, room_beats: int) -> int:
    """Return the beats of the longest burst into a FIFO of `room_beats` (burst.py)."""
    return min(burst_beats, 1 << ((room_beats // 2).bit_length() - 1))


def rows_together(config: AcceleratorConfig) -> int:
    """Return how many rows of weights enter the weight FIFO in a cycle (loader.py)."""
    count = 1
    while 2 * count <= min(config.nibble_rows, config.ingest) and config.rows // config.ingest % (2 * count) == 0:
        count *= 2
    return count


def weight_free(config: AcceleratorConfig) -> int:
    """Return the cycles from a tile's start to the pulse that frees its room (loader.py, TileFifo and TileLoader)."""
    late = (config.ingest - 1) * (config.rows // config.ingest) if rows_together(config) > 1 else 0
    return late + 1


STREAM_FREE = 1
"""The same of the stream FIFO, whose rows come one by one."""


def matmul_done(config: AcceleratorConfig) -> int:
    """Return the cycles from the issue of a MATMUL's last row to its completion (matrix.py)."""
    return config.rows + config.cols + 3


def row_words(config: AcceleratorConfig, fields: Fields) -> int:
    """Return the words of a row of a VECTOR (address.py, RowLoops)."""
    words = -(-fields["n"] // config.lanes)
    if fields["dest"] in ACTIVATIONS:
        parts = config.rows // config.lanes
        words = -(-words // parts) * parts
    return words


def word_cycles(fields: Fields) -> int:
    """Return the cycles that a VECTOR's word takes (vector.py, _issue)."""
    wide = fields["source"] == Source.ACC and fields["wide"]
    return 2 if wide or fields["dest"] == Dest.ACT16 else 1


def row_pause(fields: Fields) -> int:
    """Return the cycles that pass unused after each row of a VECTOR (vector.py, _issue)."""
    return int(word_cycles(fields) == 1 and fields["reduce"] == Reduce.VAR)


def stores(fields: Fields) -> bool:
    """Return whether a VECTOR's words enter the store stream."""
    return fields["dest"] >= Dest.STORE_INT8


def result_delay(fields: Fields) -> int:
    """Return the cycles from the issue of a word to its write (results.py; the store FIFO's, for the store stream)."""
    if fields["dest"] == Dest.STORE_RAW and fields["source"] == Source.ACC:
        return ACC_LATENCY
    quantised = fields["dest"] in (*ACTIVATIONS, Dest.STORE_INT8)
    return x5_delay(fields) + 1 + FLOAT_TO_INT * quantised + (fields["dest"] == Dest.ACT16)


def x5_delay(fields: Fields) -> int:
    """Return the cycles from the issue of a word to its token at x5 (lane.py, TokenPath)."""
    rotate = fields["add"] == Add.ROTATE
    acc = fields["source"] == Source.ACC
    return (
        (ACC_LATENCY - 1 + INT_TO_FLOAT + fields["wide"]) * acc
        + MULTIPLY * (fields["scale"] != Scale.NONE and not rotate)
        + MULTIPLY * bool(fields["param"] or rotate)
        + ADD * (fields["add"] != Add.NONE)
        + 1  # x3's token comes two cycles before its register
        + _FUNCTIONS[Func(fields["func"])]
        + MULTIPLY * (fields["mul"] != Mul.NONE)
        + 2
    )


_FUNCTIONS = {Func.NONE: 0, Func.EXP2: FUNCTION, Func.SIGMOID: FUNCTION, Func.TABLE: TABLE_FUNCTION}


def entry_delay(config: AcceleratorConfig, fields: Fields) -> int:
    """Return the cycles from the issue of a row's last word to its statistics entry; 0 without a reduction.

    It is past x5's register, the lanes' tree and the row's scalar (reduce.py, RowReduce and RowScalar).
    """
    kind = Reduce(fields["reduce"])
    if kind == Reduce.NONE:
        return 0
    tree = (config.lanes - 1).bit_length()
    reduce = (ALIGN + SQUARE) * (kind in SUMS) + tree + 1
    scalar = (
        (VARIANCE + 2 * MULTIPLY) * (kind == Reduce.VAR)
        + (INT_TO_FLOAT + SCALE2) * (kind in SUMS)
        + MULTIPLY * (kind in MULTIPLIED)
        + ROUND_BF16 * (kind == Reduce.QSCALE)
        + ADD * (kind in SQUARES)
        + RECIPROCAL * (kind in INVERTED)
    )
    return x5_delay(fields) + 1 + reduce + scalar


def load_beat(config: AcceleratorConfig, fields: Fields) -> tuple[int, int]:
    """Return the cycles that a LOAD's beat takes at its converter, and those from there to the word it completes.

    (load.py, width.py, convert.py; tiles to be transposed: those from memory to the transposer.)
    """
    bus = config.bus_bytes
    if fields["dest"] in (LoadDest.ROW, LoadDest.PARAM):
        elements = bus // (4 if fields["format"] == LoadFormat.FP32 else 2)
        return max(1, elements // config.lanes), 1
    if fields["dest"] == LoadDest.TABLE:
        return _slots(bus, 4)
    if fields["dest"] == LoadDest.STREAM and not fields["transpose"]:
        return _slots(bus, config.col_slot)
    return _slots(bus, config.row_slot)


def weight_beat(config: AcceleratorConfig) -> tuple[int, int]:
    """Return the same for a beat of int8 weights (reader.py, _weight_rows)."""
    return _slots(config.bus_bytes, rows_together(config) * config.col_slot)


def _slots(bus_bytes: int, slot: int) -> tuple[int, int]:
    """Return what a WidthConverter (width.py) takes for a beat, and how late the slot is that it completes."""
    return max(1, bus_bytes // slot), int(slot > bus_bytes)


def is_int4(fields: Fields) -> bool:
    """Return whether a WEIGHT's tiles are of four bits."""
    return fields["format"] == WeightFormat.INT4
