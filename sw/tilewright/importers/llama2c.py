"""llama2.c v0 files: seven int32 (dim, hidden, layers, heads, kv heads, vocab, seq), then float32 tensors.

The format has no magic number, so the file's size must be exactly what its header says. A negative vocabulary size says
that the classifier is a tensor of its own. RoPE pairs are neighbours already.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from tilewright.files import forget, map_file
from tilewright.model import Checkpoint, Floats, LlamaSpec
from tilewright_hw.arch import InputError

HEADER = struct.Struct("<7i")
LIMIT = 1 << 20
"""No header field of a real model is above this."""


def read_header(path: Path) -> tuple[LlamaSpec, bool]:
    """Return the shape and whether the classifier is shared; InputError if the file cannot be a llama2.c model."""
    try:
        with path.open("rb") as f:
            head = f.read(HEADER.size)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    if len(head) < HEADER.size:
        raise InputError(f"{path} is too short ({len(head)} bytes) for a llama2.c header of {HEADER.size} bytes")
    dim, ffn, layers, heads, kv_heads, vocab, context = HEADER.unpack(head)
    fields = {"dim": dim, "hidden": ffn, "layers": layers, "heads": heads, "kv_heads": kv_heads, "seq": context}
    for name, value in fields.items() | {("vocab", abs(vocab))}:
        if not 0 < value <= LIMIT:
            raise InputError(f"{path} is not a llama2.c v0 file: its header says {name} = {value}")
    if dim % heads:
        raise InputError(f"{path} is not a llama2.c v0 file: dim {dim} is not a multiple of heads {heads}")
    spec = LlamaSpec(
        dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=dim // heads, ffn=ffn, vocab=abs(vocab),
        context=context,
    )  # fmt: skip
    return spec, vocab > 0


def tensor_table(spec: LlamaSpec, shared: bool) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
    """Return {canonical name: (float index, shape)} and the file's total number of floats."""
    kv = spec.kv_heads * spec.head_dim
    per_layer: list[tuple[str, tuple[int, ...]]] = [
        ("attn_norm", (spec.dim,)),
        ("wq", (spec.dim, spec.dim)),
        ("wk", (kv, spec.dim)),
        ("wv", (kv, spec.dim)),
        ("wo", (spec.dim, spec.dim)),
        ("ffn_norm", (spec.dim,)),
        ("w_gate", (spec.ffn, spec.dim)),
        ("w_down", (spec.dim, spec.ffn)),
        ("w_up", (spec.ffn, spec.dim)),
    ]
    table: dict[str, tuple[int, tuple[int, ...]]] = {"embedding": (0, (spec.vocab, spec.dim))}
    at = spec.vocab * spec.dim
    for name, shape in per_layer:
        for i in range(spec.layers):
            table[f"layers.{i}.{name}"] = (at, shape)
            at += int(np.prod(shape, dtype=np.int64))
    table["final_norm"] = (at, (spec.dim,))
    at += spec.dim
    at += spec.context * spec.head_dim  # cos and sin tables of the first version, unused
    table["classifier"] = (0 if shared else at, (spec.vocab, spec.dim))
    return table, at + (0 if shared else spec.vocab * spec.dim)


def load(path: Path) -> Checkpoint:
    """Open a llama2.c v0 checkpoint by memory map; InputError if header and size do not agree."""
    spec, shared = read_header(path)
    table, total = tensor_table(spec, shared)
    size, expected = path.stat().st_size, HEADER.size + 4 * total
    if size != expected:
        raise InputError(f"{path} must have {expected} bytes by its header, not {size}: truncated, or another format")
    data = map_file(path)

    def rows(name: str, first: int, count: int) -> Floats:
        at, (_, *row) = table[name]
        elements = math.prod(row)
        start = HEADER.size + 4 * (at + first * elements)
        value = np.frombuffer(data, "<f4", count * elements, start).astype(np.float32).reshape(count, *row)
        forget(data, start, 4 * count * elements)
        return value

    def read(name: str) -> Floats:
        return rows(name, 0, table[name][1][0])

    return Checkpoint(spec, read, path.stem, read_rows=rows)
