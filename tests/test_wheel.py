"""The wheel, installed outside the clone: what is in it, and that it writes text where the source tree is not seen."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import tilewright as tw

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["hw/tilewright_hw", "sw/tilewright", "sim/tilewright_sim"]
PROMPT = "Once upon a time"


def succeed(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    succeed(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    options = ["install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    if importlib.util.find_spec("pip") is not None:
        succeed(sys.executable, "-m", "pip", "--disable-pip-version-check", *options, cwd=folder)
    else:  # an environment that uv made
        uv = shutil.which("uv")
        assert uv is not None, "neither pip nor uv is there to install the wheel"
        succeed(uv, "pip", *options, cwd=folder)
    return folder


@pytest.fixture
def outside(site: Path, tmp_path: Path) -> list[str | Path]:
    """What starts a Python that sees the installed wheel and the dependencies, but not the source tree.

    With -S no .pth file is read, and so none of the editable installation that these tests themselves run in.
    """
    dependencies = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    path = os.pathsep.join([str(site), *dependencies])
    return ["env", "-i", f"PATH={os.defpath}", f"HOME={tmp_path}", f"PYTHONPATH={path}", sys.executable, "-S"]


def test_the_wheel_holds_all_that_is_needed_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    information = f"tilewright-{version}.dist-info"
    assert wheel.name == f"tilewright-{version}-py3-none-any.whl"
    top = {name.split("/")[0] for name in names}
    assert top == {"tilewright", "tilewright_hw", "tilewright_sim", information}
    assert f"{information}/licenses/LICENSE" in names
    wanted = [
        *(f"{package}/py.typed" for package in ("tilewright", "tilewright_hw", "tilewright_sim")),
        *(f"tilewright_sim/rtl/{name}" for name in ("harness.cpp", "memory.h")),
        *(f"tilewright/models/fairytales/{name}" for name in ("model.safetensors", "tokenizer.json", "config.json")),
    ]
    assert [name for name in wanted if name not in names] == []
    assert [name for name in names if re.search(r"__pycache__|tests/|/(test_|conftest)", name)] == []


def test_the_wheel_holds_every_source_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package in PACKAGES:
        root = (ROOT / package).parent
        files = [p for p in (ROOT / package).rglob("*") if p.suffix in (".py", ".cpp", ".h", ".json", ".typed")]
        assert files
        assert [str(p) for p in files if p.relative_to(root).as_posix() not in names] == []


def test_the_command_writes_text(outside: list[str | Path], site: Path, tmp_path: Path) -> None:
    words = ["generate", "--device", "golden", "--prompt", PROMPT, "--max-new-tokens", "8", "--json", "--quiet"]
    answer = json.loads(succeed(*outside, site / "bin" / "tilewright", *words, cwd=tmp_path))
    expected = tw.load(device="golden").generate(PROMPT, max_new_tokens=8)
    assert (answer["text"], answer["token_ids"]) == (expected.text, list(expected.token_ids))
    assert answer["new_tokens"] == len(answer["token_ids"]) == 8
    assert answer["device"] == "golden"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert succeed(*outside, site / "bin" / "tilewright", "--version", cwd=tmp_path).split()[-1] == version


def test_importing_it_imports_neither_amaranth_nor_the_source_tree(
    outside: list[str | Path], site: Path, tmp_path: Path
) -> None:
    program = (
        "import sys, json, tilewright, tilewright_hw, tilewright_sim\n"
        "tilewright.load(device='golden')\n"
        "files = [str(getattr(m, '__file__', None)) for n, m in sys.modules.items() if n.startswith('tilewright')]\n"
        "print(json.dumps([sorted(sys.modules), files, sys.path]))\n"
    )
    modules, files, path = json.loads(succeed(*outside, "-c", program, cwd=tmp_path))
    assert [name for name in modules if name.split(".")[0] == "amaranth"] == []
    assert [name for name in files if not Path(name).is_relative_to(site)] == []
    assert [name for name in path if name in {str(ROOT / p.split("/")[0]) for p in PACKAGES}] == []


@pytest.mark.slow
def test_the_simulator_is_built_from_the_wheel(outside: list[str | Path], site: Path, tmp_path: Path) -> None:
    words = ["generate", "--device", "rtl", "--config", "tiny", "--prompt", "Once", "--max-new-tokens", "1"]
    answer = json.loads(succeed(*outside, site / "bin" / "tilewright", *words, "--check", "--json", cwd=tmp_path))
    assert answer["bit_exact"] is True
    assert list((tmp_path / ".cache" / "tilewright").rglob("simulator.so"))  # HOME is here: the cache was empty
