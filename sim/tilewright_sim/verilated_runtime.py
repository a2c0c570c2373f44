"""Verilator's own runtime as an object file: the same for all designs, and longer to compile than a small one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tilewright_sim import toolchain
from tilewright_sim.cache import get_or_build, keep_only
from tilewright_sim.toolchain import Compiler, Trace, Verilator

__all__ = ["FLAGS", "runtime_object"]

FLAGS = ("-fvisibility=hidden", "-fvisibility-inlines-hidden", "-w")
"""Of runtime and models: hidden symbols keep the libraries of two designs apart in one process."""
_OBJECT = "runtime.o"


def runtime_object(
    verilator: Verilator,
    compiler: Compiler,
    tell: Callable[[str], None],
    *,
    trace: Trace | None = None,
    coverage: bool = False,
    defines: Mapping[str, str] | None = None,
    optimize: str = "-O3",
) -> Path:
    """Return the object file, compiled if the cache has none.

    Parameters
    ----------
    verilator, compiler
        The tools.
    tell : callable
        Told what is being done.
    trace, coverage
        What the models have that it is for.
    defines : mapping of str to str, optional
        Macros besides the model's own.
    optimize : str
        The compiler's level.

    Raises
    ------
    ToolchainError
        A tool fails, or the trace needs what is not there.
    """
    if trace == "fst" and (problem := toolchain.fst_problem(compiler)):
        raise toolchain.ToolchainError(problem)
    model = toolchain.VerilatedModel(
        prefix="", directory=Path(), sources=(), trace=trace, verilator=verilator, coverage=coverage
    )
    more = dict(defines or {})

    def build(folder: Path) -> None:
        tell("compiling Verilator's runtime (once)")
        toolchain.compile_shared(
            model.all_sources,
            folder / _OBJECT,
            compiler=compiler,
            include_dirs=verilator.include_dirs,
            defines={**model.defines, **more},
            flags=(*FLAGS, "-c"),
            optimize=optimize,
        )
        keep_only(folder, _OBJECT)

    key = ["runtime 2", str(trace), str(coverage), str(sorted(more.items())), optimize, *FLAGS]
    label = "-".join(["verilator-runtime", *([trace] if trace else []), *(["coverage"] if coverage else [])])
    return get_or_build([*key, *toolchain.fingerprint(verilator, compiler)], build, label=label) / _OBJECT
