"""A checkpoint's config.json: its fields, checked as they are asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright_hw.arch import InputError

__all__ = ["MAX_JSON", "Configuration", "read_json"]

MAX_JSON = 64 << 20
"""Bytes of the largest JSON text (a configuration, an index, a safetensors header) that is read."""


def read_json(path: Path) -> Any:
    """Return a JSON file's content; InputError if it is absent, absurdly large or not JSON."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise InputError(f"{path} must be at most {MAX_JSON >> 20} MiB, not {path.stat().st_size} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is not valid JSON: {e}") from e


@dataclass(frozen=True)
class Configuration:
    """The fields of a config.json.

    All methods raise InputError with the file, the field and its value. A field that is null counts as absent.

    Parameters
    ----------
    path : Path
        The file.
    fields : dict
        Its content.
    """

    path: Path
    fields: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Configuration:
        """Read a folder's config.json."""
        path = folder / "config.json"
        fields = read_json(path)
        if not isinstance(fields, dict):
            raise InputError(f"{path} must hold a JSON object")
        return cls(path, fields)

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the first of some fields that is there."""
        return next((self.fields[name] for name in names if self.fields.get(name) is not None), default)

    def error(self, message: str) -> InputError:
        """Return an error about this file."""
        return InputError(f"{self.path}: {message}")

    def integer(self, name: str, *others: str, default: int | None = None) -> int:
        """Return a positive integer, under its name or another one."""
        value = self.get(name, *others, default=default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise self.error(f"{name} must be a positive integer, not {value!r}")
        return value

    def number(self, name: str, *others: str, default: float | None = None) -> float:
        """Return a number above 0, under its name or another one."""
        value = self.get(name, *others, default=default)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
        if not good:
            raise self.error(f"{name} must be a number above 0, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a truth value."""
        value = self.get(name, default=default)
        if not isinstance(value, bool):
            raise self.error(f"{name} must be true or false, not {value!r}")
        return value

    def choice(self, name: str, known: dict[str, str], default: str) -> str:
        """Return what a field's value means; the error lists the values that are supported."""
        value = self.get(name, default=default)
        if not isinstance(value, str) or value not in known:
            raise self.refused(name, f"must be one of {', '.join(map(repr, known))}")
        return known[value]

    def table(self, name: str) -> dict[str, Any]:
        """Return a field that is an object; {} where it is absent."""
        value = self.get(name, default={})
        if not isinstance(value, dict):
            raise self.error(f"{name} must be an object, not {value!r}")
        return value

    def refuse(self, names: Sequence[str]) -> None:
        """Refuse options that are not supported, if they are there and not false, 0 or empty."""
        for name in names:
            if self.fields.get(name):
                raise self.refused(name)

    def refused(self, name: str, rule: str = "") -> InputError:
        """Return the error that says that an option's value is not supported."""
        more = f": {rule}" if rule else ""
        return InputError(f"option {name} = {self.fields.get(name)!r} is not supported{more}")
