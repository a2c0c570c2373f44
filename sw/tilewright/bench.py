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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.api import Generation, Model, check_fits, load
from tilewright.devices import device_kind
from tilewright.ops import matmul_counted, matmul_quantised_counted
from tilewright.random_model import is_random, random_checkpoint
from tilewright.roofline import decode_operations, model_operations, roofline, total
from tilewright.roofline import gemm as gemm_operation
from tilewright_hw.arch import AcceleratorConfig, Device, InputError
from tilewright_hw.arch.memory_model import MemoryModel

if TYPE_CHECKING:
    from tilewright.cli.progress import Progress

RUNS = ("gemm", "decode", "prefill")
SHAPES = ("256x256x256", "1x1024x1024")
GEMM_WEIGHTS = ("int8",)
"""Formats of the weights that `gemm` can take."""
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
    model: str | None
    context: int
    tokens: int | None

    def rows(self, open_device: Callable[[], Device]) -> Iterator[tuple[str, Callable[[], Row]]]:
        """Yield (name, measurement) for each row; each opens a device of its own when it is called."""
        rate = bus_rate(self.memory)
        if self.run == "gemm":
            for shape in self.shapes:
                yield (
                    f"gemm {_shape_name(shape)}",
                    lambda s=shape: gemm(open_device(), *s, quantised=self.quantised, rate=rate),  # type: ignore[misc]
                )
        if self.run == "decode":
            yield "decode", lambda: decode(open_model(self.model, open_device()), self.context, self.tokens, rate)
        if self.run == "prefill":
            yield "prefill", lambda: prefill(open_model(self.model, open_device()), self.context, rate)


def bus_rate(memory: MemoryModel) -> float:
    """Return the beats per cycle that a memory's data channels carry in the mean."""
    return min(memory.bandwidth, 1 - memory.stall)


def open_model(name: str | None, device: Device) -> Model:
    """Return a model on a device: a path, `random:...`, or the built-in one."""
    if not is_random(name):
        return load(name, device=device)
    assert name is not None
    checkpoint = random_checkpoint(name)
    check_fits(checkpoint.spec, device.config)
    return Model(checkpoint, None, device)


def gemm(device: Device, m: int, k: int, n: int, *, quantised: bool = False, rate: float = 1.0) -> Row:
    """Measure one int8 matrix product (m, k) @ (k, n), operands and result in memory, and check it."""
    random = np.random.default_rng(0)
    a = random.integers(-128, 128, (m, k), dtype=np.int8)
    b = random.integers(-128, 128, (k, n), dtype=np.int8)
    expected = a.astype(np.int64) @ b.astype(np.int64)
    start = time.perf_counter()
    if quantised:
        result, scales, counters = matmul_quantised_counted(a, b, device)
        good = bool((np.abs(result * scales[:, None].astype(np.float64) - expected) <= 0.51 * scales[:, None]).all())
    else:
        exact, counters = matmul_counted(a, b, device)
        good = np.array_equal(exact, expected)
    seconds = device.seconds or time.perf_counter() - start
    device.close()
    name = _shape_name((m, k, n)) + (", int8 result" if quantised else "")
    if not good:
        raise RuntimeError(f"gemm {name}: the device's result is wrong")
    operation = gemm_operation(m, k, n, quantised=quantised)
    least = roofline([operation], device.config, rate)
    return _row("gemm", name, 1, counters, least, operation.work.macs, seconds, device)


def decode(model: Model, context: int, tokens: int | None = None, rate: float = 1.0) -> Row:
    """Measure whole tokens until the context holds `context`: the last `tokens`, or all that follow a short prompt."""
    with model:
        prompt, steps = _decode_prompt(model, context, tokens)
        made = _one(model.generate(prompt, max_new_tokens=steps + 1))
        stats, config, spec = made.stats, model.device.config, model.spec
        positions = range(len(prompt), len(prompt) + stats.decode_steps)
        operations = [operation for p in positions for operation in decode_operations(spec, p)]
        cycles = stats.decode_cycles
        share = total(operations).macs / (cycles * config.peak_macs) if cycles else 0.0
        return Row(
            run="decode", what=f"{model.name}, context {len(prompt) + stats.decode_steps}", units=stats.decode_steps,
            cycles=cycles, roofline_cycles=roofline(operations, config, rate), mac_utilization=share,
            seconds=stats.seconds * cycles / stats.cycles if stats.cycles else stats.seconds,
            total_seconds=stats.seconds, counters=stats.counters,
        )  # fmt: skip


def _decode_prompt(model: Model, context: int, tokens: int | None) -> tuple[list[int], int]:
    """Return the prompt, and how many tokens are to be measured after it."""
    context = min(context, model.spec.context)
    if tokens is None and model.tokenizer is not None:
        prompt = model.start(PROMPT, 1).prompt
    else:
        length = context - tokens if tokens is not None else 4
        if length < 1:
            raise InputError(f"tokens must be at most the context less one, {context - 1}, not {tokens}")
        prompt = np.random.default_rng(0).integers(0, model.spec.vocab, length).tolist()
    if context - len(prompt) < 1:
        raise InputError(f"context must be at least {len(prompt) + 2}, not {context}")
    return prompt, context - len(prompt)


def prefill(model: Model, tokens: int = PREFILL_TOKENS, rate: float = 1.0) -> Row:
    """Measure a prompt of `tokens` tokens, last-row logits."""
    with model:
        count = min(tokens, model.spec.context)
        ids = np.random.default_rng(0).integers(0, model.spec.vocab, count).tolist()
        stats = _one(model.generate(ids, max_new_tokens=1)).stats
        operations, config = model_operations(model.spec, [(0, count)]), model.device.config
        least, macs = roofline(operations, config, rate), total(operations).macs
        what = f"{model.name}, {count} tokens"
        return _row("prefill", what, count, stats.counters, least, macs, stats.seconds, model.device)


def _one(made: Generation | list[Generation]) -> Generation:
    assert isinstance(made, Generation)
    return made


def _row(
    run: str, what: str, units: int, counters: dict[str, int], least: float, macs: int, seconds: float, device: Device
) -> Row:
    cycles = counters["CYCLES"]
    share = macs / (cycles * device.config.peak_macs) if cycles else 0.0
    return Row(
        run=run, what=what, units=units, cycles=cycles, roofline_cycles=least, mac_utilization=share,
        seconds=seconds, total_seconds=seconds, counters=dict(counters),
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
        "run_kind", nargs="?", choices=RUNS, metavar="RUN", help="gemm, decode or prefill (default: the whole table)"
    )
    parser.add_argument(
        "--row", action="append", metavar="N", help="without RUN: this row of the table; may be given several times"
    )
    parser.add_argument("--shape", action="append", metavar="MxKxN", help="gemm: the shape; may be given several times")
    parser.add_argument("--weights", default="int8", metavar="FORMAT", help="int8 (default: %(default)s)")
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
    add_device(parser, default="rtl")
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a table or JSON."""
    from tilewright.cli.progress import Progress

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

    if arguments.weights not in GEMM_WEIGHTS:
        raise InputError(f"weights must be one of {', '.join(GEMM_WEIGHTS)}, not {arguments.weights!r}")
    if arguments.row:
        raise InputError("row must be given without a RUN: it names a row of the whole table")
    for name in ("context", "tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    bench = Bench(
        config=AcceleratorConfig.resolve(arguments.config),
        memory=memory_model(arguments.memory),
        device=device_kind(arguments.device),
        run=arguments.run_kind,
        shapes=[parse_shape(text) for text in arguments.shape or SHAPES],
        quantised=arguments.result == "int8",
        model=arguments.model,
        context=arguments.context,
        tokens=arguments.tokens,
    )
    if is_random(bench.model):
        assert bench.model is not None
        random_checkpoint(bench.model)
    elif bench.model is not None and not Path(bench.model).exists():
        raise InputError(f"no such file or folder: {bench.model}")
    return bench


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
    return f"{title}\n\n{table([head, *lines])}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tilewright bench`."""
    from tilewright.cli import main as run_command

    return run_command(["bench", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
