"""Compiled models: weights, tables, programs and tokenizer of a model for one configuration, in one file.

The file is little-endian:

    0       8   magic: 89 54 57 49 4D 47 0D 0A
    8       4   version of the format
    12      4   0
    16      8   bytes of the file
    24      8   bytes of the manifest
    32      32  SHA-256 of the manifest
    64          the manifest: JSON with sorted keys; then small files and programs, as it says
    payload     device memory from address 0 to the end of the weights, from a multiple of 4096 on

The manifest holds SHA-256 digests of everything after it; the payload has one for each 16 MiB, checked as it is loaded.
Nothing in a file depends on when or where it was made: the same model gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tilewright.chat import CONFIG as TOKENIZER_CONFIG
from tilewright.chat import TEMPLATE
from tilewright.compiler.image import ModelImage, Write
from tilewright.compiler.llama import LlamaCompiler
from tilewright.embedding import read_recipe
from tilewright.files import Files, StoredFiles, forget, map_file
from tilewright.formats import Formats
from tilewright.importers.configuration import MAX_JSON
from tilewright.model import Checkpoint, Floats, ModelSpec, RopeFactors, RopeScaling
from tilewright.quantisers import Quantiser
from tilewright.request import read_defaults
from tilewright.tokenizer import Tokenizer, tokenizer_from
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_hw.arch.files import replacing
from tilewright_hw.arch.isa import FIELDS

__all__ = ["MAGIC", "is_compiled", "load", "save"]

MAGIC = b"\x89TWIMG\r\n"
"""Not text, and broken by whatever changes line ends."""
VERSION = 1
HEADER = struct.Struct("<8sIIQQ32s")
PAGE = 4096
CHUNK = 1 << 24
"""Bytes of the payload that one digest covers."""
PROGRAMS = ("all", "token")
"""Results of the decode programs that are stored."""


def is_compiled(path: Path) -> bool:
    """Return whether a file begins as a compiled model does."""
    try:
        with path.open("rb") as f:
            return f.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def save(
    path: Path, checkpoint: Checkpoint, tokenizer: Tokenizer, config: AcceleratorConfig, formats: Formats,
    progress: Callable[[int, int], None] | None = None, quantiser: Quantiser | None = None,
) -> int:  # fmt: skip
    """Compile a model into a file, which replaces an older one only when it is whole; returns its bytes.

    InputError if the model does not fit the configuration, or the file cannot be written.
    """
    image = ModelImage(checkpoint.spec, config, formats)
    compiler = LlamaCompiler(image)
    programs = {name: compiler.decode(1, name, 1) for name in PROGRAMS} if checkpoint.spec.causal else {}
    parts = [*_small_files(checkpoint, tokenizer).items()]
    parts += [(f"program {name}", program) for name, program in programs.items()]
    manifest = _manifest(checkpoint, tokenizer, image)
    try:
        with replacing(path) as f:
            _write(f, manifest, parts, image, checkpoint, progress, quantiser)
            return f.seek(0, os.SEEK_END)
    except OSError as e:
        raise InputError(f"cannot write {path}: {e.strerror}") from e


def _write(
    f: BinaryIO, manifest: dict[str, Any], parts: list[tuple[str, bytes]], image: ModelImage, checkpoint: Checkpoint,
    progress: Callable[[int, int], None] | None, quantiser: Quantiser | None,
) -> None:  # fmt: skip
    """Write the payload, then what precedes it: its length is known before, as a digest's is."""
    size = image.logits.start
    manifest["payload"] = {"bytes": size, "chunk": CHUNK, "sha256": ["0" * 64] * -(-size // CHUNK)}
    manifest["parts"] = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in parts
    ]
    raw = _json(manifest)
    start = _payload_start(len(raw), [len(data) for _, data in parts])
    f.truncate(start + size)

    def write(address: int, data: NDArray[np.uint8]) -> None:
        f.seek(start + address)
        f.write(np.ascontiguousarray(data).data)

    image.write(checkpoint, write, progress, quantiser)
    f.seek(start)
    digests = [hashlib.sha256(f.read(min(CHUNK, size - at))).hexdigest() for at in range(0, size, CHUNK)]
    manifest["payload"]["sha256"] = digests
    raw = _json(manifest)
    f.seek(0)
    f.write(HEADER.pack(MAGIC, VERSION, 0, start + size, len(raw), hashlib.sha256(raw).digest()))
    f.write(raw)
    for _, data in parts:
        f.write(data)


def _payload_start(manifest: int, parts: list[int]) -> int:
    return -(-(HEADER.size + manifest + sum(parts)) // PAGE) * PAGE


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _manifest(checkpoint: Checkpoint, tokenizer: Tokenizer, image: ModelImage) -> dict[str, Any]:
    """Return what the file says of itself, without its parts and payload."""
    return {
        "name": checkpoint.name,
        "spec": asdict(checkpoint.spec),
        "formats": asdict(image.formats),
        "configuration": image.config.to_dict(),
        "layout": _layout(image),
        "instructions": _instruction_set(),
        "tokenizer": {"name": tokenizer.stored[0], "bos": tokenizer.bos, "eos": sorted(tokenizer.eos)},
    }


def _layout(image: ModelImage) -> str:
    """Return a digest of where everything lies."""
    return hashlib.sha256(_json([[n, r.start, r.size] for n, r in image.map.regions.items()])).hexdigest()


def _instruction_set() -> str:
    """Return a digest of the encoding that the stored programs are in."""
    table = [[op.name, int(op), *([f.name, f.word, f.lsb, f.width] for f in found)] for op, found in FIELDS.items()]
    return hashlib.sha256(_json(table)).hexdigest()


class _Recorder:
    """Files, and which of them were asked for."""

    def __init__(self, files: Files) -> None:
        self._files, self.found = files, dict[str, bytes]()

    def where(self, name: str) -> str:
        return self._files.where(name)

    def read(self, name: str) -> bytes | None:
        raw = self._files.read(name)
        if raw is not None:
            self.found[name] = raw
        return raw


def _small_files(checkpoint: Checkpoint, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return the files beside the weights that say how the model is used: those that the readers of them ask for."""
    files = _Recorder(checkpoint.files)
    read_defaults(files)
    if not checkpoint.spec.causal:
        read_recipe(files, checkpoint.spec)
    for name in (TEMPLATE, TOKENIZER_CONFIG):
        files.read(name)
    name, raw = tokenizer.stored
    return dict(sorted({**files.found, name: raw}.items()))


@dataclass(frozen=True)
class StoredTokenizer:
    """The name of the tokenizer's file, and the ids that begin and end texts."""

    name: str
    bos: int | None
    eos: list[int]


@dataclass(frozen=True)
class StoredModel:
    """The weights of a compiled model's file.

    Parameters
    ----------
    path : Path
        The file.
    start : int
        Where its payload begins.
    payload : mapping
        What the manifest says of it: bytes, and digests of its chunks.
    config, formats
        What it was compiled for.
    programs : mapping of str to bytes
        Decode programs by their results.
    tokenizer : StoredTokenizer
        Which of the files is the tokenizer's.
    files : Files
        The small files.
    """

    path: Path
    start: int
    payload: Mapping[str, Any]
    config: AcceleratorConfig
    formats: Formats
    programs: Mapping[str, bytes]
    tokenizer: StoredTokenizer
    files: Files

    def open_tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        raw, where = self.files.read(self.tokenizer.name), self.files.where(self.tokenizer.name)
        if raw is None:
            raise InputError(f"{where} is missing")
        return tokenizer_from(raw, where, self.tokenizer.bos, frozenset(self.tokenizer.eos))

    def copy(self, image: ModelImage, write: Write, progress: Callable[[int, int], None] | None = None) -> None:
        """Hand the bytes to `write`, chunk by chunk; InputError on other configurations, or if a digest is wrong."""
        self.check(image.config, image.formats)
        size, digests = self.payload["bytes"], self.payload["sha256"]
        data = map_file(self.path)
        for done, digest in enumerate(digests, 1):
            at = (done - 1) * CHUNK
            part = np.frombuffer(data, np.uint8, min(CHUNK, size - at), self.start + at)
            if hashlib.sha256(part.data).hexdigest() != digest:
                raise InputError(f"{self.path} is damaged: bytes {self.start + at} on are not those that were written")
            write(at, part)
            forget(data, self.start + at, len(part))
            if progress is not None:
                progress(done, len(digests))

    def check(self, config: AcceleratorConfig, formats: Formats) -> None:
        """InputError unless the model was compiled for this configuration and these formats."""
        if config != self.config:
            raise InputError(
                f"{self.path} was compiled for configuration {self.config.name}, and the device has {config.name}: "
                "compile it for that one"
            )
        if formats != self.formats:
            raise InputError(
                f"{self.path} holds {_describe(self.formats)}, not {_describe(formats)}: compile it with these"
            )


def _describe(formats: Formats) -> str:
    more = "".join(f", {pattern}={value}" for pattern, value in sorted(formats.overrides.items()))
    return f"{formats.weights} weights for {formats.activations} bits{more}"


def load(path: Path) -> Checkpoint:
    """Open a compiled model; its weights are read when they are loaded onto a device.

    InputError if it is truncated, damaged, of another version of the format, or was made by a Tilewright whose memory
    layout or instruction set is another one.
    """
    manifest, parts_at, start = _read_manifest(path)
    try:
        spec = _spec(manifest["spec"])
        config = AcceleratorConfig.from_dict(manifest["configuration"])
        formats = Formats(**manifest["formats"])
        made = (manifest["layout"], manifest["instructions"])
        name, tokenizer = str(manifest["name"]), StoredTokenizer(**manifest["tokenizer"])
        parts = _read_parts(path, manifest["parts"], parts_at, start)
        image = ModelImage(spec, config, formats)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise InputError(f"{path} is damaged: its manifest is not one of a compiled model ({e})") from e
    if made != (_layout(image), _instruction_set()) or manifest["payload"]["bytes"] != image.logits.start:
        raise InputError(f"{path} was made by another version of Tilewright: compile it again")
    programs = {n: parts.pop(f"program {n}") for n in PROGRAMS if f"program {n}" in parts}

    def read(tensor: str) -> Floats:
        raise InputError(f"{path} is compiled: it holds quantised weights, and not the checkpoint's own")

    files = StoredFiles(str(path), parts)
    stored = StoredModel(path, start, manifest["payload"], config, formats, programs, tokenizer, files)
    return Checkpoint(spec, read, name, files, stored, tokenizer=stored.open_tokenizer)


def _spec(table: Mapping[str, Any]) -> ModelSpec:
    values = dict(table)
    known = {f.name for f in fields(ModelSpec)}
    if values.keys() != known:
        raise ValueError(f"its shape must have the fields {', '.join(sorted(known))}")
    if (scaling := values["rope_scaling"]) is not None:
        by_pairs = "factors" in scaling
        values["rope_scaling"] = (
            RopeFactors(factors=tuple(scaling["factors"])) if by_pairs else RopeScaling(**scaling)
        )  # fmt: skip
    return ModelSpec(**values)


def _read_manifest(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the manifest, where parts and payload begin; everything is checked that needs no reading of these."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(HEADER.size)
            if len(head) < HEADER.size or not head.startswith(MAGIC):
                raise InputError(f"{path} is not a compiled model, or truncated: it has {size} bytes")
            _, version, reserved, expected, length, digest = HEADER.unpack(head)
            if version != VERSION or reserved:
                raise InputError(f"{path} has version {version} of the format; this Tilewright reads {VERSION}")
            if size != expected:
                raise InputError(f"{path} must have {expected} bytes, not {size}: truncated?")
            if length > min(size, MAX_JSON):
                raise InputError(f"{path} is damaged: its manifest would have {length} bytes")
            raw = f.read(length)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    if hashlib.sha256(raw).digest() != digest:
        raise InputError(f"{path} is damaged: its manifest is not the one that was written")
    try:
        manifest = json.loads(raw)
        lengths = [int(part["bytes"]) for part in manifest["parts"]]
        payload = manifest["payload"]
        start = _payload_start(length, lengths)
        good = payload["chunk"] == CHUNK and len(payload["sha256"]) == -(-payload["bytes"] // CHUNK)
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise InputError(f"{path} is damaged: its manifest is not one of a compiled model ({e})") from e
    if not good or min(lengths, default=0) < 0 or start + payload["bytes"] != size:
        raise InputError(f"{path} is damaged: its manifest does not agree with its {size} bytes")
    return manifest, HEADER.size + length, start


def _read_parts(path: Path, parts: list[dict[str, Any]], at: int, end: int) -> dict[str, bytes]:
    """Return the small files and programs, which lie between two bytes of the file, checked by their digests."""
    found = {}
    with path.open("rb") as f:
        f.seek(at)
        for part in parts:
            raw = f.read(part["bytes"])
            if hashlib.sha256(raw).hexdigest() != part["sha256"]:
                raise InputError(f"{path} is damaged: {part['name']} is not what was written")
            found[str(part["name"])] = raw
        if any(f.read(end - f.tell())):
            raise InputError(f"{path} is damaged: what is between its parts and its weights must be 0")
    return found
