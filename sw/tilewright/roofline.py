"""What the mathematics needs, whatever the compiler does: multiplications and bytes of a token of a Llama model."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.model import LlamaSpec
from tilewright_hw.arch import AcceleratorConfig


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates, bytes read and bytes written, each needed byte once, unpadded, in its stored format."""

    macs: int = 0
    read: int = 0
    written: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.macs + other.macs, self.read + other.read, self.written + other.written)

    def cycles(self, config: AcceleratorConfig) -> float:
        """Return the least cycles: the slowest of the array's peak, the read bus and the write bus."""
        return max(self.macs / config.peak_macs, self.read / config.bus_bytes, self.written / config.bus_bytes)


def _matrix(n: int, k: int) -> Work:
    return Work(n * k, n * k + 4 * n, 0)


def _token_attention(spec: LlamaSpec, keys: int) -> Work:
    d = spec.head_dim
    macs = 2 * spec.heads * d * keys
    read = 2 * spec.kv_heads * keys * (d + 2)
    return Work(macs, read, 2 * spec.kv_heads * (d + 2))


def decode_work(spec: LlamaSpec, position: int) -> Work:
    """Return the work of one token at `position` (it attends to position + 1 keys), logits written."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = (
        _matrix(q + 2 * kv, spec.dim)
        + _matrix(spec.dim, q)
        + _matrix(2 * spec.ffn, spec.dim)
        + _matrix(spec.dim, spec.ffn)
        + _token_attention(spec, position + 1)
        + Work(read=2 * 4 * spec.dim)
    )
    total = Work(read=2 * spec.dim + 4 * spec.dim + 4 * spec.head_dim, written=4 * spec.vocab)
    total = total + _matrix(spec.vocab, spec.dim)
    return sum((layer for _ in range(spec.layers)), total)


def prefill_work(spec: LlamaSpec, first: int, tokens: int) -> Work:
    """Return the work of `tokens` tokens from position `first` on: weights once, last-row logits."""
    one = decode_work(spec, first)
    head = _matrix(spec.vocab, spec.dim)
    linear = (one.macs - head.macs - spec.layers * _token_attention(spec, first + 1).macs) * (tokens - 1)
    pairs = sum(first + i + 1 for i in range(1, tokens))
    attention = spec.layers * 2 * spec.heads * spec.head_dim * pairs
    cache = spec.layers * 2 * spec.kv_heads * (tokens - 1) * (spec.head_dim + 2)
    embed = (tokens - 1) * (2 * spec.dim + 4 * spec.head_dim)
    return one + Work(linear + attention, cache + embed, cache)
