"""The memory image of a model: places of weights, tables, cache and input/output, and their contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.compiler.activations import table_of
from tilewright.compiler.emit import Region
from tilewright.compiler.int4 import Int4Matrix, pack_int4
from tilewright.compiler.layout import ALIGN, WINDOW, MemoryMap, TiledMatrix, ceil_div, pack_tiles, round_up
from tilewright.compiler.plan import padded_head
from tilewright.formats import DEFAULT, Formats, bf16_bits, f24
from tilewright.model import BLOCK, Checkpoint, Floats, ModelSpec, RopeFactors
from tilewright.quantisers import Plain, Quantiser
from tilewright_hw.arch import AcceleratorConfig, InputError

PROGRAM_BYTES = 1 << 21
"""Room for one program."""
ARGUMENT_BYTES = 1 << 14
"""Room for the register tables of its blocks."""
LOGIT_ROWS = 64
"""Rows of logits that one program may write."""
MAX_K = 131071
"""Longest reduction whose int32 sum cannot wrap."""
MAX_K_INT4 = 65535
"""Most weight rows of a run in four bits."""

Write = Callable[[int, NDArray[np.uint8]], None]


@dataclass(frozen=True)
class Matrix:
    """A quantised matrix in memory: tiles, and an F24 scale and perhaps bias per output channel.

    Scales and biases are float32, whole tiles of columns. `first` is what the first row of a text has instead of the
    bias, where its inputs are distances from a known row: the bias, and the product with that row.
    """

    shape: TiledMatrix
    tiles: Region
    scales: Region
    bias: Region | None = None
    first: Region | None = None


class ModelImage:
    """Where everything of a model lies in device memory; `write` fills it in, one tensor at a time.

    Parameters
    ----------
    spec : ModelSpec
        The model's shape.
    config : AcceleratorConfig
        The accelerator whose tiles the layout follows.
    formats : Formats
        Number formats.
    sequences : int
        Sequences that have a cache. Regions are those of the first; each next one's are `sequence_bytes` further on.
    """

    def __init__(
        self, spec: ModelSpec, config: AcceleratorConfig, formats: Formats = DEFAULT, sequences: int = 1
    ) -> None:
        check(spec, config)
        self.spec, self.config, self.formats, self.sequences = spec, config, formats, sequences
        self.map = MemoryMap()
        self.head = padded_head(spec, config, formats)
        bus = config.bus_bytes
        add = self.map.add
        # An encoder's blocks have a table each, of the registers' size or less.
        self.arguments = add("arguments", max(ARGUMENT_BYTES, 0 if spec.causal else 128 * spec.context))
        self.program = add("program", PROGRAM_BYTES)
        self.token = add("token", 4 * LOGIT_ROWS)
        self.embedding_row = round_up(2 * spec.dim, bus)
        if spec.vocab * self.embedding_row > WINDOW:
            raise InputError(
                f"the token embeddings must take at most {WINDOW >> 30} GiB, which a token's offset reaches, "
                f"not {spec.vocab} rows of {self.embedding_row} bytes"
            )
        self.embedding = add("embedding", spec.vocab * self.embedding_row)
        self.rope_row = round_up(4 * spec.head_dim, bus)
        self.rope = add("rope", spec.context * self.rope_row if spec.rope_theta is not None else 0)
        self.dim_row = round_up(4 * spec.dim, bus)
        self.positions = add("positions", spec.context * self.dim_row if has_positions(spec) else 0)
        table = table_of(spec.activation)
        self.table = None if table is None else add("table", 4 * len(table.words))
        self.norms = {
            name: add(name, self.dim_row)
            for name in spec.tensor_shapes()
            if name.endswith(("norm", "norm_bias")) and not name.endswith((".q_norm", ".k_norm"))
        }
        self.head_norms = [add(f"layers.{i}.head_norms", 2 * self.rope_row) for i in range(spec.layers * spec.qk_norm)]
        self.firsts = {
            name: add(name, round_up(4 * shape[0], bus))
            for name, shape in spec.tensor_shapes().items()
            if name.endswith("_first")
        }
        self.matrices: dict[str, Matrix] = {}
        for name, n, k, bias in matrix_shapes(spec, self.head):
            self._matrix(name, n, k, bias)
        self.logits_row = round_up(4 * (spec.vocab if spec.classifier else spec.dim), bus)
        self.logits = add("logits", (LOGIT_ROWS if spec.causal else spec.context) * self.logits_row)
        self.rows = add("rows", 0 if spec.causal else spec.context * self.dim_row)
        self._place_cache()
        self._place_sequences()
        self.size = round_up(self.map.size, 4096)

    def _matrix(self, name: str, n: int, k: int, bias: bool) -> None:
        four = self.formats.of(name) == "int4"
        shape = (Int4Matrix if four else TiledMatrix)(n, k, self.config)
        most = MAX_K_INT4 // self.config.rows * self.config.rows if four else MAX_K
        if k > most:
            raise InputError(f"{name}: the reduction must be at most {most} long, not {k}")
        columns = round_up(4 * shape.n_tiles * self.config.cols, self.config.bus_bytes)
        scales = self.map.add(name + ".scales", columns)
        tiles = self.map.add(name, shape.bytes)
        first = self._first_of(name) is not None or self._held_by(name) is not None
        self.matrices[name] = Matrix(
            shape, tiles, scales, self.map.add(name + ".bias", columns) if bias else None,
            self.map.add(name + ".first", columns) if first else None,
        )  # fmt: skip

    def _first_of(self, name: str) -> str | None:
        """Return which known row is taken off the first of a matrix's input rows, if any."""
        stem, _, last = name.rpartition(".")
        first = f"{stem}.{'qkv' if last in PROJECTIONS else last.removeprefix('w_')}_first"
        return first if first in self.firsts else None

    def _held_by(self, name: str) -> str | None:
        """Return which known row the residual stream lacks, where a matrix's product is added to it.

        Norms that follow the additions make rows that are both quantised and added to: these lie in memory once.
        """
        stem, _, last = name.rpartition(".")
        first = {"wo": f"{stem}.qkv_first", "w_down": f"{stem}.up_first"}.get(last)
        return first if self.spec.norm_after and first in self.firsts else None

    def _place_cache(self) -> None:
        """Place the KV cache.

        Keys: per KV head, per C tokens: the transposed tiles of K^T (inputs are the head's channels, outputs the
        tokens). Values: per KV head, per C channels: tiles whose inputs are the tokens. Scales: bfloat16 per head and
        token.
        """
        spec, config = self.spec, self.config
        self.key_block = ceil_div(spec.head_dim, config.rows) * config.transposed_tile_bytes
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
        quantiser: Quantiser | None = None,
    ) -> None:
        """Quantise the checkpoint and hand its bytes, with their addresses, to `write`; a compiled one's as they are.

        `progress(done, total)` is called after each tensor; `quantiser` makes the weights (default: `Plain`).
        Only a matrix is in memory at a time, and of large ones a part.
        """
        if checkpoint.stored is not None:
            checkpoint.stored.copy(self, write, progress)
            return
        steps = list(self._steps(checkpoint, quantiser or Plain()))
        for done, step in enumerate(steps, 1):
            step(write)
            if progress is not None:
                progress(done, len(steps))

    def _steps(self, ckpt: Checkpoint, quantiser: Quantiser) -> list[Callable[[Write], None]]:
        spec = self.spec
        steps: list[Callable[[Write], None]] = [lambda w: self._write_embedding(w, ckpt)]
        if self.rope.size:
            steps.append(lambda w: self._rows(w, self.rope, f24(rope_table(spec)), self.rope_row))
        if self.positions.size:
            steps.append(lambda w: self._rows(w, self.positions, f24(position_table(ckpt)), self.dim_row))
        table, place = table_of(spec.activation), self.table
        if table is not None and place is not None:
            steps.append(lambda w: w(place.start, as_bytes(table.words)))
        for name, region in self.norms.items():
            steps.append(lambda w, n=name, r=region: w(r.start, as_bytes(f24(ckpt.tensor(n)))))  # type: ignore[misc]
        for i, region in enumerate(self.head_norms):
            steps.append(lambda w, i=i, r=region: self._rows(w, r, f24(self._head_norms(ckpt, i)), self.rope_row))  # type: ignore[misc]
        for name, region in self.firsts.items():
            steps.append(lambda w, n=name, r=region: w(r.start, as_bytes(-f24(ckpt.tensor(n)))))  # type: ignore[misc]
        for name in self.matrices:
            steps.append(lambda w, n=name: self._write_matrix(w, ckpt, n, quantiser))  # type: ignore[misc]
        return steps

    def _rows(self, write: Write, region: Region, rows: NDArray[np.generic], stride: int, first: int = 0) -> None:
        """Write rows from row `first` of a region on, each padded to `stride` bytes."""
        raw = as_bytes(rows).reshape(len(rows), -1)
        padded = np.zeros((len(rows), stride), np.uint8)
        padded[:, : raw.shape[1]] = raw
        write(region.start + first * stride, padded.reshape(-1))

    def _write_embedding(self, write: Write, ckpt: Checkpoint) -> None:
        for first, rows in ckpt.blocks("embedding"):
            if rows.any():  # device memory is zero
                self._rows(write, self.embedding, bf16_bits(rows), self.embedding_row, first)

    def _head_norms(self, ckpt: Checkpoint, layer: int) -> Floats:
        """Return the norm weights of a query and of a key head, (2, head_dim)."""
        q, k = (ckpt.tensor(f"layers.{layer}.{part}_norm") for part in ("q", "k"))
        return np.stack([q * score_factor(self.spec), k])

    def _write_matrix(self, write: Write, ckpt: Checkpoint, name: str, quantiser: Quantiser) -> None:
        matrix = self.matrices[name]
        scales, tiles, factors = [], matrix.tiles.start, self._factors(name)
        for weights in self._weights(ckpt, name, quantiser.whole):
            if not isinstance(matrix.shape, Int4Matrix) and not weights.any():  # device memory is zero
                scales.append(np.zeros(len(weights), np.float32))
                tiles += ceil_div(len(weights), self.config.cols) * matrix.shape.column_bytes
                continue
            if isinstance(matrix.shape, Int4Matrix):
                q, g, s = quantiser.int4(name, weights)
                packed = pack_int4(q, g, self.config)
            else:
                q, s = quantiser.int8(name, weights)
                packed = pack_tiles(q, self.config)
            write(tiles, packed.reshape(-1))
            tiles += packed.size
            scales.append(s)
        write(matrix.scales.start, as_bytes(self._columns(matrix, np.concatenate(scales) * factors)))
        if matrix.bias is not None:
            write(matrix.bias.start, as_bytes(self._columns(matrix, self._bias(ckpt, name) * factors)))
        if matrix.first is not None:
            write(matrix.first.start, as_bytes(self._columns(matrix, self._first(ckpt, name) * factors)))

    def _columns(self, matrix: Matrix, values: Floats) -> Floats:
        """Return one F24 per column of the matrix's tiles."""
        columns = np.zeros(matrix.shape.n_tiles * self.config.cols, np.float32)
        columns[: len(values)] = f24(values)
        return columns

    def _weights(self, ckpt: Checkpoint, name: str, whole: bool) -> Iterator[Floats]:
        """Yield the rows of a matrix, in the machine's channel order: whole tiles of them, or all at once."""
        stem, _, last = name.rpartition(".")
        if last in PROJECTIONS:
            all_rows = np.concatenate([self._pad_heads(ckpt.tensor(f"{stem}.w{p}")) for p in PROJECTIONS[last]])
        elif last == "wo":
            all_rows = self._pad_heads(ckpt.tensor(name).T).T
        elif whole:
            all_rows = ckpt.tensor(name)
        else:
            yield from (rows for _, rows in ckpt.blocks(name, self.config.cols))
            return
        cols = self.config.cols
        step = len(all_rows) if whole else max(1, BLOCK // all_rows.shape[1] // cols) * cols
        for first in range(0, len(all_rows), step):
            yield all_rows[first : first + step]

    def _factors(self, name: str) -> Floats:
        """Return the factors that are folded into a matrix's columns."""
        factors = np.ones(self.matrices[name].shape.n, np.float32)
        if "q" in PROJECTIONS.get(name.rpartition(".")[2], "") and not self.spec.qk_norm:
            factors[: self.spec.heads * self.head] = score_factor(self.spec)
        return factors

    def _bias(self, ckpt: Checkpoint, name: str) -> Floats:
        """Return the bias of a matrix that has one, in the machine's channel order."""
        stem, _, last = name.rpartition(".")
        if last not in PROJECTIONS:
            return ckpt.tensor(f"{stem}.{'bo' if last == 'wo' else 'b' + last[1:]}")
        biases = [ckpt.tensor(f"{stem}.b{p}")[:, None] for p in PROJECTIONS[last]]
        return np.concatenate([self._pad_heads(b)[:, 0] for b in biases])

    def _first(self, ckpt: Checkpoint, name: str) -> Floats:
        """Return what a text's first row has instead of the bias: all that it lacks, computed in float64."""
        matrix, taken, held = self.matrices[name], self._first_of(name), self._held_by(name)
        total = np.zeros(matrix.shape.n) if matrix.bias is None else self._bias(ckpt, name).astype(np.float64)
        if taken is not None:
            row = f24(ckpt.tensor(taken)).astype(np.float64)
            # Row by row: how the rows are cut depends on the configuration, and the bits must not.
            total += np.concatenate([np.sum(weights * row, axis=1) for weights in self._weights(ckpt, name, False)])
        if held is not None:
            total += f24(ckpt.tensor(held))
        return total.astype(np.float32)

    def _pad_heads(self, weights: Floats) -> Floats:
        """Pad each head's channels (first axis) to what a head takes in the row buffer."""
        spec = self.spec
        if self.head == spec.head_dim:
            return weights
        split = weights.reshape(-1, spec.head_dim, weights.shape[1])
        out = np.zeros((len(split), self.head, weights.shape[1]), np.float32)
        out[:, : spec.head_dim] = split
        return out.reshape(-1, weights.shape[1])


PROJECTIONS = {"qkv": "qkv", "q": "q", "k": "k", "v": "v"}
"""Matrices of queries, keys and values: an encoder's blocks make each of them at a time of its own."""


def matrix_shapes(spec: ModelSpec, head: int) -> list[tuple[str, int, int, bool]]:
    """Return (name, outputs, inputs, whether it has a bias) of all matrices; a head takes `head` columns."""
    heads = {"q": spec.heads, "k": spec.kv_heads, "v": spec.kv_heads}
    shapes = []
    for i in range(spec.layers):
        for name in ("qkv",) if spec.causal else ("k", "v", "q"):
            columns = sum(heads[p] for p in PROJECTIONS[name]) * head
            shapes.append((f"layers.{i}.{name}", columns, spec.dim, spec.qkv_bias))
        shapes.append((f"layers.{i}.wo", spec.dim, spec.heads * head, spec.o_bias))
        for part in ("gate", "up") if spec.gated else ("up",):
            shapes.append((f"layers.{i}.w_{part}", spec.ffn, spec.dim, spec.ffn_bias))
        shapes.append((f"layers.{i}.w_down", spec.dim, spec.ffn, spec.ffn_bias))
    return shapes + ([("classifier", spec.vocab, spec.dim, False)] if spec.classifier else [])


def check(spec: ModelSpec, config: AcceleratorConfig) -> None:
    """Refuse, by name, what programs cannot do; InputError."""
    if spec.gated and spec.ffn_bias:
        raise InputError("a gated feed-forward network with biases (ffn_bias) is not supported")
    if spec.norm == "layer" and spec.dim > 32767:
        raise InputError(f"LayerNorm takes rows of at most 32767, not {spec.dim}")
    if config.transposed_tile_bytes % config.bus_bytes:
        raise InputError(
            f"cached keys lie in tiles of {config.transposed_tile_bytes} bytes, which must be a multiple of the bus "
            f"word ({config.bus_bytes} bytes): choose more columns or a narrower bus"
        )


def score_factor(spec: ModelSpec) -> np.float32:
    """Return the factor of queries with which scores come out scaled and in base 2.

    exp(q.k * scale) = 2 ** (q.k * scale * log2(e)).
    """
    if spec.score_scale is None:
        return np.float32(np.log2(np.e) / np.sqrt(spec.head_dim))
    return np.float32(np.log2(np.e) * spec.score_scale)


def has_positions(spec: ModelSpec) -> bool:
    """Whether something is added to the token embeddings."""
    return spec.learned_positions or spec.token_types > 0


def position_table(ckpt: Checkpoint) -> Floats:
    """Return what is added to the embedding at each position, (context, dim): positions and segment 0."""
    spec = ckpt.spec
    table = ckpt.tensor("positions") if spec.learned_positions else np.zeros((spec.context, spec.dim), np.float32)
    return table + ckpt.tensor("token_types")[0] if spec.token_types else table


def rope_table(spec: ModelSpec) -> Floats:
    """Return (context, head_dim): cos at even and sin at odd elements, one pair per frequency."""
    assert spec.rope_theta is not None
    pairs = np.arange(spec.head_dim // 2, dtype=np.float64)
    frequency = spec.rope_theta ** (-2.0 * pairs / spec.head_dim)
    s = spec.rope_scaling
    if isinstance(s, RopeFactors):
        frequency = frequency / np.array(s.factors)
    elif s is not None:
        turns = s.original_context * frequency / (2 * np.pi)
        kept = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
        frequency = (1 - kept) * frequency / s.factor + kept * frequency
    angle = np.arange(spec.context, dtype=np.float64)[:, None] * frequency
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(spec.context, spec.head_dim).astype(np.float32)


def as_bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return the bytes of an array."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
