"""`VectorUnit` against `golden.BLOCKS["VectorUnit"]`, bit by bit: instructions of every kind, extreme values.

The row buffer and the statistics can be seen through instructions only: each test ends with some that store them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge
from numpy.typing import NDArray

from tilewright_hw.arch import AcceleratorConfig, Op
from tilewright_hw.arch.isa import Add, Dest, Func, Mul, Reduce, Scale, Source
from tilewright_sim.benches.beside_golden import Fields, send_accepted
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
    unpack,
)
from tilewright_sim.golden import BLOCKS, formats
from tilewright_sim.golden.machine import Machine
from tilewright_sim.golden.memory import Memory
from tilewright_sim.golden.state import TABLE_WORDS, Fault

CONFIG = AcceleratorConfig.from_dict(parameters())
ROWS, COLS, LANES = CONFIG.rows, CONFIG.cols, CONFIG.lanes
COMMAND = Layout.operands(Op.VECTOR)
WORD = Layout({"addr": 16, "data": 24 * LANES})
SEGMENT = Layout({"data": 32, "shifts": 16, "last": 1})
ONE = CONFIG.row_words - 1
"""A word of the row buffer that holds 1.0 and is no destination."""
ONES = 0x3F800000
MOST = 20_000


def vector(**fields: int) -> Fields:
    """Return the fields of an instruction on one row of one element, but for what is given."""
    return {"n": 1, "m": 1, "h": 1, "limit": 65535, "const1": ONES} | fields


def random_bits(rng: random.Random, spread: int = 8) -> int:
    """Return an F24: near one, or an extreme."""
    if rng.random() < 0.06:
        return rng.choice((0, 0x008000, 0x808000, 0x7F7FFF, 0xFF7FFF, 0x3F8000, 0xBF8000))
    return rng.getrandbits(1) << 23 | rng.randint(127 - spread, 127 + spread) << 15 | rng.getrandbits(15)


def floats(patterns: Iterable[int]) -> NDArray[np.float64]:
    """Return the values of F24 bit patterns."""
    values: NDArray[np.float64] = formats.load_fp32(np.array(list(patterns), np.uint32) << np.uint32(8))
    return values


def random_vector(rng: random.Random) -> Fields:
    """Return an instruction: sources in one half of the buffers, results in the other; golden may refuse it."""
    n = rng.choice((1, 2, 3, 4, 5, 7, 8, 12))
    f = vector(n=n, m=rng.randint(1, 3), h=rng.randint(1, 3))
    words = -(-n // LANES)
    f["source"] = rng.choice((Source.ACC, Source.ACC, Source.ROW, Source.ROW, Source.STAT))
    f["dest"] = rng.choice(list(Dest))
    if f["source"] == Source.STAT:
        f["n"] = n = words = 1
    half = rng.getrandbits(1)
    rows, stats = CONFIG.row_words // 2, CONFIG.stat_entries // 2

    def stride(least: int) -> int:
        return rng.choice((least, least, least + 1, 0, 1))

    f |= {
        f"stat{s}": v
        for s, v in (("", half * stats + rng.randrange(8)), ("_m", rng.randint(0, 5)), ("_h", rng.randint(0, 5)))
    }
    f |= {"red": (1 - half) * stats + rng.randrange(8), "red_h": rng.choice((1, 2)), "red_m": rng.choice((6, 7))}
    f |= {"row": half * rows + rng.randrange(20), "row_m": stride(3 * words), "row_h": stride(words)}
    f |= {"par": rng.randrange(8), "par_m": stride(words), "par_h": stride(words)}
    if f["source"] == Source.ACC:
        f |= {
            "src": rng.randrange(4),
            "src_n": rng.randint(1, 8),
            "src_m": rng.randint(0, 9),
            "src_h": rng.randint(0, 9),
        }
        f |= {"bank": rng.getrandbits(1), "wide": rng.random() < 0.25}
    else:
        f |= {"src": half * rows + rng.randrange(20), "src_m": stride(3 * words), "src_h": stride(words)}
    if f["dest"] in (Dest.ACT, Dest.ACT16):
        words = -(-n // ROWS) * (2 if f["dest"] == Dest.ACT16 else 1)
        f["dst"] = rng.randrange(max(1, CONFIG.act_words - 9 * (words + 1)))
    else:
        f["dst"] = (1 - half) * rows + rng.randrange(20)
    f |= {"dst_h": words + rng.randint(0, 1), "dst_m": 3 * (words + 1)}
    if f["dest"] == Dest.STORE_RAW:
        return f | {"source": rng.choice((Source.ACC, Source.STAT)) if n == 1 else Source.ACC, "wide": 0}
    return f | random_arithmetic(rng, f)


def random_arithmetic(rng: random.Random, f: Fields) -> Fields:
    """Return what is done with the elements, and how they are reduced."""
    g = {
        "scale": rng.choice((Scale.NONE, *Scale)),
        "param": rng.random() < 0.3,
        "add": rng.choice((Add.NONE, Add.NONE, *Add)),
        "func": rng.choice((Func.NONE, Func.NONE, *Func)),
        "mul": rng.choice((Mul.NONE, Mul.NONE, *Mul)),
        "reduce": rng.choice((Reduce.NONE, *Reduce)),
        "reduce_outer": rng.random() < 0.2,
        "scale16": rng.getrandbits(1),
        "causal": rng.random() < 0.3,
        "limit": rng.choice((65535, 65535, rng.randint(0, f["n"] + 1))),
        "const1": random_bits(rng, 4) << 8,
        "const2": rng.randint(110, 130) << 7 | rng.getrandbits(7),
    }
    if g["add"] == Add.ROTATE:
        g |= {"scale": 0, "param": 0}
    if g["reduce"] in (Reduce.MAX, Reduce.ARGMAX):
        g["merge"] = rng.random() < 0.4
    if g["reduce"] == Reduce.ARGMAX:
        g["const1"] = rng.getrandbits(24) << 8
    if g["reduce"] in (Reduce.SUM, Reduce.SUMSQ, Reduce.VAR):
        g["const1"] = formats_bits(1.0 / f["n"])
    if g["reduce"] == Reduce.VAR:
        g |= {"limit": 65535, "causal": 0, "reduce_outer": 0}
    return g


def formats_bits(value: float) -> int:
    """Return an F24 as an instruction's constant."""
    return int(formats.store_fp32(formats.round_f24(np.array([value])))[0])


class Bench:
    """The unit beside the golden machine, with accumulators, activation buffer, store stream and loads around it.

    Parameters
    ----------
    dut : handle
        The design.
    rng : random.Random
        For all that is random.
    share : float
        Share of the time in which each stream pauses.
    """

    def __init__(self, dut: Any, rng: random.Random, share: float) -> None:
        self.dut, self.rng = dut, rng
        self.machine = Machine(CONFIG, Memory(1024))
        buffers = self.machine.buffers
        for acc in (buffers.acc0, buffers.acc1):
            shift = np.array([[rng.randrange(32) for _ in range(COLS)] for _ in range(CONFIG.acc_rows)])
            acc[:] = np.frombuffer(rng.randbytes(acc.nbytes), np.int32).reshape(acc.shape) >> shift
            acc[0] = [-(1 << 31), (1 << 31) - 1, 0, -1][:COLS] + [1] * (COLS - 4)
        self.act = np.zeros_like(buffers.act)
        self.checker = InOrderChecker("o_store")
        self.commands = StreamSource(dut, "cmd", rng, share)
        self.loads = {name: StreamSource(dut, f"i_{name}", rng, share) for name in ("row", "param", "table")}
        StreamSink(dut, "o_store", rng, share).start()
        Monitor.of_stream(dut, "o_store", self._saw_store).start()
        self._masks: list[int] = []
        self.sent = self.done = self.seen = self.waits = 0

    async def start(self) -> None:
        """Start the clock, reset, and fill what the instructions read."""
        self.dut.acc_data.value = 0
        start_clock(self.dut)
        await pulse_reset(self.dut)
        cocotb.start_soon(self._accumulators())
        cocotb.start_soon(self._watch())
        await self.fill()

    async def fill(self) -> None:
        """Load every word of the row and the parameter buffer and a table, and write every entry of the statistics."""
        for source in (self.commands, *self.loads.values()):
            source.start()
        for name, words in (("row", CONFIG.row_words), ("param", CONFIG.param_words)):
            for address in range(words):
                self.load(name, address, [random_bits(self.rng) for _ in range(LANES)])
        self.load("row", ONE, [0x3F8000] * LANES)
        self.load_table()
        await self.loaded()
        half = CONFIG.stat_entries // 2
        for first in (0, half):
            assert self.send(vector(n=3, m=half, source=Source.ROW, src_m=3, reduce=Reduce.QSCALE, red=first, red_m=1))

    async def reset(self) -> None:
        """Reset in the middle of work, and fill everything again: what was being written is not known."""
        for source in (self.commands, *self.loads.values()):
            source.stop()
        await pulse_reset(self.dut, 1)
        self.checker.clear()
        self._masks.clear()
        self.machine.store.chunks.clear()
        self.sent = self.done = self.seen = 0
        for _ in range(80):
            await RisingEdge(self.dut.clk)
            assert not self.dut.done.value
            assert not self.dut.act_en.value
            assert not self.dut.acc_en.value
        assert not self.seen
        self.act[:] = self.machine.buffers.act
        await self.fill()

    def load(self, name: str, address: int, word: list[int]) -> None:
        """Have a word loaded."""
        getattr(self.machine.buffers, name)[address] = floats(word)
        self.loads[name].send([WORD.pack({"addr": address, "data": pack(word, 24)})])

    def load_table(self) -> None:
        """Have a random function loaded: segments that go up and down, and shifts."""
        buffers, rng = self.machine.buffers, self.rng
        shifts = [rng.randint(12, 26), rng.randint(0, 24)]
        words = [rng.getrandbits(32) for _ in range(TABLE_WORDS)]
        buffers.table[:, 0] = words
        buffers.shifts[:] = shifts
        packed = shifts[0] | shifts[1] << 8
        last = TABLE_WORDS - 1
        self.loads["table"].send(
            SEGMENT.pack({"data": word, "shifts": packed, "last": i == last}) for i, word in enumerate(words)
        )

    async def loaded(self) -> None:
        """Wait until all loads have been taken."""
        for _ in range(MOST):
            await RisingEdge(self.dut.clk)
            if not any(source.pending for source in self.loads.values()):
                return
        raise AssertionError("the loads do not end")

    async def _accumulators(self) -> None:
        dut, buffers = self.dut, self.machine.buffers
        while True:
            await RisingEdge(dut.clk)
            if dut.acc_en.value:
                acc = buffers.acc1 if dut.acc_bank.value else buffers.acc0
                dut.acc_data.value = pack(acc[int(dut.acc_addr.value)].tolist(), 32)
            else:
                dut.acc_data.value = self.rng.getrandbits(32 * COLS)

    async def _watch(self) -> None:
        """Collect what is written to the activation buffer, and count `done`."""
        dut, parts = self.dut, ROWS // LANES
        while True:
            await RisingEdge(dut.clk)
            if dut.rst.value:
                continue
            if dut.act_en.value:
                part = int(dut.act_part.value) if parts > 1 else 0
                place = slice(part * LANES, (part + 1) * LANES)
                self.act[int(dut.act_addr.value), place] = unpack(int(dut.act_data.value), 8, LANES, signed=True)
            self.waits += int(dut.wait_store.value)
            self.done += int(dut.done.value)
            assert self.done <= self.sent, "done without a command"

    def _saw_store(self, item: int) -> None:
        self.seen += 1
        assert self._masks, "a word was stored that no instruction stores"
        self.checker.receive(item & self._masks.pop(0))

    def send(self, f: Fields) -> bool:
        """Execute an instruction on the golden machine and have it sent; False where that refuses it."""
        fields = defaultdict(int, f)
        try:
            BLOCKS["VectorUnit"](self.machine, fields)(self.machine)
        except Fault:
            return False
        for chunk in self.machine.store.chunks:
            bits = {1: np.uint8, 2: np.uint16, 4: np.uint32}[1 << chunk.element]
            words = (
                chunk.words.astype(np.int64).astype(bits)
                if chunk.words.dtype.itemsize != 1 << chunk.element
                else chunk.words.view(bits)
            )
            self._expect(fields, words)
        self.machine.store.chunks.clear()
        self.commands.send([COMMAND.pack(f)])
        self.sent += 1
        return True

    def _expect(self, f: defaultdict[str, int], words: NDArray[Any]) -> None:
        """Expect words of the store stream; of STORE_RAW, the lanes past n are as they come."""
        per_row = -(-f["n"] // LANES)
        for i, word in enumerate(words.tolist()):
            lanes = LANES
            if f["dest"] == Dest.STORE_RAW and i % per_row == per_row - 1:
                lanes = f["n"] - (per_row - 1) * LANES
            mask = (1 << 32 * lanes) - 1
            self._masks.append(mask)
            self.checker.expect(pack(word, 32) & mask)

    def dump(self) -> None:
        """Send instructions that store the row buffer, the parameters and the statistics."""
        words = min(CONFIG.row_words, CONFIG.param_words)
        f = vector(n=LANES, m=CONFIG.row_words, source=Source.ROW, src_m=1, dest=Dest.STORE_FP32)
        assert self.send(f)
        assert self.send(vector(n=LANES, m=words, source=Source.ROW, src=ONE, param=1, par_m=1, dest=Dest.STORE_FP32))
        f = vector(m=CONFIG.stat_entries, stat_m=1)
        assert self.send(f | {"source": Source.STAT, "dest": Dest.STORE_RAW})
        assert self.send(f | {"source": Source.ROW, "src": ONE, "scale": Scale.STAT_A, "dest": Dest.STORE_FP32})

    async def finish(self) -> None:
        """Wait until everything is done, and compare all that the unit has written."""
        self.dump()
        await self.wait()
        different = np.argwhere(self.act != self.machine.buffers.act)
        assert not different.size, f"{len(different)} activations differ, the first at {different[0]}"

    async def wait(self) -> None:
        """Wait until all commands are done and all words of theirs have come."""
        for _ in range(MOST):
            await RisingEdge(self.dut.clk)
            if self.done == self.sent and not self.checker.missing:
                return
        raise AssertionError(f"{self.done} of {self.sent} were done, {self.checker.missing} words are missing")


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.4])
async def test_random_instructions(dut: Any, share: float) -> None:
    rng = generator(f"instructions {share}")
    bench = Bench(dut, rng, share)
    await bench.start()
    send_accepted(bench.send, lambda: random_vector(rng), 120)
    await bench.finish()


@cocotb.test()
async def test_every_choice_of_an_operand(dut: Any) -> None:
    """Each adder, function, factor, reduction and destination once, by itself, on several rows."""
    rng = generator("choices")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    half, stats = CONFIG.row_words // 2, CONFIG.stat_entries // 2
    plain = vector(n=6, m=2, h=2, src_n=1, src_m=4, src_h=2, stat_m=2, stat_h=1, row_m=6, row_h=3, par_m=3)
    plain |= {"dst": half, "dst_m": 8, "dst_h": 4, "red": stats, "red_m": 4, "red_h": 1, "scale": Scale.CONST}
    plain |= {"const1": formats_bits(2.0**-29)}  # accumulators come near one
    for dest in Dest:
        place = {"dst": 3} if dest in (Dest.ACT, Dest.ACT16) else {}
        assert bench.send(plain | place | {"dest": dest, "scale": 0 if dest is Dest.STORE_RAW else Scale.CONST})
    plain |= {"dest": Dest.STORE_FP32}
    for add in Add:
        assert bench.send(plain | {"add": add, **({"scale": 0} if add is Add.ROTATE else {})})
    for func in Func:
        for mul in (Mul.NONE, Mul.SELF):
            assert bench.send(plain | {"func": func, "mul": mul})
    for mul in (Mul.ROW, Mul.PARAM):
        assert bench.send(plain | {"mul": mul})
    for scale in Scale:
        assert bench.send(plain | {"scale": scale, "param": 1})
    reduced = {Reduce.SUM, Reduce.SUMSQ, Reduce.VAR}
    for reduce in set(Reduce) - reduced:
        for outer in (0, 1):
            assert bench.send(plain | {"reduce": reduce, "reduce_outer": outer, "limit": 4, "causal": 1})
    for reduce in (Reduce.MAX, Reduce.ARGMAX):
        assert bench.send(plain | {"reduce": reduce, "merge": 1, "stat": stats, "red": 0})
    for reduce in sorted(reduced):  # of what its own ABSMAX has measured
        assert bench.send(plain | {"reduce": Reduce.ABSMAX, "red": 40, "red_m": 2})
        stat = {"stat": 40, "stat_m": 2, "stat_h": 1, "const2": 0x3727}
        assert bench.send(plain | stat | {"reduce": reduce, "red": 50, "red_m": 2})
    await bench.finish()


EXTREMES = (0x7F7FFF, 0xFF7FFF, 0x008000, 0x808000, 0, 0x7F0000, 0x3F8000, 0xFF0000)
"""The largest and the smallest floats, zero, one, and what overflows when it is doubled."""


@cocotb.test()
async def test_extremes(dut: Any) -> None:
    """Overflow and flushing in every function and reduction; reductions of rows as long as the buffer takes."""
    rng = generator("extremes")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    await bench.wait()
    words = 8
    for i in range(words):
        bench.load("row", i, [EXTREMES[(i + j * (i + 1)) % len(EXTREMES)] for j in range(LANES)])
    await bench.loaded()
    plain = vector(n=LANES, m=words, source=Source.ROW, src_m=1, red_m=1, stat_m=1)
    for mul in (Mul.NONE, Mul.SELF, Mul.PARAM):
        for func in Func:
            assert bench.send(plain | {"mul": mul, "func": func, "dest": Dest.STORE_FP32})
    assert bench.send(plain | {"scale": Scale.CONST, "const1": 0x7F7FFF00, "dest": Dest.STORE_FP32})
    for dest in (Dest.ACT, Dest.ACT16, Dest.STORE_BF16, Dest.STORE_INT8):
        assert bench.send(plain | {"dest": dest, "dst_m": 2})
    for n, m in ((LANES, words), (words * LANES, 1)):
        rows = plain | {"n": n, "m": m}
        assert bench.send(rows | {"reduce": Reduce.ABSMAX, "red": 0})
        for reduce in (Reduce.SUM, Reduce.SUMSQ, Reduce.VAR, Reduce.QSCALE, Reduce.EXPSUM, Reduce.MAX, Reduce.ARGMAX):
            for const1 in (formats_bits(1.0 / n), 0x7F7FFF00, 0x00800000):
                assert bench.send(rows | {"reduce": reduce, "red": 16, "const1": const1, "const2": 0x0080})
                assert bench.send(vector(m=m, stat=16, stat_m=1, source=Source.STAT, dest=Dest.STORE_RAW))
    for i in range(words, ONE):  # each element is more than the one before: the last valid one is the largest
        bench.load("row", i, [0x3F8000 + LANES * i + lane for lane in range(LANES)])
    await bench.wait()
    await bench.loaded()
    long = (ONE - words) * LANES
    for reduce in (Reduce.ARGMAX, Reduce.MAX, Reduce.EXPSUM):
        for limit in (long, long - 3, long // 2, 129, 65):
            row = vector(n=long, source=Source.ROW, src=words, limit=limit, red=20, const1=7 << 8)
            assert bench.send(row | {"reduce": reduce})
            assert bench.send(vector(source=Source.STAT, stat=20, dest=Dest.STORE_RAW))
    await bench.finish()


@cocotb.test()
async def test_loads_beside_instructions(dut: Any) -> None:
    """Words and a table come in while instructions run that do not use them."""
    rng = generator("loads")
    bench = Bench(dut, rng, 0.3)
    await bench.start()
    await bench.wait()
    for _ in range(3):
        for _ in range(20):
            bench.load("row", rng.randrange(ONE), [random_bits(rng) for _ in range(LANES)])
            bench.load("param", rng.randrange(CONFIG.param_words), [random_bits(rng) for _ in range(LANES)])
        bench.load_table()
        for i in range(8):
            f = vector(n=8, m=2, h=2, src_n=1, src_m=2, src_h=3, dst=8 * i, dst_m=4, dst_h=2, dest=Dest.ACT)
            assert bench.send(f | {"scale": Scale.CONST, "const1": formats_bits(2.0**-26)})
        await bench.loaded()
        await bench.wait()
        f = vector(n=4, m=4, src_n=1, src_m=2, func=Func.TABLE, scale=Scale.CONST, dest=Dest.STORE_FP32)
        assert bench.send(f | {"const1": formats_bits(2.0**-30)})
        await bench.wait()  # the next table would come before it
    await bench.finish()


@cocotb.test()
async def test_a_word_per_cycle(dut: Any) -> None:
    """Rows follow each other without a gap, those of one word too; nothing waits for a store stream that is taken."""
    rng = generator("throughput")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    await bench.wait()
    for n in (1, 12):
        words = -(-n // LANES)
        m = 240 // words
        assert bench.send(vector(n=n, m=m, source=Source.ROW, src_m=1 if n == 1 else 0, dest=Dest.STORE_FP32))
        await RisingEdge(dut.clk)
        before = bench.done
        for cycle in range(400):  # noqa: B007
            await RisingEdge(dut.clk)
            if bench.done > before:
                break
        assert cycle < 240 + 60
    assert not bench.waits
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(cycles=[1, 12, 27, 42, 90])
async def test_reset_in_the_middle(dut: Any, cycles: int) -> None:
    """First of long rows, so that each of the unit's stages is in the middle of one."""
    rng = generator(f"reset {cycles}")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    await bench.wait()
    rows = vector(n=31, m=6, source=Source.ROW, src_m=16, scale=Scale.STAT_B, reduce=Reduce.QSCALE, red=40, red_m=1)
    assert bench.send(rows | {"dest": Dest.ACT, "dst_m": 8, "stat_m": 1})
    send_accepted(bench.send, lambda: random_vector(rng), 12)
    await ClockCycles(dut.clk, cycles)
    await bench.reset()
    send_accepted(bench.send, lambda: random_vector(rng), 12)
    await bench.finish()


@cocotb.test()
async def test_resets_among_short_rows(dut: Any) -> None:
    """Rows of one word keep every stage of the reductions busy: what one of them does late would meet the next rows."""
    rng = generator("short rows")
    bench = Bench(dut, rng, 0.0)
    await bench.start()
    await bench.wait()
    m = half = CONFIG.stat_entries // 2
    rows = vector(n=LANES, m=m, source=Source.ROW, src_m=1, stat_m=1, red_m=1)
    variance = {"reduce": Reduce.VAR, "red": half, "const1": formats_bits(1.0 / LANES), "const2": 0x3727}
    for _ in range(16):
        assert bench.send(rows | {"reduce": Reduce.ABSMAX})
        for _ in range(3):
            assert bench.send(rows | variance)
        await ClockCycles(dut.clk, rng.randint(m + 40, 4 * m + 40))
        await bench.reset()
        assert bench.send(rows | {"reduce": Reduce.ABSMAX})
        assert bench.send(rows | variance)
        bench.dump()
        await bench.wait()
