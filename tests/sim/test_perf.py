"""The cycle model against the gateware: every counter of products and random programs, and the cycles of models.

Nothing in the model was fitted to a run, so shapes and programs are drawn at random; the seed is in each message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from random_programs import MEMORY, PROGRAM, RandomProgram

import tilewright as tw
from tilewright import runtime
from tilewright.formats import Formats
from tilewright.model import Checkpoint, ModelSpec
from tilewright.ops import matmul_counted, matmul_quantised_counted
from tilewright.perf import Prediction, predict
from tilewright.runtime import Engine, run_program, set_bases
from tilewright_hw.arch import REGISTERS, AcceleratorConfig, Device, InputError, Instruction, Op, Unit, assemble
from tilewright_hw.arch.memory_model import MemoryModel

CONFIGS = {
    "default": AcceleratorConfig(),
    "tiny": AcceleratorConfig.preset("tiny"),
    "edge": AcceleratorConfig.preset("edge"),
    "large": AcceleratorConfig.preset("large"),
    "6x10, 2 lanes": AcceleratorConfig(
        rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, acc_rows=256, row_words=4096, weight_fifo_bytes=1024,
        stream_fifo_bytes=1024,
    ),
    "short queues": AcceleratorConfig(
        rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, acc_rows=256, weight_fifo_bytes=2048,
        stream_fifo_bytes=1024, queue_depth=2, reads_in_flight=3, writes_in_flight=2, burst_beats=8,
    ),
}  # fmt: skip
QUICK = ("default", "tiny")
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
GPT2 = dict(
    norm="layer", learned_positions=True, rope_theta=None, qkv_bias=True, o_bias=True, ffn_bias=True, gated=False,
    activation="gelu_tanh",
)  # fmt: skip
BERT = GPT2 | dict(
    activation="gelu", token_types=2, embedding_norm=True, norm_after=True, final_norm=False, causal=False,
    classifier=False,
)  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Llama": dict(dim=48, layers=2, heads=4, kv_heads=2, head_dim=12, ffn=80, vocab=90, context=64),
    "Qwen3": dict(
        dim=64, layers=1, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=130, context=64, qk_norm=True, qkv_bias=True
    ),
    "GPT-2": dict(dim=48, layers=2, heads=3, kv_heads=3, head_dim=16, ffn=150, vocab=120, context=64, **GPT2),
    "BERT": dict(dim=48, layers=2, heads=3, kv_heads=3, head_dim=16, ffn=150, vocab=120, context=64, **BERT),
}


def open_rtl(config: str, memory: MemoryModel) -> Device:
    return tw.open_device("rtl", CONFIGS[config], memory=memory)


def predicted(device: Device, memory: MemoryModel) -> Prediction:
    """Return what the model says of the program that the device ran last."""
    low, high = (device.read_register(REGISTERS[f"PROGRAM_{half}"].address) for half in ("LO", "HI"))
    return predict(
        device.config, lambda at, size: device.read_memory(at, size).tobytes(), low | high << 32, memory=memory
    )


@pytest.mark.parametrize("config", EACH)
def test_products_take_the_predicted_cycles(config: str) -> None:
    seed = 20 + len(config)
    rng = np.random.default_rng(seed)
    most = 60 if CONFIGS[config].cols < 16 else 160 if config in QUICK else 300
    for trial in range(6):
        m, k, n = (int(v) for v in rng.integers(1, most, 3))
        m = 1 if trial == 0 else m  # a matrix-vector product
        memory = MemoryModel(latency=int(rng.integers(1, 160)))
        a = rng.integers(-128, 128, (m, k), dtype=np.int8)
        b = rng.integers(-128, 128, (k, n), dtype=np.int8)
        with open_rtl(config, memory) as device:  # type: ignore[attr-defined]
            run = matmul_quantised_counted if trial % 3 == 2 else matmul_counted
            counters = run(a, b, device)[-1]
            prediction = predicted(device, memory)
        assert prediction.counters == counters, f"{config} {m}x{k}x{n} latency {memory.latency} seed {seed}"


@pytest.mark.parametrize("config", EACH)
def test_random_programs_take_the_predicted_cycles(config: str) -> None:
    """Every instruction with many of its operands (int4, pairs, transposed tiles, tables, VAR, ...), every counter."""
    trials = 25 if config in QUICK else 100
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        memory = MemoryModel(latency=int(rng.integers(1, 100)))
        address = PROGRAM + 64 * int(rng.integers(0, 64))
        blocks = 150 if seed == 0 else int(rng.integers(1, 12))
        program = RandomProgram(CONFIGS[config], rng).make(blocks)
        with open_rtl(config, memory) as device:  # type: ignore[attr-defined]
            device.allocate(MEMORY)
            set_bases(device)
            device.write_memory(address, assemble(program))
            counters = run_program(device, address, 1_000_000)
            prediction = predicted(device, memory)
        assert prediction.counters == counters, f"{config}, seed {seed}, latency {memory.latency}"


def random_model(seed: int, shape: dict[str, Any]) -> Checkpoint:
    spec = ModelSpec(**shape)
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(0, 0.3, s).astype(np.float32) for name, s in spec.tensor_shapes().items()}
    return Checkpoint(spec, tensors.__getitem__)


def runs_of(engine: Engine, rng: np.random.Generator) -> Iterator[str]:
    """Run a model in all ways that there are; yield what was run."""
    vocab = engine.spec.vocab
    if not engine.spec.causal:
        for tokens in (5, 23):
            engine.encode(rng.integers(0, vocab, tokens).tolist())
            yield f"{tokens} tokens encoded"
        return
    for tokens in (1, 29, 1):
        engine.feed(rng.integers(0, vocab, tokens).tolist())
        yield f"{tokens} tokens fed"
    engine.feed(rng.integers(0, vocab, 3).tolist(), sequence=1)
    yield "another sequence"
    engine.step({0: 1, 1: 2})
    yield "two sequences together"


def check_model(
    config: str, model: str, formats: Formats, monkeypatch: pytest.MonkeyPatch, memory: MemoryModel
) -> None:
    """Assert that every run of a model takes the predicted cycles."""
    seed = 5
    rng = np.random.default_rng(seed)
    runs: list[tuple[dict[str, int], Prediction]] = []

    def run_and_predict(device: Device, address: int, limit: int) -> dict[str, int]:
        counters = run_program(device, address, limit)
        runs.append((counters, predicted(device, memory)))
        return counters

    monkeypatch.setattr(runtime, "run_program", run_and_predict)
    with open_rtl(config, memory) as device:  # type: ignore[attr-defined]
        engine = Engine(random_model(seed, MODELS[model]), device, formats=formats, sequences=2)
        for what in runs_of(engine, rng):
            where = f"{model} on {config}, {formats}, {what}, seed {seed}"
            assert runs, where
            for counters, prediction in runs:
                assert prediction.cycles == pytest.approx(counters["CYCLES"], rel=0.01), where
                for name in ("READ_BEATS", "WRITE_BEATS", "ARRAY_ROWS", "INSTRUCTIONS", "FETCH_BEATS"):
                    assert prediction.counters[name] == counters[name], f"{where}: {name}"
                if "1 tokens" in what:
                    # A LOAD into a buffer that the vector unit is writing is a little later than predicted.
                    late = {"LOAD_BUSY": prediction.counters["LOAD_BUSY"]}
                    assert prediction.counters == counters | late, where
            runs.clear()


@pytest.mark.parametrize("model", MODELS)
def test_models_take_the_predicted_cycles(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for formats in (Formats(), Formats(weights="int4", activations=16)):
        check_model("default", model, formats, monkeypatch, MemoryModel(latency=31))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("config", [name for name in CONFIGS if name != "default"])
def test_models_on_other_configurations(config: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for weights in ("int8", "int4"):
        for activations in (8, 16):
            formats = Formats(weights=weights, activations=activations)
            check_model(config, model, formats, monkeypatch, MemoryModel(latency=77))


def test_stalls_are_taken_at_their_mean() -> None:
    memory = MemoryModel(latency=40, stall=0.1, seed=3)
    a, b = np.ones((1, 256), np.int8), np.ones((256, 512), np.int8)
    with open_rtl("default", memory) as device:  # type: ignore[attr-defined]
        counters = matmul_counted(a, b, device)[-1]
        assert predicted(device, memory).cycles == pytest.approx(counters["CYCLES"], rel=0.02)


def predict_program(*program: Instruction) -> Prediction:
    data = assemble(program)
    return predict(AcceleratorConfig(), lambda at, size: data[at : at + size].ljust(size, b"\0"), 0)


def test_a_program_that_cannot_end_is_told() -> None:
    product = Instruction(Op.MATMUL, {"k": 2, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1})
    weights = Instruction(Op.WEIGHT, {"bytes": 256, "count": 1})
    with pytest.raises(InputError, match=r"must come to its end: MATRIX in instruction 1, the sequencer is at .* 3 of"):
        predict_program(weights, product, Instruction(Op.END))
    itself = Instruction(Op.VECTOR, {"n": 1, "m": 1, "h": 1}, {Unit.VECTOR: 0, Unit.MATRIX: 1})
    with pytest.raises(InputError, match="MATRIX in instruction 1, VECTOR in instruction 2"):
        predict_program(weights, product, itself, Instruction(Op.END))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\xff", "unknown opcode 255"),
        (Instruction(Op.LOAD, {"bytes": 16, "count": 1, "dest": 7}).encode(), "LOAD.dest has no value 7"),
        (Instruction(Op.VECTOR, {"n": 1, "m": 0, "h": 1}).encode(), "VECTOR.m must be at least 1, not 0"),
        (Instruction(Op.LDREGS, {"count": 129}).encode(), "LDREGS.count must be at most 128, not 129"),
    ],
    ids=["opcode", "enumeration", "count of zero", "too many registers"],
)
def test_an_instruction_that_is_unknown_is_told(program: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        predict(AcceleratorConfig(), lambda at, size: program[at : at + size].ljust(size, b"\0"), 0)
