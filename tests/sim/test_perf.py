"""The cycle model against the gateware: equal for products on every configuration, near for whole models.

Nothing in the model was fitted to a run, so shapes are drawn at random; the seed is in each message.
"""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright import runtime
from tilewright.model import Checkpoint, LlamaSpec
from tilewright.ops import matmul_counted, matmul_quantised_counted
from tilewright.perf import Prediction, predict
from tilewright.runtime import Engine, run_program
from tilewright_hw.arch import REGISTERS, AcceleratorConfig, Device
from tilewright_hw.arch.memory_model import MemoryModel

CONFIGS = {
    "default": AcceleratorConfig(),
    "tiny": AcceleratorConfig.preset("tiny"),
    "edge": AcceleratorConfig.preset("edge"),
    "6x10, 2 lanes": AcceleratorConfig(
        rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, acc_rows=256, row_words=4096, weight_fifo_bytes=1024,
        stream_fifo_bytes=1024,
    ),
    "short queues": AcceleratorConfig(
        rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, acc_rows=256, weight_fifo_bytes=2048,
        stream_fifo_bytes=1024, queue_depth=2, reads_in_flight=3, writes_in_flight=2, burst_beats=8,
    ),
}  # fmt: skip


def predicted(device: Device, memory: MemoryModel) -> Prediction:
    """Return what the model says of the program that the device ran last."""
    low, high = (device.read_register(REGISTERS[f"PROGRAM_{half}"].address) for half in ("LO", "HI"))
    return predict(
        device.config, lambda at, size: device.read_memory(at, size).tobytes(), low | high << 32, memory=memory
    )


BEHIND = pytest.mark.xfail(
    reason="the gateware has a register more in the load path, and the model does not know it yet: NOTES.md"
)


@BEHIND
@pytest.mark.parametrize("config", CONFIGS)
def test_products_take_the_predicted_cycles(config: str) -> None:
    seed = 20 + len(config)
    rng = np.random.default_rng(seed)
    most = 300 if CONFIGS[config].cols >= 16 else 60
    for trial in range(6):
        m, k, n = (int(v) for v in rng.integers(1, most, 3))
        m = 1 if trial == 0 else m  # a matrix-vector product
        memory = MemoryModel(latency=int(rng.integers(1, 160)))
        a = rng.integers(-128, 128, (m, k), dtype=np.int8)
        b = rng.integers(-128, 128, (k, n), dtype=np.int8)
        with tw.open_device("rtl", CONFIGS[config], memory=memory) as device:  # type: ignore[attr-defined]
            run = matmul_quantised_counted if trial % 3 == 2 else matmul_counted
            counters = run(a, b, device)[-1]
            prediction = predicted(device, memory)
        assert prediction.counters == counters, f"{config} {m}x{k}x{n} latency {memory.latency} seed {seed}"


def random_model(seed: int) -> Checkpoint:
    spec = LlamaSpec(dim=48, layers=2, heads=4, kv_heads=2, head_dim=12, ffn=80, vocab=90, context=64)
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(0, 0.3, s).astype(np.float32) for name, s in spec.tensor_shapes().items()}
    return Checkpoint(spec, tensors.__getitem__)


@BEHIND
@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_takes_the_predicted_cycles(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = 5
    memory = MemoryModel(latency=31)
    rng = np.random.default_rng(seed)
    runs: list[tuple[dict[str, int], Prediction]] = []

    def run_and_predict(device: Device, address: int, limit: int) -> dict[str, int]:
        counters = run_program(device, address, limit)
        runs.append((counters, predicted(device, memory)))
        return counters

    monkeypatch.setattr(runtime, "run_program", run_and_predict)
    with tw.open_device("rtl", CONFIGS[config], memory=memory) as device:  # type: ignore[attr-defined]
        engine = Engine(random_model(seed), device)
        for tokens in (1, 13, 1):
            first = len(runs)
            engine.feed(rng.integers(0, 90, tokens).tolist())
            for counters, prediction in runs[first:]:
                where = f"{config}, {tokens} tokens, seed {seed}"
                if tokens == 1:
                    assert prediction.counters == counters, where
                assert prediction.cycles == pytest.approx(counters["CYCLES"], rel=0.01), where


def test_stalls_are_taken_at_their_mean() -> None:
    memory = MemoryModel(latency=40, stall=0.1, seed=3)
    a, b = np.ones((1, 256), np.int8), np.ones((256, 512), np.int8)
    with tw.open_device("rtl", CONFIGS["default"], memory=memory) as device:  # type: ignore[attr-defined]
        counters = matmul_counted(a, b, device)[-1]
        assert predicted(device, memory).cycles == pytest.approx(counters["CYCLES"], rel=0.02)
