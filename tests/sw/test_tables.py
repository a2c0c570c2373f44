"""Tables of functions of one variable, their bounds, and the operations that use them."""

from __future__ import annotations

import doctest
import math
import re
from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tilewright import tables
from tilewright.formats import f24
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_sim import golden
from tilewright_sim.golden import GoldenDevice

SEED = 5
FUNCTIONS: list[tuple[Callable[[float], float], tuple[float, float]]] = [
    (math.sin, (-3.2, 3.2)),
    (math.atan, (-16, 16)),
    (lambda x: max(x, 0.0), (-8, 8)),
    (lambda x: x * 1e20 + 3e18, (-0.3, 0.01)),
    (lambda x: 1e-30 * x**3, (2, 5)),
    (lambda x: float(x > 0.3), (-1, 1)),
    (lambda x: -7.0, (-5e6, 8e6)),
    (lambda x: math.log(x), (0.25, 4)),
    (np.tanh, (-4, 4)),
]


def every_f24(low: float, high: float) -> np.ndarray:
    """Many F24 of a range: the ends, all exponents, dense and random ones."""
    rng = np.random.default_rng(SEED)
    exponents = np.exp2(rng.uniform(-30, math.log2(max(abs(low), abs(high))), 20000))
    x = np.concatenate([rng.uniform(low, high, 60000), exponents, -exponents, [low, high, 0.0]])
    x = f24(x).astype(np.float64)
    return x[(low <= x) & (x <= high)]


@pytest.mark.parametrize(("f", "ends"), FUNCTIONS, ids=range(len(FUNCTIONS)))
@pytest.mark.parametrize("times_x", [False, True])
def test_the_bound_holds(f: Callable[[float], float], ends: tuple[float, float], times_x: bool) -> None:
    table = tables.from_callable(f, ends, times_x=times_x)
    x = every_f24(*ends)
    exact = np.array([f(v) for v in x.tolist()]) * (x if times_x else 1.0)
    error = np.abs(golden.table(x, table) - exact).max()
    assert error <= table.bound, (error, table)
    assert table.proof == "sampled"


@pytest.mark.parametrize("name", ["tanh", "erf", "gelu", "gelu_tanh"])
def test_the_bounds_of_named_tables_hold(name: str) -> None:
    table = getattr(tables, name)()
    exact = {
        "tanh": math.tanh,
        "erf": math.erf,
        "gelu": lambda v: v * math.erfc(-v / math.sqrt(2)) / 2,
        "gelu_tanh": lambda v: v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    }[name]
    x = every_f24(*table.range)
    error = np.abs(golden.table(x, table) - [exact(v) for v in x.tolist()]).max()
    assert table.bound / 4 < error <= table.bound
    assert table.proof == "lipschitz"
    assert getattr(tables, name)() is table


def test_a_bound_proved_by_a_constant() -> None:
    table = tables.from_callable(math.sin, (-math.pi, math.pi), lipschitz=1)
    assert table.proof == "lipschitz"
    assert 0 < table.bound - tables.from_callable(math.sin, (-math.pi, math.pi)).bound < 1e-4
    assert repr(table) == f"<Table sin: -3.14159 to 3.14159, error at most {table.bound:.1e} (lipschitz)>"


def test_outside_the_range_it_stays_what_it_is_at_the_end() -> None:
    table = tables.from_callable(lambda x: x, (-1.0, 2.0))
    assert golden.table([-100.0, 100.0], table).tolist() == pytest.approx([-1, 2], abs=2 * table.bound)


def test_what_is_no_table() -> None:
    for wrong in (None, 3, "tanh"):
        with pytest.raises(InputError, match=re.escape(f"f must be callable, not {wrong!r}")):
            tables.from_callable(wrong, (-1, 1))  # type: ignore[arg-type]
    for ends in ((1, 1), (2, -2), (0, math.inf), (math.nan, 1)):
        with pytest.raises(InputError, match="range must be two finite numbers, the lower one first"):
            tables.from_callable(math.sin, ends)
    for bad in ((1, 2, 3), 7, ("a", "b")):
        with pytest.raises(InputError, match="range must be two numbers"):
            tables.from_callable(math.sin, bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=re.escape("range must lie within -2^23 to 2^23")):
        tables.from_callable(math.atan, (0, 2.0**23 + 1))
    with pytest.raises(InputError, match="lipschitz must be a finite number from 0 on, not -1"):
        tables.from_callable(math.sin, (-1, 1), lipschitz=-1)


def test_functions_that_fail_somewhere() -> None:
    with pytest.raises(InputError, match=r"f must be finite all over the range: f\(-1\) is nan"):
        tables.from_callable(lambda x: math.nan, (-1, 1))
    with pytest.raises(InputError, match=r"f must be finite all over the range: f\(0\) is inf"):
        tables.from_callable(lambda x: math.inf if x == 0 else 1.0, (-1, 1))
    with pytest.raises(InputError, match=r"f must return a number all over the range.*math domain error"):
        tables.from_callable(math.log, (-1, 1))
    with pytest.raises(InputError, match=r"f must return a number all over the range.*ZeroDivisionError"):
        tables.from_callable(lambda x: 1 / float(x), (-1, 1))
    with pytest.raises(InputError, match="f must return a number all over the range"):
        tables.from_callable(lambda x: "one", (-1, 1))
    with pytest.raises(InputError, match="f's values must be within F24, not"):
        tables.from_callable(lambda x: 1e39, (-1, 1))


def device(name: str) -> GoldenDevice:
    return GoldenDevice(AcceleratorConfig.resolve(name), check=True)


def data(m: int = 5, n: int = 37) -> np.ndarray:
    x = np.random.default_rng(SEED).standard_normal((m, n)).astype(np.float32) * 3
    x[0, :3] = 0, 1e6, -1e6
    return x


configs = pytest.mark.parametrize("config", ["default", "tiny"])


@configs
def test_operations_are_the_golden_functions(config: str) -> None:
    x = data()
    softsign = tables.from_callable(lambda v: v / (1 + abs(v)), (-8, 8))
    assert (tw.ops.table(x, softsign, device(config)) == golden.table(f24(x), softsign)).all()
    assert (tw.ops.table(x, tables.tanh(), device(config)) == golden.tanh(f24(x))).all()
    assert (tw.ops.gelu(x, device=device(config)) == golden.gelu(f24(x))).all()
    assert (tw.ops.gelu(x, "tanh", device(config)) == golden.gelu_tanh(f24(x))).all()
    w, b = np.linspace(0.5, 2, 37), np.linspace(-1, 1, 37)
    expected = golden.layernorm(f24(x), f24(w), f24(b), 1e-5)
    assert (tw.ops.layernorm(x, w, b, device=device(config)) == expected).all()


@configs
def test_argmax(config: str) -> None:
    x = data(300, 9)  # more rows than a block holds
    x[1:3], x[3, 4:6] = -2, 100
    got = tw.ops.argmax(x.reshape(3, 100, 9), device(config))
    assert got.tolist() == f24(x).argmax(axis=1).reshape(3, 100).tolist()
    assert tw.ops.argmax([1.0, 3.0, 2.0]) == 1


def test_operations_refuse() -> None:
    with pytest.raises(InputError, match=re.escape("table must be a tilewright.tables.Table, not 'tanh'")):
        tw.ops.table([1.0], "tanh")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="approximate must be 'none' or 'tanh', not 'erf'"):
        tw.ops.gelu([1.0], "erf")
    with pytest.raises(InputError, match=re.escape("layernorm: bias must have shape (2,), not (3,)")):
        tw.ops.layernorm([[1.0, 2.0]], [1, 1], [0, 0, 0])
    with pytest.raises(InputError, match="layernorm: eps must be a number from 0 on, not -1"):
        tw.ops.layernorm([[1.0, 2.0]], [1, 1], [0, 0], -1)
    with pytest.raises(InputError, match="layernorm: a row must have at most 32767 elements, not 40000"):
        tw.ops.layernorm(np.ones(40000), np.ones(40000), np.ones(40000))
    with pytest.raises(InputError, match="weight and bias of 9000 elements need 2250 words; the parameter buffer has"):
        tw.ops.layernorm(np.ones(9000), np.ones(9000), np.ones(9000))


def test_the_examples_of_the_module() -> None:
    failed, attempted = doctest.testmod(tables)
    assert attempted > 3
    assert failed == 0
