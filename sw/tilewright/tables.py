"""Functions of one variable for the vector unit: tables that a program loads, each with a bound of its error.

The machine interpolates between 512 segments (docs/numerics.md, "table(x)"). A table is data, not gateware, so an
activation of one's own is a Python function and `from_callable`:

>>> import math
>>> import tilewright as tw
>>> softsign = tw.tables.from_callable(lambda x: x / (1 + abs(x)), range=(-8, 8), name="softsign")
>>> softsign
<Table softsign: -8 to 8, error at most 3.6e-04 (sampled)>
>>> tw.ops.table([[-2.0, 0.0, 1.0]], softsign).tolist()
[[-0.6666717529296875, 0.0, 0.5]]

The named tables are worked out in decimal arithmetic, so they have the same bits everywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.formats import LARGEST, f24
from tilewright_hw.arch import InputError

Function = Callable[[Any], Any]

SEGMENTS = 512
"""Segments of a table."""
_STEPS = 128
"""Arguments of a segment that the machine tells apart."""
_FINE = 4
"""Samples from one argument that the machine tells apart to the next, for the bound."""
_DIGITS = 60
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
_ROUNDING = 2.0**-16
"""Relative error of one F24 operation."""


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """A table and what is known of its error.

    Parameters
    ----------
    name : str
        For messages.
    range : (float, float)
        Where the bound holds. Past it the function stays what it is at the end.
    words : uint32 (512,)
        The segments, as LOAD takes them.
    input_shift, output_shift : int
        The shifts a and b.
    bound : float
        The largest absolute error over all F24 in the range.
    proof : str
        What the bound rests on: `lipschitz`, a constant that the caller gave, or `sampled`; see `from_callable`.
    times_x : bool
        Whether the function is the table's value times its argument; the bound is of that.
    """

    name: str
    range: tuple[float, float]
    words: NDArray[np.uint32]
    input_shift: int
    output_shift: int
    bound: float
    proof: str
    times_x: bool = False

    def __repr__(self) -> str:
        low, high = self.range
        return f"<Table {self.name}: {low:g} to {high:g}, error at most {self.bound:.1e} ({self.proof})>"

    @property
    def dst(self) -> int:
        """The field `dst` of a LOAD that brings the table."""
        return self.input_shift | (self.output_shift & 255) << 8

    @property
    def data(self) -> NDArray[np.uint8]:
        """The table as it lies in memory."""
        return self.words.astype("<u4").view(np.uint8)


def from_callable(
    f: Function,
    range: tuple[float, float],
    *,
    name: str | None = None,
    times_x: bool = False,
    lipschitz: float | None = None,
) -> Table:
    """Return the table of a function of one variable.

    Equal segments cover -P to P, P being the power of two at or above both ends; f is joined linearly between their
    ends. The bound compares every value that the machine can give (65,536 of them) with f at the ends of the interval
    of arguments that share it and at three points in between. From there to all arguments it takes either

    * `lipschitz`, a constant L with |f(x) - f(y)| <= L * |x - y| over the range: then the bound is a proof (up to the
      rounding of f itself); or
    * nothing: then the bound adds the largest difference of second order of f around each sample, and holds for an f
      that is no rougher between samples than across them ("sampled").

    Parameters
    ----------
    f : callable
        Takes a float (or an array) and returns a finite one, everywhere in the range. It is called a few hundred
        thousand times if it does not take arrays.
    range : (float, float)
        The arguments that matter. Outside f stays what it is at the end: clamp there, or choose a wider range.
    name : str, optional
        For messages; f's own name otherwise.
    times_x : bool
        The result is to be x * f(x): the instruction multiplies. So an f that tends to 1 gives a function that goes on
        as x outside the range.
    lipschitz : float, optional
        See above; of x * f(x) if `times_x`.

    Raises
    ------
    InputError
        If f is not callable, is not finite somewhere, or the range or f's values do not fit.
    """
    if not callable(f):
        raise InputError(f"f must be callable, not {f!r}")
    low, high = _check_range(range)
    if lipschitz is not None and not (isinstance(lipschitz, int | float) and 0 <= lipschitz < math.inf):
        raise InputError(f"lipschitz must be a finite number from 0 on, not {lipschitz!r}")
    shift = _input_shift(low, high)
    values = [Decimal(v) for v in _at_knots(f, _knots(shift), low, high).tolist()]
    words, output_shift = _pack(values)
    bound = _bound(f, (low, high), (words, shift, output_shift), times_x, lipschitz)
    proof = "sampled" if lipschitz is None else "lipschitz"
    label = name or getattr(f, "__name__", "table")
    return Table(label, (low, high), words, shift, output_shift, bound, proof, times_x)


def _check_range(ends: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError) as e:
        raise InputError(f"range must be two numbers, not {ends!r}") from e
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"range must be two finite numbers, the lower one first, not {ends!r}")
    if max(-low, high) > 2.0**23:
        raise InputError(f"range must lie within -2^23 to 2^23, not {ends!r}")
    return low, high


def _input_shift(low: float, high: float) -> int:
    """Return a: the segments cover -2^(23-a) to 2^(23-a)."""
    return next(a for a in range(31, -1, -1) if 2.0 ** (23 - a) >= max(-low, high))


def _knots(shift: int) -> NDArray[np.float64]:
    """Return the ends of the segments."""
    return np.arange(-SEGMENTS // 2, SEGMENTS // 2 + 1) * 2.0 ** (15 - shift)


def _at_knots(f: Function, knots: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Return f at the knots within the range; outside the value at the end, met by a straight segment."""
    y = evaluate(f, np.clip(knots, low, high))
    inside = np.flatnonzero((low <= knots) & (knots <= high))
    if inside.size < 2:
        return y
    for last, step, end in ((inside[0], -1, low), (inside[-1], 1, high)):
        if knots[last] != end:  # the segment goes through f at the end of the range, and on to its own end
            rise = (y[last + step] - y[last]) * (knots[last + step] - knots[last]) / (end - knots[last])
            y[last + step :: step] = y[last] + rise
    return y


def evaluate(f: Function, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return f of each x, as an array if f takes arrays; InputError if it is not finite somewhere."""
    y: NDArray[Any] | None = None
    try:
        with np.errstate(all="ignore"):
            y = np.asarray(f(x.copy()))
    except (TypeError, ValueError, AttributeError):
        y = None
    if y is None or y.shape != x.shape or y.dtype.kind not in "fiub":
        y = np.array([_evaluate_one(f, v) for v in x.tolist()])
    y = y.astype(np.float64)
    if not np.isfinite(y).all():
        at = int(np.argmin(np.isfinite(y)))
        raise InputError(f"f must be finite all over the range: f({x[at]:g}) is {y[at]}")
    return y


def _evaluate_one(f: Function, x: float) -> float:
    try:
        return float(f(x))
    except (TypeError, ValueError, ArithmeticError) as e:
        raise InputError(f"f must return a number all over the range: f({x:g}) raises {type(e).__name__}: {e}") from e


def _half_up(x: Decimal) -> int:
    return int((x + Decimal("0.5")).to_integral_value(rounding=ROUND_FLOOR))


def _pack(values: list[Decimal]) -> tuple[NDArray[np.uint32], int]:
    """Return the words of the segments between values, and the largest output shift with which they fit."""
    with localcontext(Context(prec=_DIGITS)):
        largest = max(abs(v) for v in values)
        if largest > Decimal(float(LARGEST)):
            raise InputError(f"f's values must be within F24, not {largest:.3g}")
        if not largest:
            return np.zeros(SEGMENTS, np.uint32), 0
        for shift in range(min(127, 20 - math.floor(largest.log10() / Decimal(2).log10())), -129, -1):
            t = np.array([_half_up(v * Decimal(2) ** shift) for v in values], np.int64)
            rise = np.diff(t)
            if np.abs(t).max() < 1 << 19 and np.abs(rise).max() < 1 << 11:
                return ((t[:-1] & 0xFFFFF) << 12 | rise & 0xFFF).astype(np.uint32), shift
    raise InputError(f"f's values must fit 20 bits times a power of two, not {largest:.3g}")


def table_values(words: NDArray[np.uint32], output_shift: int) -> NDArray[np.float64]:
    """Return what the machine gives for each of the 65,536 arguments that it tells apart, from the lowest."""
    word = words.astype(np.int64)
    start, rise = (word >> 12 ^ 0x80000) - 0x80000, (word & 0xFFF ^ 0x800) - 0x800
    y = start[:, None] + ((rise[:, None] * np.arange(_STEPS) + 64) >> 7)
    return f24(np.ldexp(f24(y.reshape(-1).astype(np.float32)), -output_shift)).astype(np.float64)


def _bound(
    f: Function,
    ends: tuple[float, float],
    packed: tuple[NDArray[np.uint32], int, int],
    times_x: bool,
    lipschitz: float | None,
) -> float:
    """Return the bound of `from_callable`."""
    words, shift, output_shift = packed
    spacing = 2.0 ** (8 - shift) / _FINE
    k = np.arange(math.ceil(ends[0] / spacing), math.floor(ends[1] / spacing) + 1)
    x = np.concatenate([[ends[0]], k * spacing, [ends[1]]])
    y = evaluate(f, x) * (x if times_x else 1.0)
    values = table_values(words, output_shift)
    error = np.zeros(x.shape)
    u = x / (spacing * _FINE)
    for nearest in (np.ceil(u - 0.5), np.floor(u + 0.5)):  # both sides of a tie
        got = values[np.clip(nearest, -32768, 32767).astype(np.int64) + 32768] * (x if times_x else 1.0)
        rounding = np.abs(got) * _ROUNDING if times_x else 0.0
        np.maximum(error, np.abs(got - y) + rounding, out=error)
    if lipschitz is not None:
        slope = float(np.abs(values).max()) if times_x else 0.0
        return float(error.max()) + (lipschitz + slope) * spacing / 2
    bend = np.zeros(x.shape)
    if k.size > 2:
        bend[2:-2] = np.abs(np.diff(y[1:-1], 2))
        bend[:2], bend[-2:] = bend[2], bend[-3]
    return float((error + np.maximum(bend, np.maximum(np.roll(bend, 1), np.roll(bend, -1)))).max())


def _named(
    name: str,
    shift: int,
    exact: Callable[[Decimal], Decimal],
    reference: Function,
    lipschitz: float,
    times_x: bool = False,
) -> Table:
    """Return a table whose values are exact, with the bound found with a reference in float64."""
    with localcontext(Context(prec=_DIGITS)):
        values = [exact(Decimal(x)) for x in _knots(shift).tolist()]
    words, output_shift = _pack(values)
    end = 2.0 ** (23 - shift)
    bound = _bound(reference, (-end, end), (words, shift, output_shift), times_x, lipschitz)
    return Table(name, (-end, end), words, shift, output_shift, bound, "lipschitz", times_x)


def _logistic(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def _erf(x: Decimal) -> Decimal:
    """Return erf(x) = 2/sqrt(pi) e^(-x^2) (x + 2 x^3 / 3 + 4 x^5 / (3 * 5) + ...): all terms have one sign."""
    total = term = x
    n = 0
    while abs(term) > abs(total) * Decimal(10) ** -_DIGITS:
        n += 1
        term = term * 2 * x * x / (2 * n + 1)
        total += term
    return total * (-x * x).exp() * 2 / _PI.sqrt()


def _ratio_of_gelu_tanh(x: float) -> float:
    return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@functools.cache
def tanh() -> Table:
    """Return the table of tanh, -8 to 8."""
    return _named("tanh", 20, lambda x: 2 * _logistic(2 * x) - 1, np.tanh, 1.0)


@functools.cache
def erf() -> Table:
    """Return the table of the error function, -4 to 4."""
    return _named("erf", 21, _erf, math.erf, 1.1284)


@functools.cache
def gelu() -> Table:
    """Return the table of GELU, x * Phi(x) with the normal distribution's Phi: Phi, -8 to 8, times x."""
    return _named(
        "gelu", 20, lambda x: (1 + _erf(x / Decimal(2).sqrt())) / 2, lambda x: math.erfc(-x / math.sqrt(2)) / 2,
        1.13, times_x=True,
    )  # fmt: skip


@functools.cache
def gelu_tanh() -> Table:
    """Return the table of the GELU of GPT-2, x * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2: what x is times."""
    return _named(
        "gelu_tanh", 20, lambda x: _logistic(2 * (2 / _PI).sqrt() * (x + Decimal("0.044715") * x**3)),
        _ratio_of_gelu_tanh, 1.13, times_x=True,
    )  # fmt: skip
