"""The golden model's VECTOR against the exact model that the vector unit is checked with."""

from __future__ import annotations

import random
from collections import defaultdict

import f24
import numpy as np
import pytest
from test_vector import CONFIGS
from vector_model import (
    Buffers,
    execute,
    random_float,
    random_integer,
    random_vector,
    seed_statistics,
    show,
)

from tilewright_hw.arch.isa import Dest, Element
from tilewright_sim.golden.machine import Machine
from tilewright_sim.golden.memory import Memory
from tilewright_sim.golden.state import Fault, field_bits
from tilewright_sim.golden.vector import VectorStep

SEED = 20261123
COUNT = 400


def floats(words):
    return [[float(f24.value(x)) for x in word] for word in words]


def random_state(rng, config):
    """Return a filled model and a golden machine with the same contents."""
    model = Buffers(config)
    for bank in range(2):
        for row in range(config.acc_rows):
            model.acc[bank, row] = [random_integer(rng) for _ in range(config.cols)]
    for memory, words in ((model.row, config.row_words), (model.param, config.param_words)):
        for address in range(words):
            memory[address] = [random_float(rng) for _ in range(config.lanes)]
    golden = Machine(config, Memory(1024))
    buffers = golden.buffers
    buffers.acc0[:] = [model.acc[0, row] for row in range(config.acc_rows)]
    buffers.acc1[:] = [model.acc[1, row] for row in range(config.acc_rows)]
    buffers.row[:] = floats(model.row[i] for i in range(config.row_words))
    buffers.param[:] = floats(model.param[i] for i in range(config.param_words))
    return model, golden


def assert_equal(model, golden, config, text):
    row = floats(model.row[i] for i in range(config.row_words))
    stat = [model.stat.get(i, (0, 0)) for i in range(config.stat_entries)]
    act = [model.act.get(i, [0] * config.rows) for i in range(config.act_words)]
    assert np.array_equal(golden.buffers.row, row), text
    # Field b may hold an index, which is no float: the bits are compared.
    assert np.array_equal(field_bits(golden.buffers.stat), stat), text
    assert np.array_equal(golden.buffers.act, act), text


def store_bits(chunk):
    unsigned = {Element.INT8: np.uint8, Element.BF16: np.uint16, Element.FP32: np.uint32}
    bits = unsigned[Element(chunk.element)]
    words = chunk.words
    return (words.view(bits) if words.dtype.itemsize == bits().itemsize else words.astype(bits)).tolist()


@pytest.mark.parametrize("name", ["4x4x2", "12x20x4"])
def test_golden(name):
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    config = CONFIGS[name]
    model, golden = random_state(rng, config)
    executed = 0
    for f in seed_statistics(config) + [random_vector(rng, config) for _ in range(COUNT)]:
        if f["dest"] == Dest.STORE_RAW:
            f["limit"] = 65535
        try:
            step = VectorStep(golden, defaultdict(int, f))
            step(golden)
        except Fault:  # the golden model refuses what a program should not do
            continue
        executed += 1
        model.store.clear()
        execute(f, model)
        assert_equal(model, golden, config, show(f))
        stored = [word for chunk in golden.store.chunks for word in store_bits(chunk)]
        golden.store.chunks.clear()
        assert stored == model.store, show(f)
    assert executed > COUNT // 2
