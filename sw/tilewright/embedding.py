"""From the hidden rows of an encoder to one vector of a text, as the files of sentence-transformers say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.files import Files, read_object
from tilewright.model import Floats, ModelSpec
from tilewright_hw.arch import InputError

__all__ = ["POOLINGS", "Recipe", "read_recipe"]

Rows = NDArray[np.float64]
MODULES = "modules.json"
POOLINGS: dict[str, Callable[[Rows], Rows]] = {
    "cls_token": lambda rows: np.asarray(rows[0]),
    "max_tokens": lambda rows: np.asarray(rows.max(axis=0)),
    "mean_tokens": lambda rows: np.asarray(rows.sum(axis=0) / len(rows)),
    "mean_sqrt_len_tokens": lambda rows: np.asarray(rows.sum(axis=0) / np.sqrt(len(rows))),
}
"""What a text's rows (tokens, dim) become (dim,), by their names in sentence-transformers, and in its order."""
_LEAST_NORM = 1e-12
"""As torch.nn.functional.normalize."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a text becomes a vector.

    Parameters
    ----------
    max_tokens : int
        Longer texts are cut to this, special tokens included.
    lowercase : bool
        Text is lowered before it is tokenised.
    prompt : str
        Put in front of every text.
    poolings : tuple of str
        Of `POOLINGS`; their vectors follow one another.
    normalise : bool
        The vector's length becomes 1.
    """

    max_tokens: int
    lowercase: bool = False
    prompt: str = ""
    poolings: tuple[str, ...] = ("mean_tokens",)
    normalise: bool = False

    def prepare(self, text: str) -> str:
        """Return the text that is tokenised."""
        whole = (self.prompt + text).strip()
        return whole.lower() if self.lowercase else whole

    def vector(self, rows: Floats) -> Floats:
        """Return the vector of a text's rows, float32 (dim * poolings,); computed in float64, row by row."""
        wide = rows.astype(np.float64)
        vector = np.concatenate([POOLINGS[name](wide) for name in self.poolings])
        if self.normalise:
            vector /= max(float(np.sqrt(np.sum(vector * vector))), _LEAST_NORM)
        return vector.astype(np.float32)


def read_recipe(files: Files, spec: ModelSpec) -> Recipe:
    """Return how the model's files say that texts become vectors.

    Without a modules.json it is the mean of the rows, not normalised, as sentence-transformers does with a plain
    encoder. InputError names a module or an option that is not supported.
    """
    modules = _modules(files)
    settings = read_object(files, "sentence_bert_config.json") or {}
    values: dict[str, Any] = {
        "max_tokens": _max_tokens(files, settings, spec),
        "lowercase": bool(settings.get("do_lower_case", False)),
    }
    if modules is not None:
        values |= {"poolings": (), "prompt": _prompt(files), "normalise": False}
        for kind, path in modules:
            if kind == "Pooling":
                values["poolings"] = _poolings(files, path, bool(values["prompt"]))
            else:
                values["normalise"] = True
        if not values["poolings"]:
            raise InputError(f"{files.where(MODULES)} must name a Pooling module")
    return Recipe(**values)


def _modules(files: Files) -> list[tuple[str, str]] | None:
    """Return (kind, folder) of the modules after the transformer; None if there is no list of them."""
    raw = files.read(MODULES)
    if raw is None:
        return None
    where = files.where(MODULES)
    try:
        entries = json.loads(raw.decode("utf-8"))
        found = [(str(e["type"]).rpartition(".")[2], str(e["path"])) for e in entries]
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where} is not valid JSON: {e}") from e
    except (TypeError, KeyError) as e:
        raise InputError(f"{where} must be a list of modules, each with a type and a path") from e
    if [kind for kind, _ in found[:1]] != ["Transformer"] or found[0][1] not in ("", "."):
        raise InputError(f"{where} must begin with a Transformer in the model's own folder")
    kinds = tuple(kind for kind, _ in found[1:])
    if kinds not in (("Pooling",), ("Pooling", "Normalize")):
        raise InputError(
            f"modules {', '.join(kinds) or 'none'} are not supported: must be Pooling, then Normalize or nothing"
        )
    return found[1:]


def _poolings(files: Files, path: str, prompted: bool) -> tuple[str, ...]:
    """Return the ways of pooling that a Pooling module's configuration asks for."""
    name = str(PurePosixPath(path) / "config.json")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise InputError(f"{files.where(MODULES)}: {path!r} must be a folder within the model's")
    config = read_object(files, name)
    if config is None:
        raise InputError(f"{files.where(name)} is missing")
    wanted = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    # Newer files name the way instead of switching it on.
    mode = config.get("pooling_mode")
    wanted += [f"{mode}_tokens" if f"{mode}_tokens" in POOLINGS else f"{mode}_token"] if mode is not None else []
    for way in wanted:
        if way not in POOLINGS:
            raise InputError(f"{files.where(name)}: pooling {way} is not supported: must be of {', '.join(POOLINGS)}")
    if prompted and config.get("include_prompt") is False:
        raise InputError(f"{files.where(name)}: option include_prompt = False is not supported")
    return tuple(way for way in POOLINGS if way in wanted)


def _prompt(files: Files) -> str:
    """Return the prompt that is put in front where the caller names none."""
    config = read_object(files, "config_sentence_transformers.json") or {}
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, Mapping) else None
    if not isinstance(prompt, str):
        raise InputError(f"{files.where('config_sentence_transformers.json')}: prompt {name!r} is missing")
    return prompt


def _max_tokens(files: Files, settings: Mapping[str, Any], spec: ModelSpec) -> int:
    """Return the longest text: as sentence_bert_config.json says, else the tokenizer's and the model's own limit."""
    found: Sequence[tuple[str, Any]] = [
        ("sentence_bert_config.json: max_seq_length", settings.get("max_seq_length")),
        (
            "tokenizer_config.json: model_max_length",
            (read_object(files, "tokenizer_config.json") or {}).get("model_max_length"),
        ),
    ]
    for name, value in found:
        if value is None:
            continue
        # Tokenizers without a limit write 1e30.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
            raise InputError(f"{name} must be a positive integer, not {value!r}")
        return int(min(value, spec.context))
    return spec.context
