"""The doctor says what is there, what is not, and how to get it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tilewright import doctor
from tilewright_sim import toolchain


def row(name: str, purpose: doctor.Purpose = "rtl") -> doctor.Check:
    """The check with a name."""
    return next(check for check in doctor.checks(purpose) if check.name == name)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_compiler() -> toolchain.Compiler:
        raise toolchain.ToolchainError("no compiler: install one")

    monkeypatch.setattr(toolchain, "find_compiler", find_compiler)


def test_what_the_tests_run_on_is_found() -> None:
    checks = {check.name: check for check in doctor.checks()}
    for name in ("Python", "numpy", "safetensors", "tokenizers", "Amaranth", "Verilator"):
        assert checks[name].ok, checks[name]
        assert checks[name].required
        assert checks[name].remedy == ""
    assert not checks["PyVerilator"].required


def test_everything_missing_has_a_remedy() -> None:
    assert all(check.remedy for check in doctor.checks("dev") if not check.ok)


def test_a_purpose_includes_the_ones_before_it() -> None:
    required = {
        purpose: {check.name for check in doctor.checks(purpose) if check.required}
        for purpose in ("golden", "rtl", "dev")
    }
    assert required["golden"] < required["rtl"] < required["dev"]
    assert "Verilator" not in required["golden"]
    assert "FST traces" not in required["dev"]


def test_a_missing_compiler_is_exit_code_1(no_compiler: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "MISSING  C++ compiler" in text
    assert "no compiler: install one" in text
    assert "missing: C++ compiler" in text


def test_the_golden_device_needs_no_compiler(no_compiler: None) -> None:
    assert doctor.main(["--for", "golden"]) == 0


def test_json_says_the_same(no_compiler: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    found = {check["name"]: check for check in report["checks"]}
    assert found["C++ compiler"]["remedy"] == "no compiler: install one"
    assert found["numpy"]["ok"] is True


def test_an_unwritable_cache_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "file"))
    check = row("cache folder")
    assert not check.ok
    assert "set TILEWRIGHT_CACHE" in check.remedy


def test_cocotb_without_libpython_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find_libpython = pytest.importorskip("find_libpython")
    monkeypatch.setattr(find_libpython, "find_libpython", lambda: None)
    check = row("cocotb")
    assert not check.ok
    assert f"apt install libpython3.{sys.version_info.minor}" in check.remedy


def test_a_distribution_that_does_not_load_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    check = row("tokenizers")
    assert not check.ok
    assert "tokenizers" in check.remedy


def test_it_does_not_import_amaranth() -> None:
    program = "import sys; from tilewright import doctor; doctor.checks(); print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "tilewright.doctor" in done.stdout.split()
    assert "amaranth" not in done.stdout.split()
