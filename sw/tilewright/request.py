"""What a caller may ask of a generation, and what a model's generation_config.json asks where the caller does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from tilewright.files import NOTHING, Files, read_object
from tilewright.sampling import Sampling
from tilewright_hw.arch import InputError

__all__ = ["Options", "Request", "check_request", "read_defaults"]

CONFIG = "generation_config.json"
TOP_K = 50
"""What transformers takes where a model samples and its file says nothing."""


class Options(TypedDict, total=False):
    """Options of `Model.generate`, `stream` and `start`.

    temperature, top_k, top_p, repetition_penalty, seed: see `Sampling`. One that is absent or None is as the model's
    generation_config.json says, and greedy where there is none. stop: the text ends before the first of these strings.
    stop_tokens: ids that end the text, besides the model's own.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request: at most so many new tokens, how they are chosen, and what ends the text before."""

    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()


def check_request(
    max_new_tokens: int, defaults: Mapping[str, Any] | None = None, *, vocab: int | None = None,
    temperature: float | None = None, top_k: int | None = None, top_p: float | None = None,
    repetition_penalty: float | None = None, seed: int = 0, stop: str | Sequence[str] = (),
    stop_tokens: Sequence[int] = (),
) -> Request:  # fmt: skip
    """Return a request; InputError names the option that is wrong.

    `defaults` are those of the model (`read_defaults`); `vocab` bounds the tokens, where it is known.
    """
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be a positive integer, not {max_new_tokens!r}")
    stops = (stop,) if isinstance(stop, str) else _as_tuple("stop", stop)
    if not all(isinstance(s, str) and s for s in stops):
        raise InputError(f"stop must be a string or several, none of them empty, not {stop!r}")
    tokens = _as_tuple("stop_tokens", stop_tokens)
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < (vocab or token + 1):
            bound = f"0 to {vocab - 1}" if vocab else "integers from 0 on"
            raise InputError(f"stop_tokens must be {bound}, not {token!r}")
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    values = {**(defaults or {}), **{name: value for name, value in given.items() if value is not None}}
    return Request(
        max_new_tokens=max_new_tokens,
        sampling=Sampling(seed=seed, **values),
        stop=stops,
        stop_tokens=frozenset(tokens),
    )


def _as_tuple(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    if not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list, not {values!r}")
    return tuple(values)


def read_defaults(files: Files = NOTHING) -> dict[str, Any]:
    """Return the fields of `Sampling` that a model's generation_config.json sets.

    As in transformers, temperature, top_k and top_p count where do_sample is true. The file's other options (beams,
    length limits, ...) are not of this sampler, and left alone. InputError names a value that is none.
    """
    config = read_object(files, CONFIG) or {}
    values = {name: config[name] for name in ("repetition_penalty",) if config.get(name) is not None}
    if config.get("do_sample"):
        values |= {"temperature": 1.0, "top_k": TOP_K}
        values |= {name: config[name] for name in ("temperature", "top_k", "top_p") if config.get(name) is not None}
    try:
        Sampling(**values)
    except InputError as e:
        raise InputError(f"{files.where(CONFIG)}: {e}") from e
    return values
