"""Run benches on blocks with planted bugs, and count what is found."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tilewright_hw
from tilewright_hw.arch import AcceleratorConfig
from tilewright_sim.benches.runner import BENCHES, BenchError, Built, _check_cocotb, build
from tilewright_sim.mutate.equivalent import proven_equivalent
from tilewright_sim.mutate.plant import Mutant, planted_verilog

__all__ = ["Outcome", "Score", "block_of", "mutate"]

SLACK = 3
"""A test fails when it takes this many times as long as without a bug, and then some."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a planted bug.

    Parameters
    ----------
    mutant : Mutant
        The bug.
    found_by : str or None
        The test that failed; None: it survived.
    equivalent : bool
        It survived, and it is proven that it changes nothing: it is no bug.
    """

    mutant: Mutant
    found_by: str | None
    equivalent: bool = False


@dataclass(frozen=True)
class Score:
    """What a block's bench found.

    Parameters
    ----------
    block : str
        The block's class.
    bench : str
        Its bench.
    outcomes : tuple of Outcome
        One for each bug.
    """

    block: str
    bench: str
    outcomes: tuple[Outcome, ...]

    @property
    def planted(self) -> int:
        """Bugs planted, without those that are proven to be none."""
        return len(self.outcomes) - self.equivalent

    @property
    def equivalent(self) -> int:
        """What was planted and is proven to change nothing."""
        return sum(outcome.equivalent for outcome in self.outcomes)

    @property
    def found(self) -> int:
        """Bugs found."""
        return sum(outcome.found_by is not None for outcome in self.outcomes)


def block_of(bench: str) -> str:
    """Return the name of the block that a bench is for: `tile_fifo` is for `TileFifo`."""
    return "".join(part.capitalize() for part in bench.split("_"))


def mutate(bench: str, *, count: int, seed: int, say: Say = lambda text: None, directory: Path | None = None) -> Score:
    """Plant bugs in a block and run its bench for each.

    Parameters
    ----------
    bench : str
        One of `BENCHES`.
    count : int
        Bugs to plant.
    seed : int
        Of what is planted, and of the bench's tests.
    say : callable
        Told of progress, line by line.
    directory : Path, optional
        Where to build; by default a temporary folder, which is removed.

    Raises
    ------
    BenchError
        There is no such bench, something that it needs is missing, or it fails where no bug is in force.
    ToolchainError
        Verilator or the C++ compiler is missing.
    """
    if bench not in BENCHES:
        raise BenchError(f"unknown bench {bench!r}: choose one of {', '.join(BENCHES)}")
    _check_cocotb()
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"tilewright-{bench}-")))
        values = BENCHES[bench].parameters
        block = block_of(bench)
        component, plain = _component(block, values)
        verilog, mutants = planted_verilog(component, bench, count=count, seed=seed, plain=plain)
        say(f"{block}: {len(mutants)} bugs planted; building")
        built = build(bench, values, verilog, directory, log=directory / "build.log")
        return Score(block, bench, _run_all(built, mutants, seed, say))


def _component(block: str, values: Mapping[str, Any]) -> tuple[Any, bool]:
    """Return the block as its bench has it, and whether its ports have to be made plain."""
    kind = getattr(tilewright_hw, block)
    if block == "Accelerator":
        return kind(AcceleratorConfig.resolve(values["config"])), False
    if "acc_rows" in values:
        return kind(AcceleratorConfig.from_dict(dict(values))), True
    return kind(**values), True


def _run_all(built: Built, mutants: list[Mutant], seed: int, say: Say) -> tuple[Outcome, ...]:
    """Run the bench without a bug, for its times, and then with each."""
    proof = partial(proven_equivalent, built.folder.parent, built.name)
    lines = _run(built, [0], {}, seed)
    if not _passed(lines, 0):
        raise BenchError(f"{built.name}: its bench fails where no bug is in force: {_last(lines, 0)}")
    limits = {line["test"]: SLACK * line["cycles"] + 2000 for line in lines if "cycles" in line}
    outcomes: dict[int, Outcome] = {}
    left = {mutant.number: mutant for mutant in mutants}

    def tell(lines: list[dict[str, Any]], number: int) -> None:
        found = None if _passed(lines, number) else _last(lines, number)
        outcome = outcomes[number] = Outcome(left.pop(number), found, found is None and proof(number))
        say(f"{block_of(built.name)}: {describe(outcome)}")

    while left:
        before = len(left)
        lines = _run(built, list(left), limits, seed, tell)
        for number in [number for number in left if any(_of(lines, number))]:
            tell(lines, number)  # the last one may have ended the simulator: then it is found
        if len(left) == before:
            raise BenchError(f"{built.name} did not run with bug {next(iter(left))} in force")
    return tuple(outcomes[mutant.number] for mutant in mutants)


def describe(outcome: Outcome) -> str:
    """Return a line about a bug."""
    mutant = outcome.mutant
    place = f"{mutant.where}" + (f" in {mutant.module}" if mutant.module else "")
    if outcome.equivalent:
        end = "changes nothing (proven)"
    else:
        end = f"found by {outcome.found_by}" if outcome.found_by else "SURVIVED"
    return f"{mutant.number:3} {mutant.kind}: {mutant.what} ({place}): {end}"


def _of(lines: list[dict[str, Any]], mutant: int) -> Iterator[dict[str, Any]]:
    return (line for line in lines if line["mutant"] == mutant)


def _passed(lines: list[dict[str, Any]], mutant: int) -> bool:
    """Whether every test that was begun was ended."""
    began = sum("began" in line for line in _of(lines, mutant))
    return began > 0 and began == sum("cycles" in line for line in _of(lines, mutant))


def _last(lines: list[dict[str, Any]], mutant: int) -> str:
    return next((str(line["test"]) for line in reversed(list(_of(lines, mutant)))), "no test")


def _run(
    built: Built,
    numbers: list[int],
    limits: Mapping[str, int],
    seed: int,
    tell: Callable[[list[dict[str, Any]], int], None] = lambda lines, number: None,
) -> list[dict[str, Any]]:
    """Run the bench's tests with each bug in turn; return the lines that `benches.planted` wrote.

    `tell` is called for each bug but the last as soon as the next one's turn has come.
    """
    bench = f"tilewright_sim.benches.{BENCHES[built.name].module}"
    results = built.folder / "planted.jsonl"
    results.unlink(missing_ok=True)
    wanted = {"bench": bench, "mutants": numbers, "results": str(results), "limits": dict(limits)}
    environment = {"TILEWRIGHT_PLANTED": json.dumps(wanted), "COCOTB_LOG_LEVEL": "CRITICAL"}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            built.test,
            "tilewright_sim.benches.planted",
            seed=seed,
            environment=environment,
            log=built.folder / "run.log",
        )
        told: set[int] = set()
        while not running.done():
            wait([running], timeout=0.5)
            lines = _read(results)
            for number in dict.fromkeys(line["mutant"] for line in lines[:-1]):
                if number not in told and lines[-1]["mutant"] != number:
                    told.add(number)
                    tell(lines, number)
        error = running.exception()
        if error is not None and not isinstance(error, BenchError):  # a simulator that ends early has found a bug
            raise error
    return _read(results)


def _read(results: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file that may be growing."""
    if not results.exists():
        return []
    text = results.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
