"""The golden functions: bounds, blocks against float64, and operations against programs that compute them."""

import re
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright_hw.arch import AcceleratorConfig, InputError, Instruction, Op, assemble
from tilewright_hw.arch.isa import Add, Dest, Func, Mul, Reduce, Scale, Source
from tilewright_sim import golden
from tilewright_sim.golden import bounds, formats, tables
from tilewright_sim.golden.machine import Machine
from tilewright_sim.golden.memory import Memory

NUMERICS = Path(__file__).parents[2] / "docs" / "numerics.md"
SEED = 11


def test_bounds_hold_and_are_those_of_the_document(capsys):
    assert bounds.main() == 0
    assert capsys.readouterr().out in NUMERICS.read_text(encoding="utf-8")


def test_a_bound_that_does_not_hold_is_noticed(monkeypatch, capsys):
    wrong = bounds.Bound("f", "all", "all", "relative", 1e-5, 1, 2e-5, 1.0)
    monkeypatch.setattr(bounds, "measure", lambda: [wrong])
    assert bounds.main() == 1


def test_a_bound_below_what_is_derived_does_not_hold(monkeypatch):
    monkeypatch.setattr(bounds, "rmsnorm_bound", lambda: 1.0)
    assert [b.name for b in bounds.measure_rows() if not b.holds] == ["rmsnorm"]


@pytest.mark.parametrize("k", [1, 16, 1024, 1025, 3000])
def test_systolic_array(k):
    rng = np.random.default_rng(SEED)
    a = rng.integers(-128, 128, (3, k), dtype=np.int8)
    w = rng.integers(-128, 128, (k, 5), dtype=np.int8)
    a[0], w[:, 0] = -128, -128
    got = golden.systolic_array(a, w)
    assert got.dtype == np.int32
    assert (got == a.astype(np.int64) @ w.astype(np.int64)).all()


def test_systolic_array_wraps():
    k = 1 << 17
    a, w = np.full((1, k), -128, np.int8), np.full((k, 1), -128, np.int8)
    assert golden.systolic_array(a, w) == -(2**31)


def test_systolic_array_refuses():
    a = np.zeros((2, 3), np.int8)
    with pytest.raises(InputError, match=re.escape("a must be int8, not float64")):
        golden.systolic_array(a.astype(float), a.T)
    with pytest.raises(InputError, match=re.escape("shapes (2, 3) and (2, 3) cannot be multiplied")):
        golden.systolic_array(a, a)


def test_elements_must_be_finite():
    with pytest.raises(InputError, match="elements must be finite"):
        golden.softmax([1.0, np.nan])


def rows(m=7, n=50, scale=3.0):
    rng = np.random.default_rng(SEED)
    return formats.round_f24(rng.standard_normal((m, n)) * scale)


def test_softmax():
    x = rows()
    x[1] = 0
    x[2, 3] = 500
    exact = np.exp(x - x.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    y = golden.softmax(x)
    assert np.abs(y - exact).max() < 3e-4
    assert np.abs(y.sum(axis=1) - 1).max() < 1e-4
    assert (golden.softmax(x[3]) == y[3]).all()


def test_rmsnorm():
    x = rows()
    x[1] = 0
    w = np.linspace(0.5, 2, x.shape[1])
    exact = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * w
    assert np.abs(golden.rmsnorm(x, w, 1e-5) - exact).max() < 3e-4
    assert not golden.rmsnorm(x, w, 0.0)[1].any()


def test_layernorm():
    x = rows()
    x[1] = 0
    w, b = np.linspace(0.5, 2, x.shape[1]), np.linspace(-1, 1, x.shape[1])
    centred = x - x.mean(axis=1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * w + b
    assert np.abs(golden.layernorm(x, w, b, 1e-5) - exact).max() < 3e-4
    assert (golden.layernorm(x, w, b, 0.0)[1] == formats.round_f24(b)).all()
    with pytest.raises(InputError, match="a row must have at most 32767 elements, not 32768"):
        golden.layernorm(np.zeros(32768), 1.0, 0.0, 1e-5)


def test_layernorm_of_the_largest_rows():
    """n * (sum of squares) - sum^2 needs 62 bits: half of the longest row at each end."""
    x = np.full(32766, 65535 / 32768)
    x[1::2] *= -1
    assert np.abs(golden.layernorm(x, 1.0, 0.0, 0.0) - np.sign(x)).max() < 1e-4


def test_argmax():
    x = rows()
    x[0], x[1, 7], x[1, 9] = -5, 50, 50
    assert golden.argmax(x).tolist() == x.argmax(axis=1).tolist()
    assert golden.argmax(x)[:2].tolist() == [0, 7]


@pytest.mark.parametrize("name", ["tanh", "erf", "gelu", "gelu_tanh"])
def test_named_tables_are_the_compilers(name):
    """Made twice from docs/numerics.md, by different series."""
    words, a, b = getattr(tables, f"{name}_segments")()
    table = getattr(tw.tables, name)()
    assert words.tolist() == table.words.tolist()
    assert (a, b) == (table.input_shift, table.output_shift)
    x = np.concatenate([rows().reshape(-1), [0.0, 1e30, -1e30]])
    assert (golden.table(x, table) == getattr(golden, name)(x)).all()
    assert golden.table(0.0, table) == 0


def test_silu_and_rope():
    x = rows()
    assert np.abs(golden.silu(x) - x / (1 + np.exp(-x))).max() < 3e-4
    angle = np.linspace(0, 6, 25)
    z = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
    y = golden.rope(x, np.cos(angle), np.sin(angle))
    assert np.abs(y[:, 0::2] - z.real).max() < 3e-4
    assert np.abs(y[:, 1::2] - z.imag).max() < 3e-4


@pytest.mark.parametrize("scale16", [False, True])
def test_quantise_rows(scale16):
    x = rows()
    x[1] = 0
    q, s = golden.quantise_rows(x, scale16=scale16)
    assert q.dtype == np.int8
    assert s.shape == (7, 1)
    assert (np.abs(q).max(axis=1)[[0, 2, 3]] == 127).all() or scale16
    assert not q[1].any()
    assert s[1] == 0
    assert (np.abs(q * s - x) <= 0.505 * s + (0.5 * s if scale16 else 0)).all()
    if scale16:
        assert (formats.bf16(s) == s).all()


def run_rows(config, x, *vectors, param=None):
    """Return what VECTORs, given as fields, make of the rows x; the last one's destination is the row buffer."""
    m, n = x.shape
    words = -(-n // config.lanes)
    machine = Machine(config, Memory(1 << 12))
    row = np.zeros((m, words * config.lanes))
    row[:, :n] = x
    machine.buffers.row[: m * words] = row.reshape(-1, config.lanes)
    if param is not None:
        machine.buffers.param[:words].reshape(-1)[:n] = param
    at = {"n": n, "m": m, "h": 1, "limit": 65535, "source": Source.ROW, "dest": Dest.ROW}
    at |= {"src_m": words, "dst_m": words, "stat_m": 1, "red_m": 1}
    program = [Instruction(Op.VECTOR, at | f) for f in vectors] + [Instruction(Op.END)]
    machine.memory.write(0, np.frombuffer(assemble(program), np.uint8))
    machine.run(0)
    return machine.buffers.row[: m * words].reshape(m, -1)[:, :n]


def constant(value):
    return int(formats.store_fp32(formats.round_f24(value)))


CONFIGS = [AcceleratorConfig(), AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1)]
configs = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


@configs
def test_softmax_as_a_program(config):
    x = rows()
    log2e = constant(np.log2(np.e))
    y = run_rows(
        config,
        x,
        {"scale": Scale.CONST, "const1": log2e, "reduce": Reduce.MAX},
        {"add": Add.NEG_STAT_A, "func": Func.EXP2, "reduce": Reduce.EXPSUM},
        {"scale": Scale.STAT_A},
    )
    assert (y == golden.softmax(x)).all()


@configs
def test_rmsnorm_as_a_program(config):
    x, w = rows(), formats.round_f24(np.linspace(0.5, 2, 50))
    mean = {"const1": constant(1 / 50), "const2": int(formats.store_bf16(formats.bf16(1e-5)))}
    y = run_rows(
        config,
        x,
        {"reduce": Reduce.ABSMAX},
        {"reduce": Reduce.SUMSQ, **mean},
        {"scale": Scale.STAT_A, "param": 1},
        param=w,
    )
    assert (y == golden.rmsnorm(x, w, 1e-5)).all()


@configs
def test_layernorm_as_a_program(config):
    x, w = rows(), formats.round_f24(np.linspace(0.5, 2, 50))
    mean = {"const1": constant(1 / 50), "const2": int(formats.store_bf16(formats.bf16(1e-5)))}
    passes = [
        {"reduce": Reduce.ABSMAX},
        {"reduce": Reduce.VAR, **mean},
        {"scale": Scale.STAT_A, "add": Add.STAT_B},
    ]
    y = run_rows(config, x, *passes, {"param": 1}, param=w)
    assert (y == golden.layernorm(x, w, 0.0, 1e-5)).all()
    y = run_rows(config, x, *passes, {"add": Add.PARAM}, param=w)
    assert (y == golden.layernorm(x, 1.0, w, 1e-5)).all()


@configs
def test_silu_and_rope_as_programs(config):
    x = rows()
    y = run_rows(config, x, {"func": Func.SIGMOID, "mul": Mul.SELF})
    assert (y == golden.silu(x)).all()
    angle = np.linspace(0, 6, 25)
    pairs = formats.round_f24(np.stack([np.cos(angle), np.sin(angle)], axis=1).reshape(-1))
    y = run_rows(config, x, {"add": Add.ROTATE}, param=pairs)
    assert (y == golden.rope(x, np.cos(angle), np.sin(angle))).all()
