"""Compiled models: the same text and memory as the checkpoint's, the same bytes each time, and no damage unnoticed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import encoders
import numpy as np
import pytest
from console import Done

import tilewright as tw
from tilewright import compiled
from tilewright.api import compare, read_model
from tilewright.formats import Formats
from tilewright_hw.arch import AcceleratorConfig, InputError

Command = Callable[..., Done]
TINY = ("--config", "tiny")


@pytest.fixture(scope="module")
def file(hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, compiled for `tiny`; read only."""
    path = tmp_path_factory.mktemp("compiled") / "tiny.twi"
    return make(hf_folder, path)


def make(source: Path, path: Path, config: str = "tiny", context: int | None = None, **formats: Any) -> Path:
    checkpoint, tokenizer = read_model(source, None, context)
    compiled.save(path, checkpoint, tokenizer, AcceleratorConfig.preset(config), Formats(**formats))
    return path


def text(model: tw.Model, **options: Any) -> tw.Generation:
    made = model.generate("ab", max_new_tokens=6, **options)
    assert isinstance(made, tw.Generation)
    return made


def test_the_same_tokens_and_memory_as_the_checkpoint(file: Path, hf_folder: Path) -> None:
    with tw.load(file) as stored, tw.load(hf_folder, config="tiny") as fresh:
        assert stored.device.config == AcceleratorConfig.preset("tiny")
        assert text(stored).token_ids == text(fresh).token_ids
        assert compare(stored.device, fresh.device, fresh.device.memory_size).exact
        assert stored.name == fresh.name
        assert text(stored, temperature=1.0, seed=2).text == text(fresh, temperature=1.0, seed=2).text
        batch = stored.generate(["ab", "b"], max_new_tokens=4)  # more caches: another layout behind the weights
        assert isinstance(batch, list)
        assert batch[0].token_ids == text(fresh).token_ids[:4]


@pytest.mark.parametrize("formats", [{"weights": "int4", "activations": 16, "overrides": {"*.w_down": "int8"}}])
def test_formats_and_context_are_the_files(tmp_path: Path, hf_folder: Path, formats: dict[str, Any]) -> None:
    path = make(hf_folder, tmp_path / "m", "edge", 20, **formats)
    with tw.load(path) as stored, tw.load(hf_folder, config="edge", context=20, **formats) as fresh:
        assert stored.spec == fresh.spec
        assert stored.spec.context == 20
        assert stored.formats == fresh.formats
        np.testing.assert_array_equal(stored.logits([1, 2, 3]), fresh.logits([1, 2, 3]))


def test_a_llama2c_model_with_its_tokenizer(tmp_path: Path, llama2c_file: Path) -> None:
    with tw.load(make(llama2c_file, tmp_path / "m")) as stored, tw.load(llama2c_file) as fresh:
        assert stored.tokenizer is not None
        assert (stored.tokenizer.bos, stored.tokenizer.eos) == (1, {1, 2})
        assert text(stored).text == text(fresh).text


def test_an_encoder_with_its_recipe(tmp_path: Path) -> None:
    folder = encoders.write(tmp_path / "encoder", ["Pooling"], {"pooling_mode_cls_token": True})
    with tw.load(make(folder, tmp_path / "m")) as stored, tw.load(folder, first_row="plain") as fresh:
        assert stored.recipe == fresh.recipe
        np.testing.assert_array_equal(stored.embed(["the cat", "dog"]), fresh.embed(["the cat", "dog"]))


def test_the_files_that_say_how_it_is_used_are_inside(tmp_path: Path) -> None:
    folder = checkpoints.write_huggingface(tmp_path / "folder")
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.5, "eos_token_id": 7}')
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    checkpoint = compiled.load(make(folder, tmp_path / "m"))
    assert checkpoint.files.read("chat_template.jinja") == b"{{ messages[0].content }}"
    assert checkpoint.files.read("model.safetensors") is None
    with tw.load(tmp_path / "m") as stored:
        assert stored.defaults == {"repetition_penalty": 1.5}
        assert stored.tokenizer is not None
        assert stored.tokenizer.eos == {257, 7}


def test_the_same_bytes_each_time(file: Path, hf_folder: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tilewright.cli", "compile", str(hf_folder), *TINY, "-o", str(tmp_path / "other")]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == f"{tmp_path / 'other'}\n"
    assert (tmp_path / "other").read_bytes() == file.read_bytes()
    make(file, tmp_path / "again")  # a compiled model is compiled to itself
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_the_commands(command: Command, file: Path, hf_folder: Path, refused: Callable[..., str]) -> None:
    words = ("--prompt", "ab", "--device", "golden", "--max-new-tokens", "6", "--quiet")
    assert command("generate", file, *words).out == command("generate", hf_folder, *words).out
    assert "was compiled for configuration tiny, and the device has edge" in refused(
        "generate", file, *words, "--config", "edge"
    )
    assert "holds int8 weights for 8 bits, not int4 weights" in refused("generate", file, *words, "--weights", "int4")
    assert "was compiled for a context of 48, not 9" in refused("generate", file, *words, "--context", "9")
    assert "give the checkpoint" in refused("eval", file, "--text", __file__)
    assert "compile it for that one" in refused("compile", file, "--config", "edge", "-o", file.parent / "x")
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_another_device_than_it_was_compiled_for(file: Path) -> None:
    with pytest.raises(InputError, match="was compiled for configuration tiny, and the device has default"):
        tw.load(file, device=tw.open_device("golden", "default"))


@pytest.mark.parametrize("part", ["magic", "version", "size", "manifest", "tokenizer", "program", "padding", "weights"])
def test_damage_is_noticed(tmp_path: Path, file: Path, part: str) -> None:
    raw = bytearray(file.read_bytes())
    checkpoint = compiled.load(file)
    assert checkpoint.stored is not None
    _, _, _, _, manifest, _ = compiled.HEADER.unpack(raw[: compiled.HEADER.size])
    after = compiled.HEADER.size + manifest
    padding = max(i for i in range(checkpoint.stored.start) if raw[i]) + 1
    places = {
        "magic": 0, "version": 8, "size": 17, "manifest": compiled.HEADER.size + 40, "tokenizer": after + 5,
        "program": raw.index(checkpoint.stored.programs["token"]) + 70, "padding": padding, "weights": len(raw) - 9,
    }  # fmt: skip
    raw[places[part]] ^= 1
    (tmp_path / "m").write_bytes(raw)
    expected = {"magic": "must be a Hugging Face folder", "version": "has version 0 of the format", "size": "truncated"}
    with pytest.raises(InputError, match=expected.get(part, "is damaged")):
        tw.load(tmp_path / "m")


def test_truncation_is_noticed(tmp_path: Path, file: Path) -> None:
    raw = file.read_bytes()
    seed = 3
    print(f"seed {seed}")
    for size in (8, 63, 64, 100, len(raw) - 1, *np.random.default_rng(seed).integers(100, len(raw), 20).tolist()):
        (tmp_path / "m").write_bytes(raw[:size])
        with pytest.raises(InputError, match="truncated"):
            tw.load(tmp_path / "m")
    (tmp_path / "m").write_bytes(raw + b"\0")
    with pytest.raises(InputError, match="must have"):
        tw.load(tmp_path / "m")


def test_a_model_of_another_tilewright_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_instruction_set", lambda: "of another one")
    with pytest.raises(InputError, match="made by another version of Tilewright: compile it again"):
        tw.load(file)


def test_what_fails_leaves_the_older_file(tmp_path: Path, hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(hf_folder, tmp_path / "m")
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled.ModelImage, "write", fail)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device"):
        make(hf_folder, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "nowhere/m"), "must be a file in a folder that exists"),
        (("-o", "."), "must be a file in a folder that exists"),
        (("-o", "m", "--context", "0"), "context must be 1 to 256, the model's own, not 0"),
        (("-o", "m", "--context", "257"), "context must be 1 to 256"),
        (("-o", "m", "--config", "tinny"), "tinny"),
    ],
)
def test_bad_options(refused: Callable[..., str], words: tuple[str, ...], message: str) -> None:
    assert message in refused("compile", *words)


def test_a_shorter_context_gives_the_same_text(hf_folder: Path, tmp_path: Path) -> None:
    """Also with learned positions, of which only the first are loaded."""
    with tw.load(hf_folder, context=12) as short, tw.load(hf_folder) as whole:
        assert short.engine.image.size < whole.engine.image.size
        assert text(short).token_ids == text(whole).token_ids
        ended = short.generate("ab", max_new_tokens=40)
        assert isinstance(ended, tw.Generation)
        assert ended.stats.prompt_tokens + ended.stats.new_tokens == 13
    encoders.write(tmp_path)
    # First rows that are known would be read from shorter texts, too.
    with tw.load(tmp_path, context=8, first_row="plain") as few, tw.load(tmp_path, first_row="plain") as many:
        np.testing.assert_array_equal(few.embed(["the cat"]), many.embed(["the cat"]))
        assert few.text_ids("the " * 20)[0].count(4) == 6
