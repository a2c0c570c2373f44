"""Loading: how much host memory it takes, and, of a model of 100 million parameters, how long."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright as tw
from tilewright.importers import load_checkpoint
from tilewright.model import Checkpoint, ModelSpec
from tilewright_hw.arch import InputError

MEASURE = """
import json, re, sys, time
import numpy, safetensors, tokenizers, tilewright as tw, tilewright_sim.golden

def peak():  # getrusage's counts what the parent had when it forked
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) << 10

before, begin = peak(), time.perf_counter()
model = tw.load(sys.argv[1], weights=sys.argv[2] if len(sys.argv) > 2 else None)
loaded, at = time.perf_counter() - begin, peak() - before
begin = time.perf_counter()
model.generate([1, 2, 3], max_new_tokens=1)
first = time.perf_counter() - begin
print(json.dumps({"image": model.engine.image.size, "peak": at, "peak with a token": peak() - before,
                  "seconds to load": loaded, "seconds to the first token": first}))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def measure(path: Path, *words: str) -> dict[str, Any]:
    """Load in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEASURE, path, *words], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    print(found)
    return found


def layer_bytes(spec: ModelSpec) -> int:
    """Bytes of one layer of the checkpoint in float32."""
    shapes = spec.tensor_shapes()
    return 4 * sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith("layers.0."))


@linux
@pytest.mark.parametrize("weights", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_peak_memory(tmp_path: Path, weights: str) -> None:
    """At most 1.5 times the image and one layer, though the checkpoint's own file is several times as large."""
    checkpoints.write_large(tmp_path, dim=320, ffn=960, layers=6, heads=8, kv_heads=4, vocab=14000, context=256)
    found = measure(tmp_path, weights)
    assert (tmp_path / "model.safetensors").stat().st_size > 2 * found["image"]
    limit = 1.5 * found["image"] + layer_bytes(load_checkpoint(tmp_path).spec)
    assert found["image"] < found["peak with a token"] < limit


@linux
@pytest.mark.slow
def test_a_hundred_million_parameters(tmp_path: Path) -> None:
    """Compiled, loaded from the checkpoint and from the file, with peak memory and times printed."""
    parameters = checkpoints.write_large(
        tmp_path / "model", dim=768, ffn=2048, layers=11, heads=12, kv_heads=4, vocab=20400, context=1024
    )
    assert parameters > 100e6
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tilewright.cli", "compile", tmp_path / "model", "-o", tmp_path / "m", "--quiet"],
        check=True,
    )
    print(f"{parameters:,} parameters compiled in {time.perf_counter() - begin:.1f} s")
    spec = load_checkpoint(tmp_path / "model").spec
    for path in (tmp_path / "model", tmp_path / "m"):
        found = measure(path)
        assert found["peak with a token"] < 1.5 * found["image"] + layer_bytes(spec)


def test_blocks_are_the_tensor(hf_folder: Path) -> None:
    """Read by rows from the file, or, where a tensor is changed as it is read, cut from the whole."""
    checkpoint = load_checkpoint(hf_folder)
    for name in ("embedding", "layers.1.wq", "layers.0.w_down", "final_norm"):
        blocks = list(checkpoint.blocks(name, unit=16, most=1000))
        whole = checkpoint.tensor(name)
        assert len(blocks) > 1 or whole.ndim == 1
        assert all(first % 16 == 0 for first, _ in blocks)
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), whole)


def test_a_bad_value_is_found_in_its_block(llama2c_file: Path, tmp_path: Path) -> None:
    raw = bytearray(llama2c_file.read_bytes())
    raw[28 + 4 * 500 : 28 + 4 * 501] = np.float32(np.nan).tobytes()
    (tmp_path / "model.bin").write_bytes(raw)
    (tmp_path / "tok.bin").write_bytes((llama2c_file.parent / "tok.bin").read_bytes())
    with pytest.raises(InputError, match="tensor embedding holds NaN or infinity"):
        tw.load(tmp_path / "model.bin")


def test_rows_of_a_wrong_shape_are_not_taken_for_the_tensor(tmp_path: Path) -> None:
    weights = checkpoints.tensors(checkpoints.CONFIG)
    weights["lm_head.weight"] = np.vstack([weights["lm_head.weight"], weights["lm_head.weight"]])
    checkpoints.write_huggingface(tmp_path, weights=weights)
    with pytest.raises(InputError, match=r"classifier must have shape \(258, 40\), not \(516, 40\)"):
        tw.load(tmp_path)


@pytest.mark.parametrize("quantised", ["int8", "int4"])
def test_the_image_does_not_depend_on_blocks(hf_folder: Path, monkeypatch: pytest.MonkeyPatch, quantised: str) -> None:
    def image() -> NDArray[np.uint8]:
        with tw.load(hf_folder, weights=quantised) as model:
            return model.device.read_memory(0, model.device.memory_size)

    whole = image()
    blocks = Checkpoint.blocks
    monkeypatch.setattr(Checkpoint, "blocks", lambda self, name, unit=1, most=0: blocks(self, name, unit, 600))
    monkeypatch.setattr("tilewright.compiler.image.BLOCK", 600)
    np.testing.assert_array_equal(image(), whole)
