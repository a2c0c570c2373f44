"""Batches and blocks in two lanes on the simulated gateware: the golden model's bits."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.importers import load_checkpoint
from tilewright.runtime import Engine


@pytest.mark.parametrize("stall", [0.0, 0.2])
def test_a_batch_on_the_gateware(stall: float) -> None:
    """Prompts of several lengths: in one block, in one lane's blocks, and in two lanes'; then their next tokens."""
    seed = 3
    rng = np.random.default_rng(seed)
    checkpoint = load_checkpoint(tw.api.BUILTIN)
    memory = tw.MemoryModel(latency=40, stall=stall, seed=seed)
    devices = [tw.open_device("golden", "tiny"), tw.open_device("rtl", "tiny", memory=memory)]
    engines = [Engine(checkpoint, device, sequences=4) for device in devices]
    prompts = [rng.integers(0, checkpoint.spec.vocab, n).tolist() for n in (2, 21, 1, 6)]
    steps = [dict(enumerate(rng.integers(0, checkpoint.spec.vocab, 4).tolist())) for _ in range(2)] + [{3: 5, 1: 6}]
    results = []
    for engine in engines:
        rows = [engine.feed(prompt, sequence=i) for i, prompt in enumerate(prompts)]
        for tokens in steps:
            rows += engine.step(tokens).values()
        results.append(rows)
    np.testing.assert_array_equal(results[0], results[1], err_msg=f"seed {seed}")
    assert tw.api.compare(devices[1], devices[0], engines[0].image.size).exact
    devices[1].close()
