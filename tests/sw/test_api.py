"""`import tilewright as tw` end to end on the golden device, against a float64 reference."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import reference

import tilewright as tw
from tilewright.compiler.image import ModelImage
from tilewright.int4 import search

ODD = tw.AcceleratorConfig(
    rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, acc_rows=256, act_words=64, weight_fifo_bytes=2048,
    stream_fifo_bytes=1024,
)  # fmt: skip
IDS = [256, *np.random.default_rng(7).integers(0, 256, 40).tolist()]


@pytest.fixture(scope="module")
def model(hf_folder: Path) -> Iterator[tw.Model]:
    with tw.load(hf_folder) as loaded:
        yield loaded


def one(made: tw.Generation | list[tw.Generation]) -> tw.Generation:
    assert isinstance(made, tw.Generation)
    return made


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def test_the_reference_needs_no_cache(hf_folder: Path) -> None:
    whole, steps = reference.from_huggingface(hf_folder), reference.from_huggingface(hf_folder)
    parts = np.concatenate([steps(IDS[:3]), steps(IDS[3:4]), steps(IDS[4:])])
    np.testing.assert_allclose(whole(IDS), parts, rtol=1e-9, atol=1e-9)


def test_logits_of_a_folder_agree_with_float64(model: tw.Model, hf_folder: Path) -> None:
    logits = model.logits(IDS)
    assert logits.dtype == np.float32
    assert logits.shape == (41, 258)
    expected = reference.from_huggingface(hf_folder)(IDS)
    assert correlation(logits, expected) > 0.99
    assert min(correlation(a, b) for a, b in zip(logits, expected, strict=True)) > 0.98


def test_logits_of_a_llama2c_file_agree_with_float64(llama2c_file: Path) -> None:
    ids = np.random.default_rng(3).integers(3, checkpoints.VOCAB, 30).tolist()
    expected = reference.from_llama2c(llama2c_file)(ids)
    with tw.load(llama2c_file) as loaded:
        assert correlation(loaded.logits(ids), expected) > 0.99


def test_wrong_rope_would_show(model: tw.Model, hf_folder: Path) -> None:
    wrong = reference.from_huggingface(hf_folder)
    wrong.half = False
    assert correlation(model.logits(IDS)[20:], wrong(IDS)[20:]) < 0.99


def test_greedy_takes_the_best_logit(model: tw.Model) -> None:
    made = one(model.generate(IDS[:5], max_new_tokens=6))
    logits = model.logits(IDS[:5] + made.token_ids)
    assert made.token_ids == np.argmax(logits[4:-1], axis=1).tolist()


@pytest.mark.parametrize("config", ["tiny", "edge", "large"])
def test_logits_do_not_depend_on_the_configuration(model: tw.Model, hf_folder: Path, config: str) -> None:
    with tw.load(hf_folder, device=tw.open_device("golden", config)) as other:
        assert np.array_equal(other.logits(IDS[:9]), model.logits(IDS[:9]))


def test_logits_do_not_depend_on_the_tiling(model: tw.Model, hf_folder: Path) -> None:
    tiling = tw.Tiling(block_rows=3, chunk_tiles=1, kv_heads=1)
    with tw.load(hf_folder, tiling=tiling) as other:
        assert np.array_equal(other.logits(IDS[:9]), model.logits(IDS[:9]))


def test_stream_gives_the_text_in_pieces(model: tw.Model) -> None:
    made = one(model.generate("ab", max_new_tokens=12))
    pieces = list(model.stream("ab", max_new_tokens=12))
    assert "".join(pieces) == made.text
    assert all(pieces)
    assert made.finish_reason == "length"
    assert made.stats.prompt_tokens == 3
    assert made.stats.new_tokens == len(made.token_ids) == 12


def test_a_seed_gives_the_same_text_again(model: tw.Model) -> None:
    options = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "max_new_tokens": 12}
    a, b, c = (one(model.generate("ab", seed=seed, **options)) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert a.token_ids == b.token_ids
    assert a.token_ids != c.token_ids


def test_several_prompts(model: tw.Model) -> None:
    texts = ["ab", "abc", ""]
    made = model.generate(texts, max_new_tokens=4)
    assert isinstance(made, list)
    assert [g.token_ids for g in made] == [one(model.generate(t, max_new_tokens=4)).token_ids for t in texts]
    assert [g.stats.prompt_tokens for g in made] == [3, 4, 1]


def test_more_prompts_than_are_continued_together(model: tw.Model, hf_folder: Path) -> None:
    """Of all lengths, so that some end while others go on, and their places are taken by those that wait."""
    prompts = [IDS[i : i + n] for i, n in enumerate((1, 40, 3, 45, 2, 30, 7))]
    options = {"max_new_tokens": 9, "temperature": 0.8, "seed": 3}
    with tw.load(hf_folder, batch=3, check=True) as few:
        made = few.generate(prompts, **options)  # type: ignore[arg-type]
        assert isinstance(made, list)
        for prompt, generation in zip(prompts, made, strict=True):
            alone = one(model.generate(prompt, **options))  # type: ignore[arg-type]
            assert (generation.token_ids, generation.text) == (alone.token_ids, alone.text)
            assert generation.finish_reason == alone.finish_reason == "length"
            assert generation.stats.decode_steps == len(generation.token_ids) - 1
            assert generation.check is not None
            assert generation.check.exact


def test_further_caches_come_behind_what_there_is(hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several prompts need no second quantising, and a sequence under way goes on where it was."""
    with tw.load(hf_folder) as model:
        engine, size = model.engine, model.engine.image.size
        engine.feed(IDS[:5])
        before = engine.device.read_memory(0, size)
        monkeypatch.setattr(ModelImage, "write", None)
        model.allow(3)
        assert np.array_equal(engine.device.read_memory(0, size), before)
        assert len(engine.positions) == 3
        assert engine.image.size > size
        alone = engine.feed(IDS[5:6])
        model.engine.feed(IDS[:5], sequence=2)
        assert np.array_equal(engine.step({2: IDS[5]})[2], alone)
        model.allow(2)  # there is room already
        assert len(engine.positions) == 3


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_a_bad_batch_is_refused(hf_folder: Path, batch: int) -> None:
    with pytest.raises(tw.InputError, match="batch must be a positive integer"):
        tw.load(hf_folder, batch=batch)


def test_the_context_ends_a_text(model: tw.Model) -> None:
    made = one(model.generate(IDS, max_new_tokens=1000))
    assert made.finish_reason == "length"
    # 48 positions: the last token that fits is fed, and one more is chosen from its logits.
    assert made.stats.prompt_tokens + made.stats.new_tokens == 49


def test_a_prompt_of_the_whole_context(model: tw.Model) -> None:
    made = one(model.generate((IDS * 2)[:48], max_new_tokens=5))
    assert (made.finish_reason, len(made.token_ids)) == ("length", 1)


def test_stop_strings(model: tw.Model) -> None:
    free = one(model.generate("ab", max_new_tokens=12))
    stop = free.text[3:5]
    made = one(model.generate("ab", max_new_tokens=12, stop=["never there", stop]))
    assert made.finish_reason == "stop"
    assert made.text == free.text[: free.text.index(stop)]
    assert "".join(model.stream("ab", max_new_tokens=12, stop=stop)) == made.text
    assert one(model.generate("ab", max_new_tokens=12, stop="never there")).text == free.text


def test_eos_ends_a_text(tmp_path: Path, model: tw.Model) -> None:
    free = one(model.generate("ab", max_new_tokens=12)).token_ids
    eos = free[4]
    checkpoints.write_huggingface(tmp_path, {"eos_token_id": [257, eos]})
    with tw.load(tmp_path) as loaded:
        made = one(loaded.generate("ab", max_new_tokens=12))
    assert made.finish_reason == "eos"
    assert made.token_ids == free[: free.index(eos)]


def test_check_compares_tokens_and_image(hf_folder: Path) -> None:
    with tw.load(hf_folder, check=True) as loaded:
        loaded.logits(IDS[:4])  # what was left in memory before must not matter
        made = one(loaded.generate("ab", max_new_tokens=5))
        assert made.check is not None
        assert made.check.exact
        assert made.check.bytes_compared == loaded.device.memory_size


@pytest.mark.parametrize("part", ["keys", "logits"])
def test_one_flipped_bit_fails_the_check(hf_folder: Path, part: str) -> None:
    with tw.load(hf_folder, check=True) as loaded:
        run = loaded.start("ab", 5)
        list(run)
        image = loaded.engine.image
        at = image.logits.start if part == "logits" else image.keys[1].start
        byte = loaded.device.read_memory(at, 1)
        loaded.device.write_memory(at, byte ^ np.uint8(1))
        check = run.result().check
    assert check is not None
    assert check.tokens_equal
    assert not check.exact


def test_matmul() -> None:
    random = np.random.default_rng(0)
    a = random.integers(-128, 128, (5, 37), dtype=np.int8)
    b = random.integers(-128, 128, (37, 21), dtype=np.int8)
    result = tw.ops.matmul(a, b)
    assert result.dtype == np.int32
    assert np.array_equal(result, a.astype(np.int64) @ b.astype(np.int64))


@pytest.mark.parametrize("config", ["tiny", "edge", "default", "large", ODD], ids=str)
def test_matmul_in_four_bits(config: str | tw.AcceleratorConfig) -> None:
    """Of any shape; also where the reduction is cut into parts (ODD: 32 words of 6 hold half of the activations)."""
    seed = 5
    random = np.random.default_rng(seed)
    for _ in range(8):
        m, k, n = (int(random.integers(1, limit)) for limit in (9, 700, 70))
        a = random.integers(-128, 128, (m, k), dtype=np.int8)
        q = random.integers(-8, 8, (k, n), dtype=np.int8)
        g = random.integers(0, 16, (-(-k // 32), n))
        expected = a.astype(np.int64) @ (np.repeat(g, 32, axis=0)[:k] * q)
        result = tw.ops.matmul(a, q, tw.open_device("golden", config), group_scales=g)
        assert np.array_equal(result, expected), f"{m}x{k}x{n}, seed {seed}"


def test_matmul_of_quantised_floats() -> None:
    """`int4.search` gives what the operation takes; the result is near that of the floats."""
    random = np.random.default_rng(2)
    w = random.normal(size=(24, 96)).astype(np.float32)
    a = random.integers(-128, 128, (3, 96), dtype=np.int8)
    four = search(w)
    result = tw.ops.matmul(a, four.q.T, group_scales=four.g.T) * four.scale
    assert np.array_equal(result, (a.astype(np.int64) @ four.int8().T) * four.scale)
    exact = a.astype(np.float64) @ w.T
    assert np.linalg.norm(result - exact) < 0.15 * np.linalg.norm(exact)


def test_matmul_quantised_in_four_bits() -> None:
    random = np.random.default_rng(3)
    a = random.integers(-128, 128, (5, 70), dtype=np.int8)
    q, g = random.integers(-8, 8, (70, 9), dtype=np.int8), random.integers(0, 16, (3, 9))
    result, scales = tw.ops.matmul_quantised(a, q, group_scales=g)
    expected = a.astype(np.int64) @ (np.repeat(g, 32, axis=0)[:70] * q)
    assert np.all(np.abs(result * scales[:, None].astype(np.float64) - expected) <= 0.51 * scales[:, None])


def test_softmax() -> None:
    x = np.random.default_rng(0).normal(size=(3, 2, 19)).astype(np.float32) * 4
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(tw.ops.softmax(x), e / e.sum(axis=-1, keepdims=True), rtol=2e-3, atol=1e-5)


def test_rmsnorm() -> None:
    random = np.random.default_rng(0)
    x, w = random.normal(size=(4, 30)) * 3, random.normal(size=30)
    expected = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(tw.ops.rmsnorm(x, w), expected, rtol=1e-3, atol=1e-4)


def test_silu() -> None:
    x = np.linspace(-9, 9, 77, dtype=np.float32)
    np.testing.assert_allclose(tw.ops.silu(x), x / (1 + np.exp(-x.astype(np.float64))), rtol=2e-3, atol=2e-3)


def test_configurations_survive_toml(tmp_path: Path) -> None:
    config = tw.AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1)
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert tw.AcceleratorConfig.from_toml(tmp_path / "c.toml") == config
    assert tw.AcceleratorConfig.preset("default") == tw.AcceleratorConfig()


def test_the_golden_device_needs_no_amaranth() -> None:
    code = (
        "import sys, tilewright as tw; m = tw.load(None); m.generate('a', max_new_tokens=1);"
        "print('amaranth' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_stories_greedy_text_is_the_float_references(shared_data: Path, stories_reference: dict[str, Any]) -> None:
    float_model = reference.from_llama2c(shared_data / "stories260K.bin")
    with tw.load(shared_data / "stories260K.bin") as loaded:
        for case in stories_reference["greedy"]:
            start = case["prompt_tokens"]
            expected = case["token_ids"][start : start + 60]
            made = one(loaded.generate(case["prompt"], max_new_tokens=60)).token_ids
            same = next((i for i, (a, b) in enumerate(zip(made, expected, strict=False)) if a != b), 60)
            if same < 40:
                float_model.reset()
                top = np.sort(float_model(case["token_ids"][: start + same])[-1])
                assert top[-1] - top[-2] < 0.05, f"differs at token {same}"


def test_stories_cross_entropy(shared_data: Path, stories_reference: dict[str, Any]) -> None:
    expected = stories_reference["cross_entropy"]["tinyshakespeare.txt[:2000]"]
    with tw.load(shared_data / "stories260K.bin") as loaded:
        assert loaded.tokenizer is not None
        bos, *ids = loaded.tokenizer.encode((shared_data / "tinyshakespeare.txt").read_text()[:2000])
        total = 0.0
        for start in range(0, len(ids), 511):
            window = ids[start : start + 511]
            total += reference.cross_entropy(loaded.logits([bos, *window])[:-1], window)
    assert len(ids) == expected["tokens"]
    assert total / len(ids) == pytest.approx(expected["float64"], rel=0.005)
