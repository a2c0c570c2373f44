"""Fixtures of the software's tests: tiny checkpoints, the shared data, the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from console import Done

from tilewright.cli import main

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not (SHARED / "stories260K.bin").exists():
        pytest.skip(f"no shared data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def stories_reference(shared_data: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared_data / "stories260K.reference.json").read_text())
    return content


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Hugging Face folder; read only."""
    return checkpoints.write_huggingface(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture(scope="session")
def llama2c_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama2.c file with its tokenizer beside it; read only."""
    return checkpoints.write_llama2c(tmp_path_factory.mktemp("llama2c"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the command line in this process."""

    def run(*words: str | Path) -> Done:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as e:
            code = int(e.code or 0)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def refused(command: Callable[..., Done]) -> Callable[..., str]:
    """Run a command that must fail as bad input: exit code 2, no stdout, one line on stderr, which is returned."""

    def run(*words: str | Path) -> str:
        done = command(*words)
        assert done.code == 2, done
        assert done.out == ""
        assert done.err.count("\n") == 1, done.err
        assert "Traceback" not in done.err
        return done.err

    return run
