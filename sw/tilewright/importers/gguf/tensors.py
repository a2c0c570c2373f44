"""Tensors of a GGUF file, read by memory map and brought to float32 row by row."""

from __future__ import annotations

import importlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import numpy as np

from tilewright.files import forget
from tilewright.importers.gguf.header import Header, TensorInfo
from tilewright.model import Floats
from tilewright_hw.arch import InputError

__all__ = ["TYPES", "GgufTensors"]

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q6_K")
"""Types that are read. Q6_K is here because llama.cpp keeps the output matrix of a Q4_0 file in it."""


class GgufTensors:
    """The tensors of a file.

    Parameters
    ----------
    header : Header
        What the file says of them.

    Raises
    ------
    InputError
        The package gguf is not installed, or tensors overlap, lie outside the file, or do not fill whole blocks of
        their type.
    """

    def __init__(self, header: Header) -> None:
        self._package = _package()
        self.path, self.start = header.path, header.start
        self._data, self._infos = header.data, header.tensors
        self._check(len(header.data) - header.start)

    def _check(self, size: int) -> None:
        spans = []
        for info in self._infos.values():
            block, size_of_block = self._block(info)
            if info.shape[-1] % block:
                raise self._error(info, f"of type {self.type(info.name)} must have rows of {block}, not {info.shape}")
            end = info.offset + math.prod(info.shape) // block * size_of_block
            if end > size:
                raise self._error(info, "lies outside the file: truncated?")
            spans.append((info.offset, end, info.name))
        spans.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            if begin < end:
                raise InputError(f"{self.path}: tensors {first!r} and {second!r} overlap")

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def type(self, name: str) -> str:
        """Return the name of a tensor's type."""
        return str(self._package.GGMLQuantizationType(self._infos[name].type).name)

    def types(self, names: set[str]) -> dict[str, int]:
        """Return how many of these tensors each type has, the most frequent first."""
        return dict(Counter(sorted(self.type(name) for name in names)).most_common())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; InputError if it is missing."""
        if name not in self._infos:
            raise InputError(f"{self.path}: tensor {name!r} is missing")
        return self._infos[name].shape

    def read(self, name: str) -> Floats:
        """Return a tensor as float32; InputError if it is missing or of a type that is not read."""
        return self.read_rows(name, 0, self.shape(name)[0])

    def read_rows(self, name: str, first: int, count: int) -> Floats:
        """Return `count` rows (of the first axis) of a tensor from row `first` on, as float32; errors as in `read`."""
        _, *row = self.shape(name)
        info, kind = self._infos[name], self.type(name)
        block, size = self._block(info)
        if kind not in TYPES:
            raise self._error(info, f"must be of type {', '.join(TYPES[:-1])} or {TYPES[-1]}, not {kind}")
        if not row and block > 1:
            raise self._error(info, f"has one dimension: it must be F32, F16 or BF16, not {kind}")
        bytes_of_row = math.prod(row) // block * size
        start = self.start + info.offset + first * bytes_of_row
        raw = np.frombuffer(self._data, np.uint8, count * bytes_of_row, start).reshape(-1, bytes_of_row)
        with np.errstate(all="ignore"):  # scales that are not finite: whoever asked finds the weights not to be
            values = self._package.dequantize(raw, self._package.GGMLQuantizationType[kind])
        # F32 is the file's own bytes, which shall not stay in memory.
        values = np.array(values, dtype=np.float32, copy=kind == "F32" or None).reshape(count, *row)
        forget(self._data, start, raw.size)
        return values

    def _block(self, info: TensorInfo) -> tuple[int, int]:
        """Return the elements and the bytes of a block of a tensor's type."""
        try:
            block, size = self._package.GGML_QUANT_SIZES[self._package.GGMLQuantizationType(info.type)]
        except (ValueError, KeyError):
            raise self._error(info, f"is of type {info.type}, which is not known") from None
        return int(block), int(size)

    def _error(self, info: TensorInfo, message: str) -> InputError:
        return InputError(f"{self.path}: tensor {info.name!r} {message}")


def _package() -> ModuleType:
    """Return the package gguf, which knows types and their blocks; InputError if it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as e:
        raise InputError("GGUF files need the package gguf: pip install 'tilewright[gguf]'") from e
