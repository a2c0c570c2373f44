"""How far the table functions are from the functions they stand for: `python -m tilewright_sim.golden.bounds`.

Every F24 of a function's domain is tried, up to what cannot matter: an exponent that only scales the result, and
arguments so small or large that the result is constant. The reference is float64, whose own error is far below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilewright_sim.golden import functions, tables
from tilewright_sim.golden.formats import Floats


@dataclass(frozen=True)
class Bound:
    """What is stated of a function, and what was found.

    Parameters
    ----------
    name : str
        Function.
    domain : str
        Arguments tried.
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
    return Bound(name, domain, kind, stated, x.size, float(error[at]), float(x[at]))


def _sigmoid(x: Floats) -> Floats:
    y: Floats = 1 / (1 + np.exp(-x))
    return y


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
    ]


def main() -> int:
    """Print the table of docs/numerics.md; return 1 if a bound does not hold."""
    bounds = measure()
    print("| function | arguments, all F24 | error | bound | largest found | at |")
    print("|---|---|---|---|---|---|")
    for b in bounds:
        print(f"| {b.name} | {b.domain} ({b.tried:,}) | {b.kind} | {b.stated:.1e} | {b.found:.3e} | {b.worst:.6g} |")
    return 0 if all(b.holds for b in bounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
