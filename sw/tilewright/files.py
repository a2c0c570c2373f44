"""The small files beside a model's weights, that say how it is used: tokenizer, templates, defaults, pooling."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tilewright_hw.arch import InputError

__all__ = ["MAX_FILE", "NOTHING", "Files", "FolderFiles", "StoredFiles", "forget", "map_file", "read_object"]

MAX_FILE = 256 << 20
"""Bytes of the largest of these files that is read."""
_AROUND = 4 << 20
"""Bytes: a multiple of a page, and more than a fault maps."""


class Files(Protocol):
    """Files by their names, with forward slashes, whether they lie in a folder or within another file."""

    def where(self, name: str) -> str:
        """Return what to call a file in an error."""

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None if there is none. InputError if it cannot be read or is absurdly large."""


@dataclass(frozen=True)
class FolderFiles:
    """Files of a folder."""

    folder: Path

    def where(self, name: str) -> str:
        """Return its path."""
        return str(self.folder / name)

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None if there is none."""
        path = self.folder / name
        try:
            size = path.stat().st_size
            if size > MAX_FILE:
                raise InputError(f"{path} must be at most {MAX_FILE >> 20} MiB, not {size} bytes")
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise InputError(f"cannot read {path}: {e.strerror}") from e


@dataclass(frozen=True)
class StoredFiles:
    """Files that are in memory.

    Parameters
    ----------
    origin : str
        Where they come from, for errors.
    content : mapping of str to bytes
        Their names and bytes.
    """

    origin: str
    content: Mapping[str, bytes] = field(default_factory=dict)

    def where(self, name: str) -> str:
        """Return its name, and where it lies."""
        return f"{name} in {self.origin}"

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None if there is none."""
        return self.content.get(name)


NOTHING = StoredFiles("nowhere")
"""No files."""


def read_object(files: Files, name: str) -> dict[str, Any] | None:
    """Return the JSON object that a file holds; None if there is no such file, InputError if it holds anything else."""
    raw = files.read(name)
    if raw is None:
        return None
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise InputError(f"{files.where(name)} is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise InputError(f"{files.where(name)} must hold a JSON object")
    return value


def map_file(path: Path) -> mmap.mmap:
    """Map a file that is not empty, for reading. It is never closed by hand: arrays of its bytes may live longer.

    InputError if it cannot be read.
    """
    try:
        with path.open("rb") as f:
            return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e


def forget(data: mmap.mmap, start: int, size: int) -> None:
    """Let go of the pages of bytes that were read, so that a file does not stay in memory beside what it became."""
    if hasattr(mmap, "MADV_DONTNEED"):
        # The system maps pages around the one that is asked for, also of what was let go of before.
        first = start // _AROUND * _AROUND
        data.madvise(mmap.MADV_DONTNEED, first, start + size - first)
