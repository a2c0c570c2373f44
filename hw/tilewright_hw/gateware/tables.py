"""The tables of docs/numerics.md, for the gateware's ROMs: values at segment ends, in exact or decimal arithmetic."""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import pairwise
from math import isqrt

__all__ = ["exp2_table", "log2_e", "recip_table", "rsqrt_table", "segments", "sigmoid_table"]

_DIGITS = 60
"""Decimal digits of a transcendental value: none comes nearer to a half than 1e-9, and the exact ones are exact."""


def log2_e() -> int:
    """Return F24(log2 e), as its 24 bits."""
    with localcontext() as context:
        context.prec = _DIGITS
        return 126 << 15 | _half_up(32768 / Decimal(2).ln())  # in [1, 2): the leading one adds one to the exponent


def recip_table() -> list[int]:
    """Return round(2^18 / (1 + i/256)), i = 0..256."""
    return [(2 * (256 << 18) + 256 + i) // (2 * (256 + i)) for i in range(257)]


def rsqrt_table(*, odd: bool) -> list[int]:
    """Return round(2^18 / sqrt(1 + i/256)), i = 0..256; for an odd exponent of twice the argument."""
    # floor(sqrt(z) + 1/2) = floor((isqrt(4z) + 1) / 2)
    return [(isqrt((4 << 36) * 256 // ((256 + i) << odd)) + 1) // 2 for i in range(257)]


def exp2_table() -> list[int]:
    """Return round(2^18 * 2^(-i/256)), i = 0..256."""
    with localcontext() as context:
        context.prec = _DIGITS
        return [_half_up(Decimal(2) ** (18 - Decimal(i) / 256)) for i in range(257)]


def sigmoid_table() -> list[int]:
    """Return round(2^16 * sigmoid((j - 256)/16)), j = 0..512."""
    with localcontext() as context:
        context.prec = _DIGITS
        return [_half_up(65536 / (1 + (Decimal(256 - j) / 16).exp())) for j in range(513)]


def _half_up(x: Decimal) -> int:
    return int(x + Decimal("0.5"))


def segments(table: list[int]) -> list[tuple[int, int]]:
    """Return for each segment its first value and the size of its step to the next."""
    return [(a, abs(b - a)) for a, b in pairwise(table)]
