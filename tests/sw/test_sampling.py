"""Choosing tokens: greedy, temperature, top-k, top-p, and the same choice for the same seed."""

import numpy as np
import pytest

from tilewright.sampling import Sampler, Sampling
from tilewright_hw.arch import InputError

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def draws(count: int = 4000, **options: float) -> np.ndarray:
    sampler = Sampler(Sampling(**options))  # type: ignore[arg-type]
    return np.bincount([sampler(LOGITS) for _ in range(count)], minlength=4) / count


def test_greedy_takes_the_first_of_equals() -> None:
    assert Sampler(Sampling())(np.array([1.0, 3.0, 3.0], np.float32)) == 1


def test_temperature_one_draws_the_probabilities() -> None:
    assert draws(temperature=1.0) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.03)


def test_low_temperature_sharpens() -> None:
    assert draws(temperature=0.1)[1] > 0.9


def test_top_k_keeps_k() -> None:
    found = draws(temperature=1.0, top_k=2)
    assert found == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)


def test_top_k_above_the_vocabulary_keeps_all() -> None:
    assert draws(200, temperature=1.0, top_k=100).min() > 0


def test_top_p_keeps_the_smallest_set() -> None:
    assert draws(temperature=1.0, top_p=0.6) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)
    assert draws(200, temperature=1.0, top_p=1e-9)[1] == 1


def test_a_seed_is_a_sequence() -> None:
    a, b, c = (Sampler(Sampling(temperature=1.0, seed=seed)) for seed in (5, 5, 6))
    first, second, third = ([s(LOGITS) for _ in range(50)] for s in (a, b, c))
    assert first == second
    assert first != third


def test_a_repetition_penalty_divides_or_multiplies_once() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.25], np.float32)
    assert Sampler(Sampling(repetition_penalty=1.5))(logits, [0, 0]) == 1
    assert Sampler(Sampling(repetition_penalty=1.25))(logits, [0, 0, 3]) == 0  # once, however often it was seen
    assert Sampler(Sampling(repetition_penalty=2.0))(logits[2:], [0]) == 1
    assert np.array_equal(logits, [2.0, 1.5, -1.0, -1.25])


def test_what_the_device_may_choose() -> None:
    assert Sampling(top_k=5, top_p=0.5).takes_the_largest
    assert not Sampling(repetition_penalty=1.1).takes_the_largest
    assert not Sampling(temperature=0.5).takes_the_largest


def test_large_logits_do_not_overflow() -> None:
    sampler = Sampler(Sampling(temperature=1e-3))
    assert sampler(np.array([-1e30, 1e30, 0], np.float32)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature must be a number from 0 on, not -0.5"),
        ({"temperature": float("nan")}, "temperature must be a number from 0 on, not nan"),
        ({"temperature": float("inf")}, "temperature must be a number from 0 on, not inf"),
        ({"temperature": "hot"}, "temperature must be a number from 0 on, not 'hot'"),
        ({"top_k": -1}, "top_k must be an integer from 0 on, not -1"),
        ({"top_k": 1.5}, "top_k must be an integer from 0 on, not 1.5"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, not 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, not nan"),
        ({"top_p": None}, "top_p must be above 0 and at most 1, not None"),
        ({"seed": -1}, "seed must be an integer from 0 on, not -1"),
        ({"seed": "x"}, "seed must be an integer from 0 on, not 'x'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        Sampling(**options)  # type: ignore[arg-type]
    assert str(error.value) == message
