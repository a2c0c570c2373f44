"""The sessions of docs/tutorial.md run as they are printed."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_sessions_run():
    # A fence would be taken for expected output.
    text = re.sub(r"^```.*$", "", TEXT, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert len(test.examples) > 30


def test_other_snippets_are_python():
    blocks = re.findall(r"^```\n(import .*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)


def test_lines_are_short_enough_to_read():
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []
