"""`MatrixUnit` against `golden.BLOCKS["MatrixUnit"]`: commands of every shape, as fast as tiles come and not."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge
from numpy.typing import NDArray

from tilewright_hw.arch import AcceleratorConfig, Op
from tilewright_sim.benches.beside_golden import Fields
from tilewright_sim.benches.testbench import (
    Layout,
    StreamSource,
    generator,
    pack,
    parameters,
    pauses,
    pulse_reset,
    start_clock,
    unpack,
)
from tilewright_sim.golden import BLOCKS
from tilewright_sim.golden.machine import Machine
from tilewright_sim.golden.memory import Memory

CONFIG = AcceleratorConfig.from_dict(parameters())
ROWS, COLS = CONFIG.rows, CONFIG.cols
COMMAND = Layout.operands(Op.MATMUL)
DONE_LATENCY = ROWS + COLS + 3
SIZE = 1 << 16


def command(**fields: int) -> Fields:
    """Return the fields of a command of one tile and one row, but for what is given."""
    return {"k": 1, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1, "act_inner": 1} | fields


def covering() -> list[Fields]:
    """Return commands that overwrite every accumulator, so that all of them are defined."""
    n = CONFIG.acc_rows // 16
    return [command(n=n, rows_outer=4, rows_inner=4, act_outer=4, bank=bank, stream=bank) for bank in range(2)]


def random_command(rng: random.Random) -> Fields:
    """Return a command whose loops stay inside the small buffers."""
    while True:
        f = command(
            k=rng.randint(1, 4),
            n=rng.randint(1, 3),
            groups=rng.randint(1, 3),
            rows_outer=rng.choice((1, 1, 2, 3)),
            rows_inner=rng.choice((1, 1, 2, 3, 4, 7, 12)),
            act_inner=rng.randint(0, 6),
            act_outer=rng.randint(0, 9),
            act_group=rng.randint(0, 9),
            act=rng.randint(0, 10),
            **{name: rng.getrandbits(1) for name in ("bank", "stream", "accumulate", "pair")},
        )
        words, rows = 1 + f["pair"], f["rows_outer"] * f["rows_inner"] * (1 + f["pair"])
        room = CONFIG.acc_rows - f["groups"] * f["n"] * rows
        reach = f["act"] + f["k"] * words - 1
        for loop, step in (("groups", "group"), ("rows_outer", "outer"), ("rows_inner", "inner")):
            reach += (f[loop] - 1) * f[f"act_{step}"]
        if rows <= 12 and room >= 0 and reach < CONFIG.act_words:
            return f | {"acc": rng.randint(0, room)}


class TileFeeder:
    """Brings the rows of tiles as the read engine does: only where room for the whole tile has been kept.

    Parameters
    ----------
    dut : handle
        The design.
    name : str
        `weight` or `stream`.
    tiles : int
        Tiles for which there is room.
    together : int
        Rows that come in a cycle.
    rng : random.Random
        For gaps and noise.
    share : float
        Share of the time in which nothing comes.

    Members
    -------
    credits : bool
        Whether room is kept; else rows are offered whenever there are some, until they are taken.
    """

    def __init__(self, dut: Any, name: str, tiles: int, together: int, rng: random.Random, share: float) -> None:
        self._dut, self._together, self._rng, self._room = dut, together, rng, tiles
        self._valid, self._ready = getattr(dut, f"i_{name}_valid"), getattr(dut, f"i_{name}_ready")
        self._payload, self._pop = getattr(dut, f"i_{name}_payload"), getattr(dut, f"{name}_pop")
        self._pauses = pauses(rng, share)
        self._tiles = tiles
        self.credits = True
        self.rows: deque[int] = deque()
        self._valid.value = 0

    def start(self) -> None:
        """Begin."""
        self._room = self._tiles
        self._task = cocotb.start_soon(self._run())

    def stop(self) -> None:
        """Drop everything: for reset."""
        self._task.cancel()
        self.rows.clear()
        self._valid.value = 0

    async def _run(self) -> None:
        per_tile, sent = ROWS // self._together, 0
        while True:
            begins = sent % per_tile == 0
            go = bool(self.rows) and not next(self._pauses) and (self._room > 0 or not begins or not self.credits)
            rows = [self.rows.popleft() if go else self._rng.getrandbits(8 * COLS) for _ in range(self._together)]
            self._payload.value = sum(row << 8 * COLS * i for i, row in enumerate(rows))
            self._valid.value = go
            if go:
                self._room -= begins
                sent += 1
            await RisingEdge(self._dut.clk)
            while go and not self._ready.value:
                assert not self.credits, "rows were not taken although there is room"
                self._room += int(self._pop.value)
                await RisingEdge(self._dut.clk)
            self._room += int(self._pop.value)
            assert self._room <= self._tiles, "room was given back that nothing had taken"


class Bench:
    """The unit beside the golden machine, with buffers and tile feeders around it.

    Parameters
    ----------
    dut : handle
        The design.
    rng : random.Random
        For all that is random.
    share : float
        Share of the time in which commands and tiles do not come.
    """

    def __init__(self, dut: Any, rng: random.Random, share: float) -> None:
        self.dut, self.rng = dut, rng
        self.machine = Machine(CONFIG, Memory(SIZE))
        self.machine.memory.write(0, np.frombuffer(rng.randbytes(SIZE), np.uint8))
        act = self.machine.buffers.act
        act[:] = np.frombuffer(rng.randbytes(act.size), np.int8).reshape(act.shape)
        act[:4] = [[-128] * ROWS, [127] * ROWS, [0] * ROWS, [-1] * ROWS]
        together = len(dut.i_weight_payload) // (8 * COLS)
        self.feeders = {
            "weight": TileFeeder(dut, "weight", CONFIG.weight_fifo_bytes // CONFIG.tile_bytes, together, rng, share),
            "stream": TileFeeder(dut, "stream", CONFIG.stream_fifo_bytes // CONFIG.tile_bytes, 1, rng, share),
        }
        self.source = StreamSource(dut, "cmd", rng, share)
        self._at = 0
        self.cycle = 0
        self.ends: deque[int] = deque()  # rows that are still to be issued before each command's end
        self.issued: list[int] = []
        self.due: deque[int] = deque()
        self.rows_left = self.done = 0

    async def start(self) -> None:
        """Start the clock, reset, and begin."""
        start_clock(self.dut)
        self.dut.acc_en.value = self.dut.acc_bank.value = self.dut.acc_addr.value = self.dut.act_data.value = 0
        await pulse_reset(self.dut)
        cocotb.start_soon(self._activations())
        cocotb.start_soon(self._watch())
        self._begin()

    def _begin(self) -> None:
        self.source.start()
        for feeder in self.feeders.values():
            feeder.start()

    async def reset(self) -> None:
        """Reset in the middle of work."""
        self.source.stop()
        for feeder in self.feeders.values():
            feeder.stop()
        await pulse_reset(self.dut, 1)
        self.machine.clear()
        self.ends.clear()
        self.due.clear()
        self.rows_left = 0
        for _ in range(3 * DONE_LATENCY):
            await RisingEdge(self.dut.clk)
            assert not self.dut.act_en.value
            assert not self.dut.done.value
            assert not self.dut.row_valid.value
        self._begin()

    def send(self, f: Fields) -> None:
        """Execute a command on the golden machine, and have it and its tiles sent."""
        fields = defaultdict(int, f)
        name = "stream" if f.get("stream") else "weight"
        count = f["groups"] * f["n"] * f["k"]
        self._push(name, count)
        BLOCKS["MatrixUnit"](self.machine, fields)(self.machine)
        rows = f["rows_outer"] * f["rows_inner"] * (1 + f.get("pair", 0)) * count
        self.ends.append(rows)
        self.source.send([COMMAND.pack(f)])

    def _push(self, name: str, tiles: int) -> None:
        """Put tiles of memory into a FIFO of the golden machine, and before the feeder."""
        size = tiles * CONFIG.tile_bytes
        size = -(-size // CONFIG.bus_bytes) * CONFIG.bus_bytes
        if self._at + size > SIZE:
            self._at = 0
        load = defaultdict(int, offset=self._at, bytes=size, count=1)
        BLOCKS["MemoryReader"](self.machine, load, Op.WEIGHT if name == "weight" else Op.LOAD)(self.machine)
        data = self.machine.memory.bytes[self._at : self._at + size].reshape(-1, CONFIG.col_slot)[:, :COLS]
        self.feeders[name].rows.extend(int.from_bytes(row.tobytes(), "little") for row in data)
        self._at += size

    async def _activations(self) -> None:
        dut, words = self.dut, self.machine.buffers.act
        while True:
            await RisingEdge(dut.clk)
            if dut.act_en.value:
                dut.act_data.value = pack(words[int(dut.act_addr.value)], 8)
            else:
                dut.act_data.value = self.rng.getrandbits(8 * ROWS)

    async def _watch(self) -> None:
        """Check what the unit says of itself: rows, and `done` at its time after the last row of its command."""
        dut, before = self.dut, False
        while True:
            await RisingEdge(dut.clk)
            self.cycle += 1
            if dut.rst.value:
                before = False
                continue
            issues = bool(dut.act_en.value)
            assert bool(dut.row_valid.value) == before, "row_valid does not follow act_en by a cycle"
            assert not (dut.wait_tile.value and issues), "wait_tile while a row is issued"
            before = issues
            if issues:
                self._issue()
            due = bool(self.due) and self.due[0] == self.cycle
            assert bool(dut.done.value) == due, f"done is {int(dut.done.value)}"
            if due:
                self.due.popleft()
                self.done += 1

    def _issue(self) -> None:
        self.issued.append(self.cycle)
        if not self.rows_left:
            assert self.ends, "a row is issued that no command has"
            self.rows_left = self.ends.popleft()
        self.rows_left -= 1
        if not self.rows_left:
            self.due.append(self.cycle + DONE_LATENCY)

    async def finish(self, limit: int = 20_000) -> None:
        """Wait until all commands are done, and compare all accumulators."""
        for _ in range(limit):
            await RisingEdge(self.dut.clk)
            if not (self.source.pending or self.ends or self.rows_left or self.due):
                break
        else:
            raise AssertionError(f"not all commands were done within {limit} cycles")
        await ClockCycles(self.dut.clk, 2)
        buffers = self.machine.buffers
        for bank, wanted in enumerate((buffers.acc0, buffers.acc1)):
            got = await self._bank(bank)
            different = np.argwhere(got != wanted)
            assert not different.size, f"bank {bank}: {len(different)} sums differ, the first at {different[0]}"

    async def _bank(self, bank: int) -> NDArray[np.int32]:
        """Read all accumulators of a bank, one row per cycle."""
        dut, rows = self.dut, []
        dut.acc_en.value, dut.acc_bank.value = 1, bank
        for row in range(CONFIG.acc_rows + 1):
            dut.acc_addr.value = min(row, CONFIG.acc_rows - 1)
            await RisingEdge(dut.clk)
            if row:
                rows.append(unpack(int(dut.acc_data.value), 32, COLS, signed=True))
        dut.acc_en.value = 0
        return np.array(rows, np.int32)


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.4])
async def test_random_commands(dut: Any, share: float) -> None:
    rng = generator(f"commands {share}")
    bench = Bench(dut, rng, share)
    await bench.start()
    for f in [*covering(), *(random_command(rng) for _ in range(25))]:
        bench.send(f)
    await bench.finish()
    assert bench.done == 27


@cocotb.test()
async def test_few_rows_on_the_same_accumulators(dut: Any) -> None:
    """One to three rows per tile: the shortest way back to an accumulator, also between commands."""
    bench = Bench(dut, generator("short"), 0.0)
    await bench.start()
    for f in covering():
        bench.send(f)
    for rows in (1, 2, 3):
        for accumulate in (0, 1):
            bench.send(command(k=3, rows_inner=rows, accumulate=accumulate, stream=accumulate))
        for _ in range(2):
            bench.send(command(rows_inner=rows, accumulate=1))
        for back in (0, 1, 2):
            bench.send(command(rows_inner=9, act=3))
            bench.send(command(rows_inner=rows, acc=8 - back, accumulate=1, stream=1))
        for accumulate in (0, 1):
            bench.send(command(k=3, rows_inner=rows, pair=1, accumulate=accumulate, stream=accumulate))
    await bench.finish()


@cocotb.test()
async def test_extremes(dut: Any) -> None:
    """The largest products, which wrap an accumulator in the end, and zeros."""
    bench = Bench(dut, generator("extremes"), 0.0)
    bench.machine.memory.write(0, np.repeat(np.array([0x80, 0x7F], np.uint8), SIZE // 2))
    await bench.start()
    for f in covering():
        bench.send(f)
    for place in range(4):
        for _ in range(3):
            bench.send(command(k=1, n=4, rows_inner=4, act=place, act_inner=0, accumulate=1, bank=place % 2))
    await bench.finish()


@cocotb.test()
async def test_tiles_without_credits(dut: Any) -> None:
    """Both streams obey ready by themselves: a FIFO that is full takes nothing, and nothing is lost."""
    rng = generator("ready")
    bench = Bench(dut, rng, 0.0)
    for feeder in bench.feeders.values():
        feeder.credits = False
    await bench.start()
    for f in [*covering(), *(random_command(rng) for _ in range(8))]:
        bench.send(f)
    await bench.finish()


@cocotb.test()
async def test_no_bubble(dut: Any) -> None:
    """Tiles of as many rows as a tile takes to come: a row in every cycle, within commands and between them."""
    bench = Bench(dut, generator("throughput"), 0.0)
    await bench.start()
    for f in covering():
        bench.send(f)
    await bench.finish()
    bench.issued.clear()
    for _ in range(3):
        bench.send(command(k=2, n=2, rows_outer=2, rows_inner=ROWS, act_outer=5))
        bench.send(command(k=2, n=1, rows_inner=2 * ROWS, stream=1, bank=1))
    await bench.finish()
    assert len(bench.issued) == 3 * (4 * 2 * ROWS + 2 * 2 * ROWS)
    assert bench.issued[-1] - bench.issued[0] + 1 == len(bench.issued)


@cocotb.test()
@cocotb.parametrize(cycles=[2, 9, 31, 57, 90])
async def test_reset_in_the_middle(dut: Any, cycles: int) -> None:
    rng = generator(f"reset {cycles}")
    bench = Bench(dut, rng, 0.1)
    await bench.start()
    for f in [command(k=3, n=2, rows_inner=3), *(random_command(rng) for _ in range(4))]:
        bench.send(f)
    await ClockCycles(dut.clk, cycles)
    await bench.reset()
    for f in [*covering(), *(random_command(rng) for _ in range(3))]:
        bench.send(f)
    await bench.finish()
