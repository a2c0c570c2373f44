"""Shapes of large models, cut down to one layer: the same bits on several configurations, and on the RTL."""

import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright as tw
from tilewright.compiler.image import ModelImage
from tilewright.compiler.layout import WINDOW
from tilewright.compiler.plan import vector_part
from tilewright.formats import Formats
from tilewright.model import Checkpoint, Floats, ModelSpec
from tilewright.random_model import random_checkpoint
from tilewright.runtime import Engine
from tilewright_hw.arch import AcceleratorConfig, Device, InputError

SHAPES = {
    "vocabulary of 152,064": "random:dim=16,ffn=16,layers=1,heads=1,vocab=152064,context=16",
    "8192 wide": "random:dim=8192,ffn=48,layers=1,heads=2,kv_heads=1,head_dim=16,vocab=40,context=16",
    "heads of 256": "random:dim=32,ffn=48,layers=1,heads=2,kv_heads=1,head_dim=256,vocab=40,context=16",
}
TOKENS = [3, 1, 39, 7]


def run(name: str, device: Device, formats: Formats | None = None) -> tuple[Engine, NDArray[np.float32], int]:
    """Return logits of a prompt and of a token behind it, and the token that the device then chooses."""
    engine = Engine(random_checkpoint(name), device, formats=formats or Formats())
    rows = [engine.feed(TOKENS, "all"), engine.feed([5])[None]]
    return engine, np.concatenate(rows), engine.choose([6])


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_bits_on_golden(name: str) -> None:
    _, expected, token = run(SHAPES[name], tw.open_device("golden", "large"))
    engine, found, chosen = run(SHAPES[name], tw.open_device("golden", "default"))
    np.testing.assert_array_equal(found, expected)
    assert chosen == token
    engine.reset()
    assert chosen == int(np.argmax(engine.feed([*TOKENS, 5, 6])))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", SHAPES)
def test_golden_and_rtl(name: str, bits: int) -> None:
    formats = Formats(activations=bits)
    results = [run(SHAPES[name], tw.open_device(device, "default"), formats) for device in ("golden", "rtl")]
    (golden, expected, token), (rtl, found, chosen) = results
    np.testing.assert_array_equal(found, expected)
    assert chosen == token
    memories = [e.device.read_memory(0, golden.image.size) for e in (golden, rtl)]
    np.testing.assert_array_equal(*memories)


def test_wide_vectors_come_in_parts() -> None:
    wide = random_checkpoint(SHAPES["8192 wide"]).spec
    assert vector_part(wide, AcceleratorConfig.preset("large")) == 8192
    assert vector_part(wide, AcceleratorConfig()) == 2048
    assert vector_part(random_checkpoint(SHAPES["heads of 256"]).spec, AcceleratorConfig()) == 32


def test_embeddings_beyond_a_tokens_reach_are_refused() -> None:
    spec = ModelSpec(dim=16384, layers=1, heads=1, kv_heads=1, head_dim=64, ffn=64, vocab=152064, context=16)
    with pytest.raises(InputError, match="token embeddings must take at most 4 GiB"):
        ModelImage(spec, AcceleratorConfig())


def sparse(spec: ModelSpec, rows: int) -> Checkpoint:
    """Return a model whose tables are zero but for their first rows, so that it takes little memory of its size."""
    shapes = spec.tensor_shapes()
    small = random_checkpoint(
        f"random:dim={spec.dim},ffn={spec.ffn},layers={spec.layers},heads={spec.heads},kv_heads={spec.kv_heads},"
        f"head_dim={spec.head_dim},vocab={rows},context=16"
    )

    def read_rows(name: str, first: int, count: int) -> Floats:
        if name not in ("embedding", "classifier"):
            return small.tensor(name)[first : first + count]
        value = np.zeros((count, *shapes[name][1:]), np.float32)
        known = small.tensor(name)[first : first + count]
        value[: len(known)] = known
        return value

    return Checkpoint(spec, small.read, "sparse", read_rows=read_rows)


@pytest.mark.slow
def test_an_image_above_4_gib() -> None:
    """Vocabulary 172,032, 8192 wide, heads of 256, context 8192: the cache lies beyond 4 GiB."""
    sizes = {"dim": 8192, "layers": 1, "heads": 8, "kv_heads": 8, "head_dim": 256, "ffn": 64, "context": 8192}
    large = ModelSpec(vocab=172032, **sizes)
    engine = Engine(sparse(large, 64), tw.open_device("golden", "default"), sequences=8)
    assert engine.image.keys[0].start > WINDOW
    cut = Engine(sparse(ModelSpec(vocab=64, **sizes | {"context": 16}), 64), tw.open_device("golden", "default"))
    found, expected = engine.feed(TOKENS, sequence=7), cut.feed(TOKENS)
    np.testing.assert_array_equal(found[:64], expected)
    assert not found[64:].any()


def test_zeros_are_not_written() -> None:
    """Device memory is zero: what is zero in the weights takes no memory, and reads as it should."""
    spec = ModelSpec(dim=32, layers=1, heads=1, kv_heads=1, head_dim=16, ffn=32, vocab=40000, context=16)
    written = []
    image = ModelImage(spec, AcceleratorConfig())
    image.write(sparse(spec, 64), lambda at, data: written.append((at, data.size)))
    assert sum(size for _, size in written) < image.embedding.size
    few = ModelSpec(dim=32, layers=1, heads=1, kv_heads=1, head_dim=16, ffn=32, vocab=64, context=16)
    engines = [Engine(sparse(s, 64), tw.open_device("golden", "default")) for s in (spec, few)]
    whole, part = (e.feed(TOKENS) for e in engines)
    np.testing.assert_array_equal(whole[:64], part)
    assert not whole[64:].any()
