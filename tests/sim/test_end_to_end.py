"""A real model on the simulated gateware: tokens, logits and the memory image equal the golden model's, everywhere."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright as tw
from tilewright.api import Generation, compare
from tilewright.runtime import Engine, run_program
from tilewright_hw.arch import AcceleratorConfig, DeviceError, ErrorCode, Instruction, Op, assemble
from tilewright_hw.arch.isa import BYTES

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260K.bin"
ODD = AcceleratorConfig(
    rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, acc_rows=256, row_words=4096, weight_fifo_bytes=1024,
    stream_fifo_bytes=1024,
)  # fmt: skip
CONFIGS = {**{n: AcceleratorConfig.preset(n) for n in ("default", "tiny", "edge", "large")}, "6x10, 2 lanes": ODD}
STALLS = tw.MemoryModel(latency=23, stall=0.1, seed=1234)
PROMPT = "Once upon a time"


def checkpoint(name: str) -> Path | None:
    if name == "built-in":
        return None
    if not STORIES.exists():
        pytest.skip(f"no shared data at {STORIES.parent}")
    return STORIES


def generate(model: str, config: str, tokens: int, memory: tw.MemoryModel | None = None) -> Generation:
    device = tw.open_device("rtl", CONFIGS[config], memory=memory)
    with tw.load(checkpoint(model), device=device, check=True) as loaded:
        result = loaded.generate(PROMPT, tokens)
    assert isinstance(result, Generation)
    return result


@functools.cache
def golden_tokens(model: str, tokens: int) -> list[int]:
    with tw.load(checkpoint(model), device=tw.open_device("golden", "default")) as loaded:
        result = loaded.generate(PROMPT, tokens)
    assert isinstance(result, Generation)
    return result.token_ids


def assert_exact(result: Generation, model: str, tokens: int) -> None:
    assert result.check is not None
    assert result.check.tokens_equal
    assert result.check.hash_device == result.check.hash_golden
    assert result.check.bytes_compared > 1_000_000
    assert result.check.exact
    assert result.token_ids == golden_tokens(model, tokens)
    assert len(result.token_ids) == tokens


@pytest.mark.parametrize("model", ["built-in", "stories260K"])
def test_64_tokens_on_default(model: str) -> None:
    assert_exact(generate(model, "default", 64), model, 64)


@pytest.mark.parametrize("memory", [None, STALLS], ids=["no stalls", "stalls"])
@pytest.mark.parametrize("config", ["tiny", "edge", "6x10, 2 lanes", pytest.param("large", marks=pytest.mark.slow)])
def test_some_tokens_on_every_configuration(config: str, memory: tw.MemoryModel | None) -> None:
    assert_exact(generate("built-in", config, 3, memory), "built-in", 3)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [None, STALLS], ids=["no stalls", "stalls"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("model", ["built-in", "stories260K"])
def test_many_tokens_on_every_configuration(model: str, config: str, memory: tw.MemoryModel | None) -> None:
    assert_exact(generate(model, config, 64, memory), model, 64)


def logits(device: tw.api.Device, tiling: tw.Tiling, tokens: list[int]) -> NDArray[np.float32]:
    from tilewright.importers import load_checkpoint

    engine = Engine(load_checkpoint(tw.api.BUILTIN), device, tiling)
    return engine.feed(tokens, logits="all")


def test_logits_do_not_depend_on_configuration_tiling_or_stalls() -> None:
    seed = 5
    tokens = np.random.default_rng(seed).integers(0, 1024, 12).tolist()
    expected = logits(tw.open_device("golden", "default"), tw.Tiling(), tokens)
    for config, tiling in (
        ("default", tw.Tiling()),
        ("edge", tw.Tiling(block_rows=5, chunk_tiles=3, kv_heads=1)),
        ("tiny", tw.Tiling(block_rows=3, chunk_tiles=7)),
        ("6x10, 2 lanes", tw.Tiling(block_rows=7, kv_heads=1)),
    ):
        device = tw.open_device("rtl", CONFIGS[config], memory=STALLS)
        np.testing.assert_array_equal(logits(device, tiling, tokens), expected, err_msg=f"{config} seed {seed}")
        device.close()


def test_one_flipped_bit_is_found() -> None:
    devices = [tw.open_device("rtl", CONFIGS["tiny"]), tw.open_device("golden", CONFIGS["tiny"])]
    data = np.random.default_rng(0).integers(0, 256, 4096).astype(np.uint8)
    for device in devices:
        device.allocate(4096)
        device.write_memory(0, data)
    assert compare(devices[0], devices[1], 4096).exact
    for device in devices:
        for at, bit in ((0, 0), (4095, 7), (1234, 3)):
            device.write_memory(at, bytes([data[at] ^ 1 << bit]))
            assert not compare(devices[0], devices[1], 4096).exact
            device.write_memory(at, data[at : at + 1])
    assert compare(devices[0], devices[1], 4096).exact


def read(offset: int, nbytes: int = 64) -> Instruction:
    return Instruction(Op.WEIGHT, {"offset": offset, "bytes": nbytes, "count": 1})


STORE = {"element": 2, "n": 2, "m": 1, "h": 1, "run": 2}
BAD_PROGRAMS = {
    "an unknown opcode": (b"\xee" + bytes(BYTES - 1), ErrorCode.ILLEGAL_OPCODE),
    "a count of zero": (Instruction(Op.WEIGHT, {"bytes": 64}).encode(), ErrorCode.ILLEGAL_FIELD),
    "a read outside memory": (assemble([read(1 << 20)]), ErrorCode.READ_RESPONSE),
}


@pytest.mark.parametrize("name", ["golden", "rtl"])
@pytest.mark.parametrize("case", BAD_PROGRAMS)
def test_a_bad_program_stops_with_its_error(name: str, case: str) -> None:
    program, code = BAD_PROGRAMS[case]
    device = tw.open_device(name, CONFIGS["tiny"])
    device.allocate(4096)
    device.write_memory(0, program + assemble([Instruction(Op.END)]))
    with pytest.raises(DeviceError) as caught:
        run_program(device, 0, 100_000)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["golden", "rtl"])
def test_a_program_without_end_stops_at_the_edge_of_memory(name: str) -> None:
    device = tw.open_device(name, CONFIGS["tiny"])
    device.allocate(4096)
    device.write_memory(0, assemble([Instruction(Op.NOP)] * 64))
    with pytest.raises(DeviceError):
        run_program(device, 0, 100_000)


def test_a_run_has_a_cycle_limit() -> None:
    device = tw.open_device("rtl", CONFIGS["tiny"])
    device.allocate(4096)
    wait = Instruction(Op.MATMUL, {"k": 1, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1})
    device.write_memory(0, assemble([wait, Instruction(Op.END)]))  # no tile will ever come
    with pytest.raises(DeviceError, match="5000 cycles"):
        run_program(device, 0, 5000)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("memory", [tw.MemoryModel(), STALLS], ids=["no stalls", "stalls"])
def test_products_in_four_bits(config: str, memory: tw.MemoryModel) -> None:
    """Random shapes, int32 and quantised results: NumPy's, and the golden model's."""
    seed = 17
    rng = np.random.default_rng(seed)
    device, golden = (tw.open_device(n, CONFIGS[config], memory=memory) for n in ("rtl", "golden"))
    for _ in range(10):
        m, k, n = (int(rng.integers(1, limit)) for limit in (70, 600, 200))
        a = rng.integers(-128, 128, (m, k), dtype=np.int8)
        q, g = rng.integers(-8, 8, (k, n), dtype=np.int8), rng.integers(0, 16, (-(-k // 32), n))
        expected = a.astype(np.int64) @ (np.repeat(g, 32, axis=0)[:k] * q)
        shape = f"{m}x{k}x{n} seed {seed}"
        result = tw.ops.matmul(a, q, device, group_scales=g)
        np.testing.assert_array_equal(result, expected, err_msg=shape)
        pairs = [tw.ops.matmul_quantised(a, q, d, group_scales=g) for d in (device, golden)]
        for got, wanted in zip(*pairs, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=shape)


@pytest.mark.parametrize("config", ["default", "tiny"])
def test_single_operations(config: str) -> None:
    seed = 11
    rng = np.random.default_rng(seed)
    device, golden = (tw.open_device(n, CONFIGS[config], memory=STALLS) for n in ("rtl", "golden"))
    for m, k, n in ((1, 1, 1), (3, 50, 17), (33, 70, 45)):
        a = rng.integers(-128, 128, (m, k), dtype=np.int8)
        b = rng.integers(-128, 128, (k, n), dtype=np.int8)
        expected = a.astype(np.int32) @ b.astype(np.int32)
        np.testing.assert_array_equal(tw.ops.matmul(a, b, device), expected, err_msg=f"{m}x{k}x{n} seed {seed}")
        scales = rng.integers(0, 16, (-(-k // 32), n))
        expected = a.astype(np.int32) @ (np.repeat(scales, 32, axis=0)[:k] * (b >> 4))
        result = tw.ops.matmul(a, b >> 4, device, group_scales=scales)
        np.testing.assert_array_equal(result, expected, err_msg=f"int4 {m}x{k}x{n} seed {seed}")
    x = (rng.normal(size=(9, 37)) * 4).astype(np.float32)
    w = rng.normal(size=37).astype(np.float32)
    for f in (
        tw.ops.softmax, tw.ops.silu, tw.ops.sigmoid, lambda x, device: tw.ops.rmsnorm(x, w, device=device)
    ):  # fmt: skip
        np.testing.assert_array_equal(f(x, device=device), f(x, device=golden))
