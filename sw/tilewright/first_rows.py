"""Known first rows: what a text's first row nearly is, whatever follows, at the inputs of a model's matrices.

Many models begin each text with the same token, and make of its row a place to attend to when there is nothing to
attend to: a few of its channels are enormous, and nearly the same in every text. In eight bits such channels leave
nothing for the others, and the weights that they meet leave nothing for those beside them. So the first row is
multiplied as its distance from a row c that is known beforehand, (x - c) @ W, and c @ W, computed in float, is added
with the bias. The model stays the same but for rounding. No program takes longer by more than a few instructions, as a
text has one first row only.

Sources: Massive Activations in Large Language Models (arXiv:2402.17762), which finds those rows, and that their values
do not depend on the text; IntactKV (arXiv:2403.01241), which keeps them out of quantisation by what they are in float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tilewright.formats import f24
from tilewright.model import Checkpoint, Floats
from tilewright.reference import Reference
from tilewright_hw.arch import InputError

__all__ = ["known_row", "with_first_rows"]

_SITES = {"wq": "qkv_first", "wk": "qkv_first", "wv": "qkv_first", "w_up": "up_first", "w_down": "down_first"}
"""Which known row is taken off the inputs of a matrix."""
_WORTH = 0.75
"""What must be left at most of a first row's largest element."""


def _name(matrix: str) -> str:
    """Return the name of the known row of a matrix's inputs; no tensor has it where there is none."""
    stem, _, last = matrix.rpartition(".")
    return f"{stem}.{_SITES.get(last)}"


def known_row(checkpoint: Checkpoint, matrix: str) -> Floats | None:
    """Return what is taken off the first of the rows that meet a matrix, (inputs,); None: nothing is."""
    name, spec = _name(matrix), checkpoint.spec
    return checkpoint.tensor(name) if spec.first_rows and name in spec.tensor_shapes() else None


def with_first_rows(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]], progress: Callable[[int, int], None] | None = None
) -> Checkpoint:
    """Return a model whose first rows are known: the mean of those of some texts.

    Where that takes less than a quarter off the largest elements of these rows, it is 0: they are different in every
    text, or there is nothing enormous about them.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    texts : sequence of sequences of int
        Token ids.
    progress : callable, optional
        Called with (done, total) while the model is run on the texts, in float32.

    Raises
    ------
    InputError
        There is no text, or the model is compiled, or has known rows already.
    """
    if checkpoint.stored is not None:
        raise InputError(f"known first rows need the checkpoint: {checkpoint.name} is compiled, its weights quantised")
    if checkpoint.spec.first_rows:
        raise InputError(f"{checkpoint.name} has known first rows already")
    if not texts:
        raise InputError("known first rows need at least one text")
    spec = replace(checkpoint.spec, first_rows=True)
    seen: dict[str, list[Floats]] = {name: [] for name in spec.tensor_shapes() if name.endswith("_first")}

    def see(matrix: str, rows: Floats) -> None:
        name = _name(matrix)
        if name in seen and not matrix.endswith((".wk", ".wv")):
            seen[name].append(rows[0])

    reference = Reference(checkpoint, observe=see)
    for done, ids in enumerate(texts, 1):
        # A causal model's first row sees itself alone.
        reference.hidden(ids[:1] if spec.causal else ids)
        if progress is not None:
            progress(done, len(texts))
    known = {name: _mean(np.stack(rows)) for name, rows in seen.items()}

    def read(name: str) -> Floats:
        return known[name].copy() if name in known else checkpoint.read(name)

    def rows(name: str, first: int, count: int) -> Floats | None:
        if name in known or checkpoint.read_rows is None:
            return None
        return checkpoint.read_rows(name, first, count)

    return replace(checkpoint, spec=spec, read=read, read_rows=rows)


def _mean(rows: Floats) -> Floats:
    """Return the mean of rows as the device has it, or zeros if the rows less it are not much smaller."""
    mean = f24(rows.mean(axis=0, dtype=np.float64).astype(np.float32))
    before, after = (np.abs(part).max(axis=1).mean() for part in (rows, rows - mean))
    return mean if after < _WORTH * before else np.zeros_like(mean)
