"""Blocks against the golden functions of their names: the same arguments, equal results."""

import re

import numpy as np
import pytest
from rtl_blocks import (
    rtl_accumulators,
    rtl_act_buffer,
    rtl_skew,
    rtl_softmax,
    rtl_stream_buffer,
    rtl_stream_fifo,
    rtl_systolic_array,
    rtl_tile_fifo,
    rtl_width_converter,
)

import tilewright_hw
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_sim import golden

STALLS = pytest.mark.parametrize("stall", [None, 7])


def test_every_block_has_its_golden_counterpart():
    """A function has the block's name in lower case."""
    assert set(golden.BLOCKS) == set(tilewright_hw.__all__) - {"AcceleratorConfig"}
    for name, model in golden.BLOCKS.items():
        if not isinstance(model, type):
            assert re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() == model.__name__
            assert getattr(golden, model.__name__) is model


@pytest.mark.parametrize("lanes", [1, 2, 4, 3])
@STALLS
def test_softmax(lanes, stall):
    x = np.random.default_rng(lanes).normal(0, 4, (2, 5, 11))
    x[1, 2] = -1e38
    np.testing.assert_array_equal(rtl_softmax(x, lanes=lanes, stall=stall), golden.softmax(x))


@pytest.mark.parametrize(("rows", "cols", "ingest"), [(4, 4, 1), (6, 10, 1), (8, 3, 2)])
@STALLS
def test_systolic_array(rows, cols, ingest, stall):
    rng = np.random.default_rng(rows)
    a, w = rng.integers(-128, 128, (5, 13), np.int8), rng.integers(-128, 128, (13, 11), np.int8)
    got = rtl_systolic_array(a, w, rows=rows, cols=cols, ingest=ingest, stall=stall)
    np.testing.assert_array_equal(got, golden.systolic_array(a, w))


@STALLS
@pytest.mark.parametrize("depth", [2, 5, 16])
def test_stream_fifo_and_buffer(depth, stall):
    items = np.random.default_rng(depth).integers(0, 1 << 13, 40)
    np.testing.assert_array_equal(rtl_stream_fifo(items, width=13, depth=depth, stall=stall), golden.stream_fifo(items))
    np.testing.assert_array_equal(rtl_stream_buffer(items, width=13, stall=stall), golden.stream_buffer(items))


@STALLS
@pytest.mark.parametrize(("count", "step"), [(2, 1), (5, 1), (4, 3)])
def test_skew(count, step, stall):
    x = np.random.default_rng(count).integers(0, 1 << 9, (12, count))
    np.testing.assert_array_equal(rtl_skew(x, step, width=9, stall=stall), golden.skew(x, step))


@STALLS
@pytest.mark.parametrize(("bus_bytes", "slot", "used"), [(4, 16, 10), (8, 8, 6), (8, 2, 1)])
def test_width_converter(bus_bytes, slot, used, stall):
    beats = np.random.default_rng(slot).integers(0, 256, (14, bus_bytes), np.uint8)
    got = rtl_width_converter(beats, slot, used, stall=stall)
    np.testing.assert_array_equal(got, golden.width_converter(beats, slot, used))


@STALLS
@pytest.mark.parametrize(("rows", "cols", "ingest", "count"), [(4, 3, 1, 1), (8, 2, 2, 2), (8, 2, 4, 1)])
def test_tile_fifo(rows, cols, ingest, count, stall):
    data = np.random.default_rng(rows).integers(-128, 128, (9 * rows + count, cols), np.int8)
    got = rtl_tile_fifo(data, rows, ingest=ingest, tiles=3, count=count, stall=stall)
    np.testing.assert_array_equal(got, golden.tile_fifo(data, rows))


@STALLS
@pytest.mark.parametrize(("cols", "depth", "width"), [(1, 2, 32), (4, 8, 18)])
def test_accumulators(cols, depth, width, stall):
    rng = np.random.default_rng(cols)
    n = 60
    sums = rng.integers(-(1 << width - 1), 1 << width - 1, (n, cols))
    bank, addr = rng.integers(0, 2, n), rng.integers(0, depth, n)
    overwrite = rng.random(n) < 0.2
    _, first = np.unique(bank * depth + addr, return_index=True)
    overwrite[first] = True
    got = rtl_accumulators(sums, bank, addr, overwrite, depth=depth, width=width, stall=stall)
    np.testing.assert_array_equal(got, golden.accumulators(sums, bank, addr, overwrite, depth=depth))


@STALLS
def test_act_buffer(stall):
    config = AcceleratorConfig.preset("tiny")
    rng = np.random.default_rng(1)
    writes = []
    for _ in range(40):
        part = rng.choice([None, 0, 1])
        size = config.rows if part is None else config.lanes
        writes.append((int(rng.integers(8)), part, rng.integers(-128, 128, size, np.int8)))
    got = rtl_act_buffer(writes, config=config, words=8, stall=stall)
    np.testing.assert_array_equal(got, golden.act_buffer(writes, words=8, rows=config.rows))


ROWS = np.zeros((3, 4), np.int8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: golden.skew(ROWS, 0), "step must be a positive integer, not 0"),
        (lambda: golden.skew([1, 2]), r"rows must be an array \(n, count\), not of shape \(2,\)"),
        (lambda: golden.width_converter(ROWS, 4, 4), r"beats must be uint8 \(n, bytes\), not int8 of shape \(3, 4\)"),
        (lambda: golden.width_converter(ROWS.view(np.uint8), 6, 4), "slot must be a multiple or a divisor of 4, not 6"),
        (lambda: golden.width_converter(ROWS.view(np.uint8), 4, 5), r"used must be at most the slot \(4\), not 5"),
        (lambda: golden.tile_fifo(ROWS.astype(int), 2), r"rows must be int8 \(n, cols\), not int64 of shape \(3, 4\)"),
        (lambda: golden.tile_fifo(ROWS, 2.5), "tile_rows must be a positive integer, not 2.5"),
        (
            lambda: golden.accumulators([[1]], [0], [0], [0], depth=2),
            "row 0 is added to bank 0, address 0, which was not",
        ),
        (
            lambda: golden.accumulators([[1]], [0], [2], [1], depth=2),
            "row 0 goes to bank 0, address 2: there are 2 banks",
        ),
        (lambda: golden.accumulators([[0.5]], [0], [0], [1], depth=2), "sums must be integers"),
        (lambda: golden.act_buffer([(0, 2, ROWS[0, :2])], words=1, rows=4), "a write must be int8 within 1 words of 4"),
        (lambda: golden.act_buffer([(0, None, ROWS[0, :2])], words=1, rows=4), "a write must be int8 within"),
    ],
)
def test_bad_arguments_of_golden_blocks(call, message):
    with pytest.raises(InputError, match=f"^{message}"):
        call()
