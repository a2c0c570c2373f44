"""MemoryReader against a model in Python: random commands, latencies and stalls, errors, and throughput."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from axi_model import AxiMemory
from streams import simulate

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import LoadDest, LoadFormat
from tilewright_hw.gateware.reader import MemoryReader, ReadIssue

ORIGIN = 0x2_FFFF_0000
SIZE = 1 << 15
CONFIGS = {
    "default": AcceleratorConfig(),
    "tiny": AcceleratorConfig.preset("tiny"),
    "edge": AcceleratorConfig.preset("edge"),
    "odd": AcceleratorConfig(
        rows=6, cols=10, lanes=2, bus_bits=32, ingest=1, weight_fifo_bytes=288, stream_fifo_bytes=300
    ),
    "lanes": AcceleratorConfig(lanes=16, bus_bits=32),
    "ingest": AcceleratorConfig(rows=24, cols=8, lanes=4, bus_bits=256, ingest=4, weight_fifo_bytes=1024),
    "long rows": AcceleratorConfig(rows=10, cols=18, lanes=2, bus_bits=64, ingest=2),
    "longer rows": AcceleratorConfig(rows=12, cols=20, lanes=4, bus_bits=32, ingest=3, weight_fifo_bytes=1024),
    "wide": AcceleratorConfig(rows=16, cols=4, lanes=2, bus_bits=512, burst_beats=4, stream_fifo_bytes=256),
}


@dataclass
class Command:
    """A WEIGHT (dest None) or a LOAD."""

    offset: int
    bytes: int
    count: int = 1
    stride: int = 0
    base: int = 3
    dest: LoadDest | None = None
    format: LoadFormat = LoadFormat.FP32
    dst: int = 0
    dst_stride: int = 0
    transpose: int = 0
    rows: int = 0  # int4 weights

    def operands(self):
        names = ["offset", "bytes", "count", "stride", "base"]
        if self.dest is None:
            return {name: getattr(self, name) for name in [*names, "rows"]} | {"format": int(self.rows > 0)}
        names += ["dest", "format", "dst", "dst_stride", "transpose"]
        return {name: getattr(self, name) for name in names}

    def runs(self, bases):
        start = bases[self.base] + self.offset - ORIGIN
        return [range(start + i * self.stride, start + i * self.stride + self.bytes) for i in range(self.count)]


def to_float(word32):
    """Return the F24 that Load makes of a float32."""
    exponent = word32 >> 23 & 255
    if exponent == 0:
        return 0
    return word32 >> 31 << 23 | 254 << 15 | 0x7FFF if exponent == 255 else word32 >> 8


def int4_bytes(config, rows):
    """Return the bytes of a run of `rows` weight rows in int4."""
    chunk = 32 * config.nibble_rows
    size = (-(-rows // chunk) * config.nibble_rows + rows) * config.nibble_slot
    return -(-size // config.bus_bytes) * config.bus_bytes


def nibbles(data, count):
    """Return values of four bits, the first in the low half of the first byte."""
    return [data[i // 2] >> 4 * (i % 2) & 15 for i in range(count)]


def int4_rows(data, config, rows):
    """Return the int8 weight rows of a run in int4: g * q, chunk by chunk."""
    units, slot = config.nibble_rows, config.nibble_slot
    lines = [nibbles(data[i : i + slot], config.cols) for i in range(0, len(data), slot)]
    out = []
    while len(out) < rows:
        scales, lines = lines[:units], lines[units:]
        count = min(32 * units, rows - len(out))
        for i, line in enumerate(lines[:count]):
            signed = [q - 16 if q > 7 else q for q in line]
            out.append([g * q & 255 for g, q in zip(scales[i // 32], signed, strict=True)])
        lines = lines[count:]
    return out


def expect(command, config, memory, bases):
    """Return what the command puts out: rows, or (address, word) pairs."""
    out = []
    for i, run in enumerate(command.runs(bases)):
        data = memory[run.start : run.stop]
        if command.rows:
            out += int4_rows(data, config, command.rows)
            continue
        if command.dest == LoadDest.TABLE:
            out += [int.from_bytes(data[j : j + 4], "little") for j in range(0, len(data), 4)]
            continue
        if command.transpose:
            words = [data[j : j + config.rows] for j in range(0, len(data), config.row_slot)]
            for j in range(0, len(words), config.cols):
                out += [list(row) for row in zip(*words[j : j + config.cols], strict=True)]
            continue
        if command.dest in (None, LoadDest.STREAM):
            out += [list(data[j : j + config.cols]) for j in range(0, len(data), config.col_slot)]
            continue
        if command.dest == LoadDest.ACT:
            words = [list(data[j : j + config.rows]) for j in range(0, len(data), config.row_slot)]
        else:
            size = 4 if command.format == LoadFormat.FP32 else 2
            raw = [int.from_bytes(data[j : j + size], "little") << (32 - 8 * size) for j in range(0, len(data), size)]
            floats = [to_float(x) for x in raw] + [0] * (-len(raw) % config.lanes)
            words = [floats[j : j + config.lanes] for j in range(0, len(floats), config.lanes)]
        first = command.dst + i * command.dst_stride
        out += [((first + j) % 65536, word) for j, word in enumerate(words)]
    return out


@dataclass
class Bench:
    """The reader with its memory and all its neighbours."""

    config: AcceleratorConfig
    latency: int = 3
    stall: float = 0.0
    seed: int = 0
    broken: range = range(0)
    commands: list[Command] = field(default_factory=list)
    fetches: list[tuple[int, int]] = field(default_factory=list)
    pop_share: float = 1.0

    def __post_init__(self):
        self.dut = MemoryReader(self.config)
        self.memory = AxiMemory(
            size=SIZE,
            bus_bytes=self.config.bus_bytes,
            origin=ORIGIN,
            latency=self.latency,
            stall=self.stall,
            seed=self.seed,
            burst_beats=self.config.burst_beats,
            limit=self.config.reads_in_flight,
            broken=self.broken,
        )
        self.bases = [ORIGIN + 256 * i for i in range(8)]
        self.weights = [c for c in self.commands if c.dest is None]
        self.loads = [c for c in self.commands if c.dest is not None]
        self.got = {name: [] for name in ("weight", "stream", "act", "row", "param", "table", "fetch")}
        self.want = {name: [] for name in self.got}
        for c in self.commands:
            name = "weight" if c.dest is None else c.dest.name.lower()
            self.want[name] += expect(c, self.config, self.memory.data, self.bases)
        for offset, beats in self.fetches:
            for i in range(beats):
                at = offset + i * self.config.bus_bytes
                self.want["fetch"].append(int.from_bytes(self.memory.data[at : at + self.config.bus_bytes], "little"))
        self.done = {"weight": 0, "load": 0}
        self.beats = 0
        self.error = 0

    def run(self, limit=20000):
        dut = self.dut

        async def finish(ctx):
            for _ in range(limit):
                await ctx.tick()
                ready = all(len(self.got[n]) >= len(self.want[n]) for n in self.got)
                if ready and self.done == {"weight": len(self.weights), "load": len(self.loads)}:
                    break
            else:
                raise AssertionError(f"stuck: {self.done}, { {n: len(v) for n, v in self.got.items()} }")
            await ctx.tick().repeat(4)
            self.error = ctx.get(dut.error)
            assert ctx.get(dut.idle)

        simulate(
            dut,
            finish,
            limit=2 * limit,
            background=[
                self.memory.reads(dut.axi),
                self._send(dut.weight_cmd, [c.operands() for c in self.weights], 1),
                self._send(dut.load_cmd, [c.operands() for c in self.loads], 2),
                self._send(dut.fetch, [{"addr": ORIGIN + at, "beats": n} for at, n in self.fetches], 3),
                self._tiles(dut.o_weight, dut.weight_pop, "weight", self.config.weight_fifo_bytes),
                self._tiles(dut.o_stream, dut.stream_pop, "stream", self.config.stream_fifo_bytes),
                self._buffer(dut.o_act, "act"),
                self._buffer(dut.o_row, "row"),
                self._buffer(dut.o_param, "param"),
                self._table,
                self._fetched,
                self._watch,
            ],
        )
        for name, want in self.want.items():
            assert self.got[name] == want, name
        assert self.beats == len(self.memory.read_times)
        return self

    def _send(self, port, items, salt):
        async def bench(ctx):
            rng = random.Random(self.seed + salt)
            for i, base in enumerate(self.bases):
                ctx.set(self.dut.bases[i], base)
            for item in items:
                while rng.random() < self.stall:
                    await ctx.tick()
                ctx.set(port.payload, item)
                ctx.set(port.valid, 1)
                await ctx.tick().until(port.ready)
                ctx.set(port.valid, 0)

        return bench

    def _tiles(self, port, pop, name, size):
        """A FIFO that is always ready, and must never be asked for more room than it has."""

        async def bench(ctx):
            rng, held = random.Random(self.seed + len(name)), 0
            capacity = size // self.config.tile_bytes * self.config.rows
            count = self.dut.count if name == "weight" else 1
            ctx.set(port.ready, 1)
            while True:
                popping = held >= self.config.rows and rng.random() < self.pop_share
                held -= self.config.rows * popping
                ctx.set(pop, popping)
                *_, valid, row = await ctx.tick().sample(port.valid, port.payload)
                if valid:
                    held += count
                    rows = row if name == "weight" else [row]
                    self.got[name] += [[byte & 255 for byte in each] for each in rows]
                    assert held <= capacity, f"{name} FIFO overflows"

        return bench

    def _buffer(self, port, name):
        async def bench(ctx):
            rng, offer = random.Random(self.seed + ord(name[0])), None
            while True:
                ready = rng.random() >= self.stall
                ctx.set(port.ready, ready)
                *_, valid, payload = await ctx.tick().sample(port.valid, port.payload)
                assert offer is None or (valid and payload == offer), f"{name} changed its offer"
                offer = payload if valid and not ready else None
                if valid and ready:
                    mask = 255 if name == "act" else -1
                    self.got[name].append((payload.addr, [x & mask for x in payload.data]))

        return bench

    async def _table(self, ctx):
        port, rng = self.dut.o_table, random.Random(self.seed)
        loads = [c for c in self.loads if c.dest == LoadDest.TABLE]
        ends = list(accumulate(c.bytes * c.count // 4 for c in loads))
        while True:
            ready = rng.random() >= self.stall
            ctx.set(port.ready, ready)
            *_, valid, payload = await ctx.tick().sample(port.valid, port.payload)
            if valid and ready:
                self.got["table"].append(payload.data)
                count = len(self.got["table"])
                assert payload.last == (count in ends)
                assert payload.shifts == loads[sum(end < count for end in ends)].dst

    async def _fetched(self, ctx):
        port = self.dut.o_fetch
        ctx.set(port.ready, 1)
        while True:
            *_, valid, word = await ctx.tick().sample(port.valid, port.payload)
            if valid:
                self.got["fetch"].append(word)

    async def _watch(self, ctx):
        """Count pulses; a load's done must not come before the last of its data."""
        dut, ends, total = self.dut, [], 0
        for c in self.loads:
            total += len(expect(c, self.config, self.memory.data, self.bases))
            ends.append(total)
        while True:
            *_, weight, load, beat = await ctx.tick().sample(dut.weight_done, dut.load_done, dut.beat)
            self.done["weight"] += weight
            self.done["load"] += load
            self.beats += beat
            if load:
                moved = sum(len(self.got[n]) for n in ("stream", "act", "row", "param", "table"))
                assert moved >= ends[self.done["load"] - 1], "done came before the data"


def random_commands(rng, config, count):
    unit = max(config.bus_bytes, config.row_slot)
    commands = []
    for _ in range(count):
        dest = rng.choice([None, None, *LoadDest])
        rows = transpose = 0
        if dest in (None, LoadDest.STREAM):
            runs = rng.choice([1, 1, 3])
            length = config.tile_bytes * rng.randint(1, 4)
            if dest is None and rng.random() < 0.6:
                rows = config.rows * rng.randint(1, 1 + 100 // config.rows)
                length = int4_bytes(config, rows)
            elif dest == LoadDest.STREAM and rng.random() < 0.5:
                transpose, length = 1, config.transposed_tile_bytes * rng.randint(1, 4)
        else:
            runs = rng.randint(1, 5)
            length = unit * rng.randint(1, 12)
        stride = config.bus_bytes * rng.randint(0, 40)
        offset = config.bus_bytes * rng.randrange(0, 4096 // config.bus_bytes)
        commands.append(
            Command(
                offset, length, runs, stride, rng.randrange(8), dest, rng.choice(list(LoadFormat)),
                rng.randrange(65536), rng.randrange(65536), transpose, rows,
            )
        )  # fmt: skip
    return commands


QUICK = ("default", "tiny", "edge", "odd")
# Latency, share of the beats that stall, share of the cycles in which somebody takes what has come.
PACES = [(4, 0.6, 0.5), (1, 0, 1), (25, 0.3, 0.1)]


def quick_or_slow(*values, quick):
    """A case of the slow tests only, unless it is quick."""
    return pytest.param(*values, marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "latency", "stall", "pop_share"),
    [quick_or_slow(name, *pace, quick=name in QUICK or pace == PACES[0]) for name in CONFIGS for pace in PACES],
)
def test_random_commands(name, latency, stall, pop_share):
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    rng = random.Random(seed)
    config = CONFIGS[name]
    fetches = [(64 * rng.randrange(200), rng.randint(1, 40)) for _ in range(5)]
    Bench(
        config, latency, stall, seed, commands=random_commands(rng, config, 8), fetches=fetches, pop_share=pop_share
    ).run()


@pytest.mark.parametrize(
    "name", [quick_or_slow(name, quick=name == "odd") for name in ("odd", "default", "wide", "longer rows")]
)
def test_room_is_given_back_to_the_beat(name):
    """After many WEIGHTs of both formats and LOADs of both kinds of tiles all room is free: none lost, none won."""
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    rng = random.Random(seed)
    config = CONFIGS[name]
    commands = [c for c in random_commands(rng, config, 60) if c.dest in (None, LoadDest.STREAM)]
    bench = Bench(config, 2, seed=seed, commands=commands)
    rooms = {}

    async def watch(ctx):
        while True:
            await ctx.tick()
            for kind, room in bench.dut.issue.rooms.items():
                rooms[kind] = ctx.get(room)

    bench._fetched = watch
    bench.run(limit=100_000)
    issue = bench.dut.issue
    assert rooms["weight"] == issue.weight_room
    assert rooms["window"] == issue.weight_window
    assert rooms["stream"] == issue.stream_room
    assert rooms["load"] == issue.load_room


def test_error_response_is_sticky_and_nothing_hangs():
    commands = [
        Command(0, 1024),
        Command(512, 512, dest=LoadDest.ROW),
        Command(1024, 256, dest=LoadDest.STREAM),
        Command(0, 64, dest=LoadDest.ACT),
    ]
    bench = Bench(AcceleratorConfig(), commands=commands, broken=range(ORIGIN + 0x520, ORIGIN + 0x530))
    assert bench.run().error == 1
    bench = Bench(AcceleratorConfig(), commands=commands)
    assert bench.run().error == 0


def test_full_fifo_does_not_block_the_others():
    """Nobody takes weights or streamed tiles until a load to a buffer and a fetch have come through."""
    config = CONFIGS["tiny"]
    commands = [
        Command(0, 4096),
        Command(0, 1024, dest=LoadDest.STREAM),
        Command(64, 128, dest=LoadDest.ROW),
    ]
    bench = Bench(config, commands=commands, fetches=[(0, 16)] * 3, pop_share=0.0)
    with pytest.raises(AssertionError, match=r"stuck: {'weight': 0, 'load': 2}"):
        bench.run(limit=1500)
    assert len(bench.got["fetch"]) == 48
    assert bench.got["row"] == bench.want["row"]
    assert len(bench.got["weight"]) == config.weight_fifo_bytes // config.col_slot


WHOLE = {
    "weight": [Command(0, 8192)],
    "many weights": [Command(256 * i, 256) for i in range(32)],
    "stream": [Command(0, 256, 32, 512, dest=LoadDest.STREAM)],
    "act": [Command(0, 1024, 8, 1024, dest=LoadDest.ACT)],
    "row": [Command(0, 2048, dest=LoadDest.ROW) for _ in range(4)],
    "bfloat16": [Command(0, 8192, dest=LoadDest.PARAM, format=LoadFormat.BF16)],
    "int4": [Command(0, int4_bytes(AcceleratorConfig(), 992), rows=992)],
    "many int4": [Command(512 * i, 512, rows=62) for i in range(16)],
    "transposed": [Command(0, 256, 32, 512, dest=LoadDest.STREAM, transpose=1)],
    "mixed": [c for i in range(8) for c in (Command(0, 512), Command(512 * i, 512, dest=LoadDest.STREAM))],
}


@pytest.mark.parametrize(
    ("name", "latency"),
    [
        *(quick_or_slow(name, 150, quick=name in ("many int4", "transposed", "mixed")) for name in WHOLE),
        ("weight", 40),
        ("mixed", 40),
    ],
)
def test_one_beat_per_cycle(name, latency):
    """With the default settings the bus never idles from the first beat on, whatever the runs and commands."""
    bench = Bench(AcceleratorConfig(), latency, commands=WHOLE[name]).run()
    times = bench.memory.read_times
    assert len(times) == 512
    assert times[-1] - times[0] == 511
    assert times[0] <= latency + 5


def test_loads_go_before_weights_but_do_not_starve_them():
    """Most bursts are loads until both kinds have used up their room; then each gets what it gives back."""
    commands = [Command(16384, 8192, base=0), Command(0, 512, 16, 512, base=0, dest=LoadDest.STREAM)]
    bench = Bench(AcceleratorConfig(), 20, commands=commands).run()
    loads = [addr - ORIGIN < 16384 for addr, _ in bench.memory.bursts]
    assert len(loads) == 32
    first = loads.index(False)
    assert sum(loads[first : first + 6]) in (4, 5)
    longest = max(len(together) for together in "".join("wL"[is_load] for is_load in loads).split("w"))
    assert longest <= ReadIssue.LOADS_BEFORE_WEIGHT + 1


def test_a_load_waits_for_a_window_of_weights_only():
    """A load that comes while weights stream has its first beat after at most window + latency."""
    commands = [Command(0, 24576)]
    config = AcceleratorConfig()
    bench = Bench(config, 40, commands=[*commands, Command(64, 64, dest=LoadDest.ROW)])
    seen = []

    async def late(ctx):
        await ctx.tick().repeat(400)
        start = len(bench.memory.read_times)
        ctx.set(bench.dut.load_cmd.payload, bench.loads[0].operands())
        ctx.set(bench.dut.load_cmd.valid, 1)
        await ctx.tick().until(bench.dut.load_cmd.ready)
        ctx.set(bench.dut.load_cmd.valid, 0)
        await ctx.tick().until(bench.dut.load_done)
        seen.append(len(bench.memory.read_times) - start)

    plain = bench._send
    bench._send = lambda port, items, salt: late if port is bench.dut.load_cmd else plain(port, items, salt)
    bench.run()
    assert seen[0] <= 256 + 40
