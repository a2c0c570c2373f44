"""Models of any size with random weights, in memory: `random:dim=320,ffn=864,layers=8,heads=5,vocab=4096,seed=1`."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from tilewright.model import Checkpoint, Floats, ModelSpec
from tilewright_hw.arch import InputError

PREFIX = "random:"
DEFAULTS = {"layers": 2, "kv_heads": 0, "head_dim": 0, "context": 256, "seed": 1}
"""What need not be given; 0: kv_heads as heads, head_dim as dim / heads."""
NEEDED = ("dim", "ffn", "heads", "vocab")


def is_random(name: str | None) -> bool:
    """Return whether a model's name asks for random weights."""
    return name is not None and name.startswith(PREFIX)


def random_checkpoint(name: str) -> Checkpoint:
    """Return the model that `random:key=value,...` describes; InputError says what is wrong with it.

    Keys: dim, ffn, heads, vocab; and layers, kv_heads, head_dim, context, seed. A tensor depends on the seed, its name
    and its shape alone.
    """
    values = _parse(name)
    seed = values.pop("seed")
    values["kv_heads"] = values["kv_heads"] or values["heads"]
    if not values["head_dim"]:
        if values["dim"] % max(values["heads"], 1):
            raise InputError(f"{name}: dim must be a multiple of heads, or head_dim be given")
        values["head_dim"] = values["dim"] // max(values["heads"], 1)
    sizes: dict[str, Any] = dict(values)
    spec = ModelSpec(**sizes)
    shapes = spec.tensor_shapes()

    def read(tensor: str) -> Floats:
        shape = shapes[tensor]
        random = np.random.default_rng([seed, zlib.crc32(tensor.encode())])
        if len(shape) == 1:
            return random.uniform(0.5, 1.5, shape).astype(np.float32)
        return random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))

    return Checkpoint(spec, read, name)


def _parse(name: str) -> dict[str, int]:
    values = dict(DEFAULTS)
    for part in name.removeprefix(PREFIX).split(","):
        key, sign, value = (word.strip() for word in part.partition("="))
        if not sign or key not in (*NEEDED, *DEFAULTS):
            raise InputError(
                f"a random model is written like {PREFIX}dim=64,ffn=128,heads=4,vocab=256 "
                f"(of {', '.join((*NEEDED, *DEFAULTS))}), not {part!r}"
            )
        if not value.isascii() or not value.isdigit():
            raise InputError(f"{PREFIX[:-1]} model: {key} must be an integer from 0 on, not {value!r}")
        values[key] = int(value)
    if missing := [key for key in NEEDED if key not in values]:
        raise InputError(f"{name}: {', '.join(missing)} must be given")
    return values
