"""Blocks against the golden functions of their names: the same arguments, equal results."""

import numpy as np
import pytest
from rtl_blocks import rtl_softmax, rtl_systolic_array

import tilewright_hw
from tilewright_sim import golden


def test_golden_blocks_are_blocks():
    assert set(golden.BLOCKS) <= set(tilewright_hw.__all__)
    assert golden.BLOCKS["Softmax"] is golden.softmax
    assert golden.BLOCKS["SystolicArray"] is golden.systolic_array


@pytest.mark.parametrize("lanes", [1, 2, 4, 3])
@pytest.mark.parametrize("stall", [None, 7])
def test_softmax(lanes, stall):
    x = np.random.default_rng(lanes).normal(0, 4, (2, 5, 11))
    x[1, 2] = -1e38
    np.testing.assert_array_equal(rtl_softmax(x, lanes=lanes, stall=stall), golden.softmax(x))


@pytest.mark.parametrize(("rows", "cols", "ingest"), [(4, 4, 1), (6, 10, 1), (8, 3, 2)])
@pytest.mark.parametrize("stall", [None, 7])
def test_systolic_array(rows, cols, ingest, stall):
    rng = np.random.default_rng(rows)
    a, w = rng.integers(-128, 128, (5, 13), np.int8), rng.integers(-128, 128, (13, 11), np.int8)
    got = rtl_systolic_array(a, w, rows=rows, cols=cols, ingest=ingest, stall=stall)
    np.testing.assert_array_equal(got, golden.systolic_array(a, w))
