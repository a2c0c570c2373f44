"""Lane trees, alignment, row reductions and the statistics entry against docs/numerics.md in exact integers."""

import random
from fractions import Fraction

import f24
import pytest
from amaranth.utils import ceil_log2

from tilewright_hw.arch.isa import Reduce
from tilewright_hw.gateware.reduce import AlignToInt, MaxTree, RowReduce, RowScalar, Square, SumTree

SEED = 77
SUMS = (Reduce.EXPSUM, Reduce.SUMSQ, Reduce.SUM)


@pytest.mark.parametrize("lanes", [2, 3, 8, 16])
def test_trees(lanes):
    rng = random.Random(SEED)
    rows = [[rng.choice((0, (1 << 24) - 1, rng.getrandbits(24))) for _ in range(lanes)] for _ in range(100)]
    tree = MaxTree(lanes=lanes)
    assert f24.run_pipeline(tree, tree.latency, [{"i": row} for row in rows]) == [max(row) for row in rows]
    rows = [[rng.choice((-(1 << 16), (1 << 16) - 1, rng.randint(-9, 9))) for _ in range(lanes)] for _ in range(100)]
    tree = SumTree(lanes=lanes, width=17)
    assert f24.run_pipeline(tree, tree.latency, [{"i": row} for row in rows]) == [sum(row) for row in rows]


def test_align():
    rng = random.Random(SEED)
    vectors = [{"i": i, "exponent": e, "unit": 0} for i in f24.EDGES for e in (0, 1, 2, 16, 127, 254)]
    for _ in range(3000):
        exponent = rng.randint(1, 254)
        low = max(1, exponent - 20)
        vectors.append({"i": f24.random_f24(rng, low, min(254, exponent + 1)), "exponent": exponent, "unit": 0})
    vectors += [{"i": i, "exponent": rng.getrandbits(8), "unit": 1} for i in f24.EDGES]
    vectors += [{"i": f24.random_f24(rng, 95, 128), "exponent": rng.getrandbits(8), "unit": 1} for _ in range(1500)]
    f24.check(AlignToInt(), lambda i, exponent, unit: f24.unit_to_int(i) if unit else f24.align(i, exponent), vectors)


def test_square():
    rng = random.Random(SEED)
    values = [0, 1, -1, 65535, -65535] + [rng.randint(-65535, 65535) for _ in range(100)]
    f24.check(Square(), lambda i: i * i, [{"i": v} for v in values])


def reduce_reference(kind, rows, exponent):
    """Return the value of one entry; rows: elements that take part."""
    match kind:
        case Reduce.MAX:
            return max(rows, key=f24.value, default=0)
        case Reduce.ABSMAX | Reduce.QSCALE:
            return max((x & 0x7FFFFF for x in rows), default=0)
        case Reduce.EXPSUM:
            return sum(f24.unit_to_int(x) for x in rows)
        case Reduce.SUMSQ:
            return sum(f24.align(x, exponent) ** 2 for x in rows)
        case Reduce.SUM:
            return sum(f24.align(x, exponent) for x in rows) % (1 << 64)


def beats_of(rng, kind, lanes, row, exponent):
    """Return the beats of one row, elements left out with their keep bit 0 and the value +0, gaps between them."""
    beats = []
    for start in range(0, max(1, len(row)), lanes):
        part = row[start : start + lanes]
        keep = [int(x is not None) for x in part] + [0] * (lanes - len(part))
        beat = {
            "valid": 1,
            "first": int(start == 0),
            "last": int(start + lanes >= len(row)),
            "data": [x or 0 for x in part] + [0] * (lanes - len(part)),
            "keep": sum(bit << n for n, bit in enumerate(keep)),
            "exponent": exponent,
        }
        beats.append(beat)
        long = rng.random() < 0.02  # enough to fall asleep in
        for _ in range(20 if long else rng.choice((0, 0, 0, 0, 1, 2))):
            beats.append({**beat, "valid": 0, "data": [rng.getrandbits(24) for _ in range(lanes)]})
    return beats


@pytest.mark.parametrize("lanes", [2, 3, 8])
@pytest.mark.parametrize("kind", [k for k in Reduce if k != Reduce.NONE])
def test_row_reduce(kind, lanes):
    rng = random.Random(SEED + lanes)
    beats, want = [], []
    for _ in range(60):
        exponent = rng.choice((0, rng.randint(1, 254), rng.randint(110, 140)))
        centre = 127 if kind == Reduce.EXPSUM else max(1, exponent)
        low, high = max(1, centre - 17), centre
        row = [None if rng.random() < 0.1 else f24.random_f24(rng, low, high) for _ in range(rng.randint(1, 4 * lanes))]
        if rng.random() < 0.3:
            row = [x and x | 1 << 23 for x in row]
        beats += beats_of(rng, kind, lanes, row, exponent)
        want.append((reduce_reference(kind, [x for x in row if x is not None], exponent), exponent))

    dut = RowReduce(lanes=lanes)
    assert dut.latency(kind) == 1 + ceil_log2(lanes) + 3 * (kind in SUMS)
    outputs = f24.run_pipeline(
        dut,
        dut.latency(kind),
        [{"kind": kind, "i": beat} for beat in beats],
        lambda ctx: (ctx.get(dut.o.valid), ctx.get(dut.o.value), ctx.get(dut.o.exponent)),
    )
    assert [bool(valid) for valid, _, _ in outputs] == [bool(b["valid"] and b["last"]) for b in beats]
    assert [(value, exponent) for valid, value, exponent in outputs if valid] == want


def entry_reference(kind, value, exponent, const1, const2, scale16):
    """Return the statistics entry (a, b)."""
    match kind:
        case Reduce.MAX | Reduce.ABSMAX:
            return value, 0
        case Reduce.QSCALE:
            s = f24.mul(value, const1)
            s = f24.bf16(s) if scale16 else s
            return f24.recip(s), s
        case Reduce.EXPSUM:
            return f24.recip(f24.scale2(f24.encode(value), -24)), 0
        case Reduce.SUMSQ:
            mean = f24.mul(f24.scale2(f24.encode(value), 2 * (exponent - 127 - 15)), const1)
            return f24.rsqrt(f24.add(mean, const2)), 0
        case Reduce.SUM:
            return f24.mul(f24.scale2(f24.encode(value), exponent - 127 - 15), const1), 0


def row_values(rng, kind, count):
    """Return (value, exponent) of random rows."""
    for n in range(count):
        exponent = rng.choice((1, 254, rng.randint(1, 254), rng.randint(110, 140)))
        if kind not in SUMS:
            value = f24.EDGES[n] if n < len(f24.EDGES) else f24.random_f24(rng)
        elif n == 0:
            value, exponent = 0, 0
        else:
            value = rng.getrandbits(rng.randint(1, 62)) * (rng.choice((-1, 1)) if kind == Reduce.SUM else 1)
        yield value if kind != Reduce.QSCALE and kind != Reduce.ABSMAX else value & 0x7FFFFF, exponent


@pytest.mark.parametrize("scale16", [0, 1])
@pytest.mark.parametrize("kind", [k for k in Reduce if k != Reduce.NONE])
def test_row_scalar(kind, scale16):
    rng = random.Random(SEED + kind + scale16)
    const1 = f24.encode(Fraction(1, rng.choice((127, 64, 288))))
    const2 = f24.encode(Fraction(1, 100000), bits=8)
    rows = list(row_values(rng, kind, 300))
    dut = RowScalar()
    gap = range(100, 160)  # long enough to fall asleep in
    valid = [int(rng.random() < 0.8 and n not in gap) for n in range(len(rows))]
    outputs = f24.run_pipeline(
        dut,
        dut.latency(kind),
        [
            {
                "kind": kind,
                "const1": const1,
                "const2": const2,
                "scale16": scale16,
                "i": {"valid": v, "value": value % (1 << 64), "exponent": exponent},
            }
            for v, (value, exponent) in zip(valid, rows, strict=True)
        ],
        lambda ctx: (ctx.get(dut.o.valid), ctx.get(dut.o.a), ctx.get(dut.o.b)),
    )
    for v, (value, exponent), (out, a, b) in zip(valid, rows, outputs, strict=True):
        assert out == v
        if not v:
            continue
        want = entry_reference(kind, value, exponent, const1, const2, scale16)
        assert (a, b) == want, f"{kind.name} of {value:#x}, exponent {exponent}"


@pytest.mark.parametrize(("name", "arguments"), [("MaxTree", {}), ("SumTree", {"width": 8}), ("RowReduce", {})])
def test_lanes(name, arguments):
    block = {"MaxTree": MaxTree, "SumTree": SumTree, "RowReduce": RowReduce}[name]
    for lanes in (0, -1, "2", True):
        with pytest.raises(TypeError, match=f"^Lanes must be a positive integer, not {lanes!r}$"):
            block(lanes=lanes, **arguments)
