"""How far the functions are from the functions they stand for: `python -m tilewright_sim.golden.bounds`.

Every F24 of a table function's domain is tried, up to what cannot matter: an exponent that only scales the result, and
arguments so small or large that the result is constant. Functions of whole rows have too many arguments for that: their
bounds are derived from those of their steps (the functions below say how), and many random rows are tried besides.
The reference is float64, whose own error is far below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tilewright_sim.golden import formats, functions, tables
from tilewright_sim.golden.formats import Floats

UNIT = 2.0**-16
"""The relative error of one F24 operation."""
RECIP = 2.2e-5
"""Relative error of recip and of rsqrt."""
EXP2 = 2.3e-5
"""Relative error of exp2 above -25."""
ROW = 1024
"""The longest row of the bounds for rows."""
SOFTMAX_X = 8.0
"""The largest magnitude in a row of the bound of softmax."""
LAYERNORM_X = 4.0
"""The largest magnitude in a row of the bound of LayerNorm, in standard deviations."""
SEED = 3


@dataclass(frozen=True)
class Bound:
    """What is stated of a function, and what was found.

    Parameters
    ----------
    name : str
        Function.
    domain : str
        Arguments tried.
    how : str
        `all` F24 of the domain tried, or `derived` and random rows tried.
    kind : str
        `relative` or `absolute`.
    stated : float
        The bound.
    tried : int
        How many arguments.
    found : float
        The largest error.
    worst : float
        The argument where it was found.
    """

    name: str
    domain: str
    how: str
    kind: str
    stated: float
    tried: int
    found: float
    worst: float

    @property
    def holds(self) -> bool:
        """Whether nothing above the bound was found."""
        return self.found <= self.stated


def every(low: int, high: int) -> Floats:
    """Return every positive F24 from 2^low to below 2^high."""
    significands = 1 + np.arange(1 << 15) / 2**15
    return np.ldexp(significands, np.arange(low, high)[:, None]).reshape(-1)


def _measure(
    name: str,
    domain: str,
    kind: str,
    stated: float,
    x: Floats,
    function: Callable[[Floats], Floats],
    reference: Callable[[Floats], Floats],
) -> Bound:
    exact = reference(x)
    error = np.abs(function(x) - exact)
    if kind == "relative":
        error = error / np.abs(exact)
    at = int(error.argmax())
    return Bound(name, domain, "all", kind, stated, x.size, float(error[at]), float(x[at]))


def _sigmoid(x: Floats) -> Floats:
    y: Floats = 1 / (1 + np.exp(-x))
    return y


def _erf(x: Floats) -> Floats:
    return np.array([math.erf(v) for v in x.tolist()])


def _gelu(x: Floats) -> Floats:
    return np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()])


def _gelu_tanh(x: Floats) -> Floats:
    y: Floats = x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return y


def softmax_bound() -> float:
    """Return a bound of the absolute error of softmax: rows of up to ROW elements of magnitude up to SOFTMAX_X.

    t = x * log2(e) is at most T in magnitude, with the error of the constant and one rounding; the difference to the
    maximum (which rounding keeps the maximum) is at most 2 T, with the errors of both and one rounding. That makes a
    relative error of e, and exp2 another; together eta. A probability e / (e + others) is off by at most eta / 2, where
    e is too large by eta and the others too small. The sum, of at least 1, loses up to 2^-24 a term and is converted;
    then follow recip and the last product.
    """
    log2e = float(formats.round_f24(functions.LOG2_E))
    constant = abs(log2e / functions.LOG2_E - 1)
    t = SOFTMAX_X * functions.LOG2_E
    off = 2 * t * (constant + 2 * UNIT) * 1.001
    eta = math.exp(math.log(2) * off) * (1 + EXP2) - 1
    rest = ROW * 2.0**-24 + RECIP + 2 * UNIT
    return (eta / 2 + rest) * 1.001  # what the products of errors add


def rmsnorm_bound() -> float:
    """Return a bound of RMSNorm's relative error, the weights 1, eps 0: rows of up to ROW elements.

    In units of 2^(E-15) the largest element is exact and at least 2^15, the others are off by at most 1/2. So the sum
    of squares S is off by at most the sum of |X| + 1/4, at most sqrt(ROW) / 2^16 + ROW / 2^32 of S. Its conversion, 1/n
    and that product, and adding eps follow; rsqrt halves all that. Then rsqrt's own error and two products.
    """
    total = math.sqrt(ROW) * 2.0**-16 + ROW * 2.0**-32 + 4 * UNIT
    return (total / 2 + RECIP + 2 * UNIT) * 1.001


def layernorm_bound() -> float:
    """Return a bound of LayerNorm's absolute error, weights 1 and 0, eps 0: |x| up to LAYERNORM_X deviations.

    In units of 2^(E-15) each element is off by at most 1/2, the largest is at least 2^15, so a deviation is at least
    2^15 / LAYERNORM_X; the mean and (by the triangle inequality) the deviation are off by at most 1/2 each. The
    spread's conversion, two products with 1/n (itself rounded) and adding eps are halved by rsqrt, which adds its own
    error: r is off by rho. x * r and mean * r are at most LAYERNORM_X, with one and with four roundings; their sum, at
    most twice that, with one more.
    """
    unit = LAYERNORM_X * 2.0**-15
    rho = unit / 2 + 6 * UNIT / 2 + RECIP
    return (unit / 2 + 2 * LAYERNORM_X * rho + LAYERNORM_X * 7 * UNIT) * 1.001


def _rows() -> Iterator[Floats]:
    """Return random rows of many lengths, each some rows of a distribution of its own: flat, normal, or far apart."""
    rng = np.random.default_rng(SEED)
    for n in (1, 2, 3, 7, 16, 50, 64, 128, 200, 288, 512, 768, ROW):
        for power in (1, 2, 4):
            x = rng.standard_normal((100, n)) ** power * np.exp2(rng.uniform(-3, 3, (100, 1)))
            yield formats.round_f24(x + rng.choice([0.0, 0.5, -2.0], (100, 1)))


def _measure_rows(
    name: str,
    domain: str,
    kind: str,
    bounds: tuple[float, float],
    fit: Callable[[Floats], Floats],
    both: Callable[[Floats], tuple[Floats, Floats]],
) -> Bound:
    """Try the random rows; `bounds` are the one stated and the one derived, which must not be above it."""
    worst, at, tried = 0.0, 0.0, 0
    for rows in _rows():
        x = fit(rows)
        got, exact = both(x)
        error = np.abs(got - exact)
        if kind == "relative":
            error = np.divide(error, np.abs(exact), out=np.zeros_like(error), where=exact != 0)
        tried += x.shape[0]
        if error.size and error.max() > worst:
            worst, at = float(error.max()), float(x.reshape(-1)[error.argmax()])
    stated, derived = bounds
    return Bound(name, domain, "derived", kind, stated if derived <= stated else 0.0, tried, worst, at)


def _softmax(x: Floats) -> tuple[Floats, Floats]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return functions.softmax(x), e / e.sum(axis=-1, keepdims=True)


def _rmsnorm(x: Floats) -> tuple[Floats, Floats]:
    return functions.rmsnorm(x, 1.0, 0.0), x / np.sqrt((x**2).mean(axis=-1, keepdims=True))


def _layernorm(x: Floats) -> tuple[Floats, Floats]:
    centred = x - x.mean(axis=-1, keepdims=True)
    return functions.layernorm(x, 1.0, 0.0, 0.0), centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True))


def _nonzero(x: Floats) -> Floats:
    return x[np.any(x != 0, axis=-1)]


def _few_deviations(x: Floats) -> Floats:
    deviation = x.std(axis=-1)
    return x[(deviation > 0) & (np.abs(x).max(axis=-1) <= LAYERNORM_X * deviation)]


def measure_rows() -> list[Bound]:
    """Return the bounds of functions of whole rows, checked."""
    clip = lambda x: np.clip(x, -SOFTMAX_X, SOFTMAX_X)  # noqa: E731
    few = f"up to {ROW} elements"
    return [
        _measure_rows(
            "softmax", f"rows of {few}, magnitudes up to {SOFTMAX_X:g}", "absolute", (4.1e-4, softmax_bound()),
            clip, _softmax,
        ),
        _measure_rows("rmsnorm", f"rows of {few}", "relative", (3.3e-4, rmsnorm_bound()), _nonzero, _rmsnorm),
        _measure_rows(
            "layernorm", f"rows of {few}, magnitudes up to {LAYERNORM_X:g} deviations", "absolute",
            (1.6e-3, layernorm_bound()), _few_deviations, _layernorm,
        ),
    ]  # fmt: skip


def measure() -> list[Bound]:
    """Return all bounds, checked."""
    below_25 = -every(-20, 5)
    both = every(-13, 5)
    both = np.concatenate([-both, both])
    within_16 = both[np.abs(both) <= 16]
    return [
        _measure("recip", "1 to 2", "relative", 2.2e-5, every(0, 1), tables.recip, lambda x: 1 / x),
        _measure("rsqrt", "1 to 4", "relative", 2.2e-5, every(0, 2), tables.rsqrt, lambda x: x**-0.5),
        _measure(
            "exp2",
            "-25 to -2^-20",
            "relative",
            2.3e-5,
            below_25[below_25 > -25],
            tables.exp2,
            np.exp2,
        ),
        _measure("exp2", "-32 to -2^-20", "absolute", 2.3e-5, below_25, tables.exp2, np.exp2),
        _measure("sigmoid", "2^-13 to 32, both signs", "absolute", 1.1e-4, both, tables.sigmoid, _sigmoid),
        _measure(
            "silu",
            "2^-13 to 16, both signs",
            "absolute",
            2.1e-4,
            within_16,
            functions.silu,
            lambda x: x * _sigmoid(x),
        ),
        *_measure_loaded(both, within_16),
        *measure_rows(),
    ]


def _measure_loaded(both: Floats, within_16: Floats) -> list[Bound]:
    """Return the bounds of the tables that a program loads."""
    return [
        _measure("tanh", "2^-13 to 32, both signs", "absolute", 2.3e-4, both, functions.tanh, np.tanh),
        _measure("erf", "2^-13 to 32, both signs", "absolute", 1.2e-4, both, functions.erf, _erf),
        _measure("gelu", "2^-13 to 16, both signs", "absolute", 1.9e-4, within_16, functions.gelu, _gelu),
        _measure(
            "gelu_tanh", "2^-13 to 16, both signs", "absolute", 1.9e-4, within_16, functions.gelu_tanh, _gelu_tanh
        ),
    ]


def main() -> int:
    """Print the table of docs/numerics.md; return 1 if a bound does not hold."""
    bounds = measure()
    print("| function | arguments | tried | error | bound | largest found | at |")
    print("|---|---|---|---|---|---|---|")
    for b in bounds:
        tried = f"all {b.tried:,}" if b.how == "all" else f"{b.tried:,} rows"
        print(f"| {b.name} | {b.domain} | {tried} | {b.kind} | {b.stated:.1e} | {b.found:.3e} | {b.worst:.6g} |")
    return 0 if all(b.holds for b in bounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
