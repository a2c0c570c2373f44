"""The roofline's arithmetic, counted by hand for a small model."""

from dataclasses import replace

import pytest

from tilewright.model import LlamaSpec
from tilewright.roofline import Work, decode_work, prefill_work
from tilewright_hw.arch import AcceleratorConfig

SPEC = LlamaSpec(dim=8, layers=2, heads=4, kv_heads=2, head_dim=2, ffn=12, vocab=20, context=16)
LINEAR = 2 * (8 * 16 + 8 * 8 + 8 * 24 + 12 * 8)  # q, k, v; o; gate, up; down


def test_macs_of_a_token() -> None:
    attention = 2 * (2 * 4 * 2 * 6)  # layers, q.k and p.v, heads, channels, keys
    assert decode_work(SPEC, 5).macs == LINEAR + 20 * 8 + attention


def test_bytes_of_a_token() -> None:
    work = decode_work(SPEC, 5)
    scales = 4 * (2 * (16 + 8 + 24 + 8) + 20)
    cache = 2 * 2 * 2 * 6 * (2 + 2)  # layers, k and v, heads, keys, channels and a 16-bit scale
    norms = 4 * 8 * (2 * 2 + 1)
    assert work.read == LINEAR + 20 * 8 + scales + cache + norms + 2 * 8 + 4 * 2
    assert work.written == 2 * 2 * 2 * (2 + 2) + 4 * 20


def test_prefill_of_one_token_is_a_decode() -> None:
    assert prefill_work(SPEC, 3, 1) == decode_work(SPEC, 3)


def test_prefill_needs_the_macs_of_its_tokens_but_one_head_and_the_weights_once() -> None:
    apart = sum((decode_work(SPEC, i) for i in range(2, 7)), Work())
    together = prefill_work(SPEC, 2, 5)
    assert together.macs == apart.macs - 4 * 20 * 8
    assert together.read < 2 * decode_work(SPEC, 6).read
    assert together.written == apart.written - 4 * 4 * 20


def test_rows_of_an_encoder_see_all_of_their_text() -> None:
    both = replace(SPEC, causal=False)
    assert prefill_work(both, 0, 5).macs - prefill_work(SPEC, 0, 5).macs == 2 * (2 * 4 * 2 * (25 - 15))


def test_cycles_are_those_of_the_slowest() -> None:
    config = AcceleratorConfig.preset("default")
    assert Work(256 * 10, 16, 16).cycles(config) == 10
    assert Work(256, 16 * 20, 16).cycles(config) == 20
    assert Work(256, 16, 16 * 30).cycles(config) == 30


@pytest.mark.parametrize("name", ["tiny", "edge", "default", "large"])
def test_decode_is_bound_by_reading(name: str) -> None:
    config = AcceleratorConfig.preset(name)
    work = decode_work(SPEC, 0)
    assert work.cycles(config) == work.read / config.bus_bytes
