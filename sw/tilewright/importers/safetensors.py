"""Tensors of safetensors files, one or several with an index, read by memory map after their headers were checked."""

from __future__ import annotations

import itertools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilewright.files import forget, map_file
from tilewright.importers.configuration import MAX_JSON, read_json
from tilewright.model import Floats
from tilewright_hw.arch import InputError


class SafeTensors:
    """Tensors of one safetensors file, read by memory map after its header has been checked against its size."""

    SIZES = {"F32": 4, "F16": 2, "BF16": 2}  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as f:
                head = f.read(8)
                length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
                if not 2 <= length <= min(size - 8, MAX_JSON):
                    raise InputError(f"{path} is not a safetensors file: its header length is {length} of {size} bytes")
                header = json.loads(f.read(length))
        except OSError as e:
            raise InputError(f"cannot read {path}: {e.strerror}") from e
        except (ValueError, RecursionError) as e:
            raise InputError(f"{path} is not a safetensors file: {e}") from e
        if not isinstance(header, dict):
            raise InputError(f"{path} is not a safetensors file: its header is no object")
        self.entries = {k: v for k, v in header.items() if k != "__metadata__"}
        self.data, self.start, self.size = map_file(path), 8 + length, size - 8 - length
        self._check_entries()

    def _check_entries(self) -> None:
        spans = []
        for name, entry in self.entries.items():
            try:
                begin, end = (int(v) for v in entry["data_offsets"])
                shape, dtype = [int(v) for v in entry["shape"]], str(entry["dtype"])
            except (KeyError, TypeError, ValueError) as e:
                raise InputError(f"{self.path}: tensor {name!r} has a broken header entry: {entry!r}") from e
            if not 0 <= begin <= end <= self.size or any(v < 0 for v in shape):
                raise InputError(f"{self.path}: tensor {name!r} lies outside the file: truncated?")
            elements = 1
            for v in shape:
                elements *= v
            if dtype in self.SIZES and elements * self.SIZES[dtype] != end - begin:
                raise InputError(f"{self.path}: tensor {name!r} of shape {shape} does not have {end - begin} bytes")
            spans.append((begin, end, name))
        spans.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            if begin < end:
                raise InputError(f"{self.path}: tensors {first!r} and {second!r} overlap")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(int(v) for v in self.entries[name]["shape"])

    def read(self, name: str) -> Floats:
        """Return a tensor as float32; InputError if it is of an unsupported type."""
        shape = self.shape(name)
        return self.read_rows(name, 0, shape[0]) if shape else self._floats(name, 0, 1).reshape(())

    def read_rows(self, name: str, first: int, count: int) -> Floats:
        """Return `count` rows (of the first axis) of a tensor from row `first` on, as float32; errors as in `read`."""
        _, *row = self.shape(name)
        elements = math.prod(row)
        return self._floats(name, first * elements, count * elements).reshape(count, *row)

    def _floats(self, name: str, first: int, count: int) -> Floats:
        """Return some elements; their bytes do not stay in memory."""
        entry = self.entries[name]
        dtype = str(entry["dtype"])
        if dtype not in self.SIZES:
            raise InputError(f"{self.path}: tensor {name!r} must be F32, F16 or BF16, not {dtype}")
        if not count:
            return np.zeros(0, np.float32)
        start = self.start + int(entry["data_offsets"][0]) + first * self.SIZES[dtype]
        if dtype == "BF16":
            bits = np.frombuffer(self.data, "<u2", count, start).astype(np.uint32)
            bits <<= np.uint32(16)
            value = bits.view(np.float32)
        else:
            value = np.frombuffer(self.data, "<f4" if dtype == "F32" else "<f2", count, start).astype(np.float32)
        forget(self.data, start, count * self.SIZES[dtype])
        return value


@dataclass(frozen=True)
class Tensors:
    """The tensors of a folder, by their names.

    Parameters
    ----------
    folder : Path
        The folder, for errors.
    where : dict of str to SafeTensors
        The file that holds each tensor.
    """

    folder: Path
    where: dict[str, SafeTensors]

    def __contains__(self, name: str) -> bool:
        return name in self.where and name in self.where[name].entries

    def read(self, name: str) -> Floats:
        """Return a tensor as float32; InputError if it is missing or of an unsupported type."""
        if name not in self:
            raise InputError(f"{self.folder}: tensor {name!r} is missing")
        return self.where[name].read(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that is there."""
        return self.where[name].shape(name)

    def read_rows(self, name: str, first: int, count: int) -> Floats:
        """Return rows of a tensor that is there; see `SafeTensors.read_rows`."""
        return self.where[name].read_rows(name, first, count)


def open_tensors(folder: Path) -> Tensors:
    """Open model.safetensors, or the files that model.safetensors.index.json names; InputError if there is neither."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _open_index(folder, index)
    single = folder / "model.safetensors"
    if not single.exists():
        if any(folder.glob("pytorch_model*.bin")):
            raise InputError(f"{folder} holds pickled weights, which can run code; convert them to safetensors")
        raise InputError(f"{folder} must hold model.safetensors or model.safetensors.index.json")
    file = SafeTensors(single)
    return Tensors(folder, dict.fromkeys(file.entries, file))


def _open_index(folder: Path, index: Path) -> Tensors:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise InputError(f"{index} has no weight_map")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{index}: {file!r} must be a file in the same folder")
    files = {name: SafeTensors(folder / name) for name in sorted(set(weight_map.values()))}
    return Tensors(folder, {name: files[file] for name, file in weight_map.items()})
