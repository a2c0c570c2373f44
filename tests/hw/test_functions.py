"""The table functions against docs/numerics.md in exact integers; tables against independent arithmetic."""

import random

import f24
import pytest

from tilewright_hw.arch.isa import Func
from tilewright_hw.gateware import functions, tables

SEED = 31


def exponents(fractions, *values, signs=(0, 1)):
    return [s << 23 | e << 15 | f for e in values for f in fractions for s in signs]


def vectors(values):
    return [{"i": v} for v in values]


def exp2_values(rng, count):
    """Edges; steps and ties of the fixed point; random arguments from tiny to beyond the flush at 25."""
    values = list(f24.EDGES) + [f24.encode(-n) for n in range(40)]
    values += [f24.encode(-n) + d for n in (24, 25, 31, 32) for d in (-1, 1)]
    values += exponents(range(0, 0x8000, 257), *range(109, 133), signs=(1,))
    return values + [f24.random_f24(rng, 105, 135) | 1 << 23 for _ in range(count)]


def sigmoid_value(code):
    """Return the F24 of the fixed-point argument `code` (0..65535)."""
    return f24.encode(f24.Fraction(code - 32768, 2048))


def sigmoid_values(rng, count):
    values = list(f24.EDGES) + [sigmoid_value(code) for code in range(0, 65536, 61)]
    values += [x + d for x in map(sigmoid_value, range(1, 65536, 997)) if x for d in (-1, 1)]
    return values + [f24.random_f24(rng, 110, 135) for _ in range(count)]


def test_tables():
    assert tables.recip_table() == [
        (f24.Fraction(1 << 18) / (1 + f24.Fraction(i, 256)) + f24.Fraction(1, 2)).__floor__() for i in range(257)
    ]
    assert tables.exp2_table() == f24._EXP2
    assert tables.sigmoid_table() == f24._SIGMOID
    for odd in (False, True):
        want = [f24.half_up_root(1 / ((1 + odd) * (1 + f24.Fraction(i, 256)))) for i in range(257)]
        assert tables.rsqrt_table(odd=odd) == want


def test_exp2():
    f24.check(functions.Exp2(), lambda i: f24.exp2(i), vectors(exp2_values(random.Random(SEED), 1500)))


def test_sigmoid():
    f24.check(functions.Sigmoid(), lambda i: f24.sigmoid(i), vectors(sigmoid_values(random.Random(SEED), 1500)))


@pytest.mark.slow
def test_sigmoid_every_code():
    f24.check(functions.Sigmoid(), lambda i: f24.sigmoid(i), vectors(map(sigmoid_value, range(65536))))


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [120, 127, 130])
def test_exp2_every_significand(exponent):
    values = exponents(range(0x8000), exponent, signs=(1,))
    f24.check(functions.Exp2(), lambda i: f24.exp2(i), vectors(values))


def constants(kind, a=0, b=0):
    """Return what LaneFunction has to be told beside the argument."""
    unit = functions.LaneFunction
    if kind == Func.TABLE:
        return {"kind": kind, "align": unit.TABLE_ALIGN - a, "exponent": unit.TABLE_EXPONENT - b}
    return {"kind": kind, "align": unit.ALIGN, "exponent": unit.SIGMOID_EXPONENT}


def test_exp2_and_sigmoid_take_turns():
    rng = random.Random(SEED + 1)
    references = {Func.EXP2: f24.exp2, Func.SIGMOID: f24.sigmoid}
    kinds = [rng.choice(list(references)) for _ in range(1500)]
    mixed = [{"i": f24.random_f24(rng, 110, 135)} | constants(kind) for kind in kinds]
    f24.check(functions.LaneFunction(), lambda i, kind, align, exponent: references[kind](i), mixed)


def random_segments(rng):
    """Return a table: smooth, or of anything, the largest among it."""
    if rng.random() < 0.3:
        edges = [(v, s) for v in (-(1 << 19), (1 << 19) - 1, 0, -1, 1) for s in (-2048, 2047, 0, 1, -1)]
        return [rng.choice(edges) for _ in range(512)]
    value = [rng.getrandbits(rng.randint(1, 19)) * rng.choice((-1, 1)) for _ in range(512)]
    return [(v, rng.randint(-2048, 2047)) for v in value]


def table_arguments(rng, a, count):
    """Return arguments within the segments' range and around its ends, ties of the fixed point among them."""
    values = [0, *f24.EDGES]
    for _ in range(count):
        code = rng.choice((rng.randint(-66000, 66000), rng.randint(-300, 300), 32767, -32768))
        near = f24.encode(f24.Fraction(2 * code + rng.choice((0, 1)), 2) * f24.Fraction(2) ** (8 - a))
        values += [near, near + 1, max(near - 1, 0)] if near else [0]
    return [x if x >> 15 & 255 else 0 for x in values if x >> 15 & 255 < 255]


@pytest.mark.parametrize(("a", "b"), [(19, 16), (0, 0), (31, -128), (17, 127), (8, -110), (21, 126)])
def test_table(a, b):
    rng = random.Random(SEED + a)
    segments = random_segments(rng)
    idle = constants(Func.TABLE, a, b)
    writes = [
        idle | {"write": {"en": 1, "addr": j, "data": {"value": v, "step": s}}} for j, (v, s) in enumerate(segments)
    ]
    still = {"write": {"en": 0, "addr": 0, "data": {"value": 0, "step": 0}}}
    values = table_arguments(rng, a, 250)
    dut = functions.LaneFunction()
    got = f24.run_pipeline(
        dut,
        dut.TABLE_LATENCY,
        [*writes, *(idle | still | {"i": x} for x in values)],
        lambda ctx: ctx.get(dut.o_table),
    )
    for x, y in zip(values, got[len(writes) :], strict=True):
        assert y == f24.table(x, segments, a, b), f"table({x:#x}), a {a}, b {b}"


def test_table_is_zero_at_first():
    dut = functions.LaneFunction()
    values = [{"i": i} | constants(Func.TABLE) for i in f24.EDGES]
    assert set(f24.run_pipeline(dut, dut.TABLE_LATENCY, values, lambda ctx: ctx.get(dut.o_table))) == {0}


def test_reciprocal():
    rng = random.Random(SEED)
    values = list(f24.EDGES) + exponents(range(0, 0x8000, 31), 126, 253)
    values += [f24.random_f24(rng) for _ in range(1500)]
    f24.check(functions.Reciprocal(), lambda i: f24.recip(i), vectors(values))


def test_reciprocal_sqrt():
    rng = random.Random(SEED)
    values = list(f24.EDGES) + exponents(range(0, 0x8000, 31), 127, 128, signs=(0,))
    values += [f24.random_f24(rng) for _ in range(1500)]
    f24.check(functions.ReciprocalSqrt(), lambda i: f24.rsqrt(i), vectors(values))


def test_reciprocals_take_turns():
    rng = random.Random(SEED + 1)
    mixed = [{"i": f24.random_f24(rng), "sqrt": rng.getrandbits(1)} for _ in range(1500)]
    f24.check(functions.ReciprocalUnit(), lambda i, sqrt: (f24.rsqrt if sqrt else f24.recip)(i), mixed)


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [1, 127, 252, 253, 254])
def test_reciprocals_every_significand(exponent):
    mixed = [{"i": exponent << 15 | f, "sqrt": sqrt} for f in range(0x8000) for sqrt in (0, 1)]
    f24.check(functions.ReciprocalUnit(), lambda i, sqrt: (f24.rsqrt if sqrt else f24.recip)(i), mixed)


def test_reference_is_what_the_golden_model_computes():
    golden = pytest.importorskip("tilewright_sim.golden.tables")
    rng = random.Random(SEED + 2)
    for name, values in (
        ("exp2", exp2_values(rng, 500)),
        ("sigmoid", sigmoid_values(rng, 500)),
        ("recip", [f24.random_f24(rng) for _ in range(1000)]),
        ("rsqrt", [f24.random_f24(rng) for _ in range(1000)]),
    ):
        got = getattr(golden, name)([float(f24.value(v)) for v in values])
        assert got.tolist() == [float(f24.value(getattr(f24, name)(v))) for v in values], name


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (functions.LaneFunction, r"^Function must be 'exp2', 'sigmoid' or None, not 'tanh'$"),
        (functions.ReciprocalUnit, r"^Function must be 'recip', 'rsqrt' or None, not 'tanh'$"),
    ],
)
def test_only(block, message):
    with pytest.raises(ValueError, match=message):
        block(only="tanh")
