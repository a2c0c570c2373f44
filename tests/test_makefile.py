"""The Makefile's targets, and the one line that each failing set-up ends with."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
INTERPRETER = os.path.realpath(sys.executable)
TARGETS = ["setup", "demo", "test", "test-all", "mutate", "coverage", "bench", "verilog", "lint", "clean", "help"]


def load(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


setup = load("setup_environment")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.fail("make is not installed")
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pyproject.toml, in which `main` sets up; commands are recorded, not run."""
    (tmp_path / "pyproject.toml").write_text("first")
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "has_compiler", lambda: True)
    monkeypatch.setattr(setup, "has_libpython", lambda: True)
    monkeypatch.setattr(setup, "has_venv", lambda: True)
    return tmp_path


@pytest.fixture
def commands(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What set-up would have run; making an environment links this interpreter into it."""
    recorded: list[list[str]] = []

    def run_logged(command: list[str], log: Path) -> None:
        recorded.append(command)
        python = checkout / ".venv" / "bin" / "python"
        if "venv" in command and not python.exists():
            python.parent.mkdir(parents=True)
            python.write_text(f'#!/bin/sh\nexec {INTERPRETER} "$@"\n')
            python.chmod(0o755)

    monkeypatch.setattr(setup, "run_logged", run_logged)
    return recorded


@pytest.mark.parametrize("words", [[], ["help"]])
def test_help_lists_every_target(words: list[str]) -> None:
    done = make(*words)
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert set(TARGETS) <= set(listed)


def test_a_missing_interpreter_is_one_line() -> None:
    done = make("setup", "PYTHON=no-such-python")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(errors) == 1
    assert errors[0].startswith("error: no-such-python was not found: install Python 3.11")


def test_an_old_python_is_one_line() -> None:
    program = (
        "import sys, runpy; sys.version_info = (3, 9, 2);"
        f"runpy.run_path({str(ROOT / 'tools' / 'bootstrap.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "error: Python 3.11 or later is needed" in done.stderr
    assert "is 3.9.2: install one" in done.stderr


def test_the_minimum_is_pyprojects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = ".".join(map(str, load("bootstrap").MINIMUM_PYTHON))
    assert project["requires-python"] == f">={wanted}"
    extras = set(project["optional-dependencies"])
    assert setup._CONTAINED["dev"] == extras - {"dev", "compare"}  # compare is large, and for the slow tests only


def fails_with(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run main, which must fail, and return its one line on stderr."""
    assert setup.main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_no_venv_and_no_uv_names_the_package(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "has_venv", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    line = fails_with(capsys)
    assert f"apt install python3.{sys.version_info.minor}-venv" in line
    assert not (checkout / ".venv").exists()


def test_uv_makes_the_environment_where_venv_is_missing(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "has_venv", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/{name}")
    monkeypatch.setattr(setup, "runs", lambda command: "pip" not in command)
    assert setup.main([]) == 0
    assert commands[0][:2] == ["/opt/uv", "venv"]
    assert commands[1][:3] == ["/opt/uv", "pip", "install"]


def test_no_libpython_is_said_first(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "has_libpython", lambda: False)
    line = fails_with(capsys, "--extras", "dev", "--cocotb")
    assert f"apt install libpython3.{sys.version_info.minor}" in line
    assert not (checkout / ".venv").exists()


def test_no_compiler_takes_ziglang(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "has_compiler", lambda: False)
    assert setup.main([]) == 0
    assert commands[1][-1].endswith("[rtl,zig]")
    assert "taking the one of the ziglang wheel" in capsys.readouterr().out


def fake_installer(monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    """Let every command print something and fail."""
    program = f"import sys; print({output!r}); sys.exit(1)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        setup.subprocess,
        "Popen",
        lambda command, **options: popen([sys.executable, "-c", program], **options),
    )


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "WARNING: broken by 'NewConnectionError(x)'\nERROR: No matching distribution found",
            "the package index cannot be reached: check the network",
        ),
        ("error: Failed to fetch: `https://pypi.org/simple/numpy/`", "index cannot be reached"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for numpy", "No matching distribution found"),
        ("boom", "the installer failed (all that was said is in"),
    ],
)
def test_a_failed_installation_is_one_line(
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    expected: str,
) -> None:
    fake_installer(monkeypatch, output)
    assert expected in fails_with(capsys)
    assert output in (checkout / "build" / setup.LOG).read_text()


def test_set_up_is_done_once(commands: list[list[str]], checkout: Path) -> None:
    assert setup.main(["--extras", "dev"]) == 0
    assert len(commands) == 2
    assert setup.main(["--extras", "dev"]) == 0
    assert setup.main(["--extras", "rtl"]) == 0  # dev has it
    assert len(commands) == 2
    (checkout / "pyproject.toml").write_text("second")
    assert setup.main(["--extras", "rtl"]) == 0
    assert len(commands) == 3
    assert commands[-1][-1] == f"{checkout}[dev,rtl]"


def test_a_set_up_that_is_cut_off_is_done_anew(
    commands: list[list[str]],
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(command: list[str], log: Path) -> None:
        raise KeyboardInterrupt

    assert setup.main([]) == 0
    (checkout / "pyproject.toml").write_text("second")
    with monkeypatch.context() as patch:
        patch.setattr(setup, "run_logged", interrupted)
        assert setup.main([]) == 130
    assert setup.main([]) == 0
    assert ["venv" in command for command in commands] == [True, False, True, False]
    assert "the last set-up was cut off" in capsys.readouterr().out


def test_a_moved_checkout_gets_a_new_environment(commands: list[list[str]], checkout: Path) -> None:
    assert setup.main([]) == 0
    stamp = checkout / ".venv" / setup.STAMP
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "root": "/elsewhere"}))
    assert setup.main([]) == 0
    assert ["venv" in command for command in commands] == [True, False, True, False]


def test_another_interpreter_gets_a_new_environment(
    commands: list[list[str]], checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert setup.main([]) == 0
    monkeypatch.setattr(setup, "base_python", lambda: "/usr/bin/other-python")
    assert setup.main([]) == 0
    assert len(commands) == 4


def test_an_environment_of_somebody_else_is_not_removed(
    commands: list[list[str]],
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert setup.main([]) == 0
    (checkout / ".venv" / setup.STAMP).unlink()
    monkeypatch.setattr(setup, "base_python", lambda: "/usr/bin/other-python")
    capsys.readouterr()
    assert "remove it" in fails_with(capsys)
    assert (checkout / ".venv").exists()


def test_libpython_is_looked_for_where_python_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"LDVERSION": "3.11", "INSTSONAME": "libpython3.11.so.1.0", "LIBDIR": str(tmp_path)}
    monkeypatch.setattr(setup.sysconfig, "get_config_var", names.get)
    monkeypatch.setattr(setup, "sys", SimpleNamespace(base_prefix=str(tmp_path)))
    monkeypatch.setattr(setup.ctypes.util, "find_library", lambda name: None)
    assert not setup.has_libpython()
    (tmp_path / "libpython3.11.so.1.0").touch()
    assert setup.has_libpython()
