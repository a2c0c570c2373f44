"""GGUF files, llama.cpp's format: one file with metadata, tokenizer and tensors, which may be quantised already.

Quantised weights are brought to float32 a few rows at a time and quantised anew, to the accelerator's formats.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tilewright.chat import CONFIG as TOKENIZER_CONFIG
from tilewright.files import StoredFiles
from tilewright.importers.configuration import Configuration
from tilewright.importers.family import open_checkpoint
from tilewright.importers.gguf.architectures import read_spec, read_tensors
from tilewright.importers.gguf.header import MAGIC, read_header
from tilewright.importers.gguf.tensors import GgufTensors
from tilewright.importers.gguf.vocabulary import open_tokenizer, tokenizer_config
from tilewright.model import Checkpoint

__all__ = ["is_gguf", "load"]


def is_gguf(path: Path) -> bool:
    """Return whether a file begins as GGUF files do, or says by its name that it is one."""
    try:
        with path.open("rb") as f:
            return path.suffix == ".gguf" or f.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def load(path: Path) -> Checkpoint:
    """Open a file; InputError if it is damaged, or holds anything that is not supported."""
    header = read_header(path)
    config = Configuration(path, header.fields)
    tensors = GgufTensors(header)
    spec = read_spec(config, tensors)
    table = read_tensors(config, spec, tensors)
    beside = tokenizer_config(config)
    files = StoredFiles(str(path), {TOKENIZER_CONFIG: json.dumps(beside).encode()} if beside else {})
    checkpoint = open_checkpoint(spec, table, tensors, path.stem, files)
    matrices = {table[name].name for name, shape in spec.tensor_shapes().items() if len(shape) == 2}
    return replace(
        checkpoint, tokenizer=lambda: open_tokenizer(config, spec.vocab), matrix_types=tensors.types(matrices)
    )
