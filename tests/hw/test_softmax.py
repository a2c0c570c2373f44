"""The stand-alone softmax against docs/numerics.md in exact integers, with random rows, lengths and stalls."""

import math
import random

import f24
import pytest
from amaranth.sim import Simulator
from streams import Stall, get, put

from tilewright_hw.gateware import tables
from tilewright_hw.gateware.softmax import Softmax

SEED = 5


def softmax(row):
    """Return the probabilities of one row."""
    y = [f24.mul(x, tables.log2_e()) for x in row]
    top = max(y, key=f24.value)
    e = [f24.exp2(f24.add(x, f24.neg(top))) for x in y]
    total = f24.encode(sum(f24.unit_to_int(x) for x in e))
    factor = f24.recip(f24.scale2(total, -24))
    return [f24.mul(x, factor) for x in e]


def words_of(row, lanes, rng):
    """Return the stream words of a row; lanes past its end hold noise."""
    words = []
    for start in range(0, len(row), lanes):
        part = row[start : start + lanes]
        last = start + lanes >= len(row)
        noise = [f24.random_f24(rng) for _ in range(lanes - len(part))]
        keep = (1 << len(part)) - 1 if last else rng.getrandbits(lanes)
        words.append({"data": part + noise, "keep": keep, "last": int(last)})
    return words


def rows_of(words, lanes):
    """Return the rows that a list of stream words holds."""
    rows, row = [], []
    for word in words:
        row += [word.data[lane] for lane in range(lanes)]
        if word.last:
            count = word.keep.bit_length()
            tail = row[len(row) - lanes + count :]
            assert not any(tail), "lanes past the end are +0"
            rows.append(row[: len(row) - len(tail)])
            row = []
        else:
            assert word.keep == (1 << lanes) - 1
    assert not row
    return rows


def rtl_softmax(rows, *, lanes, max_length, stall_in=0.0, stall_out=0.0, seed=SEED):
    """Return the softmax of each row as the gateware computes it, and the cycles it took."""
    dut = Softmax(lanes=lanes, max_length=max_length)
    rng = random.Random(seed)
    words = [word for row in rows for word in words_of(row, lanes, rng)]
    results = []
    cycles = 0

    async def send(ctx):
        await put(ctx, dut.i, words, Stall(seed, stall_in))

    async def receive(ctx):
        results.extend(await get(ctx, dut.o, len(words), Stall(seed + 1, stall_out)))

    async def count(ctx):
        nonlocal cycles
        while len(results) < len(words):
            await ctx.tick()
            cycles += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(send)
    simulator.add_testbench(receive)
    simulator.add_testbench(count, background=True)
    simulator.run()
    return rows_of(results, lanes), cycles


def random_rows(rng, count, longest):
    """Rows of attention scores, of wide range, of equal elements, and with extremes."""
    rows = []
    for n in range(count):
        low, high = ((115, 130), (1, 254), (127, 127), (120, 133))[n % 4]
        row = [f24.random_f24(rng, low, high) for _ in range(rng.choice((1, longest, rng.randint(1, longest))))]
        rows.append([row[0]] * len(row) if n % 7 == 6 else row)
    return rows


@pytest.mark.parametrize(
    ("lanes", "max_length", "stall_in", "stall_out"),
    [(2, 16, 0.0, 0.0), (2, 15, 0.4, 0.0), (4, 24, 0.0, 0.6), (8, 40, 0.3, 0.3), (3, 2, 0.2, 0.2), (1, 5, 0.0, 0.2)],
)
def test_rows(lanes, max_length, stall_in, stall_out):
    print(f"seed {SEED}")
    rows = random_rows(random.Random(SEED), 40, max_length)
    got, _ = rtl_softmax(rows, lanes=lanes, max_length=max_length, stall_in=stall_in, stall_out=stall_out)
    for row, probabilities in zip(rows, got, strict=True):
        assert probabilities == softmax(row), [hex(x) for x in row]


def test_probabilities_add_up():
    rng = random.Random(SEED + 1)
    row = [f24.encode(f24.Fraction(rng.gauss(0, 3))) for _ in range(64)]
    exact = [math.exp(f24.value(x)) for x in row]
    for p, want in zip(softmax(row), exact, strict=True):
        assert abs(f24.value(p) - want / sum(exact)) < 2e-4 * want / sum(exact) + 2**-24


def test_extremes():
    rows = [[f24.LARGEST] * 3, [f24.LARGEST | 1 << 23] * 4, [f24.LARGEST, f24.LARGEST | 1 << 23], [0], [0] * 4]
    got, _ = rtl_softmax(rows, lanes=2, max_length=4)
    assert got == [softmax(row) for row in rows]
    assert got[1] == [f24.encode(f24.Fraction(1, 4))] * 4


def test_passes_overlap():
    """A long train of rows takes little more than its words."""
    lanes, words, count = 2, 32, 8
    rows = [[f24.ONE] * (lanes * words)] * count
    _, cycles = rtl_softmax(rows, lanes=lanes, max_length=lanes * words)
    assert cycles <= (count + 2) * (words + 14)


def test_row_that_is_too_long_is_cut():
    row = [f24.encode(n) for n in range(1, 11)]
    got, _ = rtl_softmax([row], lanes=2, max_length=4)
    assert got == [softmax(row[:4]), softmax(row[4:8]), softmax(row[8:])]


def test_construction():
    with pytest.raises(ValueError, match=r"^lanes must be at least 1, not 0$"):
        Softmax(lanes=0, max_length=4)
    with pytest.raises(ValueError, match=r"^max_length must be at least 1, not -1$"):
        Softmax(lanes=2, max_length=-1)
