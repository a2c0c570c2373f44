"""Texts whose first rows are known, on the gateware: the golden model's bits, rows and memory alike."""

import numpy as np
import pytest
import sinks

import tilewright as tw
from tilewright.api import compare
from tilewright.first_rows import with_first_rows
from tilewright.formats import Formats
from tilewright.runtime import Engine


@pytest.mark.parametrize(
    ("family", "activations"), [("bert", 8), pytest.param("gpt-2", 16, marks=pytest.mark.slow), ("llama", 8)]
)
def test_the_gateware_computes_the_same(family: str, activations: int) -> None:
    model = with_first_rows(sinks.checkpoint(family), sinks.texts(4, 6, seed=1))
    devices = [tw.open_device(name, "tiny") for name in ("golden", "rtl")]
    engines = [Engine(model, device, formats=Formats(activations=activations)) for device in devices]
    text = sinks.texts(1, 6, seed=2)[0]
    rows = [engine.feed(text, "all") if model.spec.causal else engine.encode(text) for engine in engines]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert compare(devices[1], devices[0], engines[0].image.size).exact
    assert engines[1].counters["CYCLES"] > 0
