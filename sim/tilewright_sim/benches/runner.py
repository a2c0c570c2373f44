"""Export a block, build it in a simulator and run its bench there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tilewright_hw.arch import AcceleratorConfig, TilewrightError
from tilewright_sim.cache import BuildCache, CacheError, cache_directory
from tilewright_sim.toolchain import cocotb_environment, find_compiler, find_verilator, fingerprint

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


def _unit(block: str, name: str, **fields: Any) -> str:
    """Return the Verilog of a unit that takes a configuration, given by its fields."""
    import tilewright_hw
    from tilewright_hw.generate import export_block

    return export_block(getattr(tilewright_hw, block)(AcceleratorConfig.from_dict(fields)), name)


def _accelerator(name: str, *, config: str) -> str:
    from tilewright_hw.generate import to_verilog

    return to_verilog(AcceleratorConfig.resolve(config), name=name)


_TINY = AcceleratorConfig(
    rows=4, cols=4, lanes=2, bus_bits=32, ingest=1, acc_rows=64, act_words=64, row_words=256, param_words=64,
    stat_entries=64, weight_fifo_bytes=64, stream_fifo_bytes=80, burst_beats=16, reads_in_flight=4, writes_in_flight=4,
    queue_depth=4,
)  # fmt: skip
"""A small accelerator whose buffers are soon full."""


def _of_unit(block: str, module: str) -> Bench:
    """Return the bench of a unit that takes a configuration."""
    return Bench(module=module, verilog=partial(_unit, block), parameters=_TINY.to_dict())


def _of_block(block: str, module: str, **parameters: Any) -> Bench:
    """Return the bench of a block that takes parameters of its own."""
    return Bench(module=module, verilog=partial(_block, block), parameters=parameters)


BENCHES: dict[str, Bench] = {
    "systolic_array": _of_block("SystolicArray", "bench_systolic_array", rows=6, cols=5, ingest=2),
    "softmax": _of_block("Softmax", "bench_softmax", lanes=2, max_length=15),
    "stream_fifo": _of_block("StreamFifo", "bench_stream_fifo", shape=13, depth=5),
    "accelerator": Bench(module="bench_accelerator", verilog=_accelerator, parameters={"config": "tiny"}),
    "accumulators": _of_block("Accumulators", "bench_accumulators", cols=3, depth=8, width=18),
    "act_buffer": _of_unit("ActBuffer", "bench_act_buffer"),
    "control_registers": _of_unit("ControlRegisters", "bench_control_registers"),
    "matrix_unit": _of_unit("MatrixUnit", "bench_matrix_unit"),
    "memory_reader": _of_unit("MemoryReader", "bench_memory_reader"),
    "sequencer": _of_unit("Sequencer", "bench_sequencer"),
    "skew": _of_block("Skew", "bench_skew", shape=5, count=4, step=2),
    "store_unit": _of_unit("StoreUnit", "bench_store_unit"),
    "stream_buffer": _of_block("StreamBuffer", "bench_stream_buffer", shape=7),
    "tile_fifo": _of_block("TileFifo", "bench_tile_fifo", rows=8, cols=3, ingest=2, tiles=3, count=2),
    "vector_unit": _of_unit("VectorUnit", "bench_vector_unit"),
    "width_converter": _of_block("WidthConverter", "bench_width_converter", bus_bytes=2, slot=8, used=7, ends=2),
}
"""Benches by name."""


def _export(bench: Bench, name: str, values: Mapping[str, Any]) -> str:
    """Return the Verilog of a bench's design; BenchError if it has no clock."""
    from tilewright_sim.package.files import ports_of

    text = bench.verilog(name, **values)
    if all(port.name != "clk" for port in ports_of(text, name)):
        raise BenchError(f"{name} has no port clk, which a bench needs: in some sizes a block is nothing but wires")
    return text


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
        text = Path(verilog).read_text() if verilog else _export(bench, name, values)
        built = build(name, values, text, Path(directory), simulator=simulator, waves=waves)
        count, failed = built.test(f"{__package__}.{bench.module}", seed=seed, tests=tests)
    if failed or not count:
        raise BenchError(f"{name}: {failed} of {count} tests failed in {simulator} with seed {seed}")
    return count


@dataclass(frozen=True)
class Built:
    """A bench's design, compiled in a simulator.

    Parameters
    ----------
    name : str
        The bench, and the top module.
    values : mapping
        The design's parameters.
    folder : Path
        Where it was built.
    simulator : {"verilator", "icarus"}
        In what.
    waves : bool
        Whether it can dump all signals.
    runner : cocotb's runner
    """

    name: str
    values: Mapping[str, Any]
    folder: Path
    simulator: Simulator
    waves: bool
    runner: Any

    def test(
        self,
        module: str,
        *,
        seed: int,
        tests: str | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> tuple[int, int]:
        """Run the tests of a module; return how many there were, and how many failed.

        Parameters
        ----------
        module : str
            Its dotted name.
        seed : int
            Seed of all that is random.
        tests : str, optional
            A regular expression: run the tests whose names it matches.
        environment : mapping, optional
            Variables that the simulator gets.
        log : Path, optional
            The file that gets what cocotb prints.

        Raises
        ------
        BenchError
            The simulator ended before it could say.
        """
        from cocotb_tools.check_results import get_results

        with _environment({"TILEWRIGHT_BENCH": json.dumps(dict(self.values)), **(environment or {})}):
            try:
                results = self.runner.test(
                    test_module=module,
                    hdl_toplevel=self.name,
                    build_dir=self.folder,
                    timescale=("1ns", "1ps"),
                    waves=self.waves,
                    seed=seed,
                    test_filter=tests,
                    log_file=log,
                )
                count, failed = get_results(results)
            except (RuntimeError, subprocess.CalledProcessError, SystemExit) as e:
                raise BenchError(f"{self.name} did not run in {self.simulator}: {e}") from e
        return int(count), int(failed)


def build(
    name: str,
    values: Mapping[str, Any],
    verilog: str,
    directory: Path,
    *,
    simulator: Simulator = "verilator",
    waves: bool = False,
    log: Path | None = None,
) -> Built:
    """Compile Verilog whose top module is called `name`, for benches to run in; `log` gets what the tools print.

    Raises
    ------
    BenchError
        The simulator refuses it.
    ToolchainError
        Verilator or the C++ compiler is missing.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / f"{name}.v"
    source.write_text(verilog, encoding="utf-8")
    folder = directory / simulator
    if simulator == "verilator" and not waves:
        _lay_runtime(folder)
    return Built(name, values, folder, simulator, waves, _compile(name, source, folder, simulator, waves, log))


def _compile(name: str, source: Path, folder: Path, simulator: Simulator, waves: bool, log: Path | None = None) -> Any:
    """Build with cocotb's runner, and return that."""
    from cocotb_tools.runner import get_runner

    made = cocotb_environment(source.parent / "bin") if simulator == "verilator" else {}
    if "MAKEFLAGS" in made:  # most of the time goes into the compiler: let it be quick
        made["MAKEFLAGS"] += " OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0"
    # Amaranth's Verilog is right but not free of width warnings.
    arguments = ["-Wno-fatal", "-Wno-WIDTH", "--x-initial", "fast", "-O3"] if simulator == "verilator" else []
    with _environment(made):
        try:
            runner = get_runner(simulator)
            runner.build(
                sources=[source],
                hdl_toplevel=name,
                build_args=arguments,
                build_dir=folder,
                timescale=("1ns", "1ps"),
                waves=waves,
                always=True,
                log_file=log,
            )
        except (RuntimeError, subprocess.CalledProcessError, SystemExit) as e:
            raise BenchError(f"{name} did not build in {simulator}: {e}") from e
    return runner


_RUNTIME = ("verilated.o", "verilated_dpi.o", "verilated_threads.o", "verilated_vpi.o")
"""What Verilator's runtime library compiles to; the same for every design, and most of the time that a build takes."""


def _lay_runtime(folder: Path) -> None:
    """Put the compiled runtime library into a build's folder, newer than the makefile that will be written there."""
    verilator, compiler = find_verilator(), find_compiler()
    key = (*fingerprint(verilator, compiler), version("cocotb"))
    try:
        runtime = BuildCache(cache_directory()).get_or_build(key, _build_runtime, label="cocotb-runtime")
    except CacheError:  # without a cache, make compiles it
        return
    folder.mkdir(parents=True, exist_ok=True)
    later = time.time() + 24 * 3600  # make compiles again what is older than the makefile
    for name in _RUNTIME:
        shutil.copyfile(runtime / name, folder / name)
        os.utime(folder / name, (later, later))


def _build_runtime(entry: Path) -> None:
    """Build a design that does nothing, and keep what is not of the design."""
    with tempfile.TemporaryDirectory(prefix="tilewright-runtime-") as name:
        source = Path(name) / "nothing.v"
        source.write_text("module nothing(input clk);\nendmodule\n", encoding="utf-8")
        _compile("nothing", source, source.parent / "verilator", "verilator", False)
        for part in _RUNTIME:
            shutil.copyfile(source.parent / "verilator" / part, entry / part)
