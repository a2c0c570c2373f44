"""`MemoryReader` against `golden.BLOCKS["MemoryReader"]`: what comes out for every WEIGHT, LOAD and fetch, in order."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge

from tilewright_hw.arch import AcceleratorConfig, Op
from tilewright_hw.arch.isa import LoadDest, LoadFormat, WeightFormat
from tilewright_sim.benches.axi import AxiRules, BoundedRead, anywhere, read_memory
from tilewright_sim.benches.beside_golden import Fields, machine_with
from tilewright_sim.benches.testbench import (
    InOrderChecker,
    Layout,
    Monitor,
    StreamSink,
    StreamSource,
    generator,
    pack,
    parameters,
    pulse_reset,
    start_clock,
)
from tilewright_sim.golden import BLOCKS, formats
from tilewright_sim.golden.tiles import NibbleRows

CONFIG = AcceleratorConfig.from_dict(parameters())
ROWS, COLS, LANES, BUS = CONFIG.rows, CONFIG.cols, CONFIG.lanes, CONFIG.bus_bytes
WEIGHT, LOAD = Layout.operands(Op.WEIGHT), Layout.operands(Op.LOAD)
FETCH = Layout({"addr": 64, "beats": 16})
SIZE = 1 << 15
BASES = [0, 0x1000 - 0x40, 0x2000 - 0x10, 0x3000, 0x4000 - 0x20, 0x5000, 0x6000, SIZE]
"""The last is outside memory."""
OUTPUTS = ("fetch", "weight", "stream", "act", "row", "param", "table")
TABLE_BYTES = 2048


def up(size: int, unit: int = BUS) -> int:
    """Return a size rounded up to whole units."""
    return -(-size // unit) * unit


def random_weight(rng: random.Random) -> Fields:
    """Return a WEIGHT of either format."""
    f = {"base": rng.randrange(7), "offset": up(rng.randrange(256)), "count": rng.randint(1, 3)}
    tiles = rng.choice((1, 1, 2, 3, 9))
    if rng.random() < 0.5:
        rows = tiles * ROWS
        size = NibbleRows.run_bytes(CONFIG, rows)
        f |= {"format": WeightFormat.INT4, "rows": rows, "bytes": size}
    else:
        f |= {"bytes": up(tiles * CONFIG.tile_bytes)}
    return f | {"stride": f["bytes"] + up(rng.choice((0, 0, 64, 200)))}


def random_load(rng: random.Random) -> Fields:
    """Return a LOAD to anywhere but the table."""
    dest = rng.choice((LoadDest.STREAM, LoadDest.STREAM, LoadDest.ACT, LoadDest.ROW, LoadDest.PARAM))
    f = {"base": rng.randrange(7), "offset": up(rng.randrange(256)), "count": rng.randint(1, 3), "dest": dest}
    units = rng.choice((1, 2, 3, 5))
    if dest is LoadDest.STREAM:
        f["transpose"] = rng.getrandbits(1)
        f["bytes"] = units * (CONFIG.transposed_tile_bytes if f["transpose"] else CONFIG.tile_bytes)
    elif dest is LoadDest.ACT:
        f["bytes"] = up(units * CONFIG.row_slot, max(BUS, CONFIG.row_slot))
    else:
        f |= {"format": rng.choice(list(LoadFormat)), "bytes": units * BUS}
    words = f["bytes"] // 2  # more than it can be
    f |= {"dst": rng.randrange(8), "dst_stride": rng.randrange(words, words + 8) if f["count"] > 1 else 0}
    while dest is not LoadDest.STREAM and f["dst"] + (f["count"] - 1) * f["dst_stride"] + words > 60:
        f["count"], f["dst_stride"] = 1, 0
        if words > 50:
            f["bytes"], words = max(BUS, CONFIG.row_slot), 8
    return f | {"stride": f["bytes"] + up(rng.choice((0, 0, 64, 200)))}


class TileRoom:
    """Counts the rows of tiles that came, takes tiles after a while, and fails if there is no room for a row.

    Parameters
    ----------
    name : str
        For the messages.
    tiles : int
        Tiles for which there is room.
    rng : random.Random
        For how long a tile stays.
    pop : handle
        Told of each tile that is taken.
    """

    def __init__(self, dut: Any, name: str, tiles: int, rng: random.Random) -> None:
        self.name, self._tiles, self._rng = name, tiles, rng
        self._clock, self._pop = dut.clk, getattr(dut, f"{name}_pop")
        self._pop.value = 0
        self.hold = False
        self.reset()

    def reset(self) -> None:
        """Be empty."""
        self.rows = self.popped = 0

    def row(self, count: int) -> None:
        """Take rows."""
        self.rows += count
        assert self.rows <= (self.popped + self._tiles) * ROWS, f"a row came to the {self.name} FIFO, which is full"

    async def run(self) -> None:
        """Take a whole tile now and then."""
        while True:
            go = not self.hold and self.rows >= (self.popped + 1) * ROWS and self._rng.random() < 0.3
            self._pop.value = go
            self.popped += go
            await RisingEdge(self._clock)


class Bench:
    """The reader between memory and everything that takes its data.

    Parameters
    ----------
    dut : handle
        The design.
    rng : random.Random
        For all that is random.
    share : float
        Share of the time in which each stream and channel pauses.
    """

    def __init__(self, dut: Any, rng: random.Random, share: float) -> None:
        self.dut, self.rng = dut, rng
        self.memory = bytearray(rng.randbytes(SIZE))
        self.machine = machine_with(CONFIG, self.memory, BASES)
        self.rules = AxiRules(dut, "axi", bus_bytes=BUS, beats=CONFIG.burst_beats, reads=CONFIG.reads_in_flight)
        self.at = anywhere(rng)
        self.axi: BoundedRead = read_memory(dut, "axi", self.memory, rng, share, self.at)
        self.sources = {name: StreamSource(dut, name, rng, share) for name in ("fetch", "weight_cmd", "load_cmd")}
        self.together = len(dut.o_weight_payload) // (8 * COLS)
        self.rooms = {
            "weight": TileRoom(dut, "weight", CONFIG.weight_fifo_bytes // CONFIG.tile_bytes, rng),
            "stream": TileRoom(dut, "stream", CONFIG.stream_fifo_bytes // CONFIG.tile_bytes, rng),
        }
        self.checkers = {name: InOrderChecker(f"o_{name}") for name in OUTPUTS}
        for name in ("act", "row", "param", "table"):
            StreamSink(dut, f"o_{name}", rng, share).start()
        for name in ("fetch", "weight", "stream"):  # taken without fail
            getattr(dut, f"o_{name}_ready").value = 1
        for name in OUTPUTS:
            Monitor.of_stream(dut, f"o_{name}", self._saw(name)).start()
        self.sent = {"weight": 0, "load": 0}
        self.done = {"weight": 0, "load": 0}
        self.beats = self.fetch_beats = 0

    def _saw(self, name: str) -> Any:
        checker = self.checkers[name]

        def saw(item: int) -> None:
            checker.receive(item)
            if name in self.rooms:
                self.rooms[name].row(self.together if name == "weight" else 1)

        return saw

    async def start(self) -> None:
        """Start the clock, reset, and begin."""
        self.dut.bases.value = pack([self.at + base for base in BASES], 64)
        start_clock(self.dut)
        await pulse_reset(self.dut)
        cocotb.start_soon(self._watch())
        for room in self.rooms.values():
            cocotb.start_soon(room.run())
        for source in self.sources.values():
            source.start()

    async def reset(self) -> None:
        """Reset in the middle of work, for one cycle: nothing of before may come after."""
        for source in self.sources.values():
            source.stop()
        for room in self.rooms.values():
            room.hold = True
        await pulse_reset(self.dut, 1)
        self.rules.reset()
        for room in self.rooms.values():
            room.reset()
        for checker in self.checkers.values():
            checker.clear()
        self.sent = dict.fromkeys(self.sent, 0)
        self.done = dict.fromkeys(self.done, 0)
        await ClockCycles(self.dut.clk, 40)
        assert self.dut.idle.value
        assert not self.dut.error.value
        assert not self.rules.count
        for room in self.rooms.values():
            room.hold = False
        for source in self.sources.values():
            source.start()

    async def _watch(self) -> None:
        """Check the events and `idle`, and count what is done."""
        dut = self.dut
        while True:
            await RisingEdge(dut.clk)
            if dut.rst.value:
                continue
            beat = bool(dut.axi_rvalid.value and dut.axi_rready.value)
            assert bool(dut.beat.value) == beat, "beat is not the transfer of a beat"
            assert bool(dut.fetch_beat.value) == bool(dut.o_fetch_valid.value), "fetch_beat is not a beat on o_fetch"
            for name in self.done:
                self.done[name] += int(getattr(dut, f"{name}_done").value)
                assert self.done[name] <= self.sent[name], f"{name}_done without a command"
            if dut.axi_rvalid.value or dut.axi_arvalid.value:
                assert not dut.idle.value, "idle, though a read is outstanding"

    def fetch(self, address: int, beats: int) -> None:
        """Ask for bus words as the sequencer does."""
        data = np.frombuffer(bytes(self.memory[address : address + beats * BUS]), np.uint8).reshape(beats, BUS)
        self._expect("fetch", (int.from_bytes(word.tobytes(), "little") for word in data))
        self.sources["fetch"].send([FETCH.pack({"addr": self.at + address, "beats": beats})])

    def weight(self, f: Fields) -> None:
        """Send a WEIGHT."""
        rows = self._rows(f, Op.WEIGHT, "weight")
        step = self.together
        for i in range(0, len(rows), step):
            self._expect("weight", [sum(row << 8 * COLS * j for j, row in enumerate(rows[i : i + step]))])
        self.sources["weight_cmd"].send([WEIGHT.pack(f)])
        self.sent["weight"] += 1

    def load(self, f: Fields) -> None:
        """Send a LOAD."""
        dest = LoadDest(f["dest"])
        if dest is LoadDest.STREAM:
            self._expect("stream", self._rows(f, Op.LOAD, "stream"))
        else:
            step = BLOCKS["MemoryReader"](self.machine, defaultdict(int, f), Op.LOAD)
            step(self.machine)
            if dest is LoadDest.TABLE:
                last = TABLE_BYTES // 4 - 1
                words = step.into.reshape(-1).tolist()
                self._expect("table", (x | f["dst"] << 32 | (i == last) << 48 for i, x in enumerate(words)))
            else:
                self._expect_words(dest, step)
        self.sources["load_cmd"].send([LOAD.pack(f)])
        self.sent["load"] += 1

    def _rows(self, f: Fields, op: Op, fifo: str) -> list[int]:
        BLOCKS["MemoryReader"](self.machine, defaultdict(int, f), op)(self.machine)
        tiles = self.machine.fifos[fifo]
        rows = [piece.unpack() for piece in tiles.pop(tiles.rows)]
        return [int.from_bytes(row.tobytes(), "little") for row in np.concatenate(rows)]

    def _expect_words(self, dest: LoadDest, step: Any) -> None:
        """Expect the words of a buffer with their addresses, run after run."""
        words = step.into.reshape(step.runs, step.dst.length, -1)
        for start, run in zip(step.dst.runs(), words, strict=True):
            for i, word in enumerate(run):
                if dest is LoadDest.ACT:
                    value = pack(word.tolist(), 8)
                else:
                    value = pack((formats.store_fp32(word) >> np.uint32(8)).tolist(), 24)
                self._expect(dest.name.lower(), [int(start) + i | value << 16])

    def _expect(self, name: str, items: Any) -> None:
        for item in items:
            self.checkers[name].expect(item)

    @property
    def missing(self) -> int:
        """What has not come yet."""
        return sum(checker.missing for checker in self.checkers.values())

    async def finish(self, limit: int = 30_000) -> None:
        """Wait until everything has come and is said to be done."""
        for _ in range(limit):
            await RisingEdge(self.dut.clk)
            if not self.missing and self.done == self.sent:
                break
        else:
            left = {name: checker.missing for name, checker in self.checkers.items() if checker.missing}
            raise AssertionError(f"missing after {limit} cycles: {left}; done {self.done} of {self.sent}")
        await ClockCycles(self.dut.clk, 5)
        self.rules.assert_quiet()
        assert self.dut.idle.value


def anything(bench: Bench, rng: random.Random) -> None:
    """Send a random request of a random kind."""
    kind = rng.choice(("fetch", "weight", "load"))
    if kind == "fetch":
        beats = rng.choice((1, 2, 16, 17))
        bench.fetch(rng.randrange(0, SIZE - beats * BUS, BUS), beats)
    elif kind == "weight":
        bench.weight(random_weight(rng))
    else:
        bench.load(random_load(rng))


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.3, 0.7])
async def test_everything_at_once(dut: Any, share: float) -> None:
    rng = generator(f"requests {share}")
    bench = Bench(dut, rng, share)
    await bench.start()
    for _ in range(45):
        anything(bench, rng)
    await bench.finish()
    assert not dut.error.value


@cocotb.test()
async def test_table(dut: Any) -> None:
    rng = generator("table")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    bench.load({"dest": LoadDest.TABLE, "bytes": TABLE_BYTES, "count": 1, "dst": 0xA51B, "base": 2})
    bench.load({"dest": LoadDest.ROW, "bytes": 8 * BUS, "count": 1, "dst": 3})
    await bench.finish()


@cocotb.test()
async def test_a_beat_per_cycle(dut: Any) -> None:
    """Weights that are taken as they come keep the bus busy."""
    rng = generator("throughput")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    size = 32 * CONFIG.tile_bytes
    for _ in range(2):
        bench.load({"dest": LoadDest.ACT, "bytes": up(16 * CONFIG.row_slot), "count": 1})
    bench.weight({"bytes": size, "count": 1})
    await bench.finish(16 * size // BUS + 200)


@cocotb.test()
async def test_a_full_fifo_holds_up_no_other(dut: Any) -> None:
    """Weights and tiles for which there is no room are not asked for; instructions and other loads go on."""
    rng = generator("full")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    for room in bench.rooms.values():
        room.hold = True
    room_bytes = max(CONFIG.weight_fifo_bytes, CONFIG.stream_fifo_bytes)
    more = 20 + room_bytes // CONFIG.tile_bytes  # tiles than either has room for
    bench.weight({"bytes": more * CONFIG.tile_bytes, "count": 1})
    for _ in range(3):
        bench.load({"dest": LoadDest.ROW, "bytes": 6 * BUS, "count": 1, "dst": 1})
    bench.load({"dest": LoadDest.STREAM, "bytes": more * CONFIG.tile_bytes, "count": 1})
    for i in range(6):
        bench.fetch(64 * i, 16)
    await ClockCycles(dut.clk, 600)
    left = {name for name, checker in bench.checkers.items() if checker.missing}
    assert left == {"weight", "stream"}, left
    assert dut.idle.value
    for room in bench.rooms.values():
        room.hold = False
    await bench.finish()


@cocotb.test()
async def test_loads_do_not_starve_weights(dut: Any) -> None:
    """Where both could go, every fourth burst is of weights: they are all there long before the loads are."""
    rng = generator("fair")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    loads = 12
    for _ in range(loads):
        bench.load({"dest": LoadDest.ROW, "bytes": 4 * CONFIG.burst_beats * BUS, "count": 1})
    await ClockCycles(dut.clk, 20)
    bench.weight({"bytes": 4 * CONFIG.tile_bytes, "count": 1})
    for _ in range(20_000):
        await RisingEdge(dut.clk)
        if bench.done["weight"]:
            break
    assert bench.done["load"] < loads // 2, f"{bench.done['load']} of {loads} loads went before four tiles"
    await bench.finish()


@cocotb.test()
async def test_an_error_stands_until_reset(dut: Any) -> None:
    rng = generator("error")
    bench = Bench(dut, rng, 0.2)
    await bench.start()
    anything(bench, rng)
    await bench.finish()
    assert not dut.error.value
    for checker in bench.checkers.values():  # data of an error passes, whatever it is
        checker.clear()
        checker.receive = lambda item: None  # type: ignore[method-assign]
    bench.sources["load_cmd"].send(
        [LOAD.pack({"dest": LoadDest.ACT, "bytes": up(CONFIG.row_slot), "count": 1, "base": 7})]
    )
    bench.sent["load"] += 1
    await bench.finish()
    assert dut.error.value
    await ClockCycles(dut.clk, 20)
    assert dut.error.value
    await bench.reset()


@cocotb.test()
@cocotb.parametrize(cycles=[4, 12, 25, 38, 60, 133])
async def test_reset_in_the_middle(dut: Any, cycles: int) -> None:
    rng = generator(f"reset {cycles}")
    bench = Bench(dut, rng, 0.2)
    await bench.start()
    for _ in range(12):
        anything(bench, rng)
    await ClockCycles(dut.clk, cycles)
    await bench.reset()
    for _ in range(10):
        anything(bench, rng)
    await bench.finish()


@cocotb.test()
async def test_reset_while_weights_are_expanded(dut: Any) -> None:
    """A beat of int4 is held for some cycles: a reset then must not leave it there for the next burst."""
    rng = generator("reset of int4")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    rows = 8 * ROWS
    f = {"format": WeightFormat.INT4, "rows": rows, "bytes": NibbleRows.run_bytes(CONFIG, rows), "count": 1}
    for cycles in range(8, 40, 3):
        bench.weight(f)
        await ClockCycles(dut.clk, cycles)
        await bench.reset()
        bench.fetch(64 * cycles, 3)
        bench.weight(f)
        await bench.finish()


@cocotb.test()
async def test_resets_at_any_moment(dut: Any) -> None:
    rng = generator("resets")
    bench = Bench(dut, rng, 0.2)
    await bench.start()
    for _ in range(30):
        for _ in range(8):
            anything(bench, rng)
        await ClockCycles(dut.clk, rng.randint(5, 150))
        await bench.reset()
        for _ in range(3):
            anything(bench, rng)
        await bench.finish()
