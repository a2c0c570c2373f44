"""What the mathematics needs, whatever the compiler does: multiplications and bytes, operation by operation.

The roofline of an operation is the largest of its multiply-accumulates over the array's peak, its bytes to read over
the bus and its bytes to write over the bus. That of a run is the sum over its operations. Each byte that is needed
counts once, without padding, in the format in which it is stored: int8 or int4 weights with their scales, the KV cache
with its scales, bfloat16 embeddings, float32 norms. Causal attention counts its half only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tilewright.model import LlamaSpec
from tilewright_hw.arch import AcceleratorConfig, InputError

WEIGHT_BITS = {"int8": 8, "int4": 4}
GROUP = 32
"""Weights in int4 that share a scale of the group, which has four bits itself."""
FLOAT, BF16 = 4, 2
"""Bytes of a scale, a norm's weight or a logit; of an element of an embedding or a scale of the cache."""


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates, bytes read and bytes written, each needed byte once, unpadded, in its stored format."""

    macs: int = 0
    read: int = 0
    written: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.macs + other.macs, self.read + other.read, self.written + other.written)

    def cycles(self, config: AcceleratorConfig, rate: float = 1.0) -> float:
        """Return the least cycles: the slowest of the array's peak, the read bus and the write bus.

        `rate` is the beats per cycle that each bus carries.
        """
        bus = config.bus_bytes * rate
        return max(self.macs / config.peak_macs, self.read / bus, self.written / bus)


@dataclass(frozen=True)
class Operation:
    """One operation of a model, named by its weights (`layers.0.wq`) or by what it does (`layers.0.attention`)."""

    name: str
    work: Work


def roofline(operations: Iterable[Operation], config: AcceleratorConfig, rate: float = 1.0) -> float:
    """Return the least cycles of a run: the sum over its operations."""
    return sum(operation.work.cycles(config, rate) for operation in operations)


def total(operations: Iterable[Operation]) -> Work:
    """Return the work of all operations together."""
    return sum((operation.work for operation in operations), Work())


def weight_bytes(n: int, k: int, weights: str = "int8") -> int:
    """Return the bytes of an (n, k) matrix without the scales of its channels; InputError on an unknown format."""
    if weights not in WEIGHT_BITS:
        raise InputError(f"weights must be one of {', '.join(WEIGHT_BITS)}, not {weights!r}")
    bits = n * k * WEIGHT_BITS[weights]
    if weights == "int4":
        bits += n * -(-k // GROUP) * 4
    return -(-bits // 8)


def gemm(m: int, k: int, n: int, *, weights: str = "int8", quantised: bool = False) -> Operation:
    """Return an int8 product (m, k) @ (k, n) alone: operands in memory, and the result as int32, or int8 and scales."""
    written = m * n + FLOAT * m if quantised else 4 * m * n
    return Operation(f"gemm {m}x{k}x{n}", Work(m * k * n, m * k + weight_bytes(n, k, weights), written))


def _linear(name: str, n: int, k: int, rows: int, weights: str) -> Operation:
    return Operation(name, Work(rows * n * k, weight_bytes(n, k, weights) + FLOAT * n))


def _attention(spec: LlamaSpec, name: str, texts: Sequence[tuple[int, int]]) -> Operation:
    """Return attention of texts, each (first position, new tokens): the cache is read once, new entries are written."""
    d, entry = spec.head_dim, 2 * spec.kv_heads * (spec.head_dim + BF16)
    work = Work()
    for first, tokens in texts:
        keys = (first + i + 1 if spec.causal else first + tokens for i in range(tokens))
        pairs = sum(keys)
        work += Work(2 * spec.heads * d * pairs, entry * (first + tokens), entry * tokens)
    return Operation(name, work)


def model_operations(
    spec: LlamaSpec, texts: Sequence[tuple[int, int]], *, weights: str = "int8", logits: int | None = None
) -> list[Operation]:
    """Return the operations of one run of a model.

    Parameters
    ----------
    spec : LlamaSpec
        The model.
    texts : sequence of (int, int)
        Of each text, the position of its first new token and the number of new tokens.
    weights : {"int8", "int4"}
        Format of the weights.
    logits : int
        Rows of logits; by default one for each text.
    """
    rows = sum(tokens for _, tokens in texts)
    heads = len(texts) if logits is None else logits
    operations = []
    for name, shape in spec.tensor_shapes().items():
        part = name.rpartition(".")[2]
        if part == "embedding":
            table = BF16 * spec.dim + FLOAT * spec.head_dim  # the token's row, and its rotation
            operations.append(Operation(name, Work(read=rows * table)))
        elif part == "classifier":
            head = _linear(name, shape[0], shape[1], heads, weights)
            operations.append(Operation(name, head.work + Work(written=FLOAT * heads * spec.vocab)))
        elif part in ("positions", "token_types"):
            operations.append(Operation(name, Work(read=rows * FLOAT * spec.dim)))
        elif len(shape) == 2:
            operations.append(_linear(name, shape[0], shape[1], rows, weights))
        else:
            operations.append(Operation(name, Work(read=FLOAT * shape[0])))
        if part == "wv":
            operations.append(_attention(spec, name.removesuffix("wv") + "attention", texts))
    return operations


def decode_operations(spec: LlamaSpec, position: int, weights: str = "int8") -> list[Operation]:
    """Return the operations of one token at `position` (it attends to position + 1 keys), logits written."""
    return model_operations(spec, [(position, 1)], weights=weights)


def decode_work(spec: LlamaSpec, position: int) -> Work:
    """Return the work of one token at `position` (it attends to position + 1 keys), logits written."""
    return total(decode_operations(spec, position))


def prefill_work(spec: LlamaSpec, first: int, tokens: int) -> Work:
    """Return the work of `tokens` tokens from position `first` on: weights once, last-row logits."""
    return total(model_operations(spec, [(first, tokens)]))
