"""`python -m tilewright_sim.mutate [BLOCK ...]`: plant bugs, run the benches, print the score."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from tilewright_hw.arch import TilewrightError
from tilewright_sim.benches.runner import BENCHES
from tilewright_sim.mutate.campaign import Score, block_of, describe, mutate
from tilewright_sim.toolchain import ToolchainError

BLOCKS = {block_of(bench): bench for bench in BENCHES}
TARGET = 0.9
"""Share of the bugs that must be found."""


def _block(name: str) -> str:
    if name not in BLOCKS and name not in BENCHES:
        raise argparse.ArgumentTypeError(f"unknown block {name!r}: choose from {', '.join(BLOCKS)}")
    return BLOCKS.get(name, name)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def _table(scores: Sequence[Score]) -> str:
    """Return the score of each block, and the survivors."""
    planted, found = sum(score.planted for score in scores), sum(score.found for score in scores)
    lines = [f"{'block':<18}{'planted':>8}{'found':>7}"]
    for score in scores:
        none = f"   and {score.equivalent} that are proven to change nothing" if score.equivalent else ""
        lines.append(f"{score.block:<18}{score.planted:>8}{score.found:>7}{none}")
    lines.append(f"{'all':<18}{planted:>8}{found:>7}   {found / max(1, planted):.1%}")
    for score in scores:
        for outcome in score.outcomes:
            if outcome.found_by is None and not outcome.equivalent:
                lines.append(f"{score.block}: {describe(outcome)}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return 0 if enough bugs were found, 1 if not or if a bench cannot run, 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m tilewright_sim.mutate", description=__doc__)
    parser.add_argument("blocks", nargs="*", type=_block, metavar="BLOCK", help=f"default: all of {', '.join(BLOCKS)}")
    parser.add_argument("--seed", type=int, default=1, help="of the bugs and of the tests (default 1)")
    parser.add_argument("--count", type=_positive, default=14, help="bugs for each block (default 14)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)

    scores = []
    try:
        for bench in arguments.blocks or BENCHES:
            scores.append(mutate(bench, count=arguments.count, seed=arguments.seed, say=say))
    except (TilewrightError, ToolchainError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(json.dumps([asdict(score) for score in scores], indent=1) if arguments.json else _table(scores))
    planted = sum(score.planted for score in scores)
    return 0 if sum(score.found for score in scores) >= TARGET * planted else 1


if __name__ == "__main__":
    sys.exit(main())
