"""Lane trees, alignment, row reductions and the statistics entry against docs/numerics.md in exact integers."""

import random
from fractions import Fraction

import f24
import pytest
from amaranth.utils import ceil_log2
from streams import outlive_reset

from tilewright_hw.arch.isa import Reduce
from tilewright_hw.gateware.reduce import AlignToInt, MaxTree, RowReduce, RowScalar, Square, SumTree, Variance

SEED = 77
SUMS = (Reduce.EXPSUM, Reduce.SUMSQ, Reduce.SUM, Reduce.VAR)
ORDERED = (Reduce.MAX, Reduce.ARGMAX)


@pytest.mark.parametrize("lanes", [2, 3, 8, 16])
def test_trees(lanes):
    rng = random.Random(SEED)
    rows = [[rng.choice((0, (1 << 24) - 1, rng.getrandbits(24))) for _ in range(lanes)] for _ in range(100)]
    tree = MaxTree(lanes=lanes)
    found = f24.run_pipeline(
        tree, tree.latency, [{"i": row} for row in rows], lambda ctx: (ctx.get(tree.o), ctx.get(tree.lane))
    )
    assert found == [(max(row), row.index(max(row))) for row in rows]
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


def test_variance():
    rng = random.Random(SEED)
    cases = [(1, 0, 0), (32767, 32767 * 65535**2, 32767 * 65535), (32767, 32767 * 65535**2, -32767 * 65535)]
    for _ in range(300):
        top = rng.choice((3, 1000, 65535))
        numbers = [rng.randint(-top, top) for _ in range(rng.randint(1, 40))]
        cases.append((len(numbers), sum(x * x for x in numbers), sum(numbers)))
    cases += [(n, (n - 1) * 65535**2, (n - 1) * 65535) for n in (2, 3, 32767)]
    noise = {"start": 0, "n": 3, "i_squares": 12345, "i_sum": -77}  # between the inputs: of no effect
    vectors = [
        vector
        for n, squares, total in cases
        for vector in ({"start": 1, "n": n, "i_squares": squares, "i_sum": total}, noise)
    ]
    got = f24.run_pipeline(Variance(), Variance.LATENCY, vectors)[::2]
    assert got == [n * squares - total**2 for n, squares, total in cases]


def best_reference(places, origin, merged):
    """Return maximum and index of (place, element) pairs, after the entry `merged` if there is one."""
    a, b = merged or (None, origin)
    for place, x in places:
        if a is None or f24.value(x) > f24.value(a):
            a, b = x, (origin + place) % (1 << 24)
    return a or 0, b


def reduce_reference(kind, rows, exponent):
    """Return the value of one entry; rows: elements that take part."""
    match kind:
        case Reduce.ABSMAX | Reduce.QSCALE:
            return max((x & 0x7FFFFF for x in rows), default=0)
        case Reduce.EXPSUM:
            return sum(f24.unit_to_int(x) for x in rows)
        case Reduce.SUMSQ | Reduce.VAR:
            return sum(f24.align(x, exponent) ** 2 for x in rows)
        case Reduce.SUM:
            return sum(f24.align(x, exponent) for x in rows)


def beats_of(rng, lanes, rows, source):
    """Return the beats of an entry's rows, elements left out (None) with keep bit 0 and value +0, and gaps."""
    beats = []
    places = [(r, start) for r, row in enumerate(rows) for start in range(0, max(1, len(row)), lanes)]
    for r, start in places:
        part = rows[r][start : start + lanes]
        keep = [int(x is not None) for x in part] + [0] * (lanes - len(part))
        beat = {
            "valid": 1,
            "first": int((r, start) == places[0]),
            "last": int((r, start) == places[-1]),
            "row_end": int(start + lanes >= len(rows[r])),
            "data": [x or 0 for x in part] + [0] * (lanes - len(part)),
            "keep": sum(bit << n for n, bit in enumerate(keep)),
            "source": {"a": source[0], "b": source[1]},
        }
        beats.append(beat)
        long = rng.random() < 0.02  # enough to fall asleep in
        for _ in range(20 if long else rng.choice((0, 0, 0, 0, 1, 2))):
            beats.append({**beat, "valid": 0, "data": [rng.getrandbits(24) for _ in range(lanes)]})
    return beats


def random_row(rng, kind, lanes, exponent):
    """Return some elements, None for those that take no part; all of them negative, or all, at times."""
    centre = 127 if kind == Reduce.EXPSUM else max(1, exponent)
    low, high = max(1, centre - 17), centre
    row = [None if rng.random() < 0.1 else f24.random_f24(rng, low, high) for _ in range(rng.randint(1, 4 * lanes))]
    if rng.random() < 0.3:
        row = [x and x | 1 << 23 for x in row]
    if kind in ORDERED and rng.random() < 0.3:  # the same maximum more than once
        row = [rng.choice(row[:2]) for _ in row]
    return [None] * len(row) if rng.random() < 0.05 else row


KINDS = [k for k in Reduce if k != Reduce.NONE]


@pytest.mark.parametrize("lanes", [2, 3, 8])
@pytest.mark.parametrize(("kind", "merge"), [*((k, 0) for k in KINDS), *((k, 1) for k in ORDERED)])
def test_row_reduce(kind, merge, lanes):
    rng = random.Random(SEED + lanes)
    beats, want = [], []
    origin = rng.choice((0, (1 << 24) - 9, rng.getrandbits(24)))
    for _ in range(50):
        exponent = rng.choice((0, rng.randint(1, 254), rng.randint(110, 140)))
        source = (exponent and exponent << 15 | rng.choice((0, 1 << 23)) | rng.getrandbits(15), rng.getrandbits(24))
        rows = [random_row(rng, kind, lanes, exponent) for _ in range(rng.choice((1, 1, 3)))]
        beats += beats_of(rng, lanes, rows, source)
        present = [(i, x) for row in rows for i, x in enumerate(row) if x is not None]
        numbers = [x for _, x in present]
        second = None
        if kind in ORDERED:
            value, index = best_reference(present, origin, source if merge else None)
            second = index if kind == Reduce.ARGMAX else None
        else:
            value = reduce_reference(kind, numbers, exponent)
        if kind == Reduce.VAR:
            second = sum(f24.align(x, exponent) for x in numbers) % (1 << 32)
        want.append((value, second, exponent))

    dut = RowReduce(lanes=lanes)
    beside = dut.o.sum if kind == Reduce.VAR else dut.o.index
    value_of = dut.o.total if kind in SUMS else dut.o.maximum
    assert dut.latency(kind) == 1 + ceil_log2(lanes) + 3 * (kind in SUMS)
    outputs = f24.run_pipeline(
        dut,
        dut.latency(kind),
        [{"kind": kind, "merge": merge, "origin": origin, "i": beat} for beat in beats],
        lambda ctx: tuple(ctx.get(x) for x in (dut.o.valid, value_of, beside, dut.o.exponent)),
    )
    assert [bool(valid) for valid, *_ in outputs] == [bool(b["valid"] and b["last"]) for b in beats]
    got = [rest for valid, *rest in outputs if valid]
    for (value, second, exponent), mine in zip(want, got, strict=True):
        assert mine == [value, mine[1] if second is None else second, exponent]


def entry_reference(kind, row, const1, const2, scale16, n):
    """Return the statistics entry (a, b)."""
    value, second, exponent = row
    mean_shift = exponent - 127 - 15
    match kind:
        case Reduce.MAX | Reduce.ABSMAX:
            return value, 0
        case Reduce.ARGMAX:
            return value, second
        case Reduce.QSCALE:
            s = f24.mul(value, const1)
            s = f24.bf16(s) if scale16 else s
            return f24.recip(s), s
        case Reduce.EXPSUM:
            return f24.recip(f24.scale2(f24.encode(value), -24)), 0
        case Reduce.SUMSQ:
            mean = f24.mul(f24.scale2(f24.encode(value), 2 * mean_shift), const1)
            return f24.rsqrt(f24.add(mean, const2)), 0
        case Reduce.VAR:
            v = f24.scale2(f24.encode(n * value - second**2), 2 * mean_shift)
            r = f24.rsqrt(f24.add(f24.mul(f24.mul(v, const1), const1), const2))
            return r, f24.mul(f24.neg(f24.mul(f24.scale2(f24.encode(second), mean_shift), const1)), r)
        case Reduce.SUM:
            return f24.mul(f24.scale2(f24.encode(value), mean_shift), const1), 0


def row_values(rng, kind, count, n):
    """Return (value, second, exponent) of random rows."""
    for k in range(count):
        exponent = rng.choice((1, 254, rng.randint(1, 254), rng.randint(110, 140)))
        second = rng.getrandbits(24) if kind == Reduce.ARGMAX else 0
        if kind not in SUMS:
            value = f24.EDGES[k] if k < len(f24.EDGES) else f24.random_f24(rng)
        elif k == 0:
            value, exponent = 0, 0
        elif kind == Reduce.VAR:
            middle, spread = rng.randint(-65535, 65535), rng.choice((0, 1, 100, 65535))
            numbers = [min(65535, max(-65535, middle + rng.randint(-spread, spread))) for _ in range(n)]
            value, second = sum(x * x for x in numbers), sum(numbers)
        else:
            value = rng.getrandbits(rng.randint(1, 62)) * (rng.choice((-1, 1)) if kind == Reduce.SUM else 1)
        yield value if kind != Reduce.QSCALE and kind != Reduce.ABSMAX else value & 0x7FFFFF, second, exponent


@pytest.mark.parametrize("scale16", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_row_scalar(kind, scale16):
    rng = random.Random(SEED + kind + scale16)
    n = rng.choice((127, 64, 288))
    const1 = f24.encode(Fraction(1, n))
    const2 = f24.encode(Fraction(1, 100000), bits=8)
    rows = list(row_values(rng, kind, 300, n))
    dut = RowScalar()
    gap = range(100, 160)  # long enough to fall asleep in
    valid = [int(rng.random() < 0.8 and k not in gap) for k in range(len(rows))]
    if kind == Reduce.VAR:  # two cycles apart
        for k in range(1, len(rows)):
            valid[k] &= not valid[k - 1]
    valid[0] = 0  # every row is announced a cycle before
    valid[-1] = 0  # it stays at the ports while the others come out
    tags = [rng.getrandbits(2) for _ in rows]
    others = [rng.getrandbits(24) for _ in rows]  # what the kind does not reduce
    announced = [{"valid": v, "tag": tag} for v, tag in zip([*valid[1:], 0], [*tags[1:], 0], strict=True)]
    outputs = f24.run_pipeline(
        dut,
        dut.latency(kind),
        [
            {
                "kind": kind,
                "const1": const1,
                "const2": const2,
                "n": n,
                "scale16": scale16,
                "i": {
                    "valid": v,
                    "maximum": other if kind in SUMS else value,
                    "total": value if kind in SUMS else other,
                    "sum": second % (1 << 32),
                    "index": second % (1 << 24),
                    "exponent": exponent,
                    "tag": tag,
                },
                "i_next": following,
            }
            for v, tag, (value, second, exponent), other, following in zip(
                valid, tags, rows, others, announced, strict=True
            )
        ],
        lambda ctx: (ctx.get(dut.o.valid), ctx.get(dut.o.tag), ctx.get(dut.o.a), ctx.get(dut.o.b)),
    )
    for v, tag, row, (out, out_tag, a, b) in zip(valid, tags, rows, outputs, strict=True):
        assert out == v
        if v:
            assert out_tag == tag
            assert (a, b) == entry_reference(kind, row, const1, const2, scale16, n), f"{kind.name} of {row}"


@pytest.mark.parametrize(("name", "arguments"), [("MaxTree", {}), ("SumTree", {"width": 8}), ("RowReduce", {})])
def test_lanes(name, arguments):
    block = {"MaxTree": MaxTree, "SumTree": SumTree, "RowReduce": RowReduce}[name]
    for lanes in (0, -1, "2", True):
        with pytest.raises(TypeError, match=f"^Lanes must be a positive integer, not {lanes!r}$"):
            block(lanes=lanes, **arguments)


@pytest.mark.parametrize("kind", [Reduce.MAX, Reduce.VAR])
@pytest.mark.parametrize("name", ["RowReduce", "RowScalar"])
def test_no_row_outlives_a_reset(name, kind):
    """What came out behind it would be taken for the next program's."""
    dut = RowReduce(lanes=4) if name == "RowReduce" else RowScalar()
    marks = [dut.i.valid] if name == "RowReduce" else [dut.i.valid, dut.i_next.valid]
    inputs = [(dut.kind, kind), *([(dut.i.last, 1)] if name == "RowReduce" else [])]
    assert outlive_reset(dut, inputs, marks, [dut.o.valid]) == []
