"""The texts that a model is run on before it is quantised: for compensation, and for known first rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tilewright.evaluate import windows
from tilewright.first_rows import with_first_rows
from tilewright.model import Checkpoint
from tilewright.quantisers import CALIBRATION, DEFAULT_QUANTISER, QUANTISERS, Quantiser, make
from tilewright.requantise import Measured
from tilewright.tokenizer import HuggingFaceTokenizer, Tokenizer
from tilewright_hw.arch import InputError

__all__ = ["FIRST_ROWS", "check_quantiser", "first_rows_for", "knows_first_rows", "quantiser_for", "read_text", "texts"]

FIRST_ROWS = ("plain", "known")
"""How the first row of a text is quantised: like all others, or as its distance from a known one."""

MAX_TEXT = 1 << 30
"""Bytes of the largest text that is read."""
_WINDOW = 256
"""Tokens of a text, at most."""
_TEXTS, _SENTENCES = 64, 500
"""Windows, or sentences, at most."""
_FIRST_TEXTS, _FIRST_TOKENS = 32, 64
"""Texts, and tokens of each, from which first rows are known; of shorter contexts, as many tokens as these have."""
_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
"""What lies between two sentences of a line."""


def read_text(path: str | Path) -> str:
    """Return a text file's content; InputError if it is absent, absurdly large, empty or not UTF-8."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_TEXT:
            raise InputError(f"{path} must be at most {MAX_TEXT >> 20} MiB, not {path.stat().st_size} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path} must be UTF-8: {e.reason} at byte {e.start}") from e
    if not text:
        raise InputError(f"{path} must not be empty")
    return text


def texts(checkpoint: Checkpoint, tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """Return the token ids of some texts of a file's content.

    For a model that continues texts: the first windows of it. For an encoder: its first sentences, of which many are
    short: a text's first rows are unlike all others, and count for much in a short one.
    """
    most = min(_WINDOW, checkpoint.spec.context)
    if checkpoint.spec.causal:
        return windows(tokenizer, text, most)[:_TEXTS]
    lines = [part for line in text.splitlines() for part in _SENTENCE.split(line) if part.strip()][:_SENTENCES]
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return [tokenizer.encode_cut(line, most)[0] for line in lines]
    return [tokenizer.encode(line)[:most] for line in lines]


def check_quantiser(name: str, calibration: str | Path | None = None, first_row: str | None = None) -> None:
    """InputError if a name is not known, or if calibration texts are given that nothing looks at."""
    if name not in QUANTISERS:
        raise InputError(f"quantiser must be one of {', '.join(QUANTISERS)}, not {name!r}")
    if first_row is not None and first_row not in FIRST_ROWS:
        raise InputError(f"first_row must be one of {', '.join(FIRST_ROWS)}, not {first_row!r}")
    if calibration is not None and name != "compensate" and first_row != "known":
        raise InputError(
            f"calibration texts go with the quantiser compensate, not {name}, or with a first row that is known"
        )


def knows_first_rows(checkpoint: Checkpoint, tokenizer: Tokenizer | None, first_row: str | None = None) -> bool:
    """Whether a model's first rows are to become known: as `first_row` says, or for encoders, if None.

    Every text of an encoder begins with the same token. InputError if it is asked for, and cannot be.
    """
    if first_row is None:
        begins_alike = not checkpoint.spec.causal and isinstance(tokenizer, HuggingFaceTokenizer)
        return begins_alike and checkpoint.stored is None and not checkpoint.spec.first_rows
    if checkpoint.stored is not None and (first_row == "known") != checkpoint.spec.first_rows:
        raise InputError(f"first_row {first_row} needs the checkpoint: {checkpoint.name} is compiled without it")
    return first_row == "known" and checkpoint.stored is None


def first_rows_for(
    checkpoint: Checkpoint, tokenizer: Tokenizer | None, first_row: str | None = None,
    calibration: str | Path | None = None, progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:  # fmt: skip
    """Return the model with its first rows known, from the texts of a file or those that come along, or as it is.

    Errors as in `knows_first_rows`; InputError if the file cannot be read, or there is no tokenizer for it.
    """
    if not knows_first_rows(checkpoint, tokenizer, first_row):
        return checkpoint
    if tokenizer is None:
        raise InputError("known first rows need a tokenizer for their texts")
    return with_first_rows(checkpoint, _few_texts(checkpoint, tokenizer, calibration), progress)


def _few_texts(checkpoint: Checkpoint, tokenizer: Tokenizer, calibration: str | Path | None) -> list[list[int]]:
    """Return the beginnings of the first few texts of a file, or of those that come along."""
    found = texts(checkpoint, tokenizer, read_text(calibration or CALIBRATION))[:_FIRST_TEXTS]
    return [ids[:_FIRST_TOKENS] for ids in found]


def quantiser_for(
    name: str, checkpoint: Checkpoint, tokenizer: Tokenizer | None, calibration: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quantiser:  # fmt: skip
    """Return a quantiser by name, with the texts of a file, or those that come with the package.

    Of a file whose weights may be quantised already, it is one that measures what quantising them anew loses.
    InputError if the name is not known, the file cannot be read, or there is no tokenizer for it.
    """
    check_quantiser(name, calibration)
    if checkpoint.stored is not None and name != DEFAULT_QUANTISER:
        raise InputError(f"quantiser {name} needs the checkpoint: {checkpoint.name} is compiled, its weights quantised")

    def ids() -> list[list[int]]:
        if tokenizer is None:
            raise InputError(f"the quantiser {name} needs a tokenizer for its texts")
        if name == "search":
            return _few_texts(checkpoint, tokenizer, calibration)
        return texts(checkpoint, tokenizer, read_text(calibration or CALIBRATION))

    made = make(name, checkpoint, ids, progress)
    return Measured(made, checkpoint.matrix_types) if checkpoint.matrix_types else made
