"""Measured speed and utilisation: `python -m tilewright.bench` is `tilewright bench`.

Utilisation = roofline / cycles. The roofline is what the mathematics needs (tilewright/roofline.py); cycles are the
hardware counter's, from start to interrupt, instruction fetch included. Without a RUN the whole table of targets is
measured (tilewright/targets.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilewright.api import Generation, Model, check_batch, check_fits, compare, load
from tilewright.compiler.batch import MAX_BATCH
from tilewright.cycles import by_cause, describe
from tilewright.devices import TIMING, device_kind, open_device
from tilewright.formats import DEFAULT, GROUP, Formats
from tilewright.ops import matmul_counted, matmul_quantised_counted
from tilewright.random_model import is_random, random_checkpoint
from tilewright.roofline import Operation, model_operations, roofline, total
from tilewright.roofline import gemm as gemm_operation
from tilewright.runtime import Engine
from tilewright_hw.arch import AcceleratorConfig, Device, DeviceError, InputError
from tilewright_hw.arch.memory_model import MemoryModel

if TYPE_CHECKING:
    from tilewright.cli.progress import Progress

RUNS = ("gemm", "decode", "prefill", "quality")
SHAPES = ("256x256x256", "1x1024x1024")
RESULTS = ("int32", "int8")
PREFILL_TOKENS = 128
PROMPT = "Once upon a time"
EXAMPLES = """\
examples:
  tilewright bench
      the table of targets: every run, what is wanted, what was measured, and the command of each
  tilewright bench --row 2 --row 3
      some rows of it
  tilewright bench gemm --shape 100x200x300 --config edge
      one matrix product
  tilewright bench decode --model random:dim=320,ffn=864,layers=8,heads=5,vocab=4096,seed=1 --context 128 --tokens 8
      the last eight tokens of a context, of a model with random weights
  tilewright bench decode --model stories260K.bin --context 128 --memory latency=150 --json
      one model, a slower memory, as JSON
  tilewright bench decode --context 64 --batch 8 --check
      eight prompts that go on together, and the golden model beside them: tokens and memory must be equal
  tilewright bench --device model --row 2 --row 5
      what the cycle model predicts for rows of the table, without the simulator
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Parameters
    ----------
    run, what : str
        Kind of run, and its shape or model.
    units : int
        How many tokens (decode, prefill) or operations (gemm) the cycles are of.
    cycles : int
        Cycles of all of them.
    roofline_cycles : float
        Least cycles that the mathematics allows.
    mac_utilization : float
        Share of the array's peak.
    seconds, total_seconds : float
        Seconds of simulation: of these cycles; of all that ran, a decode's prompt included.
    counters : dict
        The hardware counters.
    """

    run: str
    what: str
    units: int
    cycles: int
    roofline_cycles: float
    mac_utilization: float
    seconds: float
    total_seconds: float
    counters: dict[str, int]

    @property
    def utilization(self) -> float:
        """Share of the roofline; 0 on a device without cycles."""
        return self.roofline_cycles / self.cycles if self.cycles else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return fields and what follows from them."""
        return asdict(self) | {
            "utilization": self.utilization,
            "cycles_per_unit": self.cycles / self.units,
            "cycles_per_second": self.cycles / max(self.seconds, 1e-9),
            "cycles_by_cause": by_cause(self.counters),
        }


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure, on what: the options, checked."""

    config: AcceleratorConfig
    memory: MemoryModel
    device: str
    run: str
    shapes: Sequence[tuple[int, int, int]]
    quantised: bool
    formats: Formats
    model: str | None
    context: int
    tokens: int | None
    batch: int
    golden: bool

    def rows(self, open_device: Callable[[], Device]) -> Iterator[tuple[str, Callable[[], Row]]]:
        """Yield (name, measurement) for each row; each opens a device of its own when it is called."""
        rate = self.memory.rate
        if self.run == "gemm":
            for shape in self.shapes:
                yield f"gemm {_shape_name(shape)}", lambda s=shape: self._gemm(open_device(), s, rate)  # type: ignore[misc]
        if self.run == "decode":
            yield "decode", lambda: decode(self._open(open_device()), self.context, self.tokens, rate, self.batch)
        if self.run == "prefill":
            yield "prefill", lambda: prefill(self._open(open_device()), self.context, rate)

    def _gemm(self, device: Device, shape: tuple[int, int, int], rate: float) -> Row:
        golden = open_device("golden", self.config) if self.golden else None
        return gemm(
            device, *shape, weights=self.formats.weights, quantised=self.quantised, rate=rate, golden=golden
        )  # fmt: skip

    def _open(self, device: Device) -> Model:
        return open_model(self.model, device, self.formats, golden=self.golden)


def open_model(name: str | None, device: Device, formats: Formats = DEFAULT, *, golden: bool = False) -> Model:
    """Return a model on a device, with the golden model beside it or not: a path, `random:...`, or the built-in one."""
    if not is_random(name):
        return load(name, device=device, weights=formats.weights, activations=formats.activations, check=golden)
    assert name is not None
    checkpoint = random_checkpoint(name)
    check_fits(checkpoint.spec, device.config, None, formats)
    return Model(checkpoint, None, device, formats=formats, check=golden)


def gemm(
    device: Device, m: int, k: int, n: int, *, weights: str = "int8", quantised: bool = False, rate: float = 1.0,
    golden: Device | None = None,
) -> Row:  # fmt: skip
    """Measure one matrix product (m, k) @ (k, n), operands and result in memory, and check it.

    An int32 result must be NumPy's, and one of int8 near it; with `golden` each must be that device's, bit for bit.
    DeviceError otherwise.
    """
    random = np.random.default_rng(0)
    a = random.integers(-128, 128, (m, k), dtype=np.int8)
    low, high = (-8, 8) if weights == "int4" else (-128, 128)
    b = random.integers(low, high, (k, n), dtype=np.int8)
    scales = random.integers(1, 16, (-(-k // GROUP), n), dtype=np.int8) if weights == "int4" else None
    effective = b if scales is None else b * np.repeat(scales, GROUP, axis=0)[:k]
    expected = a.astype(np.int64) @ effective.astype(np.int64)
    start = time.perf_counter()
    result, counters = _product(a, b, scales, device, quantised)
    seconds = device.seconds or time.perf_counter() - start
    device.close()
    name = ", ".join(
        [_shape_name((m, k, n))] + ["int4 weights"] * (weights == "int4") + ["int8 result"] * quantised
    )  # fmt: skip
    good = np.array_equal(result[0], expected)
    if quantised:
        step = result[1][:, None].astype(np.float64)
        good = bool((np.abs(result[0] * step - expected) <= 0.51 * step).all())
    if golden is not None:
        wanted, _ = _product(a, b, scales, golden, quantised)
        good &= all(np.array_equal(x, y) for x, y in zip(result, wanted, strict=True))
    if not good and device.name != TIMING:  # that computes nothing
        raise DeviceError(f"gemm {name}: the {device.name} device's result is wrong")
    operation = gemm_operation(m, k, n, weights=weights, quantised=quantised)
    return _row("gemm", name, 1, counters, [operation], rate, seconds, device)


def _product(
    a: NDArray[np.int8], b: NDArray[np.int8], scales: NDArray[np.int8] | None, device: Device, quantised: bool
) -> tuple[list[NDArray[Any]], dict[str, int]]:
    """Return the arrays of a product's result, and the counters."""
    if quantised:
        q, steps, counters = matmul_quantised_counted(a, b, device, group_scales=scales)
        return [q, steps], counters
    exact, counters = matmul_counted(a, b, device, group_scales=scales)
    return [exact], counters


def decode(model: Model, context: int, tokens: int | None = None, rate: float = 1.0, batch: int = 1) -> Row:
    """Measure whole tokens until the context holds `context`: the last `tokens`, or all that follow a short prompt.

    With `batch`, so many prompts of one length are continued together. Text does not end at a stop token. With a
    golden model beside it, tokens and memory must be equal; DeviceError otherwise.
    """
    with model:
        prompts, steps = _decode_prompts(model, context, tokens, batch)
        length, runs = len(prompts[0]), []
        for engine in _engines(model, batch):
            choices = [_choices(engine, prompts)]
            before, seconds = dict(engine.counters.values), engine.device.seconds
            for _ in range(steps):
                choices.append(_next_choices(engine, choices[-1]))
            runs.append(choices)
        counters = {name: value - before[name] for name, value in engine.counters.values.items()}
        what = f"{_title(model)}, context {length + steps}" + (f", {batch} together" if batch > 1 else "")
        _demand_golden(model, what, equal=runs[0] == runs[-1])
        operations = [
            op for at in range(length, length + steps) for op in _operations(model, [(at, 1)] * batch)
        ]  # fmt: skip
        spent = engine.device.seconds - seconds
        row = _row("decode", what, steps * batch, counters, operations, rate, spent, engine.device)
        return replace(row, total_seconds=engine.device.seconds)


def _decode_prompts(model: Model, context: int, tokens: int | None, batch: int) -> tuple[list[list[int]], int]:
    """Return the prompts, and how many tokens are to be measured after each."""
    context = min(context, model.spec.context)
    if tokens is None and model.tokenizer is not None:
        prompts = [model.start(PROMPT, 1).prompt] * batch
    else:
        length = context - tokens if tokens is not None else 4
        if length < 1:
            raise InputError(f"tokens must be at most the context less one, {context - 1}, not {tokens}")
        prompts = np.random.default_rng(0).integers(0, model.spec.vocab, (batch, length)).tolist()
    length = len(prompts[0])
    if context - length < 1:
        raise InputError(f"context must be at least {length + 2}, not {context}")
    return prompts, context - length


def _engines(model: Model, batch: int) -> list[Engine]:
    """Return the model's engines, the device's last, with room for so many sequences."""
    model.allow(batch)
    if batch > model.engine.batch:
        raise InputError(f"batch must be at most {model.engine.batch} for {model.name}, not {batch}")
    for engine in model.engines:
        for sequence in range(batch):
            engine.reset(sequence)
    return model.engines


def _choices(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Read each prompt; return the token that follows it."""
    return [engine.choose(prompt, sequence) for sequence, prompt in enumerate(prompts)]


def _next_choices(engine: Engine, tokens: Sequence[int]) -> list[int]:
    """Run the next token of each sequence; return the ones that follow. Of one alone the device chooses, as in use."""
    if len(tokens) == 1:
        return [engine.choose(tokens)]
    rows = engine.step(dict(enumerate(tokens)))
    return [int(np.argmax(rows[sequence])) for sequence in range(len(tokens))]


def prefill(model: Model, tokens: int = PREFILL_TOKENS, rate: float = 1.0) -> Row:
    """Measure a prompt of `tokens` tokens, last-row logits; DeviceError if a golden model beside it differs."""
    with model:
        count = min(tokens, model.spec.context)
        ids = np.random.default_rng(0).integers(0, model.spec.vocab, count).tolist()
        made = model.generate(ids, max_new_tokens=1)
        assert isinstance(made, Generation)
        what, stats = f"{_title(model)}, {count} tokens", made.stats
        _demand_golden(model, what, equal=made.check is None or made.check.tokens_equal)
        operations = _operations(model, [(0, count)])
        return _row("prefill", what, count, stats.counters, operations, rate, stats.seconds, model.device)


def _title(model: Model) -> str:
    """Return a model's name, with its formats where they are not the usual ones."""
    formats = model.formats
    parts = [model.name]
    if formats.weights != DEFAULT.weights:
        parts.append(f"{formats.weights} weights")
    if formats.activations != DEFAULT.activations:
        parts.append(f"{formats.activations} bits of activations")
    return ", ".join(parts)


def _operations(model: Model, texts: Sequence[tuple[int, int]]) -> list[Operation]:
    return model_operations(model.spec, texts, weights=model.formats.weights)


def _demand_golden(model: Model, what: str, *, equal: bool) -> None:
    """DeviceError unless the golden model, if there is one, has chosen the same tokens and left the same memory."""
    if model.golden is None:
        return
    if not compare(model.device, model.golden.device, model.engine.image.size, equal).exact:
        raise DeviceError(f"{what}: the {model.device.name} device differs from the golden model")


def _row(
    run: str, what: str, units: int, counters: dict[str, int], operations: Sequence[Operation], rate: float,
    seconds: float, device: Device,
) -> Row:  # fmt: skip
    cycles, config = counters["CYCLES"], device.config
    share = total(operations).macs / (cycles * config.peak_macs) if cycles else 0.0
    return Row(
        run=run, what=what, units=units, cycles=cycles, roofline_cycles=roofline(operations, config, rate),
        mac_utilization=share, seconds=seconds, total_seconds=seconds, counters=dict(counters),
    )  # fmt: skip


def _shape_name(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read MxKxN."""
    parts = text.split("x")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts):
        raise InputError(f"shape must be MxKxN with positive integers, not {text!r}")
    m, k, n = map(int, parts)
    return m, k, n


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    from tilewright.cli.options import add_device, add_output

    parser.add_argument(
        "run_kind",
        nargs="?",
        choices=RUNS,
        metavar="RUN",
        help="gemm, decode, prefill (default: the table of all), or quality: the table of what quantisation loses",
    )
    parser.add_argument(
        "--row",
        action="append",
        metavar="N",
        help="this row of a table (without RUN, or of quality); may be given several times",
    )
    parser.add_argument("--shape", action="append", metavar="MxKxN", help="gemm: the shape; may be given several times")
    parser.add_argument("--weights", default="int8", metavar="FORMAT", help="int8 or int4 (default: %(default)s)")
    parser.add_argument(
        "--activations", type=int, default=8, metavar="BITS", help="decode, prefill: 8 or 16 (default: %(default)s)"
    )
    parser.add_argument("--result", default="int32", choices=RESULTS, help="gemm: int32, or int8 with a scale per row")
    parser.add_argument(
        "--model", metavar="PATH|random:...", help="decode, prefill: the model (default: the built-in one)"
    )
    parser.add_argument(
        "--context", type=int, default=128, metavar="N",
        help="decode: tokens at the end; prefill: tokens of the prompt (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="decode: measure the last N (default: all after a short prompt)"
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="decode: prompts that go on together (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help="run the golden model as well: results and memory must be equal"
    )
    add_device(parser, default="rtl")
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a table or JSON."""
    from tilewright.cli.progress import Progress

    if arguments.run_kind == "quality":
        from tilewright import quality

        return quality.run(arguments)
    if arguments.run_kind is None:
        from tilewright import targets

        return targets.run(arguments)
    bench = check(arguments)
    rows = measure(bench, Progress(arguments.quiet))
    if arguments.json:
        print(json.dumps(_report(bench, rows), indent=2))
    else:
        print(_table(bench, rows))
    return 0


def check(arguments: argparse.Namespace) -> Bench:
    """Check the options of a single run."""
    from tilewright.cli.options import memory_model

    if arguments.row:
        raise InputError("row must be given without a RUN: it names a row of the whole table")
    for name in ("context", "tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    bench = Bench(
        config=AcceleratorConfig.resolve(arguments.config or "default"),
        memory=memory_model(arguments.memory),
        device=device_kind(arguments.device, timing=True),
        run=arguments.run_kind,
        shapes=[parse_shape(text) for text in arguments.shape or SHAPES],
        quantised=arguments.result == "int8",
        formats=Formats(weights=arguments.weights, activations=arguments.activations),
        model=arguments.model,
        context=arguments.context,
        tokens=arguments.tokens,
        batch=_check_batch(arguments.batch),
        golden=arguments.check,
    )
    if bench.golden and bench.device == TIMING:
        raise InputError(f"check must not be given for the device {TIMING}: it computes nothing")
    if is_random(bench.model):
        assert bench.model is not None
        random_checkpoint(bench.model)
    elif bench.model is not None and not Path(bench.model).exists():
        raise InputError(f"no such file or folder: {bench.model}")
    return bench


def _check_batch(batch: int) -> int:
    if check_batch(batch) > MAX_BATCH:
        raise InputError(f"batch must be at most {MAX_BATCH}, not {batch}")
    return batch


def measure(bench: Bench, progress: Progress) -> list[Row]:
    """Measure what the options ask for."""
    from tilewright.cli.options import open_checked

    with progress.stage(f"{bench.device} device ({bench.config.name}) opened") as stage:
        open_checked(bench.device, bench.config, bench.memory, stage.say).close()
    rows = []
    for name, measure in bench.rows(lambda: open_checked(bench.device, bench.config, bench.memory)):
        with progress.stage(f"{name} measured"):
            rows.append(measure())
    return rows


def _report(bench: Bench, rows: list[Row]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "device": bench.device,
        "config": bench.config.name,
        "configuration": bench.config.to_dict(),
        "memory": asdict(bench.memory),
        "rows": [row.to_dict() for row in rows],
    }


def _table(bench: Bench, rows: list[Row]) -> str:
    from tilewright.cli.table import table

    head = ["run", "what", "cycles per token or run", "of roofline", "of peak MACs", "kcycles/s", "seconds"]
    lines = [
        [
            row.run,
            row.what,
            f"{row.cycles / row.units:,.0f}",
            f"{row.utilization:.1%}",
            f"{row.mac_utilization:.1%}",
            f"{row.cycles / max(row.seconds, 1e-9) / 1e3:,.0f}",
            f"{row.seconds:.2f}",
        ]
        for row in rows
    ]
    title = f"{bench.config.name} on the {bench.device} device, {bench.memory.latency} cycles of memory latency"
    causes = describe([(f"{row.run} {row.what}", row.counters) for row in rows])
    return "\n\n".join([title, table([head, *lines]), *([causes] if causes else [])])


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tilewright bench`."""
    from tilewright.cli import main as run_command

    return run_command(["bench", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
