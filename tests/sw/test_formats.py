"""The host's number formats against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.formats import LARGEST, bf16, bf16_bits, bf16_field, f24, f24_bits, quantise_int8

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rounded(x: float, bits: int) -> Fraction:
    """x to nearest even at `bits` significant bits, then flushed and saturated as docs/numerics.md says."""
    value = Fraction(x)
    if value == 0:
        return value
    exponent = 0
    while abs(value) / Fraction(2) ** exponent >= 2:
        exponent += 1
    while abs(value) / Fraction(2) ** exponent < 1:
        exponent -= 1
    unit = Fraction(2) ** (exponent - bits + 1)
    result = round(value / unit) * unit  # round() of a Fraction is to nearest even
    if abs(result) < Fraction(2) ** -126:
        return Fraction(0)
    largest = (2 - Fraction(2) ** (1 - bits)) * Fraction(2) ** 127
    return max(-largest, min(largest, result))


@given(FINITE)
def test_f24_rounds_to_16_bits(x: float) -> None:
    y = f24([x])
    assert Fraction(float(y[0])) == rounded(x, 16)
    assert y.view(np.uint32)[0] & 0xFF == 0


@given(FINITE)
def test_bf16_rounds_to_8_bits(x: float) -> None:
    assert Fraction(float(bf16([x])[0])) == rounded(x, 8)


@given(FINITE)
def test_the_sign_of_zero_is_positive(x: float) -> None:
    for y in (f24([x])[0], bf16([x])[0]):
        assert y != 0 or not np.signbit(y)


@pytest.mark.parametrize("x", np.finfo(np.float32).max * np.array([1, -1]))
def test_overflow_saturates(x: float) -> None:
    assert f24([x])[0] == np.copysign(LARGEST, x)
    assert np.isfinite(bf16([x])[0])


def test_fields_are_bit_patterns() -> None:
    assert f24_bits(1.0) == 0x3F800000
    assert bf16_field(1.0) == 0x3F80
    assert bf16_bits([1.0, -2.0]).tolist() == [0x3F80, 0xC000]


def test_shapes_stay() -> None:
    assert f24(np.ones((2, 3), np.float32)).shape == (2, 3)


def test_int8_channels() -> None:
    w = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-3, 2e-3, 1e-3]], np.float32)
    q, s = quantise_int8(w)
    assert q.dtype == np.int8
    assert np.abs(q).max(axis=1).tolist() == [127, 0, 127]
    assert s[1] == 0
    assert np.abs(q * s[:, None] - w).max(axis=1) == pytest.approx([0.005, 0, 5e-6], abs=4e-3)


@given(st.integers(0, 2**32 - 1))
def test_int8_error_is_half_a_step(seed: int) -> None:
    w = np.random.default_rng(seed).normal(size=(4, 50)).astype(np.float32)
    q, s = quantise_int8(w)
    assert np.all(np.abs(q.astype(np.float64) * s[:, None] - w) <= 0.503 * s[:, None])
    assert np.all(q != -128)
