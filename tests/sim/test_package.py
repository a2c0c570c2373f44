"""Verilog packages: their files, the same bytes each time, whole or not at all, and a bench that finds bugs."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tilewright_hw.arch import REGISTERS, AcceleratorConfig, InputError, Op
from tilewright_sim import toolchain
from tilewright_sim.package import BLOCKS, TOP_BLOCK, package_name, resolve, write_package
from tilewright_sim.package.blocks import BLOCKS as PARAMETERS
from tilewright_sim.package.c_header import c_header
from tilewright_sim.package.files import ports_of

TINY = AcceleratorConfig.preset("tiny")
find_libpython = pytest.importorskip("find_libpython", reason="cocotb comes with the extra dev")
needs_libpython = pytest.mark.skipif(find_libpython.find_libpython() is None, reason="cocotb needs libpython")


@pytest.fixture(scope="module")
def fifo(tmp_path_factory):
    block = resolve("StreamFifo", TINY, {"shape": 7, "depth": 3})
    return write_package(block, tmp_path_factory.mktemp("package") / "fifo")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_package(resolve(TOP_BLOCK, TINY, {}), tmp_path_factory.mktemp("package") / "tiny", mhz=80)


def run_bench(folder):
    """Run `make test` as a user would, with nothing of Tilewright to be found."""
    code = "import sys; sys.modules.update(tilewright=None, tilewright_hw=None, tilewright_sim=None)"
    (folder / "test" / "sitecustomize.py").write_text(code)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTEST_CURRENT_TEST")},
        "PYTHONPATH": str(folder / "test"),
    }
    command = ["make", "-C", str(folder), "test", f"PYTHON={sys.executable}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def mutated(folder, to, before, after):
    """Copy a package, with a change of its Verilog."""
    copy = Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("build")))
    path = next(copy.glob("*.v"))
    text = path.read_text()
    assert before in text, before
    path.write_text(text.replace(before, after))
    return copy


@needs_libpython
def test_the_bench_of_a_block_passes_and_finds_a_planted_bug(fifo, tmp_path):
    done = run_bench(fifo)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 passed, 0 failed" in done.stdout
    wrong = run_bench(mutated(fifo, tmp_path / "wrong", "(i_payload)", "({i_payload[6:1], 1'h0})"))
    assert wrong.returncode != 0
    assert "o_payload is" in wrong.stdout + wrong.stderr


@pytest.mark.slow
@needs_libpython
def test_the_bench_of_the_accelerator_passes_and_finds_a_planted_bug(whole, tmp_path):
    done = run_bench(whole)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "3 passed, 0 failed" in done.stdout
    wrong = mutated(whole, tmp_path / "wrong", "$signed(o_x) * $signed(weight)", "$signed(o_x) + $signed(weight)")
    assert run_bench(wrong).returncode != 0


@pytest.mark.slow
@needs_libpython
@pytest.mark.parametrize("name", sorted(set(BLOCKS) - {TOP_BLOCK}))
def test_the_bench_of_every_block(name, tmp_path):
    done = run_bench(write_package(resolve(name, TINY, {}), tmp_path / name))
    assert "1 passed, 0 failed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("name", BLOCKS)
def test_every_named_block_has_parameters_for_every_preset(name):
    for preset in ("tiny", "edge", "default", "large"):
        assert PARAMETERS[name](AcceleratorConfig.preset(preset))


def test_what_is_in_a_package(whole):
    files = sorted(str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file() and "build" not in p.parts)
    names = [f"tilewright_tiny{suffix}" for suffix in (".core", ".h", ".lpf", ".sdc", ".v", ".xdc", "_ip.tcl")]
    tests = [f"test/{name}" for name in ("accelerator.py", "run.py", "vectors.json")]
    assert set(names + tests + ["Makefile", "manifest.json"]) <= set(files)
    content = json.loads((whole / "manifest.json").read_text())
    for file in content["files"]:
        data = (whole / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert {r["name"]: r["address"] for r in content["registers"]} == {n: r.address for n, r in REGISTERS.items()}
    ports = {p["name"]: (p["direction"], p["width"]) for p in content["ports"]}
    assert ports["m_axi_rdata"] == ("input", 32)
    assert ports["s_axil_awaddr"] == ("input", 12)
    assert ports["irq"] == ("output", 1)
    assert content["clocks"] == ["clk"]
    assert content["resets"][0]["name"] == "rst"
    assert content["configuration"] == "tiny"
    assert "12.500" in (whole / "tilewright_tiny.sdc").read_text()
    assert "80.000 MHZ" in (whole / "tilewright_tiny.lpf").read_text()
    assert "configuration tiny" in (whole / "tilewright_tiny.v").read_text()[:200]
    assert not list(whole.parent.glob(".*"))


def test_ports_are_those_of_the_verilog():
    text = "module m(b, a, \\c );\n  input a;\n  output [7:0] b;\n  input [1:0] \\c ;\nendmodule\n"
    assert [(p.name, p.direction, p.width) for p in ports_of(text, "m")] == [
        ("b", "output", 8),
        ("a", "input", 1),
        ("c", "input", 2),
    ]


def test_the_c_header_compiles_and_encodes_an_instruction(tmp_path):
    """The C macros make the same words as the assembler."""
    from tilewright_hw.arch import Instruction, Unit

    compiler = toolchain.find_compiler()
    (tmp_path / "tilewright.h").write_text(c_header(TINY))
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "tilewright.h"\nint main(void) {\n'
        "  uint32_t ins[TILEWRIGHT_INSTRUCTION_WORDS] = {TILEWRIGHT_OP_VECTOR};\n"
        "  TILEWRIGHT_FIELD(ins, VECTOR_N, 300);\n  TILEWRIGHT_FIELD(ins, VECTOR_M, 2);\n"
        "  TILEWRIGHT_FIELD(ins, VECTOR_H, 1);\n  TILEWRIGHT_FIELD(ins, VECTOR_SOURCE, TILEWRIGHT_SOURCE_ROW);\n"
        "  TILEWRIGHT_FIELD(ins, VECTOR_CONST1, 0x3f800000u);\n"
        "  TILEWRIGHT_WAIT(ins, TILEWRIGHT_UNIT_LOAD, 3);\n"
        '  for (int i = 0; i < 16; ++i) printf("%08x", (unsigned)ins[i]);\n'
        '  printf(" %x", TILEWRIGHT_REG_CONTROL);\n  return 0;\n}\n'
    )
    flags = ["-Wall", "-Wextra", "-Werror", "-std=c99", "-pedantic", "-x", "c", "main.c", "-o", "main"]
    subprocess.run([*compiler.command, *flags], cwd=tmp_path, check=True, env=compiler.environment())
    words, register = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.split()
    fields = {"n": 300, "m": 2, "h": 1, "source": 1, "const1": 0x3F800000}
    wanted = Instruction(Op.VECTOR, fields, {Unit.LOAD: 3}).encode()
    assert words == "".join(wanted[i : i + 4][::-1].hex() for i in range(0, 64, 4))
    assert int(register, 16) == REGISTERS["CONTROL"].address


def test_fusesoc_takes_the_core(fifo, tmp_path):
    program = Path(sys.executable).parent / "fusesoc"
    environment = {"HOME": str(tmp_path), "PATH": f"{program.parent}:/usr/bin:/bin"}
    command = [program, "--cores-root", fifo, "run", "--target", "lint", "--setup", "::tilewright_stream_fifo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    assert list(tmp_path.glob("build/*/lint/src/*/tilewright_stream_fifo.v"))


def test_the_vivado_script_names_what_there_is(whole, fifo):
    text = (whole / "tilewright_tiny_ip.tcl").read_text()
    assert "foreach bus {m_axi s_axil}" in text
    assert "add_files [file join $here tilewright_tiny.v]" in text
    assert text.count("{") == text.count("}")
    assert "m_axi" not in (fifo / "tilewright_stream_fifo_ip.tcl").read_text()


def test_the_same_bytes_with_any_hash_seed_in_any_folder(fifo, tmp_path):
    code = (
        "import sys; from tilewright_hw.arch import AcceleratorConfig as C; from tilewright_sim.package import *;"
        "write_package(resolve('StreamFifo', C.preset('tiny'), {'shape': 7, 'depth': 3}), sys.argv[1])"
    )
    again = tmp_path / "elsewhere" / "again"
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    subprocess.run([sys.executable, "-c", code, again], check=True, env=environment)
    for path in (p for p in again.rglob("*") if p.is_file()):
        assert path.read_bytes() == (fifo / path.relative_to(again)).read_bytes(), path


def test_names_of_packages():
    assert package_name(resolve("SystolicArray", TINY, {})) == "tilewright_systolic_array"
    odd = AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1)
    assert package_name(resolve(TOP_BLOCK, odd, {})) == "tilewright_6x10x2_b32"
    assert resolve("VectorUnit", TINY, {"row_words": 256}).config.row_words == 256


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Sofmax", {}, "unknown block 'Sofmax': choose one of Accelerator, "),
        ("Softmax", {"rows": 3}, "Softmax has no parameter 'rows': choose from lanes, max_length"),
        ("Softmax", {"lanes": True}, "lanes must be an integer, not True"),
        ("SystolicArray", {"rows": 0}, "SystolicArray: rows must be at least 1, not 0"),
        ("VectorUnit", {"lanes": 3}, "lanes must be 2, 4, 8 or 16, not 3"),
        ("VectorUnit", {"weight_fifo_bytes": 10**12}, "weight_fifo_bytes must be at least four weight tiles"),
        ("StreamFifo", {"depth": 10**12}, "StreamFifo: depth must be at most 1048576, not 1000000000000"),
        ("StreamFifo", {"shape": -3}, "StreamFifo: shape must have 1 to 65536 bits, not -3"),
    ],
)
def test_blocks_that_cannot_be(name, changes, message, tmp_path):
    with pytest.raises(InputError) as caught:
        write_package(resolve(name, TINY, changes), tmp_path / "out")
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mhz", [0.0, -1.0, float("nan"), float("inf"), 1e6])
def test_clocks_that_cannot_be(mhz, tmp_path):
    with pytest.raises(InputError, match=r"^mhz must be above 0 and at most 10000, not "):
        write_package(resolve("StreamBuffer", TINY, {}), tmp_path / "out", mhz=mhz)


def test_other_peoples_files_stay(tmp_path):
    block = resolve("StreamBuffer", TINY, {})
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"must be absent, empty or an earlier package; it holds thesis.tex$"):
        write_package(block, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="must be a folder"):
        write_package(block, tmp_path / "file")
    with pytest.raises(InputError, match="cannot write"):
        write_package(block, tmp_path / "file" / "below")


def test_an_earlier_package_is_replaced_whole(tmp_path):
    folder = write_package(resolve("StreamBuffer", TINY, {"shape": 3}), tmp_path / "out")
    (folder / "test" / "build").mkdir()
    (folder / "test" / "build" / "log").write_text("old")
    write_package(resolve("StreamBuffer", TINY, {"shape": 5}), folder)
    assert re.search(r"\[4:0\] i_payload", next(folder.glob("*.v")).read_text())
    assert not (folder / "test" / "build").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_the_earlier_package(tmp_path, monkeypatch):
    folder = write_package(resolve("StreamBuffer", TINY, {"shape": 3}), tmp_path / "out")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def fail(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_package(resolve("StreamBuffer", TINY, {"shape": 5}), folder)
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
