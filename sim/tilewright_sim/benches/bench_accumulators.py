"""`Accumulators`: sums of columns that come one after the other, in two banks, while the other one is read."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import cocotb

from tilewright_sim.benches.testbench import LockstepTestbench, generator, pack, parameters

COLS, DEPTH, WIDTH = (parameters()[name] for name in ("cols", "depth", "width"))
RECURRENCE = 3
"""Cycles after which an accumulator may come again (the block's contract)."""
DONE_LATENCY = COLS + 2

Row = dict[str, Any]


class AccumulatorModel:
    """Two banks of int32, modulo 2^32; one accumulates for some cycles, then the other.

    Parameters
    ----------
    share : float
        Share of the cycles in which a row of sums comes.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.banks: list[list[list[int] | None]] = [[None] * DEPTH for _ in range(2)]
        self.reset()

    def reset(self) -> None:
        """Forget what is on its way; what the memories hold is unknown then."""
        self.banks = [[None] * DEPTH for _ in range(2)]
        self._rows: deque[Row | None] = deque([None] * (DONE_LATENCY + 1), maxlen=DONE_LATENCY + 1)
        self._bank, self._left, self._quiet = 0, 0, 0
        self._read: tuple[int, int] | None = None
        self._turns = 0

    def drive(self, rng: random.Random) -> Mapping[str, int]:
        """Return a row, its sums' columns as they fall due, and a read of the bank that rests."""
        if not self._left and not any(self._rows):
            self._bank, self._left = 1 - self._bank, rng.randint(1, 4 * DEPTH)
            self._turns += 1
        row = self._row(rng) if self._left and rng.random() < self._share else None
        self._left -= bool(self._left)
        sums = []
        for column in range(COLS):
            due = self._rows[column]  # announced column + 1 cycles ago: the newest is at 0
            sums.append(due["sums"][column] if due else rng.getrandbits(WIDTH))
        self._next = row
        used = row or {"addr": rng.randrange(DEPTH), "bank": rng.getrandbits(1), "overwrite": 1, "last": 1}
        return {
            "valid": row is not None,
            **{name: used[name] for name in ("bank", "addr", "overwrite", "last")},
            "i_sums": pack(sums, WIDTH),
            "read_en": rng.random() < 0.7,
            "read_bank": 1 - self._bank,
            "read_addr": rng.choice((0, DEPTH - 1, rng.randrange(DEPTH))),
        }

    def _row(self, rng: random.Random) -> Row | None:
        recent = {row["addr"] for row in list(self._rows)[: RECURRENCE - 1] if row}
        addr = rng.choice((0, DEPTH - 1, rng.randrange(DEPTH), *(row["addr"] for row in self._rows if row)))
        if addr in recent:
            return None
        low, high = -(1 << WIDTH - 1), (1 << WIDTH - 1) - 1
        sums = [rng.choice((low, high, rng.randint(low, high))) for _ in range(COLS)]
        overwrite = self.banks[self._bank][addr] is None or rng.random() < 0.2
        return {"addr": addr, "bank": self._bank, "overwrite": overwrite, "last": rng.random() < 0.3, "sums": sums}

    def outputs(self, inputs: Mapping[str, int]) -> Mapping[str, Sequence[int | None]]:
        """Return `done`, and what was read a cycle ago."""
        done = self._rows[DONE_LATENCY - 1]
        data: Sequence[int | None] = [None] * COLS
        if self._read and (word := self.banks[self._read[0]][self._read[1]]) is not None:
            data = word
        self._read = (inputs["read_bank"], inputs["read_addr"]) if inputs["read_en"] else None
        row = self._next
        self._rows.appendleft(row)
        if row:
            bank = self.banks[row["bank"]]
            old = bank[row["addr"]]
            bank[row["addr"]] = [
                (value + (0 if row["overwrite"] or old is None else old[column])) & 0xFFFFFFFF
                for column, value in enumerate(row["sums"])
            ]
        return {"done": [int(bool(done and done["last"]))], "read_data": data}


@cocotb.test()
@cocotb.parametrize(share=[0.2, 0.7, 1.0])
async def test_sums(dut: Any, share: float) -> None:
    bench = LockstepTestbench(dut, AccumulatorModel(share), generator(f"sums {share}"))
    await bench.start()
    await bench.run(1500)


@cocotb.test()
async def test_reset_in_the_middle(dut: Any) -> None:
    bench = LockstepTestbench(dut, AccumulatorModel(0.8), generator("reset"))
    await bench.start()
    for cycles in (5, 13, 50):
        await bench.run(cycles)
        await bench.reset(1)
    await bench.run(300)
