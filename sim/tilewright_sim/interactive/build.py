"""Build the library that PyVerilator loads: component -> Verilog -> C++ with its wrapper -> shared library, cached.

PyVerilator can build one itself, by calling Perl, Verilator's script and make. Here it gives the wrapper's text alone,
and the tools are those of `tilewright_sim.toolchain`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright_sim import toolchain
from tilewright_sim.cache import get_or_build, keep_only
from tilewright_sim.interactive.compatibility import import_pyverilator
from tilewright_sim.toolchain import Compiler, VerilatedModel
from tilewright_sim.verilated_runtime import FLAGS, runtime_object

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["TOP", "build_block"]

TOP = "top"
"""The module around the block, which is `top.block` in waves."""
LIBRARY = "block.so"
_PORT = re.compile(r"^\s*VL_(IN|OUT)\w*\(&(\w+),(\d+),(\d+)", re.M)
_DEFINES = {"VL_USER_FINISH": "1"}  # the wrapper has a vl_finish of its own

Progress = Callable[[str], None]


def build_block(component: Component, *, on_progress: Progress | None = None) -> Path:
    """Return the library of a component, built if the cache has none.

    Raises
    ------
    InputError
        PyVerilator is not installed.
    ToolchainError
        A tool is missing or fails.
    CacheError
        The cache cannot be written.
    """
    from tilewright_hw.generate import export_block, plain_ports
    from tilewright_hw.hierarchy import emit

    tell = on_progress or (lambda text: None)
    import_pyverilator()
    verilator, compiler = toolchain.find_verilator(), toolchain.find_compiler()
    tell("elaborating the block")
    rtlil, _ = emit(plain_ports(component), TOP)

    def build(folder: Path) -> None:
        runtime = runtime_object(verilator, compiler, tell, trace="vcd", defines=_DEFINES, optimize="-O0")
        tell("writing Verilog with Yosys")
        verilog = folder / f"{TOP}.v"
        verilog.write_text(export_block(component, TOP), encoding="utf-8")
        tell("translating with Verilator")
        model = toolchain.verilate(verilog, TOP, folder / "cpp", trace="vcd", verilator=verilator)
        tell(f"compiling with {Path(compiler.command[0]).name} (once per block)")
        _compile(model, folder, runtime, compiler)
        keep_only(folder, LIBRARY, verilog.name)

    key = [
        "block 1",
        hashlib.sha256(rtlil.encode()).hexdigest(),
        hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        importlib.metadata.version("PyVerilator"),
        *toolchain.fingerprint(verilator, compiler),
    ]
    return get_or_build(key, build, label=f"block-{type(component).__name__}") / LIBRARY


def wrapper(header: str) -> str:
    """Return PyVerilator's C++ for a model, from the model's header, which names the ports as C++ has them."""
    pyverilator = import_pyverilator()
    found: dict[str, list[tuple[str, int]]] = {"IN": [], "OUT": []}
    for direction, name, high, low in _PORT.findall(header):
        found[direction].append((name, int(high) - int(low) + 1))
    text = str(pyverilator.verilatorcpp.template_cpp(TOP, found["IN"], found["OUT"], [], '"null"'))
    # Other symbols stay hidden; those of the wrapper are what PyVerilator looks up.
    includes = [f"V{TOP}.h", "verilated.h", "verilated_vcd_c.h"]  # all that it includes, before any symbol is exported
    head = "".join(f'#include "{name}"\n' for name in includes)
    return f"{head}#pragma GCC visibility push(default)\n{text}\n#pragma GCC visibility pop\n"


def _compile(model: VerilatedModel, folder: Path, runtime: Path, compiler: Compiler) -> None:
    """Compile model and wrapper: small blocks, so that nobody waits long."""
    source = folder / "wrapper.cpp"
    source.write_text(wrapper((model.directory / model.header).read_text(encoding="utf-8")), encoding="utf-8")
    toolchain.compile_shared(
        [*model.sources, source],
        folder / LIBRARY,
        compiler=compiler,
        include_dirs=model.include_dirs,
        defines={**model.defines, **_DEFINES},
        flags=(*FLAGS, str(runtime)),
        optimize="-O1",
    )
