"""`tilewright profile`: every cycle is somewhere once, the programs are the runtime's; bad input is told."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from console import Done

from tilewright import runtime
from tilewright.api import BUILTIN
from tilewright.devices import open_device
from tilewright.formats import Formats
from tilewright.importers import load_checkpoint
from tilewright.model import Checkpoint, ModelSpec
from tilewright.perf import predict
from tilewright.perf.profile import Profile, Run, decode_run, kind_of, prefill_runs, product_run, profile
from tilewright.roofline import model_operations, roofline
from tilewright.runtime import Engine, run_program
from tilewright_hw.arch import AcceleratorConfig, Device, InputError
from tilewright_hw.arch.memory_model import MemoryModel

Command = Callable[..., Done]
CONFIG = AcceleratorConfig.preset("default")
LLAMA: dict[str, Any] = dict(dim=48, layers=2, heads=4, kv_heads=2, head_dim=12, ffn=80, vocab=90, context=64)
GPT2 = LLAMA | dict(
    norm="layer", learned_positions=True, rope_theta=None, qkv_bias=True, o_bias=True, ffn_bias=True, gated=False,
    activation="gelu_tanh",
)  # fmt: skip
BERT = GPT2 | dict(
    activation="gelu", token_types=2, embedding_norm=True, norm_after=True, final_norm=False, causal=False,
    classifier=False,
)  # fmt: skip


def model(shape: dict[str, Any]) -> Checkpoint:
    spec = ModelSpec(**shape)
    rng = np.random.default_rng(1)
    tensors = {name: rng.normal(0, 0.3, s).astype(np.float32) for name, s in spec.tensor_shapes().items()}
    return Checkpoint(spec, tensors.__getitem__)


def all_runs() -> dict[str, tuple[list[Run], float]]:
    """Return runs of all kinds, each with its roofline."""
    llama, gpt2, bert = (ModelSpec(**shape) for shape in (LLAMA, GPT2, BERT))
    pairs = Formats(weights="int4", activations=16)
    least = {
        "decode": (llama, [(20, 1)], "int8"),
        "batch": (llama, [(20, 1)] * 3, "int8"),
        "prefill": (gpt2, [(0, 33)], "int4"),
        "encode": (bert, [(0, 17)], "int8"),
    }
    runs = {
        "decode": [decode_run(llama, CONFIG, 20)],
        "batch": [decode_run(llama, CONFIG, 20, batch=3)],
        "prefill": prefill_runs(gpt2, CONFIG, 33, formats=pairs),
        "encode": prefill_runs(bert, CONFIG, 17),
    }
    sums = {
        name: roofline(model_operations(spec, texts, weights=weights), CONFIG)
        for name, (spec, texts, weights) in least.items()
    }
    return {name: (run, sums[name]) for name, run in runs.items()} | {
        "product": ([product_run(CONFIG, 40, 50, 60)], 40 * 60 * 4 / CONFIG.bus_bytes)
    }


def test_every_cycle_is_somewhere_once() -> None:
    for name, (runs, least) in all_runs().items():
        result = profile(name, runs, CONFIG)
        assert sum(part.cycles for part in result.parts) == result.cycles, name
        assert sum(kind.cycles for kind in result.kinds()) == result.cycles, name
        assert result.roofline == pytest.approx(least), name
        assert all(kind_of(part.name) != "other" for part in result.parts), [part.name for part in result.parts]
        for unit in result.units:
            assert unit.works <= unit.busy <= result.cycles, (name, unit.name)
            assert unit.busy + sum(unit.waits.values()) <= result.cycles, (name, unit.name)


def test_what_the_parts_of_a_decode_wait_for() -> None:
    """Its matrices wait for weights, above all; norms for the vector unit; all that there is has a part."""
    result = profile("decode", [decode_run(load_checkpoint(BUILTIN).spec, CONFIG, 100)], CONFIG)
    kinds = {kind.name: kind for kind in result.kinds()}
    assert kinds["feed-forward: up"].waited["weight"] > 0.9 * kinds["feed-forward: up"].cycles
    assert kinds["norms"].waited["vector"] > 0.9 * kinds["norms"].cycles
    assert max(kinds["attention"].waited, key=lambda column: kinds["attention"].waited[column]) == "load"
    layers = {part.name.partition(".w_up")[0] for part in result.parts if part.name.endswith("w_up")}
    assert layers == {f"layers.{i}" for i in range(load_checkpoint(BUILTIN).spec.layers)}


@pytest.mark.parametrize("shape", [LLAMA, GPT2, BERT], ids=["Llama", "GPT-2", "BERT"])
def test_the_programs_are_the_runtimes(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is profiled takes the cycles that the model predicts of the program and registers in a device's memory."""
    memory = MemoryModel(latency=20)
    predicted: list[int] = []

    def run_and_predict(device: Device, address: int, limit: int) -> dict[str, int]:
        counters = run_program(device, address, limit)
        predicted.append(
            predict(CONFIG, lambda at, size: device.read_memory(at, size).tobytes(), address, memory=memory).cycles
        )
        return counters

    def cycles(runs: list[Run]) -> int:
        return profile("run", runs, CONFIG, memory).cycles

    monkeypatch.setattr(runtime, "run_program", run_and_predict)
    checkpoint = model(shape)
    spec = checkpoint.spec
    engine = Engine(checkpoint, open_device("golden", CONFIG), sequences=2)
    if not spec.causal:
        engine.encode([0] * 9)
        assert cycles(prefill_runs(spec, CONFIG, 9)) == sum(predicted)
        return
    engine = Engine(checkpoint, open_device("golden", CONFIG), sequences=1)
    engine.choose([0] * 12)
    assert cycles(prefill_runs(spec, CONFIG, 12)) == sum(predicted)
    engine.choose([0])
    assert cycles([decode_run(spec, CONFIG, 12)]) == predicted[-1]


def test_a_slower_memory_takes_longer() -> None:
    run = [product_run(CONFIG, 1, 256, 256)]

    def cycles(**memory: Any) -> int:
        return profile("product", run, CONFIG, MemoryModel(**memory)).cycles

    assert cycles() < cycles(latency=150) < cycles(bandwidth=0.25)
    assert profile("product", run, CONFIG, MemoryModel(bandwidth=0.25)).roofline == pytest.approx(
        4 * profile("product", run, CONFIG).roofline
    )


def test_what_does_not_fit() -> None:
    spec = ModelSpec(**LLAMA)
    with pytest.raises(InputError, match=r"^the context must be 1 to 64, not 65$"):
        decode_run(spec, CONFIG, 64)
    with pytest.raises(InputError, match=r"^a prompt must have 1 to 64 tokens, not 0$"):
        prefill_runs(spec, CONFIG, 0)
    with pytest.raises(InputError, match=r"^the batch must be at most 8 on default, not 17$"):
        decode_run(spec, CONFIG, 3, batch=17)


def test_the_table(command: Command) -> None:
    done = command("profile", "--context", "40", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "decode at context 40, fairytales" in done.out
    for kind in ("norms", "attention", "classifier", "all"):
        assert f"\n{kind} " in done.out
    assert "for vector" in done.out
    done = command("profile", "--context", "40", "--layers", "--quiet")
    assert "\nlayers.3.w_down " in done.out


def test_json(command: Command) -> None:
    done = command("profile", "--run", "prefill", "--prompt", "Once upon a time", "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert result["schema_version"] == 1
    assert result["cycles"] == sum(part["cycles"] for part in result["parts"])
    assert result["utilization"] == pytest.approx(result["roofline_cycles"] / result["cycles"])
    assert {unit["name"] for unit in result["units"]} == {"weight", "load", "matrix", "vector", "store"}
    assert result["counters"]["CYCLES"] == result["cycles"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context", "0"], "context must be at least 1, not 0"),
        (["--context", "9999"], "context must be at most the model's 256, not 9999"),
        (["--prompt", "a", "--context", "3"], "context and prompt must not be given together"),
        (["--batch", "2", "--run", "prefill"], "batch must be given with --run decode only"),
        (["--batch", "99"], "the batch must be at most 8 on default, not 99"),
        (["--shape", "2x2"], "shape must be MxKxN with positive integers, not '2x2'"),
        (["--shape", "2x2x2", "--context", "3"], "context must not be given together with shape"),
        (["random:dim=32,ffn=32,heads=2,vocab=32", "--prompt", "a"], "prompt must not be given for a random model"),
        (["--weights", "int5"], "weights must be int8 or int4, not 'int5'"),
        (["--plot", "a.pdf"], "plot must name a .png file, not a.pdf"),
        (["--plot", "no/such/a.png"], "plot must lie in a folder that exists, not no/such"),
    ],
)
def test_bad_input(command: Command, words: list[str], message: str) -> None:
    if "--plot" in words:
        pytest.importorskip("matplotlib")
    done = command("profile", *words)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


def test_a_plot_without_matplotlib(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    done = command("profile", "--plot", tmp_path / "roof.png")
    assert done.code == 2
    assert "a plot needs Matplotlib: pip install 'tilewright[plot]'" in done.err
    assert not list(tmp_path.iterdir())


def drawn_text(result: Profile, monkeypatch: pytest.MonkeyPatch, path: Path) -> set[str]:
    """Draw a profile; return all texts in the picture."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    texts: set[str] = set()
    save = figure.savefig

    def look(self: Any, *words: Any, **named: Any) -> None:
        texts.update(text.get_text() for text in self.findobj(lambda artist: hasattr(artist, "get_text")))
        save(self, *words, **named)

    monkeypatch.setattr(figure, "savefig", look)
    from tilewright.perf.plot import draw

    draw(result, path)
    return texts


def test_a_plot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = profile("decode", [decode_run(ModelSpec(**LLAMA), CONFIG, 20)], CONFIG)
    texts = drawn_text(result, monkeypatch, tmp_path / "roof.png")
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
    assert {"array: 256 MACs a cycle", "bus: 16 bytes a cycle", "the whole run", "classifier", "its roofline"} <= texts


def test_a_plot_that_cannot_be_written(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "roof.png").mkdir()
    done = command("profile", "--shape", "16x16x16", "--plot", tmp_path / "roof.png")
    assert done.code == 2
    assert f"plot must be a file, not the folder {tmp_path / 'roof.png'}" in done.err
    from tilewright.perf.plot import draw

    result = profile("product", [product_run(CONFIG, 16, 16, 16)], CONFIG)
    with pytest.raises(InputError, match=r"^cannot write .*roof\.png: Is a directory$"):
        draw(result, tmp_path / "roof.png")
    assert [path.name for path in tmp_path.iterdir()] == ["roof.png"]


def test_the_bench_as_predicted(command: Command) -> None:
    done = command("bench", "gemm", "--shape", "20x30x40", "--device", "model", "--json", "--quiet")
    assert done.code == 0
    row = json.loads(done.out)["rows"][0]
    assert row["cycles"] == profile("product", [product_run(CONFIG, 20, 30, 40)], CONFIG).cycles
    done = command("bench", "gemm", "--shape", "2x3x4", "--device", "model", "--check")
    assert (done.code, done.out) == (2, "")
    assert "check must not be given for the device model: it computes nothing" in done.err
    assert command("generate", "--prompt", "a", "--device", "model").code == 2
