"""The header of a GGUF file: metadata and where the tensors lie, checked against the file's size as it is read.

    "GGUF", version (u32), tensors (u64), fields (u64); then the fields: name, type (u32), value; then for each tensor:
    name, dimensions (u32), sizes (u64 each, the innermost first), type (u32), offset (u64); tensors follow from the
    next multiple of `general.alignment` on. Strings are a length (u64) and UTF-8; arrays a type (u32) and a count
    (u64). All is little-endian. Source: ggml's docs/gguf.md.

The package gguf has a reader too. It makes objects of every element of every array before anything is checked, many
times the file's size, so this one is used: it keeps arrays where they lie.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.files import map_file
from tilewright_hw.arch import InputError

__all__ = ["MAGIC", "Array", "Header", "Strings", "TensorInfo", "read_header"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_FIELDS = 1 << 16
"""Fields, and tensors, of the largest header that is read."""
MAX_STRINGS = 1 << 22
"""Strings of the longest array: vocabularies have some 100,000, and twice as many merges."""
MAX_DIMENSIONS = 4
ALIGNMENT = 32
"""Where `general.alignment` says nothing."""
_START = struct.Struct("<4sIQQ")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8",
            12: "<f8"}  # fmt: skip
"""NumPy types by the numbers of value types."""
_STRING, _ARRAY = 8, 9


class Strings:
    """An array of strings, as bytes, decoded by nobody yet.

    Parameters
    ----------
    data : mmap
        The file.
    starts : array of int
        Where the length of each one lies.
    """

    def __init__(self, data: mmap.mmap, starts: array[int]) -> None:
        self._data, self._starts = data, starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        at = self._starts[index]
        (length,) = _U64.unpack_from(self._data, at)
        return self._data[at + 8 : at + 8 + length]

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True, repr=False)
class Array:
    """A field that is an array: of numbers, where they lie in the file, or of strings."""

    values: NDArray[np.generic] | Strings

    def __repr__(self) -> str:
        return f"<an array of {len(self.values)}>"


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of a tensor.

    Parameters
    ----------
    name : str
        Its name.
    shape : tuple of int
        Sizes, the innermost last, as in NumPy.
    type : int
        Number of its type.
    offset : int
        Where it begins, in bytes from `Header.start` on.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Parameters
    ----------
    path : Path
        The file.
    data : mmap
        Its bytes.
    fields : dict
        Metadata: numbers, truth values, strings, and `Array`. A number in single precision is the shortest decimal
        that it is nearest to: the file's 1e-05 is meant as that.
    tensors : dict of str to TensorInfo
        Tensors by their names.
    start : int
        Where the tensors' bytes begin.
    """

    path: Path
    data: mmap.mmap
    fields: dict[str, Any]
    tensors: dict[str, TensorInfo]
    start: int


def read_header(path: Path) -> Header:
    """Read a file's header.

    InputError if the file is no GGUF file of a version that is known, or truncated, or if counts and lengths in it
    exceed its size: nothing is allocated before that is known.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            start = f.read(_START.size)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    if not start.startswith(MAGIC):
        raise InputError(f"{path} is not a GGUF file: it must begin with {MAGIC.decode()}")
    if len(start) < _START.size:
        raise InputError(f"{path} is not a GGUF file: {size} bytes are too short for a header")
    _, version, tensors, fields = _START.unpack(start)
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        big = " (big-endian?)" if version & 0xFFFF == 0 else ""
        raise InputError(f"{path} has version {version}{big} of GGUF; versions {known} are read, little-endian")
    reader = _Reader(path, map_file(path), size, _START.size)
    found = reader.fields(fields)
    infos = reader.tensors(tensors)
    alignment = found.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise InputError(f"{path}: general.alignment must be a power of two, not {alignment!r}")
    return Header(path, reader.data, found, infos, -(-reader.at // alignment) * alignment)


class _Reader:
    """Reads values one after the other, none of them beyond the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap, size: int, at: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, at

    def fields(self, count: int) -> dict[str, Any]:
        """Return so many fields."""
        # An empty name, a type, and a byte.
        self._check_count("fields", count, 13)
        fields: dict[str, Any] = {}
        for _ in range(count):
            name = self._text("the name of a field")
            if name in fields:
                raise self._error(f"field {name!r} is there twice")
            fields[name] = self._value(name, self._number(_U32))
        return fields

    def tensors(self, count: int) -> dict[str, TensorInfo]:
        """Return what is said of so many tensors."""
        # An empty name, a dimension, its size, a type, an offset.
        self._check_count("tensors", count, 32)
        infos: dict[str, TensorInfo] = {}
        for _ in range(count):
            name = self._text("the name of a tensor")
            if name in infos:
                raise self._error(f"tensor {name!r} is there twice")
            dimensions = self._number(_U32)
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self._error(f"tensor {name!r} must have 1 to {MAX_DIMENSIONS} dimensions, not {dimensions}")
            sizes = [self._number(_U64) for _ in range(dimensions)]
            if 0 in sizes:
                raise self._error(f"tensor {name!r} must not be empty: its shape is {sizes[::-1]}")
            infos[name] = TensorInfo(name, tuple(sizes[::-1]), self._number(_U32), self._number(_U64))
        return infos

    def _check_count(self, what: str, count: int, least: int) -> None:
        if count > min(MAX_FIELDS, (self.size - self.at) // least):
            raise self._error(f"{count} {what} are more than its {self.size} bytes can hold, or than {MAX_FIELDS}")

    def _value(self, name: str, kind: int) -> Any:
        if kind == _STRING:
            return self._text(f"field {name!r}")
        if kind == _ARRAY:
            return self._array(name)
        return self._numbers(name, kind, 1)[0]

    def _array(self, name: str) -> Array:
        kind, count = self._number(_U32), self._number(_U64)
        if kind != _STRING:
            return Array(self._numbers(name, kind, count, whole=False))
        if count > min(MAX_STRINGS, (self.size - self.at) // 8):
            raise self._error(f"field {name!r} cannot hold {count} strings")
        starts = array("Q")
        for _ in range(count):
            starts.append(self.at)
            self._take(self._number(_U64), f"field {name!r}")
        return Array(Strings(self.data, starts))

    def _numbers(self, name: str, kind: int, count: int, whole: bool = True) -> Any:
        """Return numbers of a type: as Python's own if `whole`, else where they lie."""
        if kind not in _SCALARS:
            nested = ": arrays of arrays are not read" if kind == _ARRAY else ""
            raise self._error(f"field {name!r} has a value of type {kind}{nested}")
        dtype = np.dtype(_SCALARS[kind])
        at = self._take(count * dtype.itemsize, f"field {name!r}")
        if kind == 7 and self.data[at : at + count].strip(b"\0\1"):
            raise self._error(f"field {name!r} must be 0 or 1")
        values = np.frombuffer(self.data, dtype, count, at)
        if not whole:
            return values
        return [float(str(v)) if dtype == np.float32 else v.item() for v in values]

    def _number(self, form: struct.Struct) -> int:
        at = self._take(form.size, "its header")
        return int(form.unpack_from(self.data, at)[0])

    def _text(self, what: str) -> str:
        length = self._number(_U64)
        at = self._take(length, what)
        try:
            return self.data[at : at + length].decode("utf-8")
        except UnicodeDecodeError as e:
            raise self._error(f"{what} is not UTF-8") from e

    def _take(self, size: int, what: str) -> int:
        """Step over some bytes, and return where they begin."""
        at = self.at
        if size > self.size - at:
            raise self._error(f"{what} would reach beyond its end: truncated?")
        self.at += size
        return at

    def _error(self, message: str) -> InputError:
        return InputError(f"{self.path} is not a sound GGUF file: {message}")
