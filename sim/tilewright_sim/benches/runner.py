"""Export a block, build it in a simulator and run its bench there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tilewright_hw.arch import AcceleratorConfig, TilewrightError
from tilewright_sim.toolchain import cocotb_environment

Simulator = Literal["verilator", "icarus"]


class BenchError(TilewrightError):
    """A bench that cannot run, or some of whose tests have failed."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One bench.

    Parameters
    ----------
    module : str
        The module with its tests, in this package.
    verilog : callable
        Takes the top module's name and the parameters, and returns Verilog.
    parameters : mapping
        Default parameters, as JSON can hold them; the tests are given them too.
    """

    module: str
    verilog: Callable[..., str]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _block(block: str, name: str, **parameters: Any) -> str:
    """Return the Verilog of one of the blocks that tilewright_hw names."""
    import tilewright_hw
    from tilewright_hw.generate import export_block

    return export_block(getattr(tilewright_hw, block)(**parameters), name)


def _accelerator(name: str, *, config: str) -> str:
    from tilewright_hw.generate import to_verilog

    return to_verilog(AcceleratorConfig.resolve(config), name=name)


BENCHES: dict[str, Bench] = {
    "systolic_array": Bench(
        module="bench_systolic_array",
        verilog=partial(_block, "SystolicArray"),
        parameters={"rows": 6, "cols": 5, "ingest": 2},
    ),
    "softmax": Bench(
        module="bench_softmax", verilog=partial(_block, "Softmax"), parameters={"lanes": 2, "max_length": 15}
    ),
    "stream_fifo": Bench(
        module="bench_stream_fifo", verilog=partial(_block, "StreamFifo"), parameters={"shape": 13, "depth": 5}
    ),
    "accelerator": Bench(module="bench_accelerator", verilog=_accelerator, parameters={"config": "tiny"}),
}
"""Benches by name."""


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have these environment variables for a while: cocotb's runner takes its tools from there."""
    before = dict(os.environ)
    os.environ.update(values)
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # under pytest, the runner would end the process where a test fails
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_cocotb() -> None:
    """Raise BenchError where cocotb is missing, or the shared libpython that it loads into the simulator."""
    try:
        import cocotb_tools.runner  # noqa: F401
        import cocotbext.axi  # noqa: F401
        import find_libpython
    except ImportError as e:
        raise BenchError(f"{e.name} is needed to run a bench: run `pip install 'tilewright[dev]'`") from e
    if find_libpython.find_libpython() is None:
        raise BenchError("cocotb needs the shared libpython, which was not found: see `tilewright doctor`")


def run_bench(
    name: str,
    *,
    simulator: Simulator = "verilator",
    seed: int = 1,
    waves: bool = False,
    tests: str | None = None,
    directory: str | Path | None = None,
    verilog: str | Path | None = None,
    **parameters: Any,
) -> int:
    """Build a bench's design and run its tests; return how many there were.

    Parameters
    ----------
    name : str
        One of `BENCHES`.
    simulator : {"verilator", "icarus"}
        Icarus must be on PATH.
    seed : int
        Seed of all that is random; printed.
    waves : bool
        Write a dump of all signals into `directory`.
    tests : str, optional
        A regular expression: run the tests whose names it matches.
    directory : path, optional
        Where to build; by default a temporary folder, which is removed.
    verilog : path, optional
        Verilog to test in place of what the gateware gives (a module of this bench's name).
    **parameters
        The design's parameters, in place of the bench's own.

    Raises
    ------
    BenchError
        There is no such bench, something that it needs is missing, or a test has failed.
    ToolchainError
        Verilator or the C++ compiler is missing.
    """
    if name not in BENCHES:
        raise BenchError(f"unknown bench {name!r}: choose one of {', '.join(BENCHES)}")
    bench = BENCHES[name]
    if unknown := parameters.keys() - bench.parameters.keys():
        raise BenchError(f"{name} has no parameter {min(unknown)!r}: choose from {', '.join(bench.parameters)}")
    if simulator not in ("verilator", "icarus"):
        raise BenchError(f"simulator must be verilator or icarus, not {simulator!r}")
    if simulator == "icarus" and shutil.which("iverilog") is None:
        raise BenchError("Icarus was not found: install it (Debian and Ubuntu: apt install iverilog)")
    _check_cocotb()
    values = {**bench.parameters, **parameters}
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"tilewright-{name}-"))
        folder = Path(directory).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / f"{name}.v"
        source.write_text(Path(verilog).read_text() if verilog else bench.verilog(name, **values), encoding="utf-8")
        made = cocotb_environment(folder / "bin") if simulator == "verilator" else {}
        if "MAKEFLAGS" in made:  # most of the time goes into the compiler: let it be quick
            made["MAKEFLAGS"] += " OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0"
        stack.enter_context(_environment({**made, "TILEWRIGHT_BENCH": json.dumps(values)}))
        return _run(name, bench, source, simulator=simulator, seed=seed, waves=waves, tests=tests)


def _run(
    name: str, bench: Bench, source: Path, *, simulator: Simulator, seed: int, waves: bool, tests: str | None
) -> int:
    """Build and run with cocotb's runner."""
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import get_runner

    runner = get_runner(simulator)
    folder = source.parent / simulator
    # Amaranth's Verilog is right but not free of width warnings.
    arguments = ["-Wno-fatal", "-Wno-WIDTH", "--x-initial", "fast", "-O3"] if simulator == "verilator" else []
    try:
        runner.build(
            sources=[source],
            hdl_toplevel=name,
            build_args=arguments,
            build_dir=folder,
            timescale=("1ns", "1ps"),
            waves=waves,
            always=True,
        )
        results = runner.test(
            test_module=f"{__package__}.{bench.module}",
            hdl_toplevel=name,
            build_dir=folder,
            timescale=("1ns", "1ps"),
            waves=waves,
            seed=seed,
            test_filter=tests,
        )
        count, failed = get_results(results)
    except (RuntimeError, subprocess.CalledProcessError, SystemExit) as e:
        raise BenchError(f"{name} did not build or run in {simulator}: {e}") from e
    if failed or not count:
        raise BenchError(f"{name}: {failed} of {count} tests failed in {simulator} with seed {seed}")
    return count
