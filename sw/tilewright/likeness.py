"""Quality of an encoder: how near its vectors in the accelerator's arithmetic are to those in floating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tilewright.api import Model
from tilewright.model import Checkpoint
from tilewright.reference import Reference
from tilewright_hw.arch import InputError

__all__ = ["Likeness", "compare_vectors"]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Cosines between the vectors of some texts.

    Parameters
    ----------
    tokens : tuple of int
        Tokens of each text, special ones included.
    cosines : tuple of float
        Of each text: between its vector in the accelerator's arithmetic and in float32.
    """

    tokens: tuple[int, ...]
    cosines: tuple[float, ...]

    @property
    def least(self) -> float:
        """The cosine of the text that fares worst."""
        return min(self.cosines)

    @property
    def mean(self) -> float:
        """The mean cosine."""
        return sum(self.cosines) / len(self.cosines)

    def to_dict(self) -> dict[str, Any]:
        """Return fields and what follows from them."""
        return asdict(self) | {"cosine_least": self.least, "cosine_mean": self.mean}


def compare_vectors(
    model: Model, checkpoint: Checkpoint, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> Likeness:
    """Make the vectors of some texts on the model's device and in float32, and compare them.

    Parameters
    ----------
    model : Model
        An encoder.
    checkpoint : Checkpoint
        The same model, for float32.
    texts : sequence of str
        The texts.
    progress : callable, optional
        Called with (done, total) after each text.

    Raises
    ------
    InputError
        There is no text, or the model is no encoder.
    """
    if not texts:
        raise InputError("at least one text must be given")
    reference, recipe = Reference(checkpoint), model.recipe
    if recipe is None:
        raise InputError(f"{model.name} continues texts: only an encoder makes vectors of them")
    tokens, cosines = [], []
    for done, text in enumerate(texts, 1):
        ids = model.text_ids(text)[0]
        a = model.embed([text])[0].astype(np.float64)
        b = recipe.vector(reference.hidden(ids)).astype(np.float64)
        tokens.append(len(ids))
        cosines.append(float(a @ b / np.sqrt((a @ a) * (b @ b))))
        if progress is not None:
            progress(done, len(texts))
    return Likeness(tokens=tuple(tokens), cosines=tuple(cosines))
