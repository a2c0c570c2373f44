"""`SystolicArray` against `golden.systolic_array`: products of any shape, tile by tile, with the gaps that it allows.

The array is rigid: nothing waits, so in place of stalls there are cycles in which nothing enters.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge
from numpy.typing import NDArray

from tilewright_sim import golden
from tilewright_sim.benches.testbench import (
    QUIET,
    InOrderChecker,
    generator,
    pack,
    parameters,
    pauses,
    pulse_reset,
    start_clock,
    unpack,
)

ROWS, COLS, INGEST = (parameters()[name] for name in ("rows", "cols", "ingest"))
SPAN = ROWS // INGEST

Int8 = NDArray[np.int8]
Sums = tuple[int, ...]


def noise(rng: random.Random, count: int) -> int:
    """Return random int8, packed."""
    return rng.getrandbits(8 * count)


class ArrayDriver:
    """Feeds tiles and rows of activations, as early as the array allows and then some random cycles later.

    Parameters
    ----------
    dut : handle
        The design.
    rng : random.Random
        For gaps, and for noise where nothing enters.
    gap : float
        Share of the time in which no row enters, and in which no tile begins.
    """

    def __init__(self, dut: Any, rng: random.Random, gap: float) -> None:
        self.dut, self._rng = dut, rng
        self._no_row, self._no_load = pauses(rng, gap), pauses(rng, gap)
        self.rest()

    def rest(self) -> None:
        """Let nothing enter."""
        self.dut.load.value = self.dut.valid.value = self.dut.swap.value = 0
        self.dut.i_weights.value = noise(self._rng, INGEST * COLS)
        self.dut.i_x.value = noise(self._rng, ROWS)

    async def feed(self, tiles: list[Int8], activations: list[Int8]) -> None:
        """Load each tile (rows, cols) and multiply its activations (any, rows) by it."""
        loads: list[int] = []  # the cycle in which each tile began to enter
        using, row, cycle = 0, 0, 0  # the tile in use, or next to be; its next row
        while using < len(tiles) or cycle < loads[-1] + ROWS:
            enters = using < len(loads) and cycle > loads[using] and not next(self._no_row)
            swaps = enters and row == 0
            # One tile may wait in the shadow weights: that before it must be in use.
            free = len(loads) <= using or (len(loads) == using + 1 and (row > 0 or swaps))
            begins = len(loads) < len(tiles) and free and (not loads or cycle >= loads[-1] + SPAN)
            if begins and not next(self._no_load):
                loads.append(cycle)
            self._drive(cycle, loads, tiles, activations[using][row] if enters else None, swaps)
            if enters:
                row += 1
                if row == len(activations[using]):
                    using, row = using + 1, 0
            cycle += 1
            await RisingEdge(self.dut.clk)
        self.rest()

    def _drive(self, cycle: int, loads: list[int], tiles: list[Int8], x: Int8 | None, swap: bool) -> None:
        """Set this cycle's inputs."""
        weights = [noise(self._rng, COLS) for _ in range(INGEST)]
        for start, tile in zip(loads, tiles, strict=False):
            if cycle - start < ROWS:
                weights[(cycle - start) // SPAN] = pack(tile[cycle - start], 8)
        self.dut.i_weights.value = pack(weights, 8 * COLS)
        self.dut.load.value = bool(loads) and loads[-1] == cycle
        self.dut.valid.value, self.dut.swap.value = x is not None, swap
        self.dut.i_x.value = noise(self._rng, ROWS) if x is None else pack(x, 8)


@dataclass
class Tile:
    """A tile on its way in."""

    rows: list[list[int]] = field(default_factory=list)


class ArrayModel:
    """Sees the input wires of each cycle, and gives the rows of sums that follow from them, in order.

    Parameters
    ----------
    expect : callable
        Given each row.
    """

    def __init__(self, expect: Callable[[Sums], None]) -> None:
        self._expect = expect
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._entering: list[Tile] = []
        self._shadow = self._active = Tile()
        self._rows: deque[tuple[list[int], Tile]] = deque()

    def cycle(self, *, load: bool, weights: int, valid: bool, swap: bool, x: int) -> None:
        """Take the inputs of one cycle."""
        if valid:
            self._active = self._shadow if swap else self._active
            self._rows.append((unpack(x, 8, ROWS, signed=True), self._active))
        if load:
            self._shadow = Tile()
            self._entering.append(self._shadow)
        for tile in self._entering:
            group = len(tile.rows) // SPAN
            tile.rows.append(unpack(weights >> group * 8 * COLS, 8, COLS, signed=True))
        self._entering = [tile for tile in self._entering if len(tile.rows) < ROWS]
        while self._rows and len(self._rows[0][1].rows) == ROWS:
            row, tile = self._rows.popleft()
            sums = golden.systolic_array(np.array([row], np.int8), np.array(tile.rows, np.int8))
            self._expect(tuple(sums[0].tolist()))


class ArrayTestbench:
    """The array with its driver, its model, and monitors on both sides."""

    def __init__(self, dut: Any, rng: random.Random, gap: float = 0.0) -> None:
        self.dut = dut
        self.checker = InOrderChecker("o_sums")
        self.driver = ArrayDriver(dut, rng, gap)
        self.results: list[Sums] = []
        self._model = ArrayModel(self.checker.expect)
        self._width = len(dut.o_sums) // COLS

    async def start(self) -> None:
        """Start the clock, reset, and begin."""
        start_clock(self.dut)
        cocotb.start_soon(self._watch())
        await pulse_reset(self.dut)

    async def _watch(self) -> None:
        dut = self.dut
        leaving: deque[list[int]] = deque()  # rows some of whose columns are still to come
        while True:
            await RisingEdge(dut.clk)
            if dut.rst.value:
                leaving.clear()
                self._model.reset()
                self.checker.clear()
                continue
            self._model.cycle(
                load=bool(dut.load.value),
                weights=dut.i_weights.value.to_unsigned(),
                valid=bool(dut.valid.value),
                swap=bool(dut.swap.value),
                x=dut.i_x.value.to_unsigned(),
            )
            if dut.o_valid.value:
                leaving.append([])
            if leaving:  # column c of a row is c cycles late
                sums = dut.o_sums.value.to_unsigned()
                for row in leaving:
                    row += unpack(sums >> len(row) * self._width, self._width, 1, signed=True)
            if leaving and len(leaving[0]) == COLS:
                self.results.append(tuple(leaving.popleft()))
                self.checker.receive(self.results[-1])

    async def finish(self) -> None:
        """Wait until everything is out."""
        await ClockCycles(self.dut.clk, 2 * (ROWS + COLS) + QUIET)
        assert self.checker.missing == 0, f"{self.checker.missing} rows are missing"

    async def multiply(self, a: Int8, w: Int8) -> NDArray[np.int32]:
        """Return a @ w as the array computes it: tile by tile, padded with zeros, the parts added up here."""
        (m, k), n = a.shape, w.shape[1]
        k_tiles, n_tiles = -(-k // ROWS), -(-n // COLS)
        a = np.pad(a, ((0, 0), (0, k_tiles * ROWS - k)))
        w = np.pad(w, ((0, k_tiles * ROWS - k), (0, n_tiles * COLS - n)))
        places = [(i, j) for j in range(n_tiles) for i in range(k_tiles)]
        tiles = [w[i * ROWS : (i + 1) * ROWS, j * COLS : (j + 1) * COLS] for i, j in places]
        self.results.clear()
        await self.driver.feed(tiles, [a[:, i * ROWS : (i + 1) * ROWS] for i, _ in places])
        await self.finish()
        parts = np.array(self.results, np.int32).reshape(n_tiles, k_tiles, m, COLS).sum(axis=1)
        product: NDArray[np.int32] = parts.transpose(1, 0, 2).reshape(m, n_tiles * COLS)[:, :n].astype(np.int32)
        return product


def int8(rng: random.Random, *shape: int) -> Int8:
    """Return random int8, -128 included."""
    return np.frombuffer(rng.randbytes(int(np.prod(shape))), np.int8).reshape(shape)


@cocotb.test()
@cocotb.parametrize(gap=[0.0, 0.5], shape=[(1, 1, 1), (3, 2 * ROWS, COLS), (7, 2 * ROWS + 1, 3 * COLS - 2)])
async def test_products(dut: Any, gap: float, shape: tuple[int, int, int]) -> None:
    rng = generator(f"products {gap} {shape}")
    bench = ArrayTestbench(dut, rng, gap)
    await bench.start()
    a, w = int8(rng, *shape[:2]), int8(rng, *shape[1:])
    np.testing.assert_array_equal(await bench.multiply(a, w), golden.systolic_array(a, w))


@cocotb.test()
async def test_a_row_for_each_tile(dut: Any) -> None:
    """A matrix-vector product, tiles as close as they may be, and then with gaps."""
    rng = generator("vectors")
    bench = ArrayTestbench(dut, rng)
    await bench.start()
    for count in (20, 1, 20):
        await bench.driver.feed([int8(rng, ROWS, COLS) for _ in range(count)], [int8(rng, 1, ROWS)] * count)
    await bench.finish()
    assert bench.checker.checked == 41


@cocotb.test()
async def test_extremes(dut: Any) -> None:
    bench = ArrayTestbench(dut, generator("extremes"))
    await bench.start()
    for x in (-128, 127):
        for y in (-128, 127):
            a, w = np.full((2, ROWS), x, np.int8), np.full((ROWS, COLS), y, np.int8)
            np.testing.assert_array_equal(await bench.multiply(a, w), golden.systolic_array(a, w))


@cocotb.test()
@cocotb.parametrize(cycles=[1, ROWS + 2, 3 * ROWS])
async def test_reset_in_the_middle(dut: Any, cycles: int) -> None:
    rng = generator(f"reset {cycles}")
    bench = ArrayTestbench(dut, rng)
    await bench.start()
    tiles, rows = [int8(rng, ROWS, COLS) for _ in range(10)], [int8(rng, 3, ROWS) for _ in range(10)]
    task = cocotb.start_soon(bench.driver.feed(tiles, rows))
    await ClockCycles(dut.clk, cycles)
    task.cancel()
    bench.driver.rest()
    await pulse_reset(dut, 1)
    await bench.finish()
    a, w = int8(rng, 4, ROWS + 1), int8(rng, ROWS + 1, COLS)
    np.testing.assert_array_equal(await bench.multiply(a, w), golden.systolic_array(a, w))
