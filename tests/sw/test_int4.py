"""Quantisation of weights to four bits: what each quantiser promises, on random matrices."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tilewright.formats import f24
from tilewright.int4 import GROUP, Int4, compensate, round_to_int4, search
from tilewright_hw.arch import InputError

SHAPES = [(5, 32), (7, 200), (3, 33), (1, 5)]


def matrix(n: int, k: int, seed: int = 0) -> NDArray[np.float32]:
    """Weights with heavy tails: some channels and some groups are much larger than others."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(size=(n, 1))) * np.repeat(np.exp(random.normal(size=(n, 9)) / 2), 32, axis=1)[:, :k]
    return (random.standard_t(4, size=(n, k)) * sizes).astype(np.float32)


def inputs(k: int, rows: int = 400, seed: int = 1) -> NDArray[np.float64]:
    """Rows whose elements depend on each other, as activations do."""
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, max(2, k // 4))) @ random.normal(size=(max(2, k // 4), k)) + 0.1 * random.normal(
        size=(rows, k)
    )


def error(w: NDArray[np.float32], made: Int4, x: NDArray[np.float64] | None = None) -> float:
    difference = (w - made.dequantised()).astype(np.float64)
    return float(np.sum((difference if x is None else difference @ x.T) ** 2))


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_all_quantisers_stay_in_the_format(n: int, k: int) -> None:
    w, x = matrix(n, k), inputs(k)
    for made in (round_to_int4(w), search(w), compensate(w, x.T @ x)):
        assert made.q.shape == (n, k)
        assert made.g.shape == (n, -(-k // GROUP))
        assert made.q.min() >= -8
        assert made.q.max() <= 7
        assert made.g.min() >= 1
        assert made.g.max() <= 15
        assert np.array_equal(f24(made.scale), made.scale)
        each = np.repeat(made.g, GROUP, axis=1)[:, :k].astype(int)
        assert np.array_equal(made.int8(), made.q.astype(int) * each)
        assert np.array_equal(made.dequantised(), made.int8() * made.scale[:, None])


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_rounding_is_off_by_half_a_step_at_most(n: int, k: int) -> None:
    w = matrix(n, k)
    made = round_to_int4(w)
    step = np.repeat(made.g, GROUP, axis=1)[:, :k] * made.scale[:, None]
    assert (np.abs(w - made.dequantised()) <= step / 2 * (1 + 1e-3)).all()


def test_what_the_format_holds_exactly_comes_back() -> None:
    random = np.random.default_rng(3)
    q, g = random.integers(-7, 8, (6, 96)), random.integers(1, 16, (6, 3))
    q[:, ::32] = 7  # so that each g is known
    g[:, 0] = 15
    w = (q * np.repeat(g, 32, axis=1) * 0.0625).astype(np.float32)
    for made in (round_to_int4(w), search(w)):
        assert np.array_equal(made.dequantised(), w)


def test_the_search_beats_rounding_and_never_loses() -> None:
    gains = []
    for seed in range(8):
        w = matrix(16, 200, seed)
        for row in range(16):
            one = w[row : row + 1]
            assert error(one, search(one)) <= error(one, round_to_int4(one)) * (1 + 1e-6), (seed, row)
        gains.append(error(w, search(w)) / error(w, round_to_int4(w)))
    assert np.mean(gains) < 0.9, gains


def straightforward(w: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> Int4:
    """Return what `search` should, written without regard to time and memory."""
    n, k = w.shape
    count = -(-k // GROUP)
    groups = np.zeros((n, count * GROUP), np.float32)
    groups[:, :k] = w
    groups = groups.reshape(n, count, GROUP)
    weight = np.zeros(count * GROUP, np.float32)
    weight[:k] = 1 if importance is None else importance / float(importance.mean()) + 1e-3
    weight = weight.reshape(count, GROUP)
    peaks = np.abs(groups).max(axis=2)

    def rounded(step: NDArray[np.floating]) -> NDArray[np.floating]:
        safe = np.where(step > 0, step, step.dtype.type(1))[..., None]
        return np.where(step[..., None] > 0, np.clip(np.rint(groups / safe), -8, 7), 0)

    def best_g(s: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        top = np.clip(np.ceil(peaks / (7 * np.where(s > 0, s, np.float32(1)))[:, None] - 1e-6), 1, 15).astype(int)
        found, least = top, np.full(top.shape, np.inf, np.float32)
        for less in range(5):
            g = np.clip(top - less, 1, 15)
            step = s[:, None].astype(float) * g
            total = np.einsum("ngi,gi->ng", (groups - rounded(step) * step[..., None]) ** 2, weight.astype(float))
            found, least = np.where(total < least, g, found), np.where(total < least, total, least).astype(np.float32)
        return found, least

    largest = f24(peaks.max(axis=1) / np.float32(15 * 7))
    s = largest
    g, least = best_g(s)
    for turn in range(8):
        if turn < 6:
            other = f24(largest * np.float32(np.linspace(0.70, 1.0, 7)[turn]))
        else:
            units = (rounded(s[:, None] * g.astype(np.float32)) * g[..., None]).astype(np.float32)
            over = np.einsum("ngi,gi->n", units * groups, weight)
            under = np.einsum("ngi,gi->n", units * units, weight)
            other = f24(np.where(under > 0, over / np.where(under > 0, under, 1), s))
        new_g, new_least = best_g(other)
        better = new_least.sum(axis=1) < least.sum(axis=1)
        s = np.where(better, other, s)
        g, least = (np.where(better[:, None], a, b) for a, b in ((new_g, g), (new_least, least)))
    q = rounded(s[:, None] * g.astype(np.float32)).reshape(n, -1)[:, :k]
    return Int4(q.astype(np.int8), g.astype(np.uint8), s.astype(np.float32))


@pytest.mark.parametrize("kind", ["tails", "normal", "coarse", "sparse", "sizes", "large"])
def test_the_search_is_the_straightforward_one(kind: str) -> None:
    """To the last bit, in whatever order and blocks it works."""
    for seed in range(8):
        random = np.random.default_rng([seed, len(kind)])
        n, k = (520, 513) if kind == "large" else (int(random.integers(1, 40)), int(random.integers(1, 280)))
        w = matrix(n, k, seed) if kind == "tails" else random.normal(size=(n, k)).astype(np.float32)
        if kind == "coarse":
            w = np.round(w * 4) / np.float32(64)
        if kind == "sparse":
            w[random.random((n, k)) < 0.5] = 0
            w[::3] = 0
        if kind == "sizes":
            w = (w * 10.0 ** random.integers(-38, 15, size=(n, 1))).astype(np.float32)
        importance = random.gamma(0.5, size=k).astype(np.float32) if seed % 2 else None
        found, wanted = search(w, importance), straightforward(w, importance)
        for ours, theirs in zip(found.parts, wanted.parts, strict=True):
            assert np.array_equal(ours, theirs), (kind, seed, n, k)
        if kind == "large":
            break


def test_importance_moves_the_error_away_from_inputs_that_matter() -> None:
    w = matrix(32, 128)
    importance = np.where(np.arange(128) % 32 < 4, 100.0, 1.0).astype(np.float32)
    plain, weighed = search(w), search(w, importance)
    total = [float((((w - made.dequantised()) ** 2) * importance).sum()) for made in (plain, weighed)]
    assert total[1] < total[0]


def test_compensation_serves_the_inputs_it_was_given() -> None:
    w, x = matrix(24, 160), inputs(160)
    assert error(w, compensate(w, x.T @ x), x) < 0.5 * error(w, search(w), x)


def test_channels_of_zeros() -> None:
    w = matrix(3, 64)
    w[1] = 0
    x = inputs(64)
    for made in (round_to_int4(w), search(w), compensate(w, x.T @ x)):
        assert made.scale[1] == 0
        assert not made.dequantised()[1].any()
        assert not made.q[1].any()


def test_inputs_that_were_never_seen() -> None:
    w, x = matrix(4, 64), inputs(64)
    x[:, 10:50] = 0
    made = compensate(w, x.T @ x)
    assert error(w, made) < 2 * error(w, round_to_int4(w))


def test_wrong_shapes() -> None:
    w = matrix(4, 64)
    with pytest.raises(InputError, match=r"importance must be 64 numbers from 0 on, not of shape \(3,\)"):
        search(w, np.ones(3, np.float32))
    with pytest.raises(InputError, match=r"moments must be of shape \(64, 64\), not \(3, 3\)"):
        compensate(w, np.eye(3))
