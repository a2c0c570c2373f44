"""All tests of a bench, once for each planted bug, in one run of the simulator (`tilewright_sim.mutate`).

TILEWRIGHT_PLANTED in the environment says which bench and which bugs. Where a bug fails a test it is found, and its
other tests end at once. What happens is appended to a file line by line, so that it outlives a simulator that crashes:

    {"mutant": 3, "test": "test_order", "began": true}
    {"mutant": 3, "test": "test_order", "cycles": 812}

The second line is missing where the test failed.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from typing import Any

import cocotb
from cocotb.regression import Test, TestGenerator
from cocotb.utils import get_sim_time

from tilewright_sim.benches import testbench

WANTED = json.loads(os.environ["TILEWRIGHT_PLANTED"])
"""bench: the module; mutants: numbers; results: a file; limits: cycles after which each test has failed, by name."""


def note(**what: Any) -> None:
    """Append a line to the results."""
    with open(WANTED["results"], "a", encoding="utf-8") as file:
        file.write(json.dumps(what) + "\n")


def of_bench() -> list[Test]:
    """Return the bench's own tests."""
    found = []
    for item in vars(import_module(WANTED["bench"])).values():
        if isinstance(item, TestGenerator):
            found += [test for test in item.generate_tests() if not test.skip]
    return found


_failed: set[int] = set()


def planted(test: Test, mutant: int) -> Test:
    """Return a test with a bug in force."""

    async def run(dut: Any) -> None:
        if mutant in _failed:
            return
        testbench.mutant_in_force = mutant
        _failed.add(mutant)  # until it has passed: a failure does not come back here
        note(mutant=mutant, test=test.name, began=True)
        begin = get_sim_time("ns")
        await test.func(dut, *test.args, **test.kwargs)
        note(mutant=mutant, test=test.name, cycles=round((get_sim_time("ns") - begin) / testbench.PERIOD_NS))
        _failed.discard(mutant)

    limit = WANTED["limits"].get(test.name)
    return Test(
        func=run,
        args=(),
        kwargs={},
        name=f"{mutant}/{test.name}",
        module=__name__,
        doc=None,
        timeout=(limit * testbench.PERIOD_NS, "ns") if limit else None,
        expect_fail=False,
        expect_error=(),
        skip=False,
        stage=0,
    )


globals().update(
    {f"{mutant}/{test.name}": planted(test, mutant) for mutant in WANTED["mutants"] for test in of_bench()}
)

cocotb.log.setLevel("CRITICAL")
