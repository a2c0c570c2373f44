"""`ActBuffer`: words of R int8, loaded whole, written in parts, read whole."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import cocotb

from tilewright_hw.arch import AcceleratorConfig
from tilewright_sim.benches.testbench import Layout, LockstepTestbench, generator, parameters

CONFIG = AcceleratorConfig.from_dict(parameters())
ROWS, LANES, WORDS = CONFIG.rows, CONFIG.lanes, CONFIG.act_words
PARTS = ROWS // LANES
LOAD = Layout({"addr": 16, "data": 8 * ROWS})


class BufferModel:
    """A memory of bytes; loads wait for writes, and a word read while it is written is undefined.

    Parameters
    ----------
    places : sequence of int
        The words that are used.
    """

    def __init__(self, places: Sequence[int] = (0, 1, WORDS // 2, WORDS - 1)) -> None:
        self.words: dict[int, list[int | None]] = {}
        self._places = places
        self.reset()

    def reset(self) -> None:
        """Forget what was read and is offered; the memory stays."""
        self._read: list[int | None] = [None] * ROWS
        self._load: int | None = None

    def drive(self, rng: random.Random) -> Mapping[str, int]:
        """Return a read, a write and a load, each or none, in few places."""
        if self._load is None and rng.random() < 0.6:
            self._load = LOAD.pack({"addr": rng.choice(self._places), "data": rng.getrandbits(8 * ROWS)})
        noise = LOAD.pack({"addr": rng.choice(self._places), "data": rng.getrandbits(8 * ROWS)})
        inputs = {
            "en": rng.random() < 0.7,
            "addr": rng.choice(self._places),
            "write_en": rng.random() < 0.4,
            "write_addr": rng.choice(self._places),
            "write_data": rng.getrandbits(8 * LANES),
            "i_load_valid": self._load is not None,
            "i_load_payload": noise if self._load is None else self._load,
        }
        return inputs | ({"write_part": rng.randrange(PARTS)} if PARTS > 1 else {})

    def outputs(self, inputs: Mapping[str, int]) -> Mapping[str, Sequence[int | None]]:
        """Return the word read before, and whether a load is taken."""
        outputs: dict[str, Sequence[int | None]] = {"data": self._read, "i_load_ready": [int(not inputs["write_en"])]}
        written: int | None = None
        before = {place: list(word) for place, word in self.words.items()}
        if inputs["write_en"]:
            written, part = inputs["write_addr"], inputs.get("write_part", 0)
            word = self.words.setdefault(written, [None] * ROWS)
            for i in range(LANES):
                word[part * LANES + i] = inputs["write_data"] >> 8 * i & 255
        elif self._load is not None:
            fields = LOAD.unpack(self._load)
            written = fields["addr"]
            self.words[written] = list(fields["data"].to_bytes(ROWS, "little"))
            self._load = None
        if inputs["en"]:
            place = inputs["addr"]
            self._read = [None] * ROWS if place == written else before.get(place, [None] * ROWS)
        return outputs


@cocotb.test()
async def test_loads_writes_and_reads(dut: Any) -> None:
    bench = LockstepTestbench(dut, BufferModel(), generator("words"))
    await bench.start()
    await bench.run(1500)


@cocotb.test()
async def test_contents_outlive_a_reset(dut: Any) -> None:
    rng = generator("reset")
    bench = LockstepTestbench(dut, BufferModel(), rng)
    await bench.start()
    for _ in range(4):
        await bench.run(100)
        for name in ("write_en", "i_load_valid"):  # a memory has no reset: writes go on in it
            getattr(dut, name).value = 0
        await bench.reset()
    await bench.run(100)


@cocotb.test()
async def test_every_word_has_its_own_place(dut: Any) -> None:
    """All addresses are used, so that two of them that meet show."""
    model = BufferModel(range(WORDS))
    bench = LockstepTestbench(dut, model, generator("addresses"))
    await bench.start()
    await bench.run(20 * WORDS)
    assert len(model.words) == WORDS
