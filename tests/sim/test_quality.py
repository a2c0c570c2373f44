"""What quality is measured with is what the gateware computes: one window of a text, bit for bit."""

import numpy as np
import pytest

import tilewright as tw
from tilewright.api import BUILTIN, read_model
from tilewright.evaluate import evaluate, windows
from tilewright.formats import Formats
from tilewright.quantisers import make
from tilewright.runtime import Engine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("formats", "quantiser"),
    [(Formats(), "search"), (Formats(activations=16), "search"), (Formats(weights="int4"), "compensate")],
    ids=["W8A8", "W8A16", "W4A8"],
)
def test_an_evaluated_window_is_the_same_on_the_gateware(formats: Formats, quantiser: str) -> None:
    checkpoint, tokenizer = read_model()
    parts = windows(tokenizer, (BUILTIN / "heldout.txt").read_text(), 48)[:2]
    made = make(quantiser, checkpoint, lambda: parts[1:])
    engines = [
        Engine(checkpoint, tw.open_device(d, "default"), formats=formats, quantiser=made) for d in ("rtl", "golden")
    ]
    rows = []
    for engine in engines:
        engine.reset()
        rows.append(engine.feed(parts[0][:-1], logits="all"))
    np.testing.assert_array_equal(rows[0], rows[1])
    found = [evaluate(engine, checkpoint, parts[:1]) for engine in engines]
    assert found[0] == found[1]
    assert found[0].tokens == 47
    assert abs(found[0].loss) < 0.1
    assert engines[0].counters["CYCLES"] > 0
