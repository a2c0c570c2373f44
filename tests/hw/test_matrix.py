from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from streams import Stall, put, simulate

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.gateware.matrix import MatrixUnit

SMALL = {"acc_rows": 64, "act_words": 64, "bus_bits": 32, "burst_beats": 16}
CONFIGS = [
    AcceleratorConfig(rows=4, cols=4, lanes=2, ingest=1, weight_fifo_bytes=64, stream_fifo_bytes=80, **SMALL),
    AcceleratorConfig(rows=8, cols=4, lanes=4, ingest=2, weight_fifo_bytes=256, stream_fifo_bytes=128, **SMALL),
    AcceleratorConfig(rows=6, cols=10, lanes=2, ingest=1, weight_fifo_bytes=1024, stream_fifo_bytes=300, **SMALL),
    AcceleratorConfig(rows=16, cols=4, lanes=4, ingest=4, weight_fifo_bytes=512, stream_fifo_bytes=256, **SMALL),
]
for_all_configs = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-g{c.ingest}")


@dataclass
class Model:
    """MATMUL as docs/architecture.md has it, on NumPy arrays; makes up tiles as it goes."""

    config: AcceleratorConfig
    seed: int = 0
    weight: list = field(default_factory=list)
    stream: list = field(default_factory=list)

    def __post_init__(self):
        c = self.config
        self.rng = np.random.default_rng(self.seed)
        self.act = self.rng.integers(-128, 128, (c.act_words, c.rows))
        self.acc = np.zeros((2, c.acc_rows, c.cols), dtype=np.int64)

    def run(self, command):
        f = {name: 0 for name in ("bank", "stream", "accumulate", "pair", "act", "acc")} | command
        words = 1 + f["pair"]
        rows = f["rows_outer"] * f["rows_inner"]
        for g in range(f["groups"]):
            for n in range(f["n"]):
                for k in range(f["k"]):
                    tile = self.rng.integers(-128, 128, (self.config.rows, self.config.cols))
                    (self.stream if f["stream"] else self.weight).append(tile)
                    for o, i, p in np.ndindex(f["rows_outer"], f["rows_inner"], words):
                        word = f["act"] + g * f.get("act_group", 0) + o * f.get("act_outer", 0)
                        x = self.act[word + i * f.get("act_inner", 0) + k * words + p]
                        row = f["acc"] + ((g * f["n"] + n) * rows + o * f["rows_inner"] + i) * words + p
                        old = self.acc[f["bank"], row]
                        if k == 0 and not f["accumulate"]:
                            old = 0
                        self.acc[f["bank"], row] = (old + x @ tile + 2**31) % 2**32 - 2**31


def command(**fields):
    return {"k": 1, "n": 1, "groups": 1, "rows_outer": 1, "rows_inner": 1, "act_inner": 1} | fields


def random_command(rng, config, most_rows=12):
    """Return a command whose loops stay inside the small buffers."""
    while True:
        f = command(
            k=rng.randint(1, 4),
            n=rng.randint(1, 3),
            groups=rng.randint(1, 3),
            rows_outer=rng.choice([1, 1, 2, 3]),
            rows_inner=rng.choice([1, 1, 2, 3, 4, 7, 12]),
            act_inner=rng.randint(0, 6),
            act_outer=rng.randint(0, 9),
            act_group=rng.randint(0, 9),
            bank=rng.randint(0, 1),
            stream=rng.randint(0, 1),
            accumulate=rng.randint(0, 1),
            pair=rng.choice([0, 0, 1]),
            act=rng.randint(0, 10),
        )
        words = 1 + f["pair"]
        rows = f["rows_outer"] * f["rows_inner"] * words
        room = config.acc_rows - f["groups"] * f["n"] * rows
        reach = f["act"] + f["k"] * words - 1
        for loop, step in (("groups", "group"), ("rows_outer", "outer"), ("rows_inner", "inner")):
            reach += (f[loop] - 1) * f[f"act_{step}"]
        if rows <= most_rows and room >= 0 and reach < config.act_words:
            return f | {"acc": rng.randint(0, room)}


@dataclass
class Run:
    """What a run showed, in cycles."""

    issued: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    taken: list = field(default_factory=list)
    done: list = field(default_factory=list)
    waits: list = field(default_factory=list)
    acc: np.ndarray | None = None

    @property
    def span(self):
        return self.rows[-1] - self.rows[0] + 1


async def feed_tiles(ctx, port, pop, tiles, count, credits, stall):
    """Write rows of tiles as the memory reader does: `count` at a time, with room for a tile reserved beforehand."""
    rows = [row.tolist() for tile in tiles for row in tile]
    per_tile = len(tiles[0]) // (count or 1) if tiles else 1
    if count:
        rows = [rows[i : i + count] for i in range(0, len(rows), count)]
    sent, idle = 0, stall.cycles()
    while sent < len(rows):
        go = not idle and (credits > 0 or sent % per_tile != 0)
        idle = max(0, idle - 1)
        if go:
            if sent % per_tile == 0:
                credits -= 1
            ctx.set(port.payload, rows[sent])
            assert ctx.get(port.ready), "not ready although credits are kept"
            sent += 1
            idle = stall.cycles()
        ctx.set(port.valid, go)
        credits += ctx.get(pop)
        await ctx.tick()
    ctx.set(port.valid, 0)


def execute(model, commands, *, share=0.0, start=1, spy=None):
    """Run commands on a MatrixUnit beside `model`; commands are offered from cycle `start` on."""
    for f in commands:
        model.run(f)
    config, dut, run = model.config, MatrixUnit(model.config), Run()
    over = []

    def feeder(port, pop, tiles, count, size, seed):
        async def feed(ctx):
            credits = size // config.tile_bytes
            await feed_tiles(ctx, port, pop, tiles, count, credits, Stall(seed, share))

        return feed

    async def issue(ctx):
        await ctx.tick().repeat(start)
        await put(ctx, dut.cmd, commands, Stall(model.seed, share))

    async def activations(ctx):
        async for _, _, en, addr in ctx.tick().sample(dut.act_en, dut.act_addr):
            if en:
                ctx.set(dut.act_data, model.act[addr].tolist())

    async def watch(ctx):
        cycle = 0
        while len(run.done) < len(commands):
            for signal, cycles in (
                (dut.act_en, run.issued),
                (dut.row_valid, run.rows),
                (dut.done, run.done),
                (dut.wait_tile, run.waits),
            ):
                if ctx.get(signal):
                    cycles.append(cycle)
            if ctx.get(dut.cmd.valid) and ctx.get(dut.cmd.ready):
                run.taken.append(cycle)
            if spy:
                await spy(ctx, dut, run)
            else:
                await ctx.tick()
            cycle += 1
        run.acc = np.array([await read_bank(ctx, dut, bank) for bank in range(2)])
        over.append(True)

    simulate(
        dut,
        feeder(dut.i_weight, dut.weight_pop, model.weight, dut.count, config.weight_fifo_bytes, 1),
        feeder(dut.i_stream, dut.stream_pop, model.stream, None, config.stream_fifo_bytes, 2),
        issue,
        watch,
        background=[activations],
        limit=8000,
    )
    assert over
    return run


async def read_bank(ctx, dut, bank):
    """Return all rows of an accumulator bank, read at one per cycle."""
    words = []
    ctx.set(dut.acc_en, 1)
    ctx.set(dut.acc_bank, bank)
    for row in range(dut.config.acc_rows):
        ctx.set(dut.acc_addr, row)
        await ctx.tick()
        words.append(list(ctx.get(dut.acc_data)))
    ctx.set(dut.acc_en, 0)
    return words


def covering(config):
    """Return commands that overwrite every accumulator, so that all of them are defined."""
    n = config.acc_rows // 16
    return [command(n=n, rows_outer=4, rows_inner=4, act_outer=4, bank=bank, stream=bank) for bank in range(2)]


@for_all_configs
@pytest.mark.parametrize("share", [0, 0.2])
def test_random_commands(config, share):
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    rng = random.Random(seed)
    model = Model(config, seed)
    commands = covering(config) + [random_command(rng, config) for _ in range(6)]
    run = execute(model, commands, share=share)
    np.testing.assert_array_equal(run.acc, model.acc)
    assert len(run.done) == len(commands)


@for_all_configs
def test_few_rows_on_the_same_accumulators(config):
    """One to three rows per tile: the shortest way back to an accumulator, also between commands."""
    model = Model(config, 3)
    commands = covering(config)
    for rows in (1, 2, 3):
        commands += [command(k=3, rows_inner=rows, accumulate=a, stream=a) for a in (0, 1)]
        commands += [command(rows_inner=rows, accumulate=1)] * 2
        commands += [command(k=3, rows_inner=rows, pair=1, accumulate=a, stream=a) for a in (0, 1)]
    run = execute(model, commands)
    np.testing.assert_array_equal(run.acc, model.acc)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("back", [0, 1, 2])
def test_sums_still_on_their_way_are_waited_for(rows, back):
    """Commands that add to the last rows of the one before, and a tile that was loaded early."""
    config = CONFIGS[0]
    model = Model(config, 10)
    commands = [
        *covering(config),
        command(rows_inner=9),
        command(rows_inner=rows, acc=8 - back, accumulate=1),
        command(rows_inner=9),
        command(k=3, rows_inner=rows, acc=20, stream=1),
        command(rows_outer=2, rows_inner=2, acc=20 + back, accumulate=1),
    ]
    run = execute(model, commands, start=40)
    np.testing.assert_array_equal(run.acc, model.acc)


@for_all_configs
def test_product_of_matrices_has_no_bubble(config):
    """Tiles of rows/ingest rows or more: a row in every cycle, over all loops and commands.

    The FIFOs are filled as fast as rows come, one per cycle, so a tile must not be used in less
    than `rows` cycles for long: tiles come from both FIFOs in turn.
    """
    span = config.rows // config.ingest
    model = Model(config, 4)
    commands = [
        command(k=2, n=2, rows_outer=config.rows // span, rows_inner=span, act_outer=2),
        command(rows_inner=config.rows, stream=1, bank=1),
        command(k=2, groups=2, rows_inner=config.rows, act_group=3, accumulate=1),
        command(rows_inner=config.rows + 1, stream=1, accumulate=1),
        command(k=2, n=2, rows_outer=config.rows // 2, pair=1, bank=1, act_outer=3),
    ]
    run = execute(model, commands, start=8 * config.rows)
    expected = [4 * config.rows, config.rows, 4 * config.rows, config.rows + 1, 4 * config.rows]
    assert run.span == len(run.rows) == sum(expected)
    ends = run.issued[0] - 1 + np.cumsum(expected)
    np.testing.assert_array_equal(run.done, ends + MatrixUnit(config).DONE_LATENCY)
    assert not run.waits


@for_all_configs
def test_full_rate_of_ingest(config):
    """With tiles there, tiles of few rows take rows/ingest cycles each, and commands add nothing."""
    span = config.rows // config.ingest
    model = Model(config, 5)
    tiles = config.weight_fifo_bytes // config.tile_bytes
    half = tiles // 2
    for rows in (1, span):
        commands = [command(k=half, rows_inner=rows), command(k=tiles - half, rows_inner=rows)]
        run = execute(Model(config, 5), commands, start=tiles * config.rows + 5)
        assert len(run.rows) == tiles * rows
        assert run.rows[-1] - run.rows[0] == (tiles - 1) * span + rows - 1
        assert not run.waits
    assert not model.weight


def test_one_tile_per_command_at_full_rate():
    config = CONFIGS[0]
    run = execute(Model(config, 6), [command(acc=i, stream=i % 2) for i in range(8)], start=40)
    assert np.diff(run.rows).tolist() == [4] * 7
    assert np.diff(run.done).tolist() == [4] * 7
    assert not run.waits


def test_stated_latencies():
    config = CONFIGS[1]
    run = execute(Model(config, 7), [command(rows_inner=5)], start=20)
    assert run.issued[0] - run.taken[0] == MatrixUnit.ISSUE_LATENCY
    assert run.rows[0] == run.issued[0] + 1
    assert run.done[0] - run.issued[-1] == MatrixUnit(config).DONE_LATENCY


def test_waiting_for_tiles_is_counted():
    """A command before its tile: waits until the tile is whole, and not before the command."""
    config = CONFIGS[0]
    run = execute(Model(config, 8), [command(k=8)], start=1)
    # One row per tile and cycle: tiles come every rows = 4 cycles, just as fast as they are used.
    assert run.waits
    assert all(run.taken[0] < cycle < run.rows[0] for cycle in run.waits)


def test_one_bank_is_read_while_the_other_is_written():
    config = CONFIGS[1]
    model = Model(config, 9)
    first = Model(config, 9)
    commands = [command(n=2, rows_inner=8), command(k=4, n=8, rows_inner=8, bank=1)]
    first.run(commands[0])
    words = []

    async def spy(ctx, dut, run):
        if len(run.done) == 1:
            row = len(words) % 16
            ctx.set(dut.acc_en, 1)
            ctx.set(dut.acc_addr, row)
            await ctx.tick()
            words.append((row, list(ctx.get(dut.acc_data))))
        else:
            await ctx.tick()

    run = execute(model, commands, spy=spy)
    assert len(words) > 100
    for row, word in words:
        assert word == first.acc[0, row].tolist()
    np.testing.assert_array_equal(run.acc[1], model.acc[1])


def test_config_is_checked():
    with pytest.raises(TypeError, match=r"^config must be an AcceleratorConfig, not None$"):
        MatrixUnit(None)
