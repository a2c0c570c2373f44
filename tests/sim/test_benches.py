"""The cocotb benches run, and fail when the design is wrong. A build takes some 20 s, so there are only four here."""

import shutil
import subprocess
import sys

import pytest

from tilewright_hw.generate import export_block
from tilewright_sim.benches import BENCHES, BenchError, run_bench

find_libpython = pytest.importorskip("find_libpython", reason="cocotb comes with the extra dev")
LIBPYTHON = find_libpython.find_libpython()
needs_libpython = pytest.mark.skipif(
    LIBPYTHON is None, reason=f"cocotb needs libpython3.{sys.version_info.minor}.so, which is not installed"
)


@needs_libpython
@pytest.mark.parametrize("name", BENCHES)
def test_bench(name, tmp_path):
    assert run_bench(name, directory=tmp_path) >= 8


@pytest.mark.slow
@needs_libpython
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("systolic_array", {"rows": 4, "cols": 7, "ingest": 1}),
        ("softmax", {"lanes": 4, "max_length": 24}),
        ("stream_fifo", {"shape": 64, "depth": 2}),
        ("accelerator", {"config": "edge"}),
    ],
)
def test_other_sizes(name, parameters, tmp_path):
    run_bench(name, directory=tmp_path, seed=2, **parameters)


@pytest.mark.slow
@needs_libpython
def test_a_planted_bug_is_found(tmp_path):
    from tilewright_hw import StreamFifo

    text = export_block(StreamFifo(13, 5), "stream_fifo")
    wrong = text.replace("(i_payload)", "({i_payload[12:1], 1'h0})")
    assert wrong != text
    (tmp_path / "wrong.v").write_text(wrong)
    with pytest.raises(BenchError, match=r"stream_fifo: [1-9] of [0-9]+ tests failed in verilator with seed 1"):
        run_bench("stream_fifo", directory=tmp_path / "build", verilog=tmp_path / "wrong.v")


@pytest.mark.slow
@needs_libpython
@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus is not installed")
@pytest.mark.parametrize("name", BENCHES)
def test_icarus(name, tmp_path):
    run_bench(name, directory=tmp_path, simulator="icarus")


def test_bad_arguments():
    with pytest.raises(BenchError, match="unknown bench 'softmix': choose one of systolic_array, softmax"):
        run_bench("softmix")
    with pytest.raises(BenchError, match="softmax has no parameter 'rows': choose from lanes, max_length"):
        run_bench("softmax", rows=3)
    with pytest.raises(BenchError, match="simulator must be verilator or icarus, not 'vcs'"):
        run_bench("softmax", simulator="vcs")


def test_the_command_line_says_one_line():
    command = [sys.executable, "-m", "tilewright_sim.benches", "softmax", "lanes=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: Lanes must be a positive integer, not 0\n")
