"""The texts that a model is run on before its weights are quantised with compensation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tilewright.evaluate import windows
from tilewright.model import Checkpoint
from tilewright.quantisers import CALIBRATION, DEFAULT_QUANTISER, QUANTISERS, Quantiser, make
from tilewright.requantise import Measured
from tilewright.tokenizer import HuggingFaceTokenizer, Tokenizer
from tilewright_hw.arch import InputError

__all__ = ["check_quantiser", "quantiser_for", "read_text", "texts"]

MAX_TEXT = 1 << 30
"""Bytes of the largest text that is read."""
_WINDOW = 256
"""Tokens of a text, at most."""
_TEXTS, _SENTENCES = 64, 500
"""Windows, or sentences, at most."""
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


def check_quantiser(name: str, calibration: str | Path | None = None) -> None:
    """InputError if there is no such quantiser, or if it takes no calibration texts and some are given."""
    if name not in QUANTISERS:
        raise InputError(f"quantiser must be one of {', '.join(QUANTISERS)}, not {name!r}")
    if calibration is not None and name != "compensate":
        raise InputError(f"calibration texts go with the quantiser compensate, not {name}")


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
            raise InputError("the quantiser compensate needs a tokenizer for its texts")
        return texts(checkpoint, tokenizer, read_text(calibration or CALIBRATION))

    made = make(name, checkpoint, ids, progress)
    return Measured(made, checkpoint.matrix_types) if checkpoint.matrix_types else made
