"""The sessions of README.md and of the tutorials run as they are printed, and their commands exist."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
from pathlib import Path

import pytest

from tilewright.cli import parser

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/tutorial.md"]
OWN = "docs/tutorials/own_activation.md"
BLOCK = "docs/tutorials/own_block.md"
WATCH = "docs/tutorials/watch_softmax.md"
MODELS = "docs/models.md"


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "examples"),
    [("README.md", 8), ("docs/tutorial.md", 40), (OWN, 24), (BLOCK, 30), (WATCH, 35), (MODELS, 35)],
)
def test_sessions_run(page, examples):
    # A fence would be taken for expected output.
    text = re.sub(r"^```.*$", "", read(page), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, page, str(ROOT / page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert len(test.examples) >= examples


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
    commands = re.findall(r"^tilewright .*$", read(page), flags=re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command.split(" > ")[0], comments=True)
        parser().parse_args(words[1:])  # exits where it does not understand


def test_other_snippets_are_python():
    blocks = re.findall(r"^```\n(import .*?)^```$", read("docs/tutorial.md"), flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)


@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/architecture.md", OWN, BLOCK, WATCH, MODELS])
def test_lines_are_short_enough_to_read(page):
    assert [line for line in read(page).splitlines() if len(line) > 120 and not line.startswith("|")] == []
