"""The memory model's settings: text to object and back, and what is refused."""

import re

import pytest

from tilewright_hw.arch import InputError
from tilewright_hw.arch.memory_model import MemoryModel


def test_text():
    made = MemoryModel.parse("latency=7, stall=0.25,seed=3,bandwidth=0.5")
    assert made == MemoryModel(latency=7, stall=0.25, seed=3, bandwidth=0.5)
    assert MemoryModel.parse(str(made)) == made
    assert MemoryModel.parse("") == MemoryModel()
    assert MemoryModel.parse("stall=0") == MemoryModel(stall=0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency", ("a memory is written like latency=40,stall=0.1 (of latency, stall, seed, "
         "bandwidth), not 'latency'")),
        ("speed=3", ("a memory is written like latency=40,stall=0.1 (of latency, stall, seed, "
         "bandwidth), not 'speed=3'")),
        ("latency=1,latency=2", "memory latency is given twice in 'latency=1,latency=2'"),
        ("latency=1.5", "memory latency must be an integer, not '1.5'"),
        ("stall=x", "memory stall must be a number, not 'x'"),
        ("stall=nan", "memory stall must be from 0 to below 1, not nan"),
        ("stall=1", "memory stall must be from 0 to below 1, not 1.0"),
        ("latency=0", "memory latency must be from 1 to 1000000, not 0"),
        ("bandwidth=0", "memory bandwidth must be above 0 and at most 1, not 0.0"),
        ("seed=-1", "memory seed must be from 0 to 2**64 - 1, not -1"),
    ],
)  # fmt: skip
def test_bad_text(text, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        MemoryModel.parse(text)


def test_bad_kinds():
    with pytest.raises(InputError, match=r"^memory latency must be an integer, not True$"):
        MemoryModel(latency=True)
    with pytest.raises(InputError, match=r"^memory stall must be a number, not '1'$"):
        MemoryModel(stall="1")
