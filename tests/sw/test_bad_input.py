"""Bad input gives one clear error with the field and the value, and exit code 2: no traceback, nothing written."""

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilewright as tw
from tilewright.api import read_model

Refused = Callable[..., str]
GENERATE = ("generate", "--device", "golden", "--prompt", "ab", "--max-new-tokens", "2")
WQ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path, hf_folder: Path) -> Path:
    """A folder of one's own to break."""
    return Path(shutil.copytree(hf_folder, tmp_path / "model"))


@pytest.fixture
def llama2c_copy(tmp_path: Path, llama2c_file: Path) -> Path:
    """A llama2.c file of one's own to break."""
    return Path(shutil.copytree(llama2c_file.parent, tmp_path / "llama2c")) / "model.bin"


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, **changes: Any) -> None:
    """Replace tensors of the folder; None removes one."""
    weights = checkpoints.tensors(checkpoints.CONFIG) | {WQ: changes["wq"]}
    checkpoints.save_file({n: v for n, v in weights.items() if v is not None}, folder / "model.safetensors")


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    raw = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


# Hugging Face folders


def test_nothing_there(refused: Refused) -> None:
    assert "no such file or folder: nowhere" in refused(*GENERATE, "nowhere")


def test_an_empty_folder(refused: Refused, tmp_path: Path) -> None:
    assert f"cannot read {tmp_path / 'config.json'}: No such file or directory" in refused(*GENERATE, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("[1]", "config.json must hold a JSON object"),
        ("[" * 100_000, "config.json is not valid JSON"),
        ("\xff", "config.json is not valid JSON"),
    ],
)
def test_a_configuration_that_is_none(refused: Refused, folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert message in refused(*GENERATE, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["T5ForConditionalGeneration"]},
            "architecture ['T5ForConditionalGeneration'] is not supported",
        ),
        ({"architectures": None}, "architecture [] is not supported"),
        ({"architectures": [["LlamaForCausalLM"], {}]}, "architecture [['LlamaForCausalLM'], {}] is not supported"),
        ({"attention_bias": 1}, "attention_bias must be true or false, not 1"),
        ({"attention_bias": True}, "tensor 'model.layers.0.self_attn.q_proj.bias' is missing"),
        ({"num_local_experts": 8}, "option num_local_experts = 8 is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "option rope_scaling = {'type': 'linear'} is not supported"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor must be a number above 0, not None"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type must be 'default' or 'llama3'"),
        ({"sliding_window": 4}, "option sliding_window = 4 is not supported"),
        ({"quantization_config": {"bits": 4}}, "option quantization_config = {'bits': 4} is not supported"),
        ({"hidden_act": "gelu"}, "option hidden_act = 'gelu' is not supported"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, not None"),
        ({"hidden_size": "40"}, "hidden_size must be a positive integer, not '40'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        ({"num_hidden_layers": 10**9}, "layers must be at most 4096, not 1000000000"),
        ({"num_key_value_heads": 3}, "heads (4) must be a multiple of kv_heads (3)"),
        ({"head_dim": 11}, "head_dim must be even, not 11"),
        ({"max_position_embeddings": 1 << 31}, "max_position_embeddings must be a positive integer, not 2147483648"),
        ({"rms_norm_eps": -1.0}, "norm_eps must be a number above 0, not -1.0"),
        ({"rope_theta": "much"}, "rope_theta must be a number above 0, not 'much'"),
        ({"bos_token_id": 999}, "bos_token_id must be 0 to 257, not 999"),
    ],
)
def test_unsupported_and_absurd_configurations(
    refused: Refused, folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(folder, **changes)
    assert message in refused(*GENERATE, folder)


def test_more_layers_than_the_file_has(refused: Refused, folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3)
    assert "tensor 'model.layers.2.input_layernorm.weight' is missing" in refused(*GENERATE, folder)


def test_a_missing_tensor(refused: Refused, folder: Path) -> None:
    edit_weights(folder, wq=None)
    assert f"tensor '{WQ}' is missing" in refused(*GENERATE, folder)


def test_a_tensor_of_another_shape(refused: Refused, folder: Path) -> None:
    edit_weights(folder, wq=np.zeros((48, 41), np.float32))
    assert "tensor layers.1.wq must have shape (48, 40), not (48, 41)" in refused(*GENERATE, folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(refused: Refused, folder: Path, value: float) -> None:
    wq = np.zeros((48, 40), np.float32)
    wq[3, 4] = value
    edit_weights(folder, wq=wq)
    assert "tensor layers.1.wq holds NaN or infinity" in refused(*GENERATE, folder)


@pytest.mark.parametrize("dtype", ["int8", "float64", "int32"])
def test_unsupported_types_of_tensors(refused: Refused, folder: Path, dtype: str) -> None:
    edit_weights(folder, wq=np.zeros((48, 40), dtype))
    name = {"int8": "I8", "float64": "F64", "int32": "I32"}[dtype]
    assert f"tensor '{WQ}' must be F32, F16 or BF16, not {name}" in refused(*GENERATE, folder)


@pytest.mark.parametrize("size", [0, 5, 8, 100, 5000, -1])
def test_truncated_weights(refused: Refused, folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    text = refused(*GENERATE, folder)
    assert "is not a safetensors file" in text or "lies outside the file: truncated?" in text


def test_a_header_longer_than_the_file(refused: Refused, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    assert "its header length is 4611686018427387904 of 10 bytes" in refused(*GENERATE, folder)


def test_overlapping_tensors(refused: Refused, folder: Path) -> None:
    header, data = header_of(folder)
    header[WQ]["data_offsets"] = header["model.layers.0.self_attn.q_proj.weight"]["data_offsets"]
    checkpoints.write_safetensors(folder / "model.safetensors", header, data)
    text = refused(*GENERATE, folder)
    assert "overlap" in text
    assert f"'{WQ}'" in text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (7, "has a broken header entry: 7"),
        ({"dtype": "F32", "shape": [48, 40]}, "has a broken header entry"),
        ({"dtype": "F32", "shape": [48, 40], "data_offsets": [0, 1 << 60]}, "lies outside the file: truncated?"),
        ({"dtype": "F32", "shape": [48, -40], "data_offsets": [0, 7680]}, "lies outside the file: truncated?"),
        ({"dtype": "F32", "shape": [48, 40], "data_offsets": [8, 16]}, "of shape [48, 40] does not have 8 bytes"),
    ],
)
def test_broken_header_entries(refused: Refused, folder: Path, entry: object, message: str) -> None:
    header, data = header_of(folder)
    header[WQ] = entry
    checkpoints.write_safetensors(folder / "model.safetensors", header, data)
    assert message in refused(*GENERATE, folder)


def test_no_weights(refused: Refused, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "must hold model.safetensors or model.safetensors.index.json" in refused(*GENERATE, folder)


@pytest.mark.parametrize("where", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", 5, ["x"]])
def test_an_index_that_leaves_the_folder(refused: Refused, folder: Path, where: object) -> None:
    index = {"weight_map": dict.fromkeys(checkpoints.tensors(checkpoints.CONFIG), where)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"{where!r} must be a file in the same folder" in refused(*GENERATE, folder)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": 3}])
def test_a_broken_index(refused: Refused, folder: Path, index: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "has no weight_map" in refused(*GENERATE, folder)


def test_pickles_are_not_opened(refused: Refused, folder: Path, tmp_path: Path) -> None:
    pickle = tmp_path / "model.pt"
    pickle.write_bytes(b"\x80\x04")
    assert "pickle checkpoints can run code" in refused(*GENERATE, pickle)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "holds pickled weights, which can run code" in refused(*GENERATE, folder)


def test_a_file_of_another_kind(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    line = refused(*GENERATE, tmp_path / "model.onnx")
    assert "must be a Hugging Face folder, a GGUF file or a llama2.c .bin file" in line


# llama2.c files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is too short (0 bytes) for a llama2.c header of 28 bytes"),
        (b"\0" * 28, "is not a llama2.c v0 file: its header says"),
        (struct.pack("<7i", 24, 40, 1 << 30, 3, 1, 271, 32), "its header says layers = 1073741824"),
        (struct.pack("<7i", 24, 40, 1 << 20, 3, 1, 271, 32), "layers must be at most 4096, not 1048576"),
        (struct.pack("<7i", 25, 40, 2, 3, 1, 271, 32), "dim 25 is not a multiple of heads 3"),
        (checkpoints.llama2c()[:-4], "truncated, or another format"),
        (checkpoints.llama2c() + b"\0", "truncated, or another format"),
        (checkpoints.llama2c()[:-4] + struct.pack("<f", np.nan), None),
    ],
)
def test_llama2c_files(refused: Refused, llama2c_copy: Path, content: bytes, message: str | None) -> None:
    llama2c_copy.write_bytes(content)
    if message is not None:
        assert message in refused(*GENERATE, llama2c_copy)
    else:  # the last values are the unused RoPE tables
        read_model(llama2c_copy)


def test_llama2c_weights_that_are_not_finite(refused: Refused, llama2c_copy: Path) -> None:
    raw = bytearray(llama2c_copy.read_bytes())
    struct.pack_into("<f", raw, 28 + 4 * 100, np.inf)
    llama2c_copy.write_bytes(raw)
    assert "tensor embedding holds NaN or infinity" in refused(*GENERATE, llama2c_copy)


# Tokenizers


def test_no_tokenizer(refused: Refused, folder: Path, llama2c_copy: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer.json; name one with --tokenizer FILE" in refused(*GENERATE, folder)
    (llama2c_copy.parent / "tok.bin").unlink()
    assert f"exactly one tok*.bin of {checkpoints.VOCAB} tokens must lie beside" in refused(*GENERATE, llama2c_copy)


def test_two_tokenizers_that_fit(refused: Refused, llama2c_copy: Path) -> None:
    shutil.copy(llama2c_copy.parent / "tok.bin", llama2c_copy.parent / "tok2.bin")
    assert "found tok.bin, tok2.bin; name it with --tokenizer FILE" in refused(*GENERATE, llama2c_copy)


@pytest.mark.parametrize("extra", [-1, 1])
def test_another_models_tokenizer(refused: Refused, llama2c_copy: Path, extra: int) -> None:
    words = [*checkpoints.WORDS, (b"more", -1.0)][: len(checkpoints.WORDS) + extra]
    other = llama2c_copy.parent / "other.bin"
    other.write_bytes(checkpoints.llama2c_tokenizer(words))
    message = f"has {checkpoints.VOCAB + extra} tokens, the model has {checkpoints.VOCAB}: not its tokenizer"
    assert message in refused(*GENERATE, llama2c_copy, "--tokenizer", other)


def test_a_larger_tokenizer_json(refused: Refused, folder: Path) -> None:
    config = checkpoints.CONFIG | {"vocab_size": 200}
    checkpoints.write_huggingface(folder, config, checkpoints.tensors(config))
    assert "has 258 tokens, the model has 200: not its tokenizer" in refused(*GENERATE, folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "is not a tokenizer.json"),
        ("tokenizer.json", b"\xff\xfe", "is not a tokenizer.json"),
        ("tok.bin", b"\1\0\0\0" + b"\0" * 7, "is not a llama2.c tokenizer: truncated at byte 4"),
        ("tok.bin", struct.pack("<ifi", 1, 0.0, -3), "is not a llama2.c tokenizer: a piece of -3 bytes at byte 4"),
        ("tok.bin", struct.pack("<ifi", 1, 0.0, 3), "is not a llama2.c tokenizer: a piece of 3 bytes at byte 4"),
        ("tok.bin", b"", "is not a llama2.c tokenizer: 0 pieces, at least 259 are needed"),
    ],
)
def test_broken_tokenizers(
    refused: Refused, hf_folder: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(*GENERATE, hf_folder, "--tokenizer", tmp_path / name)


def test_a_tokenizer_without_an_id_for_the_text(refused: Refused, hf_folder: Path, tmp_path: Path) -> None:
    words = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(258)}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": words}))
    message = refused(*GENERATE, hf_folder, "--tokenizer", tmp_path / "tokenizer.json")
    assert "tokenizer.json cannot encode 'ab': " in message
    assert "[UNK]" in message


def test_a_tokenizer_whose_template_has_an_unknown_token(refused: Refused, hf_folder: Path, tmp_path: Path) -> None:
    """On which the library's Rust code panics: no Exception, that is."""
    single = [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {}}
    content = json.loads((hf_folder / "tokenizer.json").read_text()) | {"post_processor": template}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    message = refused(*GENERATE, hf_folder, "--tokenizer", tmp_path / "tokenizer.json")
    assert "tokenizer.json cannot encode 'ab': " in message


def test_a_tokenizer_that_is_not_there(refused: Refused, hf_folder: Path) -> None:
    assert "no such tokenizer: gone.json" in refused(*GENERATE, hf_folder, "--tokenizer", "gone.json")


# Configurations


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows = ", "is not valid TOML"),
        ("rows = 12\n", "rows must be a multiple of lanes (8) from 4 to 128, not 12"),
        ("colour = 1\n", "unknown configuration field 'colour': choose from"),
        ('rows = "16"\n', "rows must be a positive integer, not '16'"),
        ("bus_bits = 48\n", "bus_bits must be 32, 64, 128, 256 or 512, not 48"),
        ("ingest = 8\n", "ingest must be a divisor of rows (16) with rows/ingest at least 4, not 8"),
        ("acc_rows = 500\n", "acc_rows must be a power of two from 64 to 16384, not 500"),
        ('preset = "huge"\n', "unknown preset 'huge'"),
        ("[deep]\nrows = 4\n", "unknown configuration field 'deep'"),
    ],
)
def test_impossible_configurations(refused: Refused, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    assert message in refused(*GENERATE, "--config", tmp_path / "c.toml")
    assert message in refused("verilog", "--config", tmp_path / "c.toml", "-o", tmp_path / "out")
    assert message in refused("configs", tmp_path / "c.toml")
    assert not (tmp_path / "out").exists()


def test_configurations_that_are_not_there(refused: Refused) -> None:
    assert "unknown preset 'huge': choose one of tiny, edge, default, large" in refused(*GENERATE, "--config", "huge")
    assert "cannot read configuration gone.toml: No such file" in refused(*GENERATE, "--config", "gone.toml")


def test_buffers_too_small_for_the_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("row_words = 256\nlanes = 2\nact_words = 64\nparam_words = 64\nstat_entries = 64")
    assert "the param buffer (64 words) is too small" in refused(*GENERATE, "--config", tmp_path / "c.toml")


# Options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "gpu"], "unknown device 'gpu': choose one of golden, rtl"),
        (["--device", "golden:fast"], "device 'golden' takes no arguments, not 'fast'"),
        (["--device", ""], "unknown device ''"),
        (["--weights", "int3"], "weights must be int8 or int4, not 'int3'"),
        (["--max-new-tokens", "0"], "max_new_tokens must be a positive integer, not 0"),
        (["--max-new-tokens", "many"], "argument --max-new-tokens: invalid int value: 'many'"),
        (["--temperature", "-1"], "temperature must be a number from 0 on, not -1.0"),
        (["--temperature", "nan"], "temperature must be a number from 0 on, not nan"),
        (["--top-k", "-1"], "top_k must be an integer from 0 on, not -1"),
        (["--top-p", "0"], "top_p must be above 0 and at most 1, not 0.0"),
        (["--seed", "-1"], "seed must be an integer from 0 on, not -1"),
        (["--memory", "latency"], "(of latency, stall, seed, bandwidth), not 'latency'"),
        (["--memory", "speed=3"], "(of latency, stall, seed, bandwidth), not 'speed=3'"),
        (["--memory", "latency=x"], "memory latency must be an integer, not 'x'"),
        (["--memory", "stall=1"], "stall must be"),
        (["--stop", ""], "stop must be a string or several, none of them empty, not ['']"),
        (["--prompt", "a\udc80b"], "the prompt must be valid Unicode: surrogates not allowed at character 1"),
        (["--prompt", "a" * 48], "the prompt has 49 tokens; the context holds 48"),
        (["--wat"], "unrecognized arguments: --wat"),
    ],
)
def test_options(refused: Refused, hf_folder: Path, words: list[str], message: str) -> None:
    assert message in refused(*GENERATE, hf_folder, *words)


def test_options_are_checked_before_the_model(refused: Refused) -> None:
    assert "top_k" in refused(*GENERATE, "nowhere", "--top-k", "-1")
    assert "unknown device" in refused(*GENERATE, "nowhere", "--device", "x")
    assert "stop must be" in refused(*GENERATE, "nowhere", "--stop", "")


def test_the_model_is_checked_before_the_device(
    refused: Refused, hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_device(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("tilewright.cli.options.open_device", open_device)
    assert "no such file" in refused(*GENERATE, "nowhere")
    assert "the prompt has" in refused(*GENERATE, hf_folder, "--prompt", "a" * 48)


def test_an_empty_prompt_without_bos(refused: Refused, folder: Path) -> None:
    edit_config(folder, bos_token_id=None)
    assert "the prompt must hold at least one token" in refused(*GENERATE, folder, "--prompt", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "argument COMMAND: invalid choice: 'fly'"),
        (["generate"], "the following arguments are required: --prompt"),
        (["verilog", "-o", "x", "--set", "rows"], "--set must be NAME=VALUE with a whole number, not 'rows'"),
        (["verilog", "-o", "x", "--set", "rows=3.5"], "--set must be NAME=VALUE with a whole number, not 'rows=3.5'"),
        (["verilog", "-o", "x", "--block", "Foo"], "unknown block 'Foo': choose one of Accelerator,"),
        (["verilog", "-o", "x", "--set", "row=3"], "Accelerator has no parameter 'row': choose from rows, cols,"),
        (["verilog"], "the following arguments are required: -o/--output"),
        (["configs", "huge"], "unknown preset 'huge'"),
        (["configs", "--toml"], "--toml needs one configuration, not 0"),
        (["bench", "gemm", "--shape", "4x4"], "shape must be MxKxN with positive integers, not '4x4'"),
        (["bench", "decode", "--device", "golden", "--context", "3"], "context must be at least"),
        (["bench", "--model", "nowhere"], "no such file or folder: nowhere"),
        (["bench", "decode", "--model", "nowhere"], "no such file or folder: nowhere"),
        (["bench", "decode", "--model", "random:dim=8"], "random:dim=8: ffn, heads, vocab must be given"),
        (["bench", "decode", "--model", "random:dim=8,size=3"], "a random model is written like random:dim="),
        (["bench", "decode", "--model", "random:dim=x"], "dim must be an integer from 0 on, not 'x'"),
        (["bench", "gemm", "--weights", "int3"], "weights must be int8 or int4, not 'int3'"),
        (["bench", "decode", "--activations", "9"], "activations must be 8 or 16, not 9"),
        (["bench", "decode", "--batch", "0"], "batch must be a positive integer, not 0"),
        (["bench", "decode", "--batch", "9"], "batch must be at most 8, not 9"),
        (["bench", "gemm", "--row", "2"], "row must be given without a RUN"),
        (["bench", "decode", "--tokens", "0"], "tokens must be at least 1, not 0"),
        (["bench", "--row", "12"], "row must be one of 1, 2, 3"),
        (["demo", "--max-new-tokens", "0"], "max_new_tokens must be a positive integer, not 0"),
    ],
)
def test_commands(refused: Refused, words: list[str], message: str) -> None:
    assert message in refused(*words, *(["--quiet"] if words[:2] == ["bench", "decode"] else []))


def test_verilog_into_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "must be a folder" in refused("verilog", "-o", tmp_path / "file", "--quiet")
    assert (tmp_path / "file").read_text() == "mine"


# Python


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, 258], "token ids must be 0 to 257, not 258"),
        ([1, -1], "token ids must be 0 to 257, not -1"),
        ([1, 2.0], "a prompt must be text or token ids, not 2.0 among them"),
        ([1, True], "a prompt must be text or token ids, not True among them"),
        (["a", 1], "a prompt must be text or token ids, not 'a' among them"),
        (5, "a prompt must be text or token ids, not 5"),
        ([], "the prompt must hold at least one token"),
        ([1] * 49, "the prompt has 49 tokens; the context holds 48"),
    ],
)
def test_prompts(hf_folder: Path, prompt: Any, message: str) -> None:
    with tw.load(hf_folder) as model, pytest.raises(tw.InputError) as error:
        model.generate(prompt)
    assert str(error.value) == message


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", True])
def test_numbers_of_tokens(hf_folder: Path, count: Any) -> None:
    with tw.load(hf_folder) as model, pytest.raises(tw.InputError) as error:
        model.generate("a", max_new_tokens=count)
    assert str(error.value) == f"max_new_tokens must be a positive integer, not {count!r}"


def test_the_request_is_checked_when_it_is_made(hf_folder: Path) -> None:
    with tw.load(hf_folder) as model, pytest.raises(tw.InputError, match="top_k"):
        model.stream("a", top_k=-1)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2), np.int8), "matmul: a must be int8, not float64"),
        (np.zeros((2, 3), np.int8), np.zeros((3, 2), np.int16), "matmul: b must be int8, not int16"),
        (np.zeros((2, 3), np.int8), np.zeros((4, 2), np.int8), "matmul: a has 3 columns and b 4 rows"),
        (np.zeros(3, np.int8), np.zeros((3, 2), np.int8), "matmul: a must be a matrix"),
        (np.zeros((0, 3), np.int8), np.zeros((3, 2), np.int8), "matmul: a must be a matrix"),
    ],
)
def test_matmul_operands(a: Any, b: Any, message: str) -> None:
    with pytest.raises(tw.InputError) as error:
        tw.ops.matmul(a, b)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("b", "scales", "message"),
    [
        (np.zeros((33, 2), np.int8), np.zeros((2, 2)), "group_scales must be integers, not float64"),
        (np.zeros((33, 2), np.int8), np.zeros((1, 2), int), "group_scales must have shape (2, 2), not (1, 2)"),
        (np.zeros((33, 2), np.int8), np.full((2, 2), 16), "group_scales must hold 0 to 15, not 16"),
        (np.full((33, 2), 8, np.int8), np.ones((2, 2), int), "b with group_scales must hold -8 to 7, not 8"),
    ],
)
def test_matmul_in_four_bits(b: Any, scales: Any, message: str) -> None:
    with pytest.raises(tw.InputError) as error:
        tw.ops.matmul(np.zeros((1, 33), np.int8), b, group_scales=scales)
    assert str(error.value) == f"matmul: {message}"


@pytest.mark.parametrize("value", [[1.0, np.nan], ["a"], 3.0, [[]]])
def test_operands_of_row_operations(value: Any) -> None:
    for operation in (tw.ops.softmax, tw.ops.silu):
        with pytest.raises(tw.InputError):
            operation(value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json", "model.bin", "tok.bin"]),
    at=st.integers(0, 3000),
    put=st.binary(max_size=4),
    cut=st.integers(0, 6),
)
def test_damaged_files_are_read_or_refused(
    tmp_path: Path, hf_folder: Path, llama2c_file: Path, file: str, at: int, put: bytes, cut: int
) -> None:
    source = llama2c_file.parent if file.endswith(".bin") else hf_folder
    copy = tmp_path / source.name
    if not copy.exists():
        shutil.copytree(source, copy)
    whole = (source / file).read_bytes()
    at %= len(whole)
    (copy / file).write_bytes(whole[:at] + put + whole[at + cut :])
    with contextlib.suppress(tw.InputError):
        _, tokenizer = read_model(copy / "model.bin" if file.endswith(".bin") else copy)
        tokenizer.decode(tokenizer.encode("hello é"))
    (copy / file).write_bytes(whole)
