"""The compiler's promises: tiling and configuration never change results; dependencies are complete."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tilewright.compiler.emit import Emitter, Region
from tilewright.compiler.encoder import EncoderCompiler
from tilewright.compiler.image import PROGRAM_BYTES, ModelImage
from tilewright.compiler.layout import MemoryMap, pack_tiles
from tilewright.compiler.llama import LlamaCompiler
from tilewright.compiler.plan import Tiling, cut_rows, largest_block, make_plan
from tilewright.formats import DEFAULT
from tilewright.model import Checkpoint, LlamaSpec, ModelSpec
from tilewright.perf.predict import predict
from tilewright.roofline import model_operations, total
from tilewright.runtime import Engine
from tilewright_hw.arch import AcceleratorConfig, InputError, Op, Unit, assemble, disassemble
from tilewright_sim.golden import GoldenDevice

CONFIGS = {
    **{name: AcceleratorConfig.preset(name) for name in ("default", "tiny", "edge", "large")},
    "6x10x2": AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1),
    "4x4 on 128 bits": AcceleratorConfig(rows=4, cols=4, lanes=2, bus_bits=128, ingest=1),
    "16x4, ingest 4": AcceleratorConfig(rows=16, cols=4, lanes=4, bus_bits=64, ingest=4),
}
SHAPES = {
    "grouped": {"dim": 24, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 4, "ffn": 52, "vocab": 70,
                "context": 40},
    "odd heads": {"dim": 30, "layers": 1, "heads": 3, "kv_heads": 3, "head_dim": 10, "ffn": 33, "vocab": 65,
                  "context": 40},
}  # fmt: skip


def random_checkpoint(shape: dict[str, int], seed: int = 1) -> Checkpoint:
    spec = LlamaSpec(**shape)
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.normal(0 if len(s) > 1 else 1, 0.3, s).astype(np.float32) for name, s in spec.tensor_shapes().items()
    }
    return Checkpoint(spec, tensors.__getitem__)


def logits(ckpt: Checkpoint, config: AcceleratorConfig, tokens: list[int], tiling: Tiling) -> NDArray[np.float32]:
    engine = Engine(ckpt, GoldenDevice(config, check=True), tiling)
    return engine.feed(tokens, logits="all")


@pytest.mark.parametrize("shape", SHAPES)
def test_same_logits_on_every_configuration_and_tiling(shape: str) -> None:
    ckpt = random_checkpoint(SHAPES[shape])
    seed = 7
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, ckpt.spec.vocab, 19).tolist()
    expected = logits(ckpt, CONFIGS["default"], tokens, Tiling())
    assert np.isfinite(expected).all()
    assert expected.std() > 0.1
    for name, config in CONFIGS.items():
        for _ in range(2):
            block, chunk, kv, keys = (int(v) for v in rng.integers(1, (8, 6, 4, 20)))
            tiling = Tiling(block_rows=block, chunk_tiles=chunk, kv_heads=kv, keys=keys)
            got = logits(ckpt, config, tokens, tiling)
            np.testing.assert_array_equal(got, expected, err_msg=f"{name} {tiling} seed {seed}")


def test_prefill_in_any_chunking_equals_token_by_token() -> None:
    ckpt = random_checkpoint(SHAPES["grouped"])
    tokens = np.random.default_rng(3).integers(0, ckpt.spec.vocab, 23).tolist()
    images = []
    for chunks in ([1] * 23, [23], [1, 22], [5, 11, 7], [16, 7], [22, 1]):
        device = GoldenDevice(CONFIGS["tiny"], check=True)
        engine = Engine(ckpt, device)
        at = 0
        for size in chunks:
            last = engine.feed(tokens[at : at + size])
            at += size
        regions = [r for n, r in engine.image.map.regions.items() if ".keys" in n or ".values" in n or "_scales" in n]
        cache = np.concatenate([device.read_memory(r.start, r.size) for r in regions])
        images.append((last, cache))
    for last, cache in images[1:]:
        np.testing.assert_array_equal(last, images[0][0])
        np.testing.assert_array_equal(cache, images[0][1])


def test_a_second_sequence_is_not_touched_by_the_first() -> None:
    ckpt = random_checkpoint(SHAPES["grouped"])
    engine = Engine(ckpt, GoldenDevice(CONFIGS["tiny"], check=True))
    first = engine.feed([1, 2, 3, 4, 5])
    engine.reset()
    engine.feed([9] * 12)
    engine.reset()
    np.testing.assert_array_equal(engine.feed([1, 2, 3, 4, 5]), first)


@pytest.mark.parametrize("name", ["tiny", "default", "6x10x2", "16x4, ingest 4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sequences_decoded_together_equal_each_alone(shape: str, name: str) -> None:
    """At different positions, in changing company, some served in a second group, to the end of the context."""
    seed = 11
    rng = np.random.default_rng(seed)
    ckpt = random_checkpoint(SHAPES[shape])
    context, vocab = ckpt.spec.context, ckpt.spec.vocab
    engine = Engine(ckpt, GoldenDevice(CONFIGS[name], check=True), sequences=10)
    texts = [rng.integers(0, vocab, n).tolist() for n in (1, 5, 9, 2, 17, 3, 8, context - 3, 12, 4)]
    for i, text in enumerate(texts):
        engine.feed(text, sequence=i)
    results: dict[int, list[NDArray[np.float32]]] = {i: [] for i in range(len(texts))}
    for together in (range(10), (7, 1, 4), (4, 7)):
        tokens = {i: int(rng.integers(0, vocab)) for i in together}
        for i, row in engine.step(tokens).items():
            texts[i].append(tokens[i])
            results[i].append(row)
    assert len(texts[7]) == context
    with pytest.raises(InputError, match=f"{context} \\+ 1 tokens exceed"):
        engine.step({1: 0, 7: 0})
    alone = Engine(ckpt, GoldenDevice(CONFIGS[name], check=True))
    for i, text in enumerate(texts):
        alone.reset()
        expected = alone.feed(text, logits="all")[-len(results[i]) :]
        np.testing.assert_array_equal(results[i], expected, err_msg=f"sequence {i}, seed {seed}")


@pytest.mark.slow
def test_a_program_that_would_be_too_long_takes_fewer_rows() -> None:
    spec = LlamaSpec(**SHAPES["grouped"] | {"layers": 120, "context": 200})
    compiler = LlamaCompiler(ModelImage(spec, CONFIGS["tiny"]))
    rows = compiler.prefill_rows(0, 200)
    assert 1 < rows < 128
    assert PROGRAM_BYTES // 2 < len(compiler.prefill(0, rows)) <= PROGRAM_BYTES


def test_dependencies_are_found() -> None:
    e = Emitter()
    a, b = Region("row", 0, 8), Region("row", 8, 8)
    e.emit(Op.LOAD, [], [a])
    e.emit(Op.LOAD, [], [b])
    e.emit(Op.VECTOR, [a], [])
    e.emit(Op.VECTOR, [b], [])
    e.emit(Op.LOAD, [], [a])
    waits = [i.waits for i in e.program]
    assert waits == [{}, {}, {Unit.LOAD: 2}, {Unit.LOAD: 1}, {Unit.VECTOR: 2}]


def test_disjoint_regions_need_no_wait() -> None:
    e = Emitter()
    e.emit(Op.LOAD, [], [Region("row", 0, 8)])
    e.emit(Op.VECTOR, [Region("row", 8, 8)], [])
    assert e.program[1].waits == {}


def test_program_survives_the_disassembler() -> None:
    image = ModelImage(LlamaSpec(**SHAPES["grouped"]), CONFIGS["edge"])
    for program in (LlamaCompiler(image).decode(), LlamaCompiler(image).prefill(3, 9, "all")):
        assert assemble(disassemble(program)) == program


def test_largest_block_fits_and_one_more_does_not() -> None:
    spec, config = LlamaSpec(**SHAPES["grouped"]), CONFIGS["tiny"]
    for lanes in (1, 2):
        block = largest_block(spec, config, 40, Tiling(), lanes)
        make_plan(spec, config, block, 40, Tiling(), DEFAULT, lanes - 1, lanes)
        assert 1 < block < 40
        with pytest.raises(InputError, match=r"words|rows"):
            make_plan(spec, config, block + 1, 40, Tiling(), DEFAULT, 0, lanes)


def test_a_context_that_does_not_fit_is_refused() -> None:
    spec = LlamaSpec(**SHAPES["grouped"] | {"context": 60000})
    message = r"the row buffer \(4096 words\) is too small: attention scores .* or a shorter context than 60000$"
    with pytest.raises(InputError, match=message):
        LlamaCompiler(ModelImage(spec, CONFIGS["tiny"])).decode()


def test_a_long_reduction_is_refused() -> None:
    spec = LlamaSpec(**SHAPES["grouped"] | {"ffn": 131072})
    with pytest.raises(InputError, match="reduction must be at most 131071 long, not 131072"):
        ModelImage(spec, CONFIGS["default"])


def test_memory_regions_do_not_cross_the_reach_of_a_base_register() -> None:
    memory = MemoryMap()
    memory.add("a", (1 << 32) - 100)
    assert memory.add("b", 200).start == 1 << 32


def test_tiles_hold_inputs_by_outputs() -> None:
    config = CONFIGS["6x10x2"]
    q = np.random.default_rng(0).integers(-127, 128, (13, 20)).astype(np.int8)
    tiles = pack_tiles(q, config).view(np.int8)
    assert tiles.shape == (2, 4, 6, 12)
    assert tiles[1, 2, 3, 1] == q[11, 15]
    assert not tiles[..., 10:].any()
    assert not tiles[1, :, :, 3:].any()


MINILM = ModelSpec(
    dim=384, layers=6, heads=12, kv_heads=12, head_dim=32, ffn=1536, vocab=1000, context=128, norm="layer",
    norm_after=True, embedding_norm=True, final_norm=False, rope_theta=None, learned_positions=True, token_types=2,
    qkv_bias=True, o_bias=True, ffn_bias=True, causal=False, gated=False, activation="gelu", classifier=False,
)  # fmt: skip


def test_blocks_of_a_sentence_encoder_keep_the_array_busy_while_a_tile_comes() -> None:
    config = AcceleratorConfig.resolve("default")
    blocks = cut_rows(MINILM, config, 128, 128, Tiling())
    assert blocks.lanes == 2
    assert min(blocks.sizes) >= config.tile_bytes // config.bus_bytes


@pytest.mark.slow
@pytest.mark.parametrize("first_rows", [False, True])
def test_a_sentence_encoder_uses_the_array(first_rows: bool) -> None:
    """128 tokens of all-MiniLM-L6-v2's shape by the cycle model, which equals the gateware: no weights are needed."""
    config = AcceleratorConfig.resolve("default")
    image = ModelImage(replace(MINILM, first_rows=first_rows), config)
    compiler = EncoderCompiler(image)
    parts = [(image.program, compiler.encode(128)), (image.arguments, compiler.arguments([5] * 128).tobytes())]

    def read(address: int, size: int) -> bytes:
        for region, data in parts:
            if region.start <= address < region.end:
                return data[address - region.start :][:size].ljust(size, b"\0")
        raise AssertionError(f"read of {address}")

    cycles = predict(config, read, image.program.start).cycles
    macs = total(model_operations(MINILM, [(0, 128)])).macs
    assert macs / (cycles * config.peak_macs) >= 0.85
