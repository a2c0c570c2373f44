"""The bench: targets whose commands can run, what a run is measured by, and where its cycles went."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright import bench, targets
from tilewright.cli import parser
from tilewright.cycles import by_cause, describe
from tilewright.roofline import model_operations, roofline
from tilewright_hw.arch import DeviceError
from tilewright_hw.arch.registers import COUNTERS
from tilewright_sim.golden import GoldenDevice

MODEL = "random:dim=16,ffn=24,heads=2,layers=1,vocab=40,context=32"


def counters(**values: int) -> dict[str, int]:
    return {name: values.get(name, 0) for name, _ in COUNTERS}


def row(units: int = 1, cycles: int = 100, seconds: float = 1.0, least: float = 0.0) -> bench.Row:
    return bench.Row(
        run="decode", what="", units=units, cycles=cycles, roofline_cycles=least, mac_utilization=0.0,
        seconds=seconds, total_seconds=seconds, counters=counters(CYCLES=cycles),
    )  # fmt: skip


def small_model(**options: Any) -> bench.Model:
    return bench.open_model(MODEL, tw.open_device("golden", "tiny"), **options)


@pytest.mark.parametrize("target", targets.targets("pyproject.toml"), ids=lambda t: f"{t.number} {t.what}")
def test_every_target_has_a_command_that_runs(target: targets.Target) -> None:
    assert not target.missing
    for words in (target.command, target.against) if target.against else (target.command,):
        checked = bench.check(parser().parse_args(["bench", *words]))
        assert checked.run == words[0]


def test_the_rows_of_the_table() -> None:
    assert {str(t.number) for t in targets.targets()} == set(targets.ROWS)


def test_a_speedup_is_tokens_per_cycle() -> None:
    target = next(t for t in targets.targets() if t.unit == "speedup")
    runs = {target.command: row(units=8 * 4, cycles=1000), target.against: row(units=4, cycles=750)}
    assert targets.value(target, runs.__getitem__) == pytest.approx(8 * 750 / 1000)


def test_a_ratio_of_seconds_counts_all_that_ran() -> None:
    target = next(t for t in targets.targets() if t.unit == "faster")
    slow = dataclasses.replace(row(seconds=1), total_seconds=30)
    assert targets.value(target, {target.command: slow, target.against: row(seconds=2)}.__getitem__) == 15


def test_a_share_is_that_of_the_roofline() -> None:
    target = next(t for t in targets.targets() if t.unit == "share")
    assert targets.value(target, lambda _: row(cycles=100, least=99.0)) == 0.99


def test_the_causes_of_a_unit_add_up() -> None:
    random = np.random.default_rng(0)
    found = by_cause(counters(**{name: int(random.integers(0, 100)) for name, _ in COUNTERS} | {"CYCLES": 1000}))
    assert set(found) == {"array", "reading", "vector", "writing"}
    assert all(sum(causes.values()) == 1000 for causes in found.values())


def test_a_run_says_where_its_cycles_went() -> None:
    text = describe([("a run", counters(CYCLES=200, ARRAY_ROWS=150, MATRIX_WAIT_TILE=30)), ("golden", counters())])
    assert "a run  array    rows 75.0%, no tile 15.0%, waits for a unit 0.0%, rest 10.0%" in text
    assert "golden" not in text
    assert describe([("golden", counters())]) == ""


def test_prompts_together() -> None:
    """All rows of all steps count, at their positions."""
    made = bench.decode(small_model(), context=12, tokens=3, batch=4)
    spec, config = bench.random_checkpoint(MODEL).spec, tw.AcceleratorConfig.preset("tiny")
    steps = [operation for at in (9, 10, 11) for operation in model_operations(spec, [(at, 1)] * 4)]
    assert made.units == 12
    assert made.roofline_cycles == roofline(steps, config)
    assert "context 12, 4 together" in made.what


def test_prompts_together_are_those_alone() -> None:
    """The bench decodes real sequences: each prompt's tokens are what the model says of it alone."""
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    with small_model() as model:
        alone = [model.generate(prompt, 4) for prompt in prompts]
    with small_model() as model:
        (engine,) = bench._engines(model, 3)
        tokens = [bench._choices(engine, prompts)]
        for _ in range(3):
            tokens.append(bench._next_choices(engine, tokens[-1]))
    assert [list(made) for made in zip(*tokens, strict=True)] == [made.token_ids for made in alone]  # type: ignore[union-attr]


def test_weights_in_four_bits_need_half_the_bytes() -> None:
    eight, four = (
        bench.gemm(tw.open_device("golden", "tiny"), 1, 64, 32, weights=weights) for weights in ("int8", "int4")
    )
    assert eight.roofline_cycles == (64 + 64 * 32) / 4
    assert four.roofline_cycles == (64 + 64 * 32 / 2 + 2 * 32 / 2) / 4


class Wrong(GoldenDevice):
    """A device that adds one to a byte of what is read back."""

    def read_memory(self, address: int, size: int) -> Any:
        data = super().read_memory(address, size).copy()
        data[: size > 0] += 1
        return data


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_wrong_product_is_no_measurement(weights: str) -> None:
    with pytest.raises(DeviceError, match="the golden device's result is wrong"):
        bench.gemm(Wrong(tw.AcceleratorConfig.preset("tiny")), 3, 40, 5, weights=weights)


@pytest.mark.parametrize("measure", [
    lambda model: bench.decode(model, 9, 2),
    lambda model: bench.decode(model, 9, 2, batch=2),
    lambda model: bench.prefill(model, 7),
])  # fmt: skip
def test_a_model_that_differs_from_golden_is_no_measurement(measure: Any) -> None:
    device = Wrong(tw.AcceleratorConfig.preset("tiny"))
    with pytest.raises(DeviceError, match="differs from the golden model"):
        measure(bench.open_model(MODEL, device, golden=True))
    measure(small_model(golden=True))
