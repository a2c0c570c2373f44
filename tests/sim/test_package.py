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


def run_bench(folder, simulator="verilator"):
    """Run `make test` as a user would, with nothing of Tilewright to be found."""
    code = "import sys; sys.modules.update(tilewright=None, tilewright_hw=None, tilewright_sim=None)"
    (folder / "test" / "sitecustomize.py").write_text(code)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTEST_CURRENT_TEST")},
        "PYTHONPATH": str(folder / "test"),
    }
    command = ["make", "-C", str(folder), "test", f"PYTHON={sys.executable}", f"SIM={simulator}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def mutated(folder, to, before, after):
    """Copy a package, with a change of its Verilog."""
    copy = Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("build")))
    change(copy, before, after)
    return copy


def change(folder, before, after):
    """Change a package's Verilog."""
    path = next(folder.glob("*.v"))
    text = path.read_text()
    assert before in text, before
    path.write_text(text.replace(before, after))


@needs_libpython
def test_the_bench_of_a_block_passes_and_finds_a_planted_bug(fifo, tmp_path):
    folder = Path(shutil.copytree(fifo, tmp_path / "fifo"))
    done = run_bench(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 passed, 0 failed" in done.stdout
    change(folder, "(i_payload)", "({i_payload[6:1], 1'h0})")  # in its place: make compiles what has changed
    wrong = run_bench(folder)
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
@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus is not installed")
def test_the_bench_of_the_accelerator_where_values_may_be_unknown(whole):
    """Icarus knows X: nothing that matters may begin with it, or stay so."""
    done = run_bench(whole, "icarus")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "3 passed, 0 failed" in done.stdout


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
    assert "README.md" in files
    names = [f"tilewright_tiny{suffix}" for suffix in (".core", ".h", ".lpf", ".sdc", ".v", ".xdc", "_ip.tcl")]
    tests = [f"test/{name}" for name in ("accelerator.py", "run.py", "vectors.json")]
    assert set(names + tests + ["Makefile", "manifest.json"]) <= set(files)
    content = json.loads((whole / "manifest.json").read_text())
    for file in content["files"]:
        data = (whole / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert {r["name"]: r["address"] for r in content["registers"]} == {n: r.address for n, r in REGISTERS.items()}
    bits = {(r["name"], b["name"]): (b["lsb"], b["width"]) for r in content["registers"] for b in r["bits"]}
    assert bits == {(r.name, b.name): (b.lsb, b.width) for r in REGISTERS.values() for b in r.bits}
    assert content["parameters"] == TINY.to_dict()
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


MAIN = """
#include <stdio.h>
#include "tilewright.h"
int main(void) {
  uint32_t ins[TILEWRIGHT_INSTRUCTION_WORDS] = {TILEWRIGHT_OP_VECTOR};
  TILEWRIGHT_FIELD(ins, VECTOR_N, 300);
  TILEWRIGHT_FIELD(ins, VECTOR_M, 2);
  TILEWRIGHT_FIELD(ins, VECTOR_H, 1);
  TILEWRIGHT_FIELD(ins, VECTOR_SOURCE, TILEWRIGHT_SOURCE_ROW);
  TILEWRIGHT_FIELD(ins, VECTOR_CONST1, 0x3f800000u);
  TILEWRIGHT_WAIT(ins, TILEWRIGHT_UNIT_LOAD, 3);
  for (int i = 0; i < 16; ++i) printf("%08x", (unsigned)ins[i]);
  printf(" %x", TILEWRIGHT_REG_CONTROL);
  return 0;
}
"""


@pytest.mark.parametrize(
    "standard",
    ["c99", "c++11", pytest.param("c17", marks=pytest.mark.slow), pytest.param("c++20", marks=pytest.mark.slow)],
)
def test_the_c_header_compiles_and_encodes_an_instruction(standard, tmp_path):
    """In C and in C++, without a warning; the macros make the same words as the assembler."""
    from tilewright_hw.arch import Instruction, Unit

    compiler = toolchain.find_compiler()
    (tmp_path / "tilewright.h").write_text(c_header(TINY))
    (tmp_path / "main.c").write_text(MAIN)
    language = "c++" if "++" in standard else "c"
    flags = ["-Wall", "-Wextra", "-Werror", f"-std={standard}", "-pedantic", "-x", language, "main.c", "-o", "main"]
    subprocess.run([*compiler.command, *flags], cwd=tmp_path, check=True, env=compiler.environment())
    words, register = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.split()
    fields = {"n": 300, "m": 2, "h": 1, "source": 1, "const1": 0x3F800000}
    wanted = Instruction(Op.VECTOR, fields, {Unit.LOAD: 3}).encode()
    assert words == "".join(wanted[i : i + 4][::-1].hex() for i in range(0, 64, 4))
    assert int(register, 16) == REGISTERS["CONTROL"].address


@pytest.mark.parametrize("target", ["default", "lint", pytest.param("synth", marks=pytest.mark.slow)])
def test_fusesoc_takes_the_core(target, whole, tmp_path):
    """FuseSoC reads the description, and puts together what each target needs."""
    program = Path(sys.executable).parent / "fusesoc"
    environment = {"HOME": str(tmp_path), "PATH": f"{program.parent}:/usr/bin:/bin"}
    arguments = ["run", "--target", target, "--setup"] if target != "default" else ["core", "show"]
    command = [program, "--cores-root", whole, *arguments, "::tilewright_tiny"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    if target == "default":
        assert all(f"{name} " in done.stdout for name in ("default", "lint", "synth")), done.stdout
    else:
        assert list(tmp_path.glob(f"build/*/{target}/src/*/tilewright_tiny.v"))
        assert bool(list(tmp_path.glob(f"build/*/{target}/src/*/tilewright_tiny.xdc"))) == (target == "synth")


VIVADO = """
set calls {}
set inferred {%s}
proc unknown {args} { lappend ::calls $args; return [lindex $args 0] }
proc ipx::get_bus_interfaces {name args} { if {$name in $::inferred} { return $name } { return {} } }
proc ipx::get_bus_parameters {args} { return {} }
proc ipx::infer_bus_interface {ports type core} { lappend ::inferred [lindex [split [lindex $ports 0] _] 0]
    lappend ::calls [list infer $ports $type] }
source {%s}
"""


@pytest.mark.parametrize("inferred", ["", "m_axi s_axil clk rst irq"])
def test_the_vivado_script_runs_and_infers_each_interface_once(inferred, whole):
    """In Tcl, with Vivado's commands recorded: whatever Vivado infers by itself is not inferred again."""
    tkinter = pytest.importorskip("tkinter", reason="some distributions package Tcl apart")
    tcl = tkinter.Tcl()
    tcl.eval("namespace eval ipx {}")
    tcl.eval(VIVADO % (inferred, whole / "tilewright_tiny_ip.tcl"))
    calls = [tcl.splitlist(call) for call in tcl.splitlist(tcl.eval("set calls"))]
    found = {call[2]: tcl.splitlist(call[1]) for call in calls if call[0] == "infer"}
    buses = [tcl.splitlist(call[1]) for call in calls if call[0] == "infer" and "aximm" in call[2]]
    if inferred:
        assert not found
    else:
        ports = {p["name"] for p in json.loads((whole / "manifest.json").read_text())["ports"]}
        assert set(buses[0]) == {p for p in ports if p.startswith("m_axi_")}
        assert set(buses[1]) == {p for p in ports if p.startswith("s_axil_")}
        assert found["xilinx.com:signal:interrupt_rtl:1.0"] == ("irq",)
        assert found["xilinx.com:signal:clock_rtl:1.0"] == ("clk",)
    names = [call[0] for call in calls]
    assert names.count("ipx::associate_bus_interfaces") == 2
    assert ("set_property", "value", "ACTIVE_HIGH", "ipx::add_bus_parameter") in calls
    assert names[-1] == "ipx::save_core"


def test_the_vivado_script_of_a_block_has_no_axi(fifo):
    text = (fifo / "tilewright_stream_fifo_ip.tcl").read_text()
    assert "axi" not in text
    assert "clk xilinx.com:signal:clock_rtl:1.0 {clk}" in text


def test_the_readme_leads_to_the_multiply_and_to_every_module(whole):
    text = (whole / "README.md").read_text()
    verilog = (whole / "tilewright_tiny.v").read_text().splitlines()
    number = int(re.search(r"The multiply of a MAC is in line (\d+): `\$signed\(o_x\) \* \$signed\(weight\)`", text)[1])
    assert "$signed(o_x) * $signed(weight)" in verilog[number - 1]
    inside = next(line for line in reversed(verilog[:number]) if line.startswith("module "))
    assert inside.startswith("module tilewright_ProcessingElement")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| .+ \| .+ \|$", text, re.M)
    assert len(rows) > 50
    assert all(verilog[int(line) - 1].startswith(f"module {name}(") for line, name in rows)


def test_a_block_without_a_clock_has_no_constraints(tmp_path):
    block = resolve("WidthConverter", TINY, {"bus_bytes": 4, "slot": 4, "used": 3})
    folder = write_package(block, tmp_path / "out")
    for suffix in ("sdc", "xdc", "lpf"):
        assert next(folder.glob(f"*.{suffix}")).read_text().startswith("# There is no clock")
    assert json.loads((folder / "manifest.json").read_text())["clocks"] == []
    assert "It has no clock." in (folder / "README.md").read_text()


def test_the_head_of_a_blocks_verilog(fifo):
    head = (fifo / "tilewright_stream_fifo.v").read_text()[:300]
    assert re.match(r"// Tilewright \d+\.\d+\.\d+, block StreamFifo, configuration tiny\n//\n//   shape = 7\n", head)


def test_the_same_bytes_with_any_hash_seed_in_any_folder(fifo, tmp_path):
    check_same_bytes(fifo, "resolve('StreamFifo', C.preset('tiny'), {'shape': 7, 'depth': 3}), sys.argv[1]", tmp_path)


@pytest.mark.slow
def test_the_same_bytes_of_the_accelerator(whole, tmp_path):
    check_same_bytes(whole, "resolve(TOP_BLOCK, C.preset('tiny'), {}), sys.argv[1], mhz=80", tmp_path)


def check_same_bytes(package, arguments, tmp_path):
    code = "import sys; from tilewright_hw.arch import AcceleratorConfig as C; from tilewright_sim.package import *"
    again = tmp_path / "elsewhere" / "again"
    (tmp_path / "here").mkdir()
    found = os.pathsep.join(map(os.path.abspath, sys.path))
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": found}
    code = f"{code}; write_package({arguments})"
    subprocess.run([sys.executable, "-c", code, again], check=True, env=environment, cwd=tmp_path / "here")
    for path in (p for p in again.rglob("*") if p.is_file()):
        assert path.read_bytes() == (package / path.relative_to(again)).read_bytes(), path


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
