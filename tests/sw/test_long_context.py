"""Contexts whose keys do not fit the buffers at once are scored in parts: the same bits as in one part."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.image import ModelImage
from tilewright.compiler.llama import LlamaCompiler
from tilewright.compiler.plan import Tiling, key_piece, key_unit, make_plan
from tilewright.formats import Formats
from tilewright.model import ModelSpec
from tilewright.random_model import random_checkpoint
from tilewright.runtime import Engine
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_sim.golden import GoldenDevice

MODEL = "random:dim=24,ffn=40,layers=2,heads=4,kv_heads=2,head_dim=10,vocab=50,context=72,seed=4"
TOKENS = np.random.default_rng(2).integers(0, 50, 70).tolist()
CONFIGS = {
    "default": AcceleratorConfig(),
    "tiny": AcceleratorConfig.preset("tiny"),
    "6x10x2": AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1),
    "16 lanes": AcceleratorConfig(rows=32, cols=16, lanes=16, bus_bits=64, ingest=2),
}


def engine(config: str = "default", keys: int | None = None, bits: int = 8, **options: Any) -> Engine:
    device = GoldenDevice(CONFIGS[config], check=True)
    tiling = Tiling(keys=keys, kv_heads=options.pop("kv_heads", None), block_rows=options.pop("block_rows", None))
    return Engine(random_checkpoint(MODEL), device, tiling, formats=Formats(activations=bits), **options)


@pytest.mark.parametrize(
    ("config", "keys", "bits"), [("default", 16, 8), ("tiny", 12, 16), ("6x10x2", 20, 8), ("16 lanes", 32, 16)]
)
def test_the_same_bits_in_parts(config: str, keys: int, bits: int) -> None:
    """Prefill in blocks that end at parts' ends, then decode across such an end."""
    whole, parts = engine(bits=bits), engine(config, keys, bits)
    assert whole.compiler.piece == 72
    assert parts.compiler.piece == keys
    assert parts.compiler.parts(72) > 1
    start = 2 * keys - 2
    np.testing.assert_array_equal(parts.feed(TOKENS[:start], "all"), whole.feed(TOKENS[:start], "all"))
    for token in TOKENS[start : start + 4]:
        np.testing.assert_array_equal(parts.feed([token]), whole.feed([token]))


def test_sequences_with_keys_in_as_many_parts_share_a_program() -> None:
    alone, together = engine(), engine(keys=16, sequences=4)
    lengths = (3, 30, 17, 15)
    for sequence, length in enumerate(lengths):
        together.feed(TOKENS[:length], sequence=sequence)
    assert [list(g) for g in together._together(range(4))] == [[0, 3], [1, 2]]
    for step in range(3):  # the last sequence goes on to a second part
        rows = together.step({s: TOKENS[n + step] for s, n in enumerate(lengths)})
        for sequence, length in enumerate(lengths):
            alone.reset()
            np.testing.assert_array_equal(rows[sequence], alone.feed(TOKENS[: length + step + 1]))


def test_a_context_that_does_not_fit_at_once() -> None:
    """8,192 positions: refused in one part by these configurations, and accepted in several."""
    spec = ModelSpec(dim=64, layers=1, heads=4, kv_heads=2, head_dim=64, ffn=128, vocab=64, context=8192)
    for name in ("edge", "default"):
        config = AcceleratorConfig.preset(name)
        with pytest.raises(InputError, match=r"too small|accumulator rows"):
            make_plan(spec, config, 1, 8192, Tiling(), attending=1)
        compiler = LlamaCompiler(ModelImage(spec, config))
        assert 8192 > compiler.piece >= 64
        assert compiler.piece % key_unit(config) == 0
    compiler.decode(1, keys=8192)


def test_rows_of_a_program_lie_in_one_part() -> None:
    compiler = engine(keys=16).compiler
    at = 0
    while at < 72:
        m = compiler.prefill_rows(at, 72 - at)
        assert at // 16 == (at + m - 1) // 16
        at += m


def test_what_fits_at_once_is_not_cut() -> None:
    for name in ("tiny", "edge", "default", "large"):
        config = AcceleratorConfig.preset(name)
        spec = random_checkpoint(MODEL).spec
        assert key_piece(spec, config, 72, Tiling(), wanted=4) == 72


def test_too_long_a_context_is_refused_with_the_way_out(refused: Callable[..., str], hf_folder: Any) -> None:
    spec = ModelSpec(dim=64, layers=1, heads=4, kv_heads=2, head_dim=64, ffn=128, vocab=64, context=60000)
    with pytest.raises(InputError, match=r"the row buffer .* attention scores .* or a shorter context than 60000"):
        LlamaCompiler(ModelImage(spec, AcceleratorConfig.preset("edge"))).decode()


@pytest.mark.slow
def test_eight_thousand_tokens() -> None:
    """A prompt of 8,000 tokens on golden; its first tokens' logits are those of a short context."""
    name = "random:dim=32,ffn=64,layers=1,heads=2,kv_heads=1,head_dim=16,vocab=64,context={},seed=4"
    tokens = np.random.default_rng(2).integers(0, 64, 8000).tolist()
    long = Engine(random_checkpoint(name.format(8192)), GoldenDevice(AcceleratorConfig()))
    short = Engine(random_checkpoint(name.format(256)), GoldenDevice(AcceleratorConfig()))
    np.testing.assert_array_equal(long.feed(tokens[:200]), short.feed(tokens[:200]))
    rows = long.feed(tokens[200:])
    large = Engine(random_checkpoint(name.format(8192)), GoldenDevice(AcceleratorConfig.preset("large")))
    np.testing.assert_array_equal(large.feed(tokens), rows)
    np.testing.assert_array_equal(large.feed([5]), long.feed([5]))


@pytest.mark.slow
def test_a_token_behind_eight_thousand_on_rtl_and_golden() -> None:
    """With a cache of random bytes; skipped without the simulator."""
    name = "random:dim=32,ffn=64,layers=1,heads=2,kv_heads=1,head_dim=16,vocab=64,context=8192,seed=4"
    pytest.importorskip("amaranth")
    config = AcceleratorConfig()
    engines = [Engine(random_checkpoint(name), tw.open_device(d, config)) for d in ("golden", "rtl")]
    image = engines[0].image
    random = np.random.default_rng(3)
    scales = (random.uniform(0.001, 0.02, 8192).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tiles = random.integers(0, 256, image.keys[0].size, dtype=np.uint8)
    for e in engines:
        for region in (image.keys[0], image.values[0]):
            e.device.write_memory(region.start, tiles[: region.size])
        for region in (image.key_scales[0], image.value_scales[0]):
            e.device.write_memory(region.start, scales.view(np.uint8)[: region.size])
        e.positions[0] = 8150
    assert engines[0].compiler.parts(8151) > 1
    for tokens in ([7], [1, 2, 3, 4, 5]):
        golden, rtl = (e.feed(tokens) for e in engines)
        np.testing.assert_array_equal(rtl, golden)
    memories = [e.device.read_memory(0, image.size) for e in engines]
    np.testing.assert_array_equal(*memories)
