"""Make `.venv` and install the project into it, with what a make target needs.

Only the standard library is used: this runs before anything is installed. Whatever is missing is
said in one line, before anything is written where that can be known before.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "tilewright-setup.json"
LOG = "tilewright-setup.log"

# What installers print when nothing answers; pip's and uv's words.
_NO_INDEX = re.compile(
    r"NewConnectionError|ConnectTimeoutError|ReadTimeoutError|Temporary failure in name resolution"
    r"|Connection refused|ConnectionResetError|ProxyError|Name or service not known"
    r"|nodename nor servname|getaddrinfo|Network is unreachable|Failed to fetch|dns error"
    r"|Could not connect|error sending request|SSLError|CERTIFICATE_VERIFY_FAILED"
)
_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
_PROGRESS = re.compile(r"^\s*(Downloading|Using cached|Building|Installing|Installed|Prepared|Resolved) ")
# The extra that brings the others, so that `make demo` after `make test` installs nothing.
_CONTAINED = {"dev": {"rtl", "zig", "chat", "gguf", "fpga", "interactive", "plot"}}


class SetupError(Exception):
    """Something is missing; the text is the one line to show."""


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What an environment was set up from and with.

    Parameters
    ----------
    root : str
        The checkout, whose path is inside the environment's scripts.
    python : str
        The interpreter under the environment.
    project : str
        sha256 of pyproject.toml.
    extras : tuple of str
        The extras that are installed, sorted.
    """

    root: str
    python: str
    project: str
    extras: tuple[str, ...]

    @classmethod
    def read(cls, venv: Path) -> Stamp | None:
        """The stamp of an environment; None where it has none that can be read."""
        try:
            fields = json.loads((venv / STAMP).read_text(encoding="utf-8"))
            return cls(**{**fields, "extras": tuple(fields["extras"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, venv: Path) -> None:
        """Put the stamp into its environment, whole or not at all."""
        part = venv / f"{STAMP}.part"
        part.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        part.replace(venv / STAMP)

    def covers(self, wanted: Stamp) -> bool:
        """Whether an environment with this stamp serves as the wanted one."""
        same = dataclasses.replace(self, extras=wanted.extras) == wanted
        installed = set(self.extras).union(*(_CONTAINED.get(name, ()) for name in self.extras))
        return same and set(wanted.extras) <= installed


def say(text: str) -> None:
    """Show progress, at once."""
    print(f"setup: {text}", flush=True)


def base_python() -> str:
    """The interpreter itself, also when this runs inside a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def venv_python(venv: Path) -> Path:
    """The interpreter inside an environment."""
    return venv / "bin" / "python"


def runs(command: Sequence[str]) -> bool:
    """Whether a command starts and succeeds."""
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError:
        return False
    return done.returncode == 0


def has_compiler() -> bool:
    """Whether the system has a C++ compiler that runs (macOS's stub only offers to install one)."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    names = ["g++", "clang++", "c++"]
    if wanted and "ziglang" not in wanted:
        names.insert(0, wanted[0])
    return any(shutil.which(name) and runs([name, "--version"]) for name in names)


def has_libpython() -> bool:
    """Whether the shared libpython, which cocotb loads into the simulator, is there."""
    version = sysconfig.get_config_var("LDVERSION") or sysconfig.get_python_version()
    names = [sysconfig.get_config_var(name) for name in ("INSTSONAME", "LDLIBRARY")]
    names += [f"libpython{version}.so.1.0", f"libpython{version}.so", f"libpython{version}.dylib"]
    folders = [sysconfig.get_config_var(name) for name in ("LIBDIR", "LIBPL")]
    folders += [sysconfig.get_config_var("PYTHONFRAMEWORKPREFIX"), f"{sys.base_prefix}/lib"]
    for folder in filter(None, folders):
        for name in filter(None, names):
            path = Path(folder, name)
            if path.is_file() and path.suffix != ".a":
                return True
    return ctypes.util.find_library(f"python{version}") is not None


def libpython_line() -> str:
    """What to say where libpython is missing."""
    version = sysconfig.get_python_version()
    return (
        f"cocotb needs libpython{version}.so, which {base_python()} does not come with: "
        f"apt install libpython{version} (Debian and Ubuntu), or name a Python that has it, as in "
        "`make PYTHON=... test`"
    )


def has_venv() -> bool:
    """Whether this Python makes environments with pip in them (Debian's may not)."""
    return all(importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip"))


def make_venv(venv: Path, log: Path) -> None:
    """Make an empty environment, with uv where this Python cannot."""
    uv = shutil.which("uv")
    if has_venv():
        command = [base_python(), "-m", "venv", str(venv)]
    elif uv is not None:
        command = [uv, "venv", "--python", base_python(), str(venv)]
    else:
        version = sysconfig.get_python_version()
        raise SetupError(
            f"{base_python()} cannot make a virtual environment: apt install python{version}-venv "
            "(Debian and Ubuntu), or install uv"
        )
    say(f"making {venv.name} with Python {sysconfig.get_python_version()}")
    run_logged(command, log)


def installer(venv: Path) -> list[str]:
    """The command that installs into an environment: its own pip, else uv."""
    if runs([str(venv_python(venv)), "-m", "pip", "--version"]):
        return [str(venv_python(venv)), "-m", "pip", "install"]
    uv = shutil.which("uv")
    if uv is None:
        raise SetupError(f"{venv} has no pip: remove it and run the command again, or install uv")
    return [uv, "pip", "install", "--python", str(venv_python(venv))]


def explain(text: str, log: Path) -> str:
    """Say in one line why an installer failed, from what it printed."""
    if _NO_SPACE.search(text):
        return "the disk is full: free some space and run the command again"
    if _NO_INDEX.search(text):
        return (
            "the package index cannot be reached: check the network, the proxy and pip's settings, "
            f"and run the command again (all that was said is in {log})"
        )
    for pattern in (r"\s*ERROR: (.*)", r"\s*error: (.*)", r"\s*× (.*)"):  # pip's, and uv's last two
        if reasons := re.findall(rf"^{pattern}", text, re.M):
            return f"{reasons[-1].strip()} (all that was said is in {log})"
    return f"the installer failed (all that was said is in {log})"


def run_logged(command: Sequence[str], log: Path) -> None:
    """Run a command, show the lines that tell of progress, and keep all of them in a log."""
    lines: list[str] = []
    warned = False
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if _PROGRESS.match(line):
                say(line.strip()[:100])
            elif not warned and _NO_INDEX.search(line):
                warned = True
                say("the package index does not answer yet; trying again")
    text = "".join(lines)
    with contextlib.suppress(OSError):  # the log is a help, not a need
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text, encoding="utf-8")
    if process.returncode != 0:
        raise SetupError(explain(text, log))


def discard(venv: Path, stamp: Stamp | None, wanted: Stamp) -> None:
    """Remove an environment that cannot serve; refuse where somebody else made it."""
    why = "another interpreter or another folder"
    if not runs([str(venv_python(venv)), "-c", "pass"]):
        why = "an interpreter that does not run"
    elif stamp is None:
        raise SetupError(f"{venv} was not made by this Makefile and is not of {wanted.python}: remove it")
    say(f"making {venv.name} anew: it was made for {why}")
    shutil.rmtree(venv)


def serves(venv: Path, stamp: Stamp | None, wanted: Stamp) -> bool:
    """Whether packages can be installed into an environment that is there."""
    if stamp is not None and (stamp.root, stamp.python) != (wanted.root, wanted.python):
        return False
    ask = "import os, sys; print(os.path.realpath(sys._base_executable))"
    try:
        done = subprocess.run([str(venv_python(venv)), "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == wanted.python


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Let two makes at once set up one after the other."""
    folder = root / ".cache"
    folder.mkdir(exist_ok=True)
    with (folder / "setup.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another make is setting up; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def set_up(root: Path, extras: Sequence[str]) -> None:
    """Bring the environment of a checkout to where it has these extras."""
    venv = root / ".venv"
    project = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()
    wanted = Stamp(str(root), base_python(), project, tuple(sorted(set(extras))))
    stamp = Stamp.read(venv)
    if stamp is not None and stamp.covers(wanted) and venv_python(venv).exists():
        return
    start = time.monotonic()
    # Outside the environment, as making that may be cut off too; a half-installed package looks
    # whole to pip.
    unfinished = root / ".cache" / "setup.unfinished"
    if unfinished.exists() and venv.exists():
        say(f"the last set-up was cut off: making {venv.name} anew")
        shutil.rmtree(venv)
    if venv.exists() and not serves(venv, stamp, wanted):
        discard(venv, stamp, wanted)
    unfinished.touch()
    log = root / "build" / LOG
    if not venv.exists():
        stamp = None
        make_venv(venv, log)
    try:
        install(root, wanted, stamp, log)
    except SetupError:
        unfinished.unlink()  # an installer that fails by itself takes back what it did
        raise
    unfinished.unlink()
    say(f"done in {time.monotonic() - start:.0f} s")


def install(root: Path, wanted: Stamp, stamp: Stamp | None, log: Path) -> None:
    """Install the project into its environment, which has the extras of the stamp already."""
    venv = root / ".venv"
    if stamp is not None:  # what is there already stays there, at the new pyproject's versions
        wanted = dataclasses.replace(wanted, extras=tuple(sorted({*wanted.extras, *stamp.extras})))
    what = f".[{','.join(wanted.extras)}]" if wanted.extras else "."
    say(f"installing {what} (the first time this downloads some packages)")
    run_logged([*installer(venv), "-e", f"{root}{what[1:]}"], log)
    wanted.write(venv)


def main(argv: Sequence[str] | None = None) -> int:
    """Set up for a make target; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="rtl", help="comma-separated extras to install")
    parser.add_argument("--cocotb", action="store_true", help="fail where cocotb cannot run, before anything else")
    arguments = parser.parse_args(argv)
    extras = [name for name in arguments.extras.split(",") if name]
    try:
        if arguments.cocotb and not has_libpython():
            raise SetupError(libpython_line())
        if "dev" in extras and not has_libpython():
            say(f"the tests will not run: {libpython_line()}")
        if "zig" not in extras and "rtl" in extras and not has_compiler():
            say("there is no C++ compiler on this machine: taking the one of the ziglang wheel")
            extras.append("zig")
        with only_one(ROOT):
            set_up(ROOT, extras)
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
