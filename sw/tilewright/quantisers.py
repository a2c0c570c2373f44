"""How a model's weights are quantised: from the weights alone, or with the rows that they meet on a few texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tilewright import int4
from tilewright.error_feedback import compensate_int8, search_int8
from tilewright.first_rows import known_row
from tilewright.formats import quantise_int8
from tilewright.model import Checkpoint, Floats, ModelSpec
from tilewright.reference import Reference
from tilewright_hw.arch import InputError

__all__ = [
    "CALIBRATION",
    "DEFAULT_QUANTISER",
    "QUANTISERS",
    "Compensated",
    "Plain",
    "Quantiser",
    "Weighed",
    "looks_at_texts",
    "make",
    "observe",
]

QUANTISERS = ("round", "search", "compensate")
"""Names, of rising cost."""
DEFAULT_QUANTISER = "search"
CALIBRATION = Path(__file__).parent / "models" / "calibration.txt"
"""Texts that are taken where none are given: tales from the built-in model's training text."""
_AT_ONCE = 512
"""Rows whose products are added up at a time."""


class Quantiser(Protocol):
    """Makes the weights of a model's matrices, which it is given (n, k) as they will lie in memory.

    Where `whole` is false, it may be given some rows at a time.
    """

    @property
    def whole(self) -> bool:
        """Whether it must be given all rows of a matrix at once."""

    def int8(self, name: str, w: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Return q (n, k) and a scale for each channel (n,)."""

    def int4(self, name: str, w: Floats) -> tuple[NDArray[np.int8], NDArray[np.uint8], Floats]:
        """Return q, g and s (`Int4.parts`)."""


@dataclass(frozen=True)
class Plain:
    """Looks at the weights alone: int8 by rounding, int4 by rounding or by a search over its scales."""

    four: Callable[[Floats], int4.Int4] = int4.search
    whole = False

    def int8(self, name: str, w: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Round."""
        return quantise_int8(w)

    def int4(self, name: str, w: Floats) -> tuple[NDArray[np.int8], NDArray[np.uint8], Floats]:
        """Round, or search."""
        return self.four(w).parts


@dataclass(frozen=True)
class Weighed(Plain):
    """As `Plain`, but int8 by a search over the scales, for the inputs of a few texts.

    Parameters
    ----------
    spec : ModelSpec
        The model's shape.
    squares : dict of str to float array
        Of each matrix's inputs, the sum of squares.
    """

    spec: ModelSpec = field(kw_only=True)
    squares: dict[str, Floats] = field(kw_only=True, repr=False)

    def int8(self, name: str, w: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Search for scales, then round; padding is left out meanwhile, as in `Compensated`."""
        squares = self.squares[_input_of(name, self.squares)].astype(np.float64)
        if not name.endswith(".wo"):
            return search_int8(w, squares)
        place, q = _places(self.spec, w.shape[1]), np.zeros(w.shape, np.int8)
        q[:, place], scales = search_int8(w[:, place], squares)
        return q, scales


@dataclass(frozen=True)
class Compensated:
    """Lets each weight's error be made up for by weights that come after it, as the inputs go together.

    Parameters
    ----------
    spec : ModelSpec
        The model's shape.
    moments : dict of str to float array
        Of each matrix's inputs; see `observe`.
    """

    spec: ModelSpec
    moments: dict[str, Floats] = field(repr=False)
    whole = True

    def int8(self, name: str, w: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Round with compensation.

        What a configuration pads is left out meanwhile: the weights must not depend on it, to the last bit.
        """
        rows, columns = np.flatnonzero(w.any(axis=1)), np.arange(w.shape[1])
        if name.endswith(".wo"):
            columns = _places(self.spec, w.shape[1])
        q, scales = np.zeros(w.shape, np.int8), np.zeros(len(w), np.float32)
        inner, scales[rows] = compensate_int8(w[np.ix_(rows, columns)], self._of(name, len(columns)))
        q[np.ix_(rows, columns)] = inner
        return q, scales

    def int4(self, name: str, w: Floats) -> tuple[NDArray[np.int8], NDArray[np.uint8], Floats]:
        """Search for scales, then round with compensation."""
        return int4.compensate(w, self._of(name, w.shape[1])).parts

    def _of(self, name: str, k: int) -> NDArray[np.float64]:
        """Return the moments of the k inputs of a matrix of the memory image."""
        found = self.moments[_input_of(name, self.moments)].astype(np.float64)
        if not name.endswith(".wo"):
            return found
        place, out = _places(self.spec, k), np.zeros((k, k))
        out[np.ix_(place, place)] = found
        return out


def _input_of(name: str, known: Mapping[str, Floats]) -> str:
    """Return by which name the inputs of a matrix of the memory image are known.

    Queries, keys and values have the same input, whichever of them a matrix holds.
    """
    return name if name in known else f"{name.rpartition('.')[0]}.wq"


def _places(spec: ModelSpec, k: int) -> NDArray[np.int64]:
    """Return where the channels of all heads lie among k inputs, where padding follows each head."""
    return np.asarray((np.arange(spec.heads)[:, None] * (k // spec.heads) + np.arange(spec.head_dim)).reshape(-1))


def looks_at_texts(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a quantiser, by name, is made from texts: `search` is for a model that needs some anyway."""
    known = checkpoint.spec.first_rows and checkpoint.stored is None
    return name == "compensate" or (name == "search" and known)


def make(
    name: str, checkpoint: Checkpoint, texts: Callable[[], Sequence[Sequence[int]]],
    progress: Callable[[int, int], None] | None = None,
) -> Quantiser:  # fmt: skip
    """Return a quantiser by name.

    Parameters
    ----------
    name : {"round", "search", "compensate"}
        Which. `round` and `search` differ for int4, and for int8 where the first rows of texts are known.
    checkpoint : Checkpoint
        The model.
    texts : callable
        Returns the token ids of some texts; see `looks_at_texts`.
    progress : callable, optional
        Called with (done, total) while the model is run on the texts.

    Raises
    ------
    InputError
        The name is not known.
    """
    if name not in QUANTISERS:
        raise InputError(f"quantiser must be one of {', '.join(QUANTISERS)}, not {name!r}")
    if name == "compensate":
        return Compensated(checkpoint.spec, observe(checkpoint, texts(), progress))
    if looks_at_texts(name, checkpoint):
        moments = observe(checkpoint, texts(), progress)
        return Weighed(spec=checkpoint.spec, squares={name: np.diag(each).copy() for name, each in moments.items()})
    return Plain(int4.round_to_int4 if name == "round" else int4.search)


def observe(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]], progress: Callable[[int, int], None] | None = None
) -> dict[str, Floats]:
    """Run a model in floating point and return, for each matrix, the sum over rows of x^T x of its inputs.

    Each is float32 (inputs, inputs), by the matrix's canonical name; of queries, keys and values, which have the same
    input, only that of the queries. What a known row is taken off has it off (`tilewright.first_rows`).
    """
    sums: dict[str, _Sum] = {}

    def see(name: str, rows: Floats) -> None:
        if not name.endswith((".wk", ".wv")):
            known = known_row(checkpoint, name)
            if known is not None:
                rows = np.concatenate([rows[:1] - known, rows[1:]])
            sums.setdefault(name, _Sum()).add(rows)

    reference = Reference(checkpoint, observe=see)
    for done, ids in enumerate(texts, 1):
        _ = reference.logits(ids) if checkpoint.spec.classifier else reference.hidden(ids)
        if progress is not None:
            progress(done, len(texts))
    return {name: each.total() for name, each in sums.items()}


class _Sum:
    """Adds up x^T x; many rows at a time, as each addition takes time of its own."""

    def __init__(self) -> None:
        self._waiting: list[Floats] = []
        self._sum: Floats | None = None

    def add(self, rows: Floats) -> None:
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _AT_ONCE:
            self.total()

    def total(self) -> Floats:
        """Return the sum of all so far."""
        if self._waiting:
            rows = np.concatenate(self._waiting)
            more = np.asarray(rows.T @ rows, dtype=np.float32)
            self._sum = more if self._sum is None else self._sum + more
            self._waiting = []
        assert self._sum is not None, "something was added"
        return self._sum
