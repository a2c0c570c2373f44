"""Planted bugs: what is planted is seeded, and does nothing until it is in force; benches find it."""

import json
import subprocess
import sys

import pytest

from tilewright_hw import SystolicArray, TileFifo
from tilewright_sim.benches import BenchError
from tilewright_sim.mutate import KINDS, mutate, planted_verilog
from tilewright_sim.mutate.__main__ import main

find_libpython = pytest.importorskip("find_libpython", reason="cocotb comes with the extra dev")
needs_libpython = pytest.mark.skipif(find_libpython.find_libpython() is None, reason="cocotb needs libpython")


def plant(seed, count=21):
    return planted_verilog(SystolicArray(2, 2, 1), "array", count=count, seed=seed)


def test_every_kind_is_planted_and_the_seed_decides_which():
    verilog, mutants = plant(seed=3)
    assert {mutant.kind for mutant in mutants} <= set(KINDS)
    assert len({mutant.kind for mutant in mutants}) >= 6
    assert [mutant.number for mutant in mutants] == list(range(1, 22))
    for mutant in mutants:
        assert mutant.where.startswith(("tilewright_hw/gateware/", "amaranth/"))
        assert int(mutant.where.rpartition(":")[2]) > 0
    assert plant(seed=3) == (verilog, mutants)
    other = plant(seed=4)
    assert [mutant.what for mutant in other[1]] != [mutant.what for mutant in mutants]
    assert "input [15:0] mutant" in verilog
    for number in range(1, 22):  # each is somewhere behind a comparison
        assert f"mutant == 5'h{number:02x}" in verilog or f"mutant == {number.bit_length()}'h{number:x}" in verilog


def test_fewer_places_than_wanted_plant_fewer():
    _, mutants = planted_verilog(TileFifo(rows=4, cols=1, ingest=1, tiles=2), "tile_fifo", count=10_000, seed=1)
    assert 50 < len(mutants) < 10_000
    assert len({(mutant.what, mutant.where, mutant.module) for mutant in mutants}) > 50


def test_bad_arguments(capsys):
    with pytest.raises(BenchError, match="unknown bench 'softmix': choose one of systolic_array, softmax"):
        mutate("softmix", count=1, seed=1)
    for arguments, message in (
        (["Softmix"], "unknown block 'Softmix': choose from SystolicArray, Softmax, "),
        (["Skew", "--count", "0"], "must be a positive integer, not '0'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@needs_libpython
def test_bugs_of_a_small_block_are_found():
    command = [sys.executable, "-m", "tilewright_sim.mutate", "StreamBuffer", "--count", "20", "--seed", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (score,) = json.loads(done.stdout)
    outcomes = score["outcomes"]
    assert len(outcomes) == 20
    assert sum(outcome["found_by"] is not None for outcome in outcomes) >= 19
    assert "StreamBuffer:   1 operator: | is & (tilewright_hw/gateware/fifo.py:" in done.stderr
