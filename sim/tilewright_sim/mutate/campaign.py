"""Run benches on blocks with planted bugs, and count what is found."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
        with _quiet(directory / "build.log"):
            built = build(bench, values, verilog, directory)
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
    lines = _run(built, [0], {}, seed)
    if not _passed(lines, 0):
        raise BenchError(f"{built.name}: its bench fails where no bug is in force: {_last(lines, 0)}")
    limits = {line["test"]: SLACK * line["cycles"] + 2000 for line in lines if "cycles" in line}
    outcomes: dict[int, Outcome] = {}
    left = {mutant.number: mutant for mutant in mutants}
    while left:
        lines = _run(built, list(left), limits, seed)
        seen = [number for number in left if any(line["mutant"] == number for line in lines)]
        if not seen:
            raise BenchError(f"{built.name} did not run with bug {next(iter(left))} in force")
        for number in seen:  # the last one seen may have ended the simulator: then it is found
            found = None if _passed(lines, number) else _last(lines, number)
            equivalent = found is None and proven_equivalent(built.folder.parent, built.name, number)
            outcome = outcomes[number] = Outcome(left.pop(number), found, equivalent)
            say(f"{block_of(built.name)}: {describe(outcome)}")
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


def _run(built: Built, numbers: list[int], limits: Mapping[str, int], seed: int) -> list[dict[str, Any]]:
    """Run the bench's tests with each bug in turn; return the lines that `benches.planted` wrote."""
    bench = f"tilewright_sim.benches.{BENCHES[built.name].module}"
    results = built.folder / "planted.jsonl"
    results.unlink(missing_ok=True)
    wanted = {"bench": bench, "mutants": numbers, "results": str(results), "limits": dict(limits)}
    with _quiet(built.folder / "run.log"), contextlib.suppress(BenchError):  # a simulator that ends early has found it
        built.test(
            "tilewright_sim.benches.planted",
            seed=seed,
            environment={"TILEWRIGHT_PLANTED": json.dumps(wanted), "COCOTB_LOG_LEVEL": "CRITICAL"},
        )
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send what this process and its children print to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(log.open("w", encoding="utf-8"))
        for number in (1, 2):
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(file.fileno(), number)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield
