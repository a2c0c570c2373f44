"""FloatMul, FloatAdd and the conversions against exact fractions."""

import random

import f24
import numpy as np
import pytest
from amaranth import Module, Signal
from amaranth.sim import Simulator

from tilewright_hw.gateware import float as gateware

SEED = 20240


def pairs(count):
    """Operand pairs: all pairs of edges, near exponents (cancellation, ties), far ones, any."""
    rng = random.Random(SEED)
    found = [(a, b) for a in f24.EDGES for b in f24.EDGES]
    for _ in range(count):
        a = f24.random_f24(rng)
        exponent = a >> 15 & 255
        gap = rng.choice((0, 1, 2, 15, 16, 17, 18, 19, rng.randint(0, 40)))
        near = min(254, max(1, exponent + rng.choice((-gap, gap))))
        found.append((a, f24.random_f24(rng, near, near)))
        found.append((f24.random_f24(rng), f24.random_f24(rng)))
        found.append((a, a ^ 1 << 23 if a else 0))
        product = min(254, max(1, rng.choice((127, 127 + 127, 0)) + 127 - exponent + rng.randint(-3, 3)))
        found.append((a, f24.random_f24(rng, product, product)))
    return [{"a": a, "b": b} for a, b in found]


def test_mul():
    f24.check(gateware.FloatMul(), f24.mul, pairs(2500))


def test_add():
    f24.check(gateware.FloatAdd(), f24.add, pairs(2500))


@pytest.mark.parametrize("block", [gateware.FloatMul, gateware.FloatAdd])
def test_negative_zero_operands(block):
    zero = 1 << 23
    reference = f24.mul if block is gateware.FloatMul else f24.add
    vectors = [{"a": a, "b": zero} for a in f24.EDGES] + [{"a": zero, "b": b} for b in f24.EDGES]
    f24.check(block(), reference, [*vectors, {"a": zero, "b": zero}])


@pytest.mark.parametrize(
    ("width", "signed"),
    [(2, True), (8, True), (17, False), (24, True), (32, True), (40, True), (49, True), (64, True), (64, False)],
)
def test_int_to_float(width, signed):
    rng = random.Random(SEED + width)
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
    values = [0, low, high, low + 1, high - 1, 1, high // 2, high // 2 + 1]
    for _ in range(1500):
        bits = rng.randint(1, width - signed)
        magnitude = rng.getrandbits(bits) | 1 << bits - 1
        if bits > 17:  # ties and their neighbours
            magnitude = rng.choice(
                (magnitude, magnitude >> bits - 17 << bits - 17, (magnitude >> bits - 17 << bits - 17) + 1)
            )
        values.append(min(high, max(low, magnitude * (rng.choice((-1, 1)) if signed else 1))))
    f24.check(gateware.IntToFloat(width, signed=signed), lambda i: f24.encode(i), [{"i": v} for v in values])


@pytest.mark.parametrize(("width", "error"), [("8", TypeError), (True, TypeError), (1, ValueError), (200, ValueError)])
def test_int_to_float_width(width, error):
    with pytest.raises(error, match=repr(width)):
        gateware.IntToFloat(width)


@pytest.mark.parametrize(("wide", "limit"), [(0, 127), (1, 16383)])
def test_float_to_int(wide, limit):
    rng = random.Random(SEED)
    values = f24.EDGES + [f24.random_f24(rng, 120, 145) for _ in range(3000)]
    near = [
        *range(-130, 131),
        *range(limit - 3, limit + 4),
        *range(-limit - 3, 4 - limit),
        *rng.sample(range(limit), 50),
    ]
    for n in near:  # ties and their neighbours
        for half in (2 * n - 1, 2 * n, 2 * n + 1):
            x = f24.encode(half) - (1 << 15) if half else 0
            values += [x, x + 1, x - 1] if half else [0]
    vectors = [{"i": v, "wide": wide} for v in values]
    f24.check(gateware.FloatToInt(), lambda i, wide: f24.f2i(i, limit), vectors)


def test_scale2():
    rng = random.Random(SEED)
    vectors = [{"i": i, "k": k} for i in f24.EDGES for k in (-512, -254, -253, -1, 0, 1, 253, 254, 511)]
    vectors += [{"i": f24.random_f24(rng), "k": rng.randint(-300, 300)} for _ in range(1000)]
    f24.check(gateware.Scale2(), lambda i, k: f24.scale2(i, k), vectors)


def test_round_bf16():
    rng = random.Random(SEED)
    values = f24.EDGES + [f24.random_f24(rng) for _ in range(500)]
    values += [127 << 15 | fraction for fraction in range(0x8000)][::7]
    values += [254 << 15 | 0x7F00 | fraction for fraction in range(256)]
    vectors = [{"i": v, "enable": int(rng.random() < 0.9)} for v in values]
    f24.check(gateware.RoundBf16(), lambda i, enable: f24.bf16(i) if enable else i, vectors)


def test_order_keys():
    rng = random.Random(SEED)
    values = f24.EDGES + [f24.random_f24(rng) for _ in range(300)]
    values += [v & 0x7FFFFF for v in values]
    m = Module()
    x, key, magnitude, back = Signal(24), Signal(24), Signal(24), Signal(24)
    m.d.comb += [
        key.eq(gateware.order_key(x)),
        magnitude.eq(gateware.magnitude_key(x)),
        back.eq(gateware.from_order_key(key)),
    ]
    keys, magnitudes = {}, {}

    async def bench(ctx):
        for v in values:
            ctx.set(x, v)
            await ctx.delay(1e-6)
            assert ctx.get(back) == v
            keys[v], magnitudes[v] = ctx.get(key), ctx.get(magnitude)

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
    assert sorted(keys, key=keys.get) == sorted(keys, key=f24.value)
    assert all(keys.values())
    for a, b in zip(values, reversed(values), strict=True):
        assert (magnitudes[a] < magnitudes[b]) == (abs(f24.value(a)) < abs(f24.value(b)))
        assert magnitudes[a] == keys[a & 0x7FFFFF]


def test_reference_is_what_the_golden_model_computes():
    formats = pytest.importorskip("tilewright_sim.golden.formats")
    vectors = pairs(300)
    a = np.array([float(f24.value(v["a"])) for v in vectors])
    b = np.array([float(f24.value(v["b"])) for v in vectors])
    for name in ("mul", "add"):
        want = [float(f24.value(getattr(f24, name)(**v))) for v in vectors]
        assert getattr(formats, name)(a, b).tolist() == want
    assert formats.bf16(a).tolist() == [float(f24.value(f24.bf16(v["a"]))) for v in vectors]
    assert formats.quantise(a).tolist() == [f24.f2i(v["a"], 127) for v in vectors]
