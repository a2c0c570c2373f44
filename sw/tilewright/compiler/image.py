"""The memory image of a Llama model: places of weights, tables, cache and input/output, and their contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.compiler.emit import Region
from tilewright.compiler.layout import ALIGN, WINDOW, MemoryMap, TiledMatrix, ceil_div, pack_tiles, round_up
from tilewright.compiler.plan import padded_head
from tilewright.formats import bf16_bits, f24, quantise_int8
from tilewright.model import Checkpoint, Floats, LlamaSpec
from tilewright_hw.arch import AcceleratorConfig, InputError

PROGRAM_BYTES = 1 << 20
"""Room for one program."""
ARGUMENT_BYTES = 1 << 14
"""Room for the register tables of its blocks."""
LOGIT_ROWS = 64
"""Rows of logits that one program may write."""
MAX_K = 131071
"""Longest reduction whose int32 sum cannot wrap."""

Write = Callable[[int, NDArray[np.uint8]], None]


@dataclass(frozen=True)
class Matrix:
    """A quantised matrix in memory: tiles, and one F24 scale per output channel (float32, whole tiles of columns)."""

    shape: TiledMatrix
    tiles: Region
    scales: Region


class ModelImage:
    """Where everything of a model lies in device memory; `write` fills it in, one tensor at a time.

    Parameters
    ----------
    spec : LlamaSpec
        The model's shape.
    config : AcceleratorConfig
        The accelerator whose tiles the layout follows.
    sequences : int
        Sequences that have a cache. Regions are those of the first; each next one's are `sequence_bytes` further on.
    """

    def __init__(self, spec: LlamaSpec, config: AcceleratorConfig, sequences: int = 1) -> None:
        self.spec, self.config, self.sequences = spec, config, sequences
        self.map = MemoryMap()
        self.head = padded_head(spec, config)
        bus = config.bus_bytes
        add = self.map.add
        self.arguments = add("arguments", ARGUMENT_BYTES)
        self.program = add("program", PROGRAM_BYTES)
        self.embedding_row = round_up(2 * spec.dim, bus)
        self.embedding = add("embedding", spec.vocab * self.embedding_row)
        self.rope_row = round_up(4 * spec.head_dim, bus)
        self.rope = add("rope", spec.context * self.rope_row)
        self.norms = {
            name: add(name, round_up(4 * spec.dim, bus)) for name in spec.tensor_shapes() if name.endswith("norm")
        }
        self.matrices: dict[str, Matrix] = {}
        for i in range(spec.layers):
            self._matrix(f"layers.{i}.qkv", (spec.heads + 2 * spec.kv_heads) * self.head, spec.dim)
            self._matrix(f"layers.{i}.wo", spec.dim, spec.heads * self.head)
            self._matrix(f"layers.{i}.w_gate", spec.ffn, spec.dim)
            self._matrix(f"layers.{i}.w_up", spec.ffn, spec.dim)
            self._matrix(f"layers.{i}.w_down", spec.dim, spec.ffn)
        self._matrix("classifier", spec.vocab, spec.dim)
        self.logits_row = round_up(4 * spec.vocab, bus)
        self.logits = add("logits", LOGIT_ROWS * self.logits_row)
        self._place_cache()
        self._place_sequences()
        self.size = round_up(self.map.size, 4096)

    def _matrix(self, name: str, n: int, k: int) -> None:
        if k > MAX_K:
            raise InputError(f"{name}: the reduction must be at most {MAX_K} long, not {k}")
        shape = TiledMatrix(n, k, self.config)
        columns = shape.n_tiles * self.config.cols
        scales = self.map.add(name + ".scales", round_up(4 * columns, self.config.bus_bytes))
        self.matrices[name] = Matrix(shape, self.map.add(name, shape.bytes), scales)

    def _place_cache(self) -> None:
        """Place the KV cache.

        Keys: per KV head, per C tokens: the tiles of K^T (inputs are the head's channels, outputs the tokens).
        Values: per KV head, per C channels: tiles whose inputs are the tokens. Scales: bfloat16 per head and token.
        """
        spec, config = self.spec, self.config
        self.key_block = ceil_div(spec.head_dim, config.rows) * config.tile_bytes
        self.key_head = ceil_div(spec.context, config.cols) * self.key_block
        self.value_run = round_up(spec.context, config.rows) * config.col_slot
        self.value_tiles = ceil_div(spec.head_dim, config.cols)
        self.value_head = self.value_tiles * self.value_run
        self.scale_head = round_up(2 * spec.context, config.bus_bytes)
        self.keys = [self.map.add(f"layers.{i}.keys", spec.kv_heads * self.key_head) for i in range(spec.layers)]
        self.values = [self.map.add(f"layers.{i}.values", spec.kv_heads * self.value_head) for i in range(spec.layers)]
        self.key_scales = [
            self.map.add(f"layers.{i}.key_scales", spec.kv_heads * self.scale_head) for i in range(spec.layers)
        ]
        self.value_scales = [
            self.map.add(f"layers.{i}.value_scales", spec.kv_heads * self.scale_head) for i in range(spec.layers)
        ]

    @property
    def cache(self) -> list[Region]:
        """All regions of the first sequence's cache."""
        return [*self.keys, *self.values, *self.key_scales, *self.value_scales]

    def _place_sequences(self) -> None:
        """Leave room for the caches of further sequences, all within the reach of one base register."""
        first = self.keys[0].start
        self.sequence_bytes = round_up(self.map.size - first, ALIGN)
        if self.sequences == 1:
            return
        self.map.add("sequences", (self.sequences - 1) * self.sequence_bytes)
        if first // WINDOW != (self.map.size - 1) // WINDOW:
            raise InputError(
                f"the caches of {self.sequences} sequences must lie within {WINDOW >> 30} GiB, "
                f"and take {self.sequence_bytes} bytes each"
            )

    def write(
        self,
        checkpoint: Checkpoint,
        write: Write,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Quantise the checkpoint and hand its bytes, with their addresses, to `write`.

        `progress(done, total)` is called after each tensor.
        """
        steps = list(self._steps(checkpoint))
        for done, step in enumerate(steps, 1):
            step(write)
            if progress is not None:
                progress(done, len(steps))

    def _steps(self, ckpt: Checkpoint) -> list[Callable[[Write], None]]:
        spec = self.spec
        steps: list[Callable[[Write], None]] = [
            lambda w: self._rows(w, self.embedding, bf16_bits(ckpt.tensor("embedding")), self.embedding_row),
            lambda w: self._rows(w, self.rope, f24(rope_table(spec)), self.rope_row),
        ]
        for name, region in self.norms.items():
            steps.append(lambda w, n=name, r=region: w(r.start, _bytes(f24(ckpt.tensor(n)))))  # type: ignore[misc]
        for i in range(spec.layers):
            for part in ("qkv", "wo", "w_gate", "w_up", "w_down"):
                name = f"layers.{i}.{part}"
                steps.append(lambda w, n=name: self._write_matrix(w, ckpt, n))  # type: ignore[misc]
        steps.append(lambda w: self._write_matrix(w, ckpt, "classifier"))
        return steps

    def _rows(self, write: Write, region: Region, rows: NDArray[np.generic], stride: int) -> None:
        raw = _bytes(rows).reshape(len(rows), -1)
        padded = np.zeros((len(rows), stride), np.uint8)
        padded[:, : raw.shape[1]] = raw
        write(region.start, padded.reshape(-1))

    def _write_matrix(self, write: Write, ckpt: Checkpoint, name: str) -> None:
        weights, factors = self._weights(ckpt, name)
        q, scales = quantise_int8(weights)
        matrix = self.matrices[name]
        columns = np.zeros(matrix.shape.n_tiles * self.config.cols, np.float32)
        columns[: len(scales)] = f24(scales * factors)
        write(matrix.tiles.start, pack_tiles(q, self.config).reshape(-1))
        write(matrix.scales.start, _bytes(columns))

    def _weights(self, ckpt: Checkpoint, name: str) -> tuple[Floats, Floats]:
        """Return a matrix in the machine's channel order, and the factors folded into its column scales."""
        spec = self.spec
        if name.endswith(".qkv"):
            parts = [self._pad_heads(ckpt.tensor(name[:-3] + p)) for p in ("wq", "wk", "wv")]
            factors = np.ones(sum(len(p) for p in parts), np.float32)
            # Scores come out in base 2 and scaled: exp(q.k / sqrt(d)) = 2 ** (q.k * log2(e) / sqrt(d)).
            factors[: len(parts[0])] = np.float32(np.log2(np.e) / np.sqrt(spec.head_dim))
            return np.concatenate(parts), factors
        weights = ckpt.tensor(name)
        if name.endswith(".wo"):
            weights = self._pad_heads(weights.T).T
        return weights, np.ones(len(weights), np.float32)

    def _pad_heads(self, weights: Floats) -> Floats:
        """Pad each head's channels (first axis) to whole words of the row buffer."""
        spec = self.spec
        if self.head == spec.head_dim:
            return weights
        split = weights.reshape(-1, spec.head_dim, weights.shape[1])
        out = np.zeros((len(split), self.head, weights.shape[1]), np.float32)
        out[:, : spec.head_dim] = split
        return out.reshape(-1, weights.shape[1])


def rope_table(spec: LlamaSpec) -> Floats:
    """Return (context, head_dim): cos at even and sin at odd elements, one pair per frequency."""
    pairs = np.arange(spec.head_dim // 2, dtype=np.float64)
    frequency = spec.rope_theta ** (-2.0 * pairs / spec.head_dim)
    angle = np.arange(spec.context, dtype=np.float64)[:, None] * frequency
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(spec.context, spec.head_dim).astype(np.float32)


def _bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
