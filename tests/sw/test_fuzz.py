"""Hostile files: whatever is done to a model's files, they are read or refused with one line, and nothing else.

Each example breaks one file: its bytes (cut, overwritten, stretched), or, where it is JSON, a value in it. Then the
model is opened as every command does. Memory is watched: no allocation may go beyond a small multiple of the files' own
size. Hypothesis prints the example that fails.
"""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import gguf_files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilewright as tw
from tilewright.api import read_model
from tilewright.compiled import save
from tilewright.formats import Formats
from tilewright_hw.arch import AcceleratorConfig

FAST, SLOW = 40, 1500
"""Examples of each of the kinds: 320 in all, and 13,500."""
ALLOWANCE = 4 << 20
"""Bytes that may be allocated beyond sixteen times the files' size: code that is loaded, error messages."""
Damage = Callable[[bytes], bytes]

numbers = st.sampled_from([-1, 0, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**64, 10**30, -(2**63)])
texts = st.sampled_from(
    [
        "",
        "x",
        "F32",
        "F64",
        "I8",
        "BF16",
        "../model.safetensors",
        "/etc/passwd",
        "a/b",
        "..",
        "\u0000",
        "é" * 50,
        "1e999",
    ]
)
atoms = numbers | texts | st.sampled_from([None, True, False, 1.5, -0.0, 1e308])
values = st.recursive(
    atoms, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=4
)


@st.composite
def bytes_damaged(draw: st.DrawFn) -> Damage:
    """Cut a file, overwrite some of it, or put something in."""
    at = draw(st.floats(0, 1, exclude_max=True))
    early = draw(st.booleans())
    put = draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"[" * 5000, struct.pack("<Q", 2**62)]))
    gone = draw(st.sampled_from([0, 1, 4, 8, len(put), 1 << 30]))

    def damage(raw: bytes) -> bytes:
        place = int(at * min(len(raw), 64 if early else len(raw)))
        return raw[:place] + put + raw[place + gone :]

    return damage


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value of a JSON tree."""
    keys = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [(tree, key) for key, _ in keys] + [place for _, value in keys for place in _places(value)]


@st.composite
def json_damaged(draw: st.DrawFn) -> Damage:
    """Replace, remove or add a value somewhere in a JSON text."""
    where, value = draw(st.integers(0, 1 << 20)), draw(values)
    remove, top = draw(st.booleans()), draw(st.integers(0, 3))

    def damage(raw: bytes) -> bytes:
        tree = json.loads(raw)
        places = _places(tree)
        if top == 0 and isinstance(tree, dict):  # the large inner tables would get nearly all of the hits
            places = [(tree, key) for key in tree]
        container, key = places[where % len(places)]
        if remove:
            del container[key]
        else:
            container[key] = value
        return json.dumps(tree).encode()

    return damage


@st.composite
def header_damaged(draw: st.DrawFn) -> Damage:
    """Damage the JSON header of a safetensors file, and let its length be right, or not."""
    inner, wrong = draw(json_damaged()), draw(st.integers(0, 7))

    def damage(raw: bytes) -> bytes:
        length = struct.unpack("<Q", raw[:8])[0]
        header = inner(raw[8 : 8 + length])
        stated = len(header) if wrong else len(header) * 2
        return struct.pack("<Q", stated) + header + raw[8 + length :]

    return damage


@st.composite
def fields_damaged(draw: st.DrawFn) -> Damage:
    """Overwrite one of a binary file's first words."""
    at, value = draw(st.integers(0, 8)), draw(st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1, -1, 7, 2**20]))

    def damage(raw: bytes) -> bytes:
        return raw[: 4 * at] + struct.pack("<i", value) + raw[4 * at + 4 :]

    return damage


_GGUF = [
    b"", b"llama.block_count", b"llama.embedding_length", b"llama.attention.head_count", b"llama.rope.freq_base",
    b"general.architecture", b"tokenizer.ggml.model", b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type",
    b"tokenizer.ggml.merges", b"tokenizer.ggml.scores", b"tokenizer.ggml.bos_token_id", b"add_bos_token",
    b"token_embd.weight", b"blk.0.attn_q.weight", b"blk.1.ffn_norm.weight",
]  # fmt: skip
"""What numbers are put behind: names of fields and tensors; nothing: anywhere."""


@st.composite
def gguf_damaged(draw: st.DrawFn) -> Damage:
    """Overwrite a type, a count, a length, an offset or a value in a GGUF header."""
    behind, skipped, size = draw(st.sampled_from(_GGUF)), draw(st.integers(0, 24)), draw(st.sampled_from([1, 4, 8]))
    anywhere, value = draw(st.integers(0, 1 << 14)), draw(numbers) % (1 << 8 * size)

    def damage(raw: bytes) -> bytes:
        at = max(raw.find(behind), 0) + len(behind) + skipped if behind else anywhere % len(raw)
        return raw[:at] + value.to_bytes(size, "little") + raw[at + size :]

    return damage


Kind = tuple[str, tuple[str, ...], st.SearchStrategy[Damage]]
KINDS: dict[str, Kind] = {
    "folder, bytes": ("hf", ("config.json", "model.safetensors", "tokenizer.json"), bytes_damaged()),
    "folder, JSON": ("hf", ("config.json", "tokenizer.json", "generation_config.json"), json_damaged()),
    "safetensors, header": ("hf", ("model.safetensors",), header_damaged()),
    "several files, index": (
        "index",
        ("model.safetensors.index.json", "config.json"),
        json_damaged() | bytes_damaged(),
    ),
    "llama2.c": ("llama2c", ("model.bin", "tok.bin"), bytes_damaged() | fields_damaged()),
    "GGUF, merges": ("gguf", ("tiny.gguf",), bytes_damaged() | gguf_damaged()),
    "GGUF, pieces": ("pieces", ("pieces.gguf",), bytes_damaged() | gguf_damaged()),
    "compiled": ("compiled", ("model.tw",), bytes_damaged() | fields_damaged()),
    "encoder": (
        "encoder",
        ("modules.json", "config.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json"),
        json_damaged() | bytes_damaged(),
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, hf_folder: Path, llama2c_file: Path) -> dict[str, Path]:
    """Models of one's own to break."""
    top = tmp_path_factory.mktemp("fuzz")
    found = {"hf": Path(shutil.copytree(hf_folder, top / "hf"))}
    if not (found["hf"] / "generation_config.json").exists():
        (found["hf"] / "generation_config.json").write_text('{"eos_token_id": [257], "temperature": 0.5}')
    found["llama2c"] = Path(shutil.copytree(llama2c_file.parent, top / "llama2c")) / "model.bin"
    found["encoder"] = encoders.write(top / "encoder")
    folder = Path(shutil.copytree(found["hf"], top / "index"))
    raw = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    names = [name for name in json.loads(raw[8 : 8 + length]) if name != "__metadata__"]
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found["index"] = folder
    found["gguf"] = gguf_files.tiny(top / "gguf")
    shutil.rmtree(top / "gguf" / "source")  # memory is measured by what lies beside the file
    tokenizer = llama2c_file.parent / "tok.bin"
    (top / "pieces").mkdir()
    found["pieces"] = gguf_files.convert_llama2c(llama2c_file, tokenizer, top / "pieces" / "pieces.gguf", "Q8_0")
    found["compiled"] = top / "compiled" / "model.tw"
    found["compiled"].parent.mkdir()
    save(found["compiled"], *read_model(found["hf"]), AcceleratorConfig.resolve("tiny"), Formats())
    return found


def check(model: Path, file: str, damage: Damage) -> None:
    """Damage a file, open the model, and put the file back."""
    folder = model if model.is_dir() else model.parent
    path = folder / file
    whole = path.read_bytes()
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    path.write_bytes(damage(whole))
    message = "read"
    tracemalloc.start()
    try:
        checkpoint, tokenizer = read_model(model)
        tokenizer.decode(tokenizer.encode("hello é"))
        assert checkpoint.spec.vocab > 0
    except tw.InputError as e:
        message = str(e)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path.write_bytes(whole)
    assert message
    assert "\n" not in message
    assert peak <= 16 * size + ALLOWANCE, f"{peak} bytes for files of {size}"


def fuzz(models: dict[str, Path], kind: str, examples: int, *, repeatable: bool) -> int:
    """Try examples of a kind; returns how many were tried."""
    name, files, damages = KINDS[kind]
    tried = 0

    @settings(
        max_examples=examples, deadline=None, derandomize=repeatable, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(file=st.sampled_from(files), damage=damages)
    def attempt(file: str, damage: Damage) -> None:
        nonlocal tried
        tried += 1
        check(models[name], file, damage)

    attempt()
    return tried


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_models_are_read(models: dict[str, Path], kind: str) -> None:
    checkpoint, _ = read_model(models[KINDS[kind][0]])
    assert checkpoint.spec.layers >= 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "GGUF, pieces"])
def test_hostile_files(models: dict[str, Path], kind: str) -> None:
    assert fuzz(models, kind, FAST, repeatable=True) >= FAST


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_many_hostile_files(models: dict[str, Path], kind: str) -> None:
    assert fuzz(models, kind, SLOW, repeatable=False) >= SLOW
