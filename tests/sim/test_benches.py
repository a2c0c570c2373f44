"""The cocotb benches run, and fail when the design is wrong. A build takes some 10 s, so `make test` has but six."""

import shutil
import subprocess
import sys

import pytest

import tilewright_hw
from tilewright_hw.generate import export_block
from tilewright_sim import golden
from tilewright_sim.benches import BENCHES, BenchError, run_bench
from tilewright_sim.mutate.campaign import block_of

find_libpython = pytest.importorskip("find_libpython", reason="cocotb comes with the extra dev")
LIBPYTHON = find_libpython.find_libpython()
needs_libpython = pytest.mark.skipif(
    LIBPYTHON is None, reason=f"cocotb needs libpython3.{sys.version_info.minor}.so, which is not installed"
)


FAST = {
    "systolic_array": None,
    "softmax": None,
    "stream_fifo": None,
    "accelerator": "registers|products/share=0.3|row_operations/share=0.4|errors|reset_in_the_middle",
    "control_registers": None,
    "memory_reader": "once/share=0.3|full_fifo|error|reset_in_the_middle/cycles=60",
}
"""The benches of `make test`, and those of their tests that run there (None: all)."""


@needs_libpython
@pytest.mark.parametrize("name", FAST)
def test_bench(name, tmp_path):
    assert run_bench(name, directory=tmp_path, tests=FAST[name]) >= 3


@pytest.mark.slow
@needs_libpython
@pytest.mark.parametrize("name", [name for name in BENCHES if FAST.get(name, "") is not None])
def test_whole_bench(name, tmp_path):
    assert run_bench(name, directory=tmp_path, seed=3) >= 3


def test_every_block_has_a_bench():
    blocks = {name for name in tilewright_hw.__all__ if name != "AcceleratorConfig"}
    assert {block_of(bench) for bench in BENCHES} == blocks
    assert set(golden.BLOCKS) <= blocks


FIFOS = {"weight_fifo_bytes": 2048, "stream_fifo_bytes": 2048}


@pytest.mark.slow
@needs_libpython
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("systolic_array", {"rows": 4, "cols": 7, "ingest": 1}),
        ("softmax", {"lanes": 4, "max_length": 24}),
        ("stream_fifo", {"shape": 64, "depth": 2}),
        ("accelerator", {"config": "edge"}),
        ("accumulators", {"cols": 1, "depth": 4, "width": 32}),
        ("matrix_unit", {"rows": 6, "cols": 10, "weight_fifo_bytes": 1024, "stream_fifo_bytes": 300}),
        ("matrix_unit", {"rows": 16, "lanes": 4, "ingest": 4, "weight_fifo_bytes": 512, "stream_fifo_bytes": 256}),
        ("memory_reader", {"rows": 6, "cols": 10, "stream_fifo_bytes": 300, "weight_fifo_bytes": 512}),
        ("memory_reader", {"rows": 8, "cols": 8, "lanes": 4, "bus_bits": 128, "ingest": 2, **FIFOS}),
        ("sequencer", {"bus_bits": 128, "queue_depth": 2}),
        ("skew", {"shape": 8, "count": 6, "step": 1}),
        ("store_unit", {"rows": 6, "cols": 10, "burst_beats": 1, "writes_in_flight": 2, **FIFOS}),
        ("store_unit", {"rows": 16, "cols": 16, "lanes": 16, "bus_bits": 512, "burst_beats": 64, **FIFOS}),
        ("tile_fifo", {"rows": 6, "cols": 3, "ingest": 1, "tiles": 2, "count": 1}),
        ("vector_unit", {"rows": 12, "cols": 20, "lanes": 4, **FIFOS}),
        ("width_converter", {"bus_bytes": 8, "slot": 2, "used": 2, "ends": 1}),
        ("width_converter", {"bus_bytes": 4, "slot": 12, "used": 9, "ends": 2}),
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
    # A head as others write it: the Verilog may be from elsewhere.
    wrong = wrong.replace("\nmodule stream_fifo(", "\nmodule stream_fifo #(parameter OTHERS = 1) (")
    assert "OTHERS" in wrong
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
    with pytest.raises(BenchError, match="width_converter has no port clk, which a bench needs"):
        run_bench("width_converter", bus_bytes=4, slot=4, used=3)
    with pytest.raises(BenchError, match="simulator must be verilator or icarus, not 'vcs'"):
        run_bench("softmax", simulator="vcs")


def test_the_command_line_says_one_line():
    command = [sys.executable, "-m", "tilewright_sim.benches", "softmax", "lanes=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: lanes must be at least 1, not 0\n")
