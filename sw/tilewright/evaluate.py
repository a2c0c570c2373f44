"""Quality: how well a model predicts a text in the accelerator's arithmetic, beside floating point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilewright.model import Checkpoint
from tilewright.reference import Reference, cross_entropy
from tilewright.runtime import Engine
from tilewright.tokenizer import Tokenizer
from tilewright_hw.arch import InputError

__all__ = ["Quality", "evaluate", "select", "windows"]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Cross-entropies of one text, in nats per token.

    Parameters
    ----------
    tokens : int
        Tokens predicted.
    window : int
        Tokens that a prediction may see, at most.
    cross_entropy : float
        In the accelerator's arithmetic.
    cross_entropy_float : float
        Of the same weights in float32.
    """

    tokens: int
    window: int
    cross_entropy: float
    cross_entropy_float: float

    @property
    def perplexity(self) -> float:
        """The exponential of the cross-entropy."""
        return math.exp(min(self.cross_entropy, 700.0))

    @property
    def perplexity_float(self) -> float:
        """The same in float32."""
        return math.exp(min(self.cross_entropy_float, 700.0))

    @property
    def loss(self) -> float:
        """What the accelerator's arithmetic loses: its cross-entropy over float32's, minus 1."""
        return self.cross_entropy / self.cross_entropy_float - 1

    def to_dict(self) -> dict[str, Any]:
        """Return fields and what follows from them."""
        more = {"perplexity": self.perplexity, "perplexity_float": self.perplexity_float, "loss": self.loss}
        return asdict(self) | more


def windows(tokenizer: Tokenizer, text: str, window: int) -> list[list[int]]:
    """Cut a text into windows of at most `window` tokens, each with BOS in front if the tokenizer has one.

    A window's first token predicts its second, and so on; windows do not overlap. InputError if nothing is left to
    predict.
    """
    if window < 2:
        raise InputError(f"window must be at least 2 tokens, not {window}")
    ids = tokenizer.encode(text)
    head: list[int] = []
    if tokenizer.bos is not None and ids[:1] == [tokenizer.bos]:
        head, ids = ids[:1], ids[1:]
    step = window - len(head)
    parts = [head + ids[i : i + step] for i in range(0, len(ids), step)]
    parts = [part for part in parts if len(part) > 1]
    if not parts:
        raise InputError(f"the text must have at least two tokens, not {len(head) + len(ids)}")
    return parts


def select(parts: Sequence[list[int]], skip: int = 0, tokens: int | None = None) -> list[list[int]]:
    """Return the windows that predict `tokens` tokens (None: all) after the first `skip`, in whole windows.

    InputError if none is left.
    """
    size = len(parts[0]) - 1
    first = -(-skip // size)
    last = len(parts) if tokens is None else first + -(-tokens // size)
    chosen = list(parts[first:last])
    if not chosen:
        raise InputError(f"skip must leave a window: the text has {len(parts)} of {size} predicted tokens")
    return chosen


def evaluate(
    engine: Engine,
    checkpoint: Checkpoint,
    parts: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None = None,
) -> Quality:
    """Measure a model on windows of a text.

    Parameters
    ----------
    engine : Engine
        The model on a device; golden, as a rule: every device gives the same bits.
    checkpoint : Checkpoint
        The same model, for float32.
    parts : sequence of sequences of int
        Windows, as `windows` makes them.
    progress : callable, optional
        Called with (done, total) after each window.

    Raises
    ------
    InputError
        The model has no classifier, or a window does not fit its context.
    """
    if not checkpoint.spec.classifier:
        raise InputError("the model has no classifier: there is nothing to predict")
    reference = Reference(checkpoint)
    machine = floating = 0.0
    tokens = 0
    for done, part in enumerate(parts, 1):
        seen, targets = list(part[:-1]), list(part[1:])
        engine.reset()
        machine += cross_entropy(engine.feed(seen, logits="all"), targets)
        floating += cross_entropy(reference.logits(seen), targets)
        tokens += len(targets)
        if progress is not None:
            progress(done, len(parts))
    window = max(len(part) for part in parts)
    return Quality(
        tokens=tokens,
        window=window,
        cross_entropy=machine / tokens,
        cross_entropy_float=floating / tokens,
    )
