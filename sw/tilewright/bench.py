"""Measured speed and utilisation, through the public API: `python -m tilewright.bench` is `tilewright bench`.

Utilisation = roofline / cycles. The roofline of an operation is the largest of the MACs that the mathematics needs over
the array's peak, the bytes to read over the bus, and the bytes to write over the bus, each byte once; cycles are the
hardware counter's, from start to interrupt.
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

from tilewright.api import Generation, Model, load
from tilewright.devices import device_kind
from tilewright.ops import matmul_counted
from tilewright.roofline import Work, prefill_work
from tilewright_hw.arch import AcceleratorConfig, Device, InputError
from tilewright_hw.arch.memory_model import MemoryModel

if TYPE_CHECKING:
    from tilewright.cli.progress import Progress

RUNS = ("gemm", "decode", "prefill")
SHAPES = ("256x256x256", "1x1024x1024")
PREFILL_TOKENS = 128
PROMPT = "Once upon a time"
EXAMPLES = """\
examples:
  tilewright bench
      every run on the default accelerator
  tilewright bench gemm --shape 100x200x300 --config edge
      one matrix product
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
    seconds : float
        Seconds of simulation.
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
    runs: Sequence[str]
    shapes: Sequence[tuple[int, int, int]]
    model: str | None
    context: int

    def rows(self, open_device: Callable[[], Device]) -> Iterator[tuple[str, Callable[[], Row]]]:
        """Yield (name, measurement) for each row; each opens a device of its own when it is called."""
        if "gemm" in self.runs:
            for shape in self.shapes:
                yield f"gemm {_shape_name(shape)}", lambda s=shape: gemm(open_device(), *s)  # type: ignore[misc]
        if "decode" in self.runs:
            yield "decode", lambda: decode(load(self.model, device=open_device()), self.context)
        if "prefill" in self.runs:
            yield "prefill", lambda: prefill(load(self.model, device=open_device()))


def gemm(device: Device, m: int, k: int, n: int) -> Row:
    """Measure one int8 matrix product (m, k) @ (k, n), operands and int32 result in memory, and check it."""
    random = np.random.default_rng(0)
    a = random.integers(-128, 128, (m, k), dtype=np.int8)
    b = random.integers(-128, 128, (k, n), dtype=np.int8)
    start = time.perf_counter()
    result, counters = matmul_counted(a, b, device)
    seconds = device.seconds or time.perf_counter() - start
    device.close()
    if not np.array_equal(result, a.astype(np.int64) @ b.astype(np.int64)):
        raise RuntimeError(f"gemm {_shape_name((m, k, n))}: the device's result is wrong")
    work = Work(macs=m * k * n, read=m * k + k * n, written=4 * m * n)
    return _row("gemm", _shape_name((m, k, n)), 1, counters, work.cycles(device.config), work.macs, seconds, device)


def decode(model: Model, context: int) -> Row:
    """Measure whole tokens after a short prompt, until the context holds `context` tokens (no sampling noise)."""
    with model:
        prompt = model.start(PROMPT, 1).prompt
        room = min(context, model.spec.context) - len(prompt)
        if room < 2:
            raise InputError(f"context must be at least {len(prompt) + 2}, not {context}")
        made = _one(model.generate(prompt, max_new_tokens=room + 1))
        stats = made.stats
        roofline = stats.decode_roofline * stats.decode_cycles
        return Row(
            run="decode", what=f"{model.name}, context {len(prompt) + stats.decode_steps}", units=stats.decode_steps,
            cycles=stats.decode_cycles, roofline_cycles=roofline, mac_utilization=stats.mac_utilization,
            seconds=stats.seconds * stats.decode_cycles / max(stats.cycles, 1), counters=stats.counters,
        )  # fmt: skip


def prefill(model: Model, tokens: int = PREFILL_TOKENS) -> Row:
    """Measure a prompt of `tokens` tokens, last-row logits."""
    with model:
        count = min(tokens, model.spec.context)
        ids = np.random.default_rng(0).integers(0, model.spec.vocab, count).tolist()
        stats = _one(model.generate(ids, max_new_tokens=1)).stats
        work = prefill_work(model.spec, 0, count)
        what, config = f"{model.name}, {count} tokens", model.device.config
        return _row("prefill", what, count, stats.counters, work.cycles(config), work.macs, stats.seconds, model.device)


def _one(made: Generation | list[Generation]) -> Generation:
    assert isinstance(made, Generation)
    return made


def _row(
    run: str, what: str, units: int, counters: dict[str, int], roofline: float, macs: int, seconds: float,
    device: Device,
) -> Row:  # fmt: skip
    cycles = counters["CYCLES"]
    share = macs / (cycles * device.config.peak_macs) if cycles else 0.0
    return Row(
        run=run, what=what, units=units, cycles=cycles, roofline_cycles=roofline, mac_utilization=share,
        seconds=seconds, counters=dict(counters),
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
        "run_kind", nargs="?", default="all", choices=("all", *RUNS), metavar="RUN", help="gemm, decode, prefill or all"
    )
    parser.add_argument("--shape", action="append", metavar="MxKxN", help="gemm: the shape; may be given several times")
    parser.add_argument("--model", metavar="PATH", help="decode, prefill: the model (default: the built-in one)")
    parser.add_argument(
        "--context", type=int, default=128, metavar="N", help="decode: tokens at the end (default: %(default)s)"
    )
    add_device(parser, default="rtl")
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a table or JSON."""
    from tilewright.cli.options import memory_model, open_checked
    from tilewright.cli.progress import Progress

    bench = Bench(
        config=AcceleratorConfig.resolve(arguments.config),
        memory=memory_model(arguments.memory),
        device=device_kind(arguments.device),
        runs=RUNS if arguments.run_kind == "all" else (arguments.run_kind,),
        shapes=[parse_shape(text) for text in arguments.shape or SHAPES],
        model=arguments.model,
        context=arguments.context,
    )
    if bench.model is not None and not Path(bench.model).exists():
        raise InputError(f"no such file or folder: {bench.model}")
    progress = Progress(arguments.quiet)
    with progress.stage(f"{bench.device} device ({bench.config.name}) opened") as stage:
        open_checked(bench.device, bench.config, bench.memory, stage.say).close()
    rows = _measure(bench, progress)
    if arguments.json:
        print(json.dumps(_report(bench, rows), indent=2))
    else:
        print(_table(bench, rows))
    return 0


def _measure(bench: Bench, progress: Progress) -> list[Row]:
    from tilewright.cli.options import open_checked

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
