"""Building blocks of programs: greedy choice, attention in parts, four-bit weights, activations, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.activations import table_of
from tilewright.compiler.image import ModelImage
from tilewright.compiler.int4 import Int4Matrix, pack_int4
from tilewright.compiler.plan import Tiling
from tilewright.formats import Formats
from tilewright.model import Checkpoint, Floats, ModelSpec
from tilewright.runtime import Engine
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_sim.golden import GoldenDevice, tables

TINY = AcceleratorConfig.preset("tiny")
CONFIGS = [
    TINY,
    AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1),
    AcceleratorConfig(rows=16, cols=4, lanes=4, bus_bits=256, ingest=4),
]
SPEC = ModelSpec(dim=16, layers=1, heads=4, kv_heads=2, head_dim=6, ffn=20, vocab=70, context=24)


def checkpoint(spec: ModelSpec, **changes: Floats) -> Checkpoint:
    rng = np.random.default_rng(4)
    tensors = {
        name: (rng.normal(1.0 if name.endswith("norm") else 0.0, 0.4, shape)).astype(np.float32)
        for name, shape in spec.tensor_shapes().items()
    } | changes
    return Checkpoint(spec, tensors.__getitem__)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("activations", [8, 16])
def test_the_device_chooses_what_the_logits_say(config: AcceleratorConfig, activations: int) -> None:
    ckpt, formats = checkpoint(SPEC), Formats(activations=activations)
    tokens = [3, 1, 69, 22, 7]
    for tiling in (Tiling(), Tiling(chunk_tiles=2)):
        engine = Engine(ckpt, GoldenDevice(config, check=True), tiling, formats=formats)
        expected = [int(np.argmax(engine.feed(tokens)))]
        for _ in range(6):
            expected.append(int(np.argmax(engine.feed(expected[-1:]))))
        engine.reset()
        found = [engine.choose(tokens)]
        for _ in range(6):
            found.append(engine.choose(found[-1:]))
        assert found == expected
        assert len(set(found)) > 1


@pytest.mark.parametrize("winners", [[12, 13], [5, 69], [0, 40, 69]])
def test_of_equal_logits_the_first_is_chosen(winners: list[int]) -> None:
    """Within a pass, and in different ones."""
    classifier = checkpoint(SPEC).tensor("classifier").copy()
    base = Engine(checkpoint(SPEC), GoldenDevice(TINY))
    classifier[winners] = 3 * classifier[int(np.argmax(base.feed([3, 1])))]
    ckpt = checkpoint(SPEC, classifier=classifier)
    engine = Engine(ckpt, GoldenDevice(TINY, check=True), Tiling(chunk_tiles=3))
    logits = engine.feed([3, 1])
    assert np.flatnonzero(logits == logits.max()).tolist() == winners
    engine.reset()
    assert engine.choose([3, 1]) == winners[0]


@pytest.mark.parametrize("activations", [8, 16])
def test_a_group_of_heads_may_be_cut(activations: int) -> None:
    """Accumulators that hold the scores of one or two of a KV head's queries give the same logits as large ones."""
    spec = replace(SPEC, heads=7, kv_heads=1, context=70)
    ckpt, formats = checkpoint(spec), Formats(activations=activations)
    tokens = np.random.default_rng(1).integers(0, spec.vocab, 60).tolist()
    results = []
    for acc_rows in (1024, 64):
        engine = Engine(ckpt, GoldenDevice(replace(TINY, acc_rows=acc_rows), check=True), formats=formats)
        results.append([engine.feed(tokens[:-1]), engine.feed(tokens[-1:])])
    np.testing.assert_array_equal(results[1], results[0])


@pytest.mark.parametrize(
    "config", [*CONFIGS, AcceleratorConfig(), AcceleratorConfig.preset("large")], ids=lambda c: c.name
)
@pytest.mark.parametrize("shape", [(1, 1), (13, 40), (37, 300)])
def test_four_bit_weights_in_memory(config: AcceleratorConfig, shape: tuple[int, int]) -> None:
    """Read back by the format's text: chunks of S nibble rows of g, then 32 * S rows of q, for each output tile."""
    n, k = shape
    rng = np.random.default_rng(2)
    q = rng.integers(-8, 8, (n, k)).astype(np.int8)
    g = rng.integers(0, 16, (n, math.ceil(k / 32))).astype(np.uint8)
    packed = pack_int4(q, g, config)
    matrix = Int4Matrix(n, k, config)
    assert packed.shape == (matrix.n_tiles, matrix.column_bytes)
    assert matrix.column_bytes % config.bus_bytes == 0
    for tile, run in enumerate(packed):
        rows = run[: len(run) // config.nibble_slot * config.nibble_slot].reshape(-1, config.nibble_slot)
        nibbles = np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), -1)[:, : config.cols]
        at, s = 0, config.nibble_rows
        for first in range(0, matrix.rows, 32 * s):
            for row in range(first, min(first + 32 * s, matrix.rows)):
                weights, scales = nibbles[at + s + row - first], nibbles[at + (row - first) // 32]
                for col in range(config.cols):
                    out = tile * config.cols + col
                    inside = out < n and row < k
                    assert weights[col] == (q[out, row] & 15 if inside else 0)
                    assert not inside or scales[col] == g[out, row // 32]
            at += s + min(32 * s, matrix.rows - first)


@pytest.mark.parametrize(
    ("name", "f", "bound"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))), 2e-4),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), 2e-4),
        ("relu", lambda x: max(x, 0.0), 1e-6),
    ],
)
def test_an_activation_is_its_table_times_x(name: str, f: Any, bound: float) -> None:
    table = table_of(name)
    assert table is not None
    x = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, 1e4, 0.0, -(2.0**-30), 2.0**-30]])
    x = np.asarray(x, np.float32).astype(np.float64)
    factor = tables.table(x, table.words, table.input_shift, table.output_shift)
    error = np.abs(factor * x - np.array([f(float(v)) for v in x]))
    assert np.max(error / np.maximum(np.abs(x), 1)) < bound


def test_silu_needs_no_table() -> None:
    assert table_of("silu") is None


def test_overrides_name_matrices() -> None:
    formats = Formats(weights="int4", overrides={"layers.*": "int8", "layers.1.w_down": "int4"})
    names = ("layers.0.qkv", "layers.1.w_down", "classifier")
    assert [formats.of(n) for n in names] == ["int8", "int4", "int4"]
    matrices = ModelImage(replace(SPEC, layers=2), TINY, formats).matrices
    assert [isinstance(matrices[n].shape, Int4Matrix) for n in names] == [False, True, True]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "int2"}, "weights must be int8 or int4, not 'int2'"),
        ({"activations": 12}, "activations must be 8 or 16, not 12"),
        ({"kv": "int4"}, "kv must be int8, not 'int4'"),
        ({"overrides": {"classifier": "fp8"}}, "the format of classifier must be int8 or int4, not 'fp8'"),
    ],
)
def test_bad_formats(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        Formats(**fields)


def test_what_programs_cannot_do_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="gated feed-forward network with biases"):
        ModelImage(replace(SPEC, ffn_bias=True), TINY)
    with pytest.raises(InputError, match="LayerNorm takes rows of at most 32767, not 32768"):
        ModelImage(replace(SPEC, norm="layer", dim=32768), TINY)
    with pytest.raises(InputError, match="the reduction must be at most 65532 long, not 65536"):
        ModelImage(replace(SPEC, ffn=65536), TINY, Formats(weights="int4"))
