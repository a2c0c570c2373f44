"""GGUF files: the model of the Hugging Face folder that they were converted from, or one line that says why not."""

import json
import shutil
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import families
import gguf
import gguf_files
import numpy as np
import pytest
from console import Done
from gguf import GGMLQuantizationType as Type
from gguf_files import header, text

import tilewright as tw
from tilewright.api import BUILTIN, read_model
from tilewright.chat import read_template
from tilewright.importers import load_checkpoint
from tilewright.importers.gguf.header import Array, Strings, read_header
from tilewright.importers.gguf.tensors import TYPES, GgufTensors
from tilewright.importers.gguf.vocabulary import PRE_TOKENIZERS
from tilewright.model import RopeFactors
from tilewright.reference import rotary_frequencies
from tilewright.requantise import Loss
from tilewright.tokenizer import HuggingFaceTokenizer, Llama2cTokenizer
from tilewright_hw.arch import InputError

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma")
Refused = Callable[..., str]
Command = Callable[..., Done]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' tiny model as a Hugging Face folder; read only."""
    return gguf_files.give_merges(checkpoints.write_huggingface(tmp_path_factory.mktemp("gguf") / "tiny"))


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    """The same as a GGUF file; read only."""
    return gguf_files.convert(folder, folder.parent / "tiny.gguf")


# The same model


@pytest.fixture(scope="module", params=DECODERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A family, a folder of it, and the file that it was converted to."""
    top = tmp_path_factory.mktemp(request.param)
    folder = gguf_files.give_merges(families.write(request.param, top / "folder"))
    return request.param, folder, gguf_files.convert(folder, top / "model.gguf")


def test_weights_and_shape_are_those_of_the_folder(pair: tuple[str, Path, Path]) -> None:
    family, folder, file = pair
    theirs, ours = load_checkpoint(folder), load_checkpoint(file)
    scaled = theirs.spec.rope_scaling is not None
    assert scaled == (family == "llama")
    if not scaled:
        assert ours.spec == theirs.spec
    for name in theirs.spec.tensor_shapes():
        assert np.array_equal(ours.tensor(name), theirs.tensor(name)), name


def _same_tokens(folder: Path, file: Path) -> None:
    tokens = [tw.load(path, config="tiny").generate("hell, wö", 4).token_ids for path in (folder, file)]
    assert tokens[0] == tokens[1]


def test_tokens_are_those_of_the_folder(folder: Path, file: Path) -> None:
    _same_tokens(folder, file)


@pytest.mark.slow
def test_tokens_of_every_family_are_those_of_the_folder(pair: tuple[str, Path, Path]) -> None:
    _same_tokens(*pair[1:])


def test_scaling_of_rope_comes_as_factors(tmp_path: Path) -> None:
    folder = gguf_files.give_merges(families.write("llama", tmp_path / "llama"))
    theirs = load_checkpoint(folder).spec
    ours = load_checkpoint(gguf_files.convert(folder, tmp_path / "model.gguf")).spec
    assert isinstance(ours.rope_scaling, RopeFactors)
    assert np.allclose(rotary_frequencies(ours), rotary_frequencies(theirs), rtol=1e-6, atol=0)


def test_rows_are_read_alone(file: Path) -> None:
    checkpoint = load_checkpoint(file)
    assert checkpoint.read_rows is not None
    for name in ("embedding", "layers.1.wq", "layers.0.w_down", "final_norm"):
        whole, rows = checkpoint.tensor(name), checkpoint.read_rows(name, 3, 5)
        assert np.array_equal(whole[3:8], rows), name


@pytest.mark.slow
def test_a_file_is_never_whole_in_float32(tmp_path: Path) -> None:
    config = checkpoints.CONFIG | {"hidden_size": 512, "vocab_size": 16384, "tie_word_embeddings": True}
    weights = gguf_files.tensors(config, checkpoints.tensors(config))
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.fields(config), weights, "Q4_0")
    checkpoint = load_checkpoint(path)
    tracemalloc.start()
    try:
        checkpoint.check()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = 4 * 16384 * 512
    assert path.stat().st_size < whole / 6
    assert peak < whole / 3, peak


def test_a_tied_head_is_the_embedding(file: Path, tmp_path: Path) -> None:
    own = load_checkpoint(file)
    assert not np.array_equal(own.tensor("classifier"), own.tensor("embedding"))
    config = checkpoints.CONFIG | {"tie_word_embeddings": True}
    folder = checkpoints.write_huggingface(tmp_path / "tied", config, checkpoints.tensors(config))
    tied = load_checkpoint(gguf_files.convert(gguf_files.give_merges(folder), tmp_path / "m.gguf"))
    assert np.array_equal(tied.tensor("classifier"), tied.tensor("embedding"))


def test_the_header_is_what_the_package_reads(file: Path) -> None:
    found, theirs = read_header(file), gguf.GGUFReader(file)
    names = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert list(found.fields) == names
    for name in names:
        value, wanted = found.fields[name], theirs.fields[name].contents()
        if isinstance(value, Array):
            texts = isinstance(value.values, Strings)
            value = [v.decode() for v in value.values] if texts else value.values.tolist()
        assert value == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), name
    assert found.fields["llama.attention.layer_norm_rms_epsilon"] == 1e-5  # and not the float32 beside it
    places = {t.name: (tuple(t.shape.tolist())[::-1], t.data_offset) for t in theirs.tensors}
    assert {t.name: (t.shape, found.start + t.offset) for t in found.tensors.values()} == places


# Types of tensors


def _by_hand(kind: str, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what blocks of a type mean, as ggml-common.h describes them."""
    out = []
    for row in raw:
        size = {"Q8_0": 34, "Q4_0": 18}[kind]
        for block in row.reshape(-1, size):
            scale = np.float32(block[:2].view(np.float16)[0])
            body = block[2:]
            q = body.view(np.int8) if kind == "Q8_0" else np.concatenate([body & 15, body >> 4]).astype(np.int8) - 8
            out.append(scale * q.astype(np.float32))
    return np.concatenate(out).reshape(len(raw), -1)


@pytest.mark.parametrize("kind", TYPES)
def test_types(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(len(kind))
    values = random.normal(size=(12, 512)).astype(np.float32)
    if kind == "Q6_K":  # the package reads it, and does not write it
        raw = random.integers(0, 256, (12, 2 * 210)).astype(np.uint8)
        raw.reshape(12, 2, 210)[..., 208:] = np.float16(0.01).reshape(1).view(np.uint8)
    else:
        raw = gguf.quantize(values, Type[kind]).view(np.uint8)
    path = gguf_files.write(tmp_path / "m.gguf", "llama", {}, {}, raw={"x": (raw, kind)})
    tensors = GgufTensors(read_header(path))
    assert (tensors.type("x"), tensors.shape("x")) == (kind, (12, 512))
    found = tensors.read("x")
    assert np.array_equal(found, gguf.dequantize(raw, Type[kind]))
    assert np.array_equal(tensors.read_rows("x", 5, 4), found[5:9])
    if kind in ("Q8_0", "Q4_0"):
        assert np.array_equal(found, _by_hand(kind, raw))
    if kind != "Q6_K":
        most = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.01, "Q4_0": 0.1}[kind] * np.abs(values).max()
        assert np.abs(found - values).max() <= most


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q2_K", "IQ4_XS", "F64", "I32"])
def test_other_types_are_refused_by_name(kind: str, file: Path, tmp_path: Path) -> None:
    block, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    raw = np.zeros((300, 256 // block * size), np.uint8)
    path = gguf_files.write(tmp_path / "m.gguf", "llama", {}, {}, raw={"x": (raw, kind)})
    known = "F32, F16, BF16, Q8_0, Q4_0 or Q6_K"
    with pytest.raises(InputError, match=rf"tensor 'x' must be of type {known}, not {kind}$"):
        GgufTensors(read_header(path)).read("x")


def test_a_vector_is_not_quantised(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", "llama", {}, {}, raw={"x": (np.zeros(34, np.uint8), "Q8_0")})
    with pytest.raises(InputError, match=r"tensor 'x' has one dimension: it must be F32, F16 or BF16, not Q8_0"):
        GgufTensors(read_header(path)).read("x")


def test_infinite_scales_are_found(tmp_path: Path, refused: Refused) -> None:
    model = gguf_files.convert(folder32(tmp_path), tmp_path / "m.gguf", "Q8_0")
    found = read_header(model)
    raw = bytearray(model.read_bytes())
    at = found.start + found.tensors["blk.1.ffn_up.weight"].offset
    raw[at : at + 2] = np.float16(np.inf).tobytes()
    model.write_bytes(raw)
    assert "tensor layers.1.w_up holds NaN or infinity" in refused("generate", model, "--prompt", "x")


def folder32(path: Path) -> Path:
    """Write a folder whose rows are whole blocks of 32."""
    config = checkpoints.CONFIG | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    written = checkpoints.write_huggingface(path / "source", config, checkpoints.tensors(config, seed=3))
    return gguf_files.give_merges(written)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_what_requantising_loses_is_told(kind: str, tmp_path: Path, command: Command) -> None:
    model = gguf_files.convert(folder32(tmp_path), tmp_path / "m.gguf", kind)
    done = command("generate", model, "--prompt", "he", "--device", "golden", "--config", "tiny", "--json",
                   "--max-new-tokens", "1", "--weights", "int8", "--override", "*.w_up=int4")  # fmt: skip
    assert done.code == 0
    told = json.loads(done.out)["requantised"]
    assert told["types"] == {kind: 16}
    assert f"matrices: {kind} (16) in the file, quantised to int8 (relative error 0." in done.err
    eight, four = told["losses"]["int8"], told["losses"]["int4"]
    assert 0.001 < eight["relative_error"] < 0.01
    assert 0.01 < four["relative_error"] < 0.15
    assert four["cosine"] < eight["cosine"] < 1
    assert eight["cosine"] == pytest.approx(1 - eight["relative_error"] ** 2 / 2, abs=1e-6)


def test_losses() -> None:
    loss = Loss()
    loss.add(np.array([[3, 0]], np.float32), np.array([[3, 0]], np.float32))
    loss.add(np.array([[0, 4]], np.float32), np.array([[3, 4]], np.float32))
    assert loss.relative_error == pytest.approx(3 / 5)
    assert loss.cosine == pytest.approx(25 / (5 * np.sqrt(34)))
    assert (Loss().relative_error, Loss().cosine) == (0, 1)


# Commands


def test_every_command_takes_a_file(file: Path, tmp_path: Path, command: Command, refused: Refused) -> None:
    (tmp_path / "text.txt").write_text("hello " * 2)
    short = ("--config", "tiny", "--quiet")
    for words in (
        ("generate", file, "--prompt", "he", "--device", "golden", "--max-new-tokens", "2", "--check", *short),
        ("eval", file, "--text", tmp_path / "text.txt", "--tokens", "7", "--window", "8", *short),
        ("compile", file, "-o", tmp_path / "m.twi", *short),
        ("profile", file, *short),
        ("profile", file, "--prompt", "hello", *short),
    ):
        done = command(*words)
        assert (done.code, done.err) == (0, ""), words
    assert "continues texts (tilewright generate): only an encoder makes vectors" in refused(
        "embed", file, "--text", "x"
    )
    assert "there is no chat template" in refused("chat", file)
    compiled, direct = tw.load(tmp_path / "m.twi"), tw.load(file, config="tiny")
    assert compiled.generate("hello", 4).token_ids == direct.generate("hello", 4).token_ids


def test_scaled_rope_survives_compiling(tmp_path: Path, command: Command) -> None:
    folder = gguf_files.give_merges(families.write("llama", tmp_path / "llama"))
    file = gguf_files.convert(folder, tmp_path / "m.gguf")
    assert command("compile", file, "-o", tmp_path / "m.twi", "--config", "tiny").code == 0
    assert tw.load(tmp_path / "m.twi").spec == load_checkpoint(file).spec


def test_the_name_does_not_count(file: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(file, tmp_path / "model.bin"))
    assert load_checkpoint(other).spec == load_checkpoint(file).spec


def test_another_tokenizer(file: Path, folder: Path) -> None:
    checkpoint, tokenizer = read_model(file, folder / "tokenizer.json")
    assert tokenizer.vocab == checkpoint.spec.vocab


def test_without_the_package(file: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "GGUF files need the package gguf: pip install 'tilewright[gguf]'" in refused(
        "generate", file, "--prompt", "x"
    )


def test_chat(folder: Path, tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    file = gguf_files.convert(folder, tmp_path / "m.gguf", changes={"tokenizer.chat_template": template})
    checkpoint, tokenizer = read_model(file)
    rendered = read_template(checkpoint.files).render([{"role": "user", "content": "hello"}])
    assert rendered == "<bos>hello<eos>"
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    ids = tokenizer.encode_template(rendered)
    assert (ids[0], ids[-1], tokenizer.decode(ids)) == (256, 257, "hello")


# Tokenizers

SAMPLES = [
    "", " ", "Once upon a time, there was a little girl named Lily.", "  two  spaces\n\n\tand a tab ",
    "über Straße 東京 🙂", "1234567 don't I'LL we're", "<s> </s> <unk> <0x41>", "▁", "a\u0301\u200d\x00\x7f",
]  # fmt: skip


def test_pieces_with_scores(llama2c_file: Path, tmp_path: Path) -> None:
    tok = llama2c_file.parent / "tok.bin"
    file = gguf_files.convert_llama2c(llama2c_file, tok, tmp_path / "m.gguf")
    _pieces_agree(Llama2cTokenizer(tok), read_model(file)[1], ["hello he llo", "hell"])


def test_pieces_with_scores_of_a_real_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    tok = shared_data / "tok512.bin"
    file = gguf_files.convert_llama2c(shared_data / "stories260K.bin", tok, tmp_path / "m.gguf")
    long = (shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")[:50_000]
    _pieces_agree(Llama2cTokenizer(tok), read_model(file)[1], [long])


def _pieces_agree(theirs: Llama2cTokenizer, ours: Any, more: list[str]) -> None:
    """Compare with this package's own form of SentencePiece's algorithm, written from llama2.c."""
    assert (ours.bos, ours.eos, ours.vocab) == (1, frozenset({2}), theirs.vocab)
    random = np.random.default_rng(7)
    mixed = ["".join(map(chr, random.integers(32, 0x3000, 30))) for _ in range(20)]
    for sample in [s for s in SAMPLES if "<" not in s and "▁" not in s] + more + mixed:
        ids = ours.encode(sample)
        assert ids == theirs.encode(sample), sample
        assert ours.decode(ids) == theirs.decode(ids) == sample


def test_pieces_without_a_space_in_front(llama2c_file: Path, tmp_path: Path) -> None:
    """Gemma's files ask for none."""
    file = gguf_files.convert_llama2c(
        llama2c_file,
        llama2c_file.parent / "tok.bin",
        tmp_path / "m.gguf",
        changes={"tokenizer.ggml.add_space_prefix": False},
    )
    ours: Any = read_model(file)[1]
    assert [ours._fast.id_to_token(i) for i in ours.encode("he he")[1:]] == ["he", "▁", "he"]
    assert ours.decode(ours.encode("he he")) == "he he"


def test_control_tokens_of_pieces(llama2c_file: Path, tmp_path: Path) -> None:
    file = gguf_files.convert_llama2c(llama2c_file, llama2c_file.parent / "tok.bin", tmp_path / "m.gguf")
    ours = read_model(file)[1]
    assert ours.encode("</s>he")[:2] == [1, 2]
    assert ours.decode([1, 2, *ours.encode("he")[1:]]) == "he"


def test_byte_level_merges(tmp_path: Path) -> None:
    """The built-in model's tokenizer, which is split as GPT-2's."""
    file = gguf_files.convert(BUILTIN, tmp_path / "m.gguf")
    ours, theirs = read_model(file)[1], read_model(BUILTIN)[1]
    assert (ours.bos, ours.eos) == (theirs.bos, theirs.eos)
    for sample in SAMPLES:
        ids = ours.encode(sample)
        assert ids == theirs.encode(sample), sample
        assert ours.decode(ids) == sample


SPLITS = {
    "gpt-2": ["I", "'", "LL", " pay", " 1234567", " €", " don", "'t", "\n\n  ", " x", "//", "\n"],
    "llama-bpe": ["I", "'LL", " pay", " ", "123", "456", "7", " €", " don", "'t", "\n\n", "  ", " x", "//\n"],
    "qwen2": ["I", "'LL", " pay", " ", *"1234567", " €", " don", "'t", "\n\n", "  ", " x", "//\n"],
    "smollm": ["I", "'", "LL", " pay", " ", *"1234567", " €", " don", "'t", "\n\n  ", " x", "//", "\n"],
    "tekken": ["I", "'LL", " pay", " ", *"1234567", " €", " don", "'t", "\n\n", "  ", " x", "//\n"],
}  # fmt: skip
"""What llama.cpp's expressions make of "I'LL pay 1234567 € don't", two lines' ends, " x//" and another."""


@pytest.mark.parametrize("pre", SPLITS)
def test_texts_are_split_before_merging(pre: str, tmp_path: Path) -> None:
    tokenizer: Any = read_model(gguf_files.convert(BUILTIN, tmp_path / "m.gguf", pre=pre))[1]
    sample = "I'LL pay 1234567 € don't\n\n   x//\n"
    parts = tokenizer._fast.pre_tokenizer.pre_tokenize_str(sample)
    assert [sample[a:b] for _, (a, b) in parts] == SPLITS[pre]


def test_all_splits_are_tried() -> None:
    aliases = {"llama3", "llama-v3", "deepseek-r1-qwen"}
    assert set(PRE_TOKENIZERS) == set(SPLITS) | aliases


def test_bos_is_as_the_file_says(folder: Path, tmp_path: Path) -> None:
    for pre, given, wanted in (("gpt-2", None, None), ("llama-bpe", None, 256), ("llama-bpe", False, None),
                               ("qwen2", True, 256)):  # fmt: skip
        changes = {"tokenizer.ggml.add_bos_token": given}
        file = gguf_files.convert(folder, tmp_path / f"{pre}.gguf", changes=changes, pre=pre)
        assert read_model(file)[1].bos == wanted, pre


def test_ends_of_answers(folder: Path, tmp_path: Path) -> None:
    tokens = [*json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"], "<|im_end|>", "<eos>"]
    changes = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.bos_token_id": 0}
    file = gguf_files.convert(folder, tmp_path / "m.gguf", changes=changes)
    assert read_model(file)[1].eos == {3, 256, 257}


# Refusals

FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"general.type": "adapter"}, "option general.type = 'adapter' is not supported: must be 'model'"),
    ({"split.count": 3}, "option split.count = 3 is not supported: join its parts first"),
    ({"llama.expert_count": 8}, "option llama.expert_count = 8 is not supported"),
    ({"llama.logit_scale": 0.5}, "option llama.logit_scale = 0.5 is not supported"),
    ({"llama.unheard_of": "x"}, "option llama.unheard_of = 'x' is not supported"),
    ({"llama.rope.scaling.type": "yarn"}, "option llama.rope.scaling.type = 'yarn' is not supported: must be one of"),
    ({"llama.rope.dimension_count": 4}, "option llama.rope.dimension_count = 4 is not supported: must be 12"),
    ({"llama.attention.value_length": 4}, "option llama.attention.value_length = 4 is not supported: must be 12"),
    ({"llama.attention.sliding_window": 16}, "option llama.attention.sliding_window = 16 is not supported"),
    ({"llama.attention.causal": False}, "option llama.attention.causal = False is not supported: must be true"),
    ({"llama.attention.head_count": [4, 4]}, "llama.attention.head_count must be a positive integer, not <an array of"),
    ({"llama.block_count": None}, "llama.block_count must be a positive integer, not None"),
    ({"llama.block_count": 3}, "tensor 'blk.2.attn_norm.weight' is missing"),
    ({"llama.embedding_length": "x"}, "llama.embedding_length must be a positive integer, not 'x'"),
    ({"llama.attention.key_length": None, "llama.embedding_length": 41}, "embedding_length (41) must be a multiple of"),
    ({"tokenizer.ggml.model": "bert"}, "option tokenizer.ggml.model = 'bert' is not supported: must be one of 'llama'"),
    ({"tokenizer.ggml.model": None}, "option tokenizer.ggml.model = None is not supported"),
    ({"tokenizer.ggml.pre": "viking"}, "option tokenizer.ggml.pre = 'viking' is not supported: must be one of"),
    ({"tokenizer.ggml.add_eos_token": True}, "option tokenizer.ggml.add_eos_token = True is not supported"),
    ({"tokenizer.ggml.bos_token_id": 258}, "tokenizer.ggml.bos_token_id must be 0 to 257, not 258"),
    ({"tokenizer.ggml.bos_token_id": None}, "add_bos_token is true, and there is no tokenizer.ggml.bos_token_id"),
    ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges must be an array of strings, not None"),
    ({"tokenizer.ggml.merges": ["hx e"]}, "tokenizer.ggml.merges: 'hx e' must be two tokens that make a third"),
    ({"tokenizer.ggml.merges": ["he"]}, "tokenizer.ggml.merges: 'he' must be two tokens that make a third"),
    ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type must be an array of 258 numbers"),
    ({"tokenizer.ggml.tokens": ["a"] * 259}, "tokenizer.ggml.tokens must be 1 to 258, as many as the model has"),
    ({"tokenizer.ggml.tokens": ["a", "a"]}, "token 'a' is there twice"),
    ({"tokenizer.ggml.tokens": ["a" * 5000]}, "token 0 must have at most 1024 characters"),
    ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores must be an array of 258 numbers"),
    ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [float("nan")] * 258}, "scores must be finite"),
    (
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a" * i for i in range(1, 259)],
         "tokenizer.ggml.scores": [0.0] * 258, "tokenizer.ggml.token_type": None},
        "its tokens can be cut in more than 16 ways each",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), FIELDS, ids=[line for _, line in FIELDS])
def test_fields(changes: dict[str, Any], line: str, folder: Path, tmp_path: Path, refused: Refused) -> None:
    file = gguf_files.convert(folder, tmp_path / "m.gguf", changes=changes)
    assert line in refused("generate", file, "--prompt", "x")


def test_architectures(tmp_path: Path, refused: Refused) -> None:
    file = gguf_files.write(tmp_path / "m.gguf", "phi3", {}, {})
    line = refused("generate", file, "--prompt", "x")
    assert "architecture 'phi3' is not supported: must be one of llama, qwen2, qwen3, gemma" in line


@pytest.mark.parametrize("name", ["blk.0.ffn_up.bias", "blk.1.ffn_gate_exps.weight", "blk.2.attn_q.weight", "x"])
def test_tensors_that_are_not_known(name: str, folder: Path, tmp_path: Path, refused: Refused) -> None:
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    weights = gguf_files.tensors(config, load_file(folder / "model.safetensors")) | {name: np.ones(4, np.float32)}
    file = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.fields(config), weights)
    assert f"tensor {name!r} is not supported: llama is not known to have it" in refused(
        "generate", file, "--prompt", "x"
    )


U32, U64, STRING, ARRAY = (struct.pack("<I", n) for n in (4, 10, 8, 9))


def number(value: int, form: str = "<Q") -> bytes:
    return struct.pack(form, value)


def info(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack("<I", len(shape)) + b"".join(map(number, shape))
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


HEADERS: list[tuple[bytes, str]] = [
    (b"", "is not a GGUF file: it must begin with GGUF"),
    (b"GGML" + bytes(60), "is not a GGUF file: it must begin with GGUF"),
    (b"GGUF\3\0\0\0", "is not a GGUF file: 8 bytes are too short for a header"),
    (b"GGUF\1\0\0\0" + bytes(60), "has version 1 of GGUF; versions 2 and 3 are read, little-endian"),
    (b"GGUF\0\0\0\3" + bytes(60), "has version 50331648 (big-endian?) of GGUF"),
    (header(counts=(0, 2**63)), "fields are more than its 24 bytes can hold"),
    (header(counts=(2**64 - 1, 0)), "18446744073709551615 tensors are more than its 24 bytes can hold"),
    (header([number(2**62) + bytes(40)]), "the name of a field would reach beyond its end: truncated?"),
    (header([text(b"\xff\xfe") + U32 + bytes(4)]), "the name of a field is not UTF-8"),
    (header([text("a") + STRING + number(2**40) + bytes(9)]), "field 'a' would reach beyond its end: truncated?"),
    (header([text("a") + STRING + text(b"\xff") + bytes(9)]), "field 'a' is not UTF-8"),
    (header([text("a") + U32 + bytes(4)] * 2), "field 'a' is there twice"),
    (header([text("a") + number(77, "<I") + bytes(9)]), "field 'a' has a value of type 77"),
    (header([text("a") + number(7, "<I") + b"\2"]), "field 'a' must be 0 or 1"),
    (header([text("a") + ARRAY + U32 + number(2**61)]), "field 'a' would reach beyond its end: truncated?"),
    (header([text("a") + ARRAY + STRING + number(2**61)]), "field 'a' cannot hold 2305843009213693952 strings"),
    (header([text("a") + ARRAY + ARRAY + number(1) + U32 + number(0)]), "type 9: arrays of arrays are not read"),
    (header([text("general.alignment") + U32 + number(24, "<I")]), "general.alignment must be a power of two, not 24"),
    (header([text("general.alignment") + U32 + number(0, "<I")]), "general.alignment must be a power of two, not 0"),
    (header([], [info("t", (2**40, 2**40))]), "tensor 't' lies outside the file: truncated?"),
    (header([], [info("t", (2,), offset=2**63)]), "tensor 't' lies outside the file: truncated?"),
    (header([], [info("t", ()) + bytes(8)]), "tensor 't' must have 1 to 4 dimensions, not 0"),
    (header([], [text("t") + number(2**31, "<I") + bytes(32)]), "tensor 't' must have 1 to 4 dimensions, not 2147"),
    (header([], [info("t", (0, 4))]), "tensor 't' must not be empty"),
    (header([], [info("t", (2,))] * 2), "tensor 't' is there twice"),
    (header([], [info("t", (2,), 999)]), "tensor 't' is of type 999, which is not known"),
    (header([], [info("t", (33, 2), 8)]), "tensor 't' of type Q8_0 must have rows of 32, not (2, 33)"),
    (header([], [info("t", (8,)), info("u", (8,), 0, 16)]) + bytes(200), "tensors 't' and 'u' overlap"),
]


@pytest.mark.parametrize(("raw", "line"), HEADERS, ids=[line for _, line in HEADERS])
def test_headers_that_lie(raw: bytes, line: str, tmp_path: Path) -> None:
    """Each is refused before anything of the size that it claims is allocated."""
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as refusal:
            load_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert peak < 1 << 20


def test_a_truncated_file(file: Path, tmp_path: Path, refused: Refused) -> None:
    raw = file.read_bytes()
    found = read_header(file)
    for size, line in (
        (len(raw) - 1000, "lies outside the file"),
        (found.start - 100, "truncated?"),
        (400, "truncated?"),
    ):
        (tmp_path / "m.gguf").write_bytes(raw[:size])
        assert line in refused("generate", tmp_path / "m.gguf", "--prompt", "x"), size
