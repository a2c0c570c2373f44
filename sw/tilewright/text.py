"""Text from tokens as they come: no half characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.tokenizer import Tokenizer

__all__ = ["TextStream"]

_UNKNOWN = "\ufffd"
"""What bytes that are no character yet are decoded to."""


class TextStream:
    """Turns the tokens after a prompt into text, piece by piece.

    The pieces do not depend on where tokens begin and end: the text ends before the stop string that is complete
    first (the longer one, if two are), and what may yet become one is held back.

    Parameters
    ----------
    tokenizer : Tokenizer or None
        None: there is no text.
    prompt : sequence of int
        Decoded together with the new tokens, so that spaces between words are right.
    stops : sequence of str
        None of them empty.
    """

    def __init__(self, tokenizer: Tokenizer | None, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.text = ""
        """What has been given out."""
        self.stopped = False
        """Whether a stop string has ended the text."""
        self._prompt = list(prompt)
        self._head = 0 if tokenizer is None else len(tokenizer.decode(self._prompt))

    def update(self, tokens: Sequence[int], *, final: bool) -> str:
        """Return what is new and certain, now that these are all new tokens; after `final`, all of it."""
        if self.tokenizer is None or self.stopped:
            return ""
        whole = self.tokenizer.decode([*self._prompt, *tokens])[self._head :]
        cut = first_stop(whole, self.stops)
        if cut is not None:
            whole, self.stopped = whole[:cut], True
        elif not final:
            whole = whole.rstrip(_UNKNOWN)
            whole = whole[: len(whole) - max((_overlap(whole, stop) for stop in self.stops), default=0)]
        piece = whole[len(self.text) :]
        self.text += piece
        return piece


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the stop string that is complete first begins; None if there is none."""
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(ends)[1] if ends else None


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
