"""Every public block keeps what its docstring promises: sections, refused parameters, latencies."""

import inspect
import re

import pytest
from amaranth.sim import Simulator

import tilewright_hw
from tilewright_hw import (
    Accelerator,
    ActBuffer,
    ControlRegisters,
    MemoryReader,
    Sequencer,
    Skew,
    Softmax,
    StoreUnit,
    StreamBuffer,
    StreamFifo,
    TileFifo,
    VectorUnit,
    WidthConverter,
)
from tilewright_hw.arch import REGISTERS, AcceleratorConfig

TINY = AcceleratorConfig.preset("tiny")
BLOCKS = [name for name in tilewright_hw.__all__ if name != "AcceleratorConfig"]
GOOD = {
    "Accumulators": {"cols": 4, "depth": 8, "width": 18},
    "Skew": {"shape": 8, "count": 4, "step": 1},
    "Softmax": {"lanes": 2, "max_length": 8},
    "StreamBuffer": {"shape": 8},
    "StreamFifo": {"shape": 8, "depth": 4},
    "SystolicArray": {"rows": 4, "cols": 4, "ingest": 2},
    "TileFifo": {"rows": 4, "cols": 4, "ingest": 2, "tiles": 4, "count": 1},
    "WidthConverter": {"bus_bytes": 4, "slot": 8, "used": 5, "ends": 0},
}
"""Good parameters of the blocks that do not take a configuration."""
WRONG = ("4", None, 4.0, True, [4], 0, -1, 10**9)
BAD = [
    (name, key, value)
    for name, parameters in GOOD.items()
    for key in parameters
    for value in WRONG
    if (key, value) != ("ends", 0)
]


def make(name, **changes):
    block = getattr(tilewright_hw, name)
    return block(TINY) if name not in GOOD else block(**(GOOD[name] | changes))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_docstring_has_all_sections(name):
    """Equation or task, flow control, latency, number format; every parameter and every port by name."""
    block = getattr(tilewright_hw, name)
    text = inspect.getdoc(block)
    assert re.match(r"\S.*\S", text)
    for part in ("Flow control:", "Latency:", "Number format:"):
        assert part in text, part
    before, members = text.split("\nMembers\n-------\n")
    parameters = before.split("\nParameters\n----------\n")[1]
    for parameter in inspect.signature(block).parameters:
        assert re.search(rf"^(\w+, )*{parameter}(, \w+)* : ", parameters, re.M), parameter
    if block is Accelerator:
        assert all(port.startswith(("m_axi_", "s_axil_", "irq")) for port in make(name).signature.members)
        return
    with_ports = set(re.findall(r"\b(\w+)\b(?=[^:\n]* : (?:In|Out)\b)", members))
    assert set(make(name).signature.members) == with_ports & set(make(name).signature.members)


@pytest.mark.parametrize(
    ("name", "key", "value"), BAD, ids=lambda part: repr(part) if not isinstance(part, str) else part
)
@pytest.mark.filterwarnings("ignore::amaranth.UnusedElaboratable")
def test_bad_parameters_are_named(name, key, value):
    with pytest.raises((TypeError, ValueError)) as caught:
        make(name, **{key: value})
    assert re.fullmatch(rf"{key} must .*, not {re.escape(repr(value))}", str(caught.value)), caught.value


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in GOOD])
@pytest.mark.parametrize("value", ["tiny", None, 16, {"rows": 4}])
def test_a_unit_takes_a_configuration(name, value):
    with pytest.raises(TypeError) as caught:
        getattr(tilewright_hw, name)(value)
    assert str(caught.value) == f"config must be an AcceleratorConfig, not {value!r}"


@pytest.mark.parametrize("name", GOOD)
def test_parameters_are_attributes(name):
    block = make(name)
    assert {key: getattr(block, key) for key in GOOD[name]} == GOOD[name]


def simulate(dut, bench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6, if_exists=True)
    simulator.add_testbench(bench)
    simulator.run()


def at(component, path):
    for part in path.split("."):
        component = getattr(component, part)
    return component


def cycles_until(dut, inputs, wanted, *, limit=80):
    """Apply inputs (a valid until it is taken, a start for one cycle) and return the cycles until `wanted` is 1."""
    found = []

    def taken(ctx, path):
        if path.endswith("valid"):
            return ctx.get(at(dut, path.replace("valid", "ready")))
        return path.endswith(("start", "en"))

    async def bench(ctx):
        await ctx.tick().repeat(3)
        for path, value in inputs.items():
            ctx.set(at(dut, path), value)
        for cycle in range(limit):
            if ctx.get(at(dut, wanted)):
                found.append(cycle)
                return
            over = [path for path in inputs if taken(ctx, path)]
            await ctx.tick()
            for path in over:
                ctx.set(at(dut, path), 0)

    simulate(dut, bench)
    assert found, f"{wanted} stayed 0 for {limit} cycles"
    return found[0]


ONE_RUN = {"bytes": 16, "count": 1}
STORE = {"n": 4, "m": 1, "h": 1, "run": 4, "element": 0}
VECTOR = {"n": 4, "m": 1, "h": 1}


@pytest.mark.parametrize(
    ("dut", "inputs", "wanted", "latency"),
    [
        (StreamFifo(8, 4), {"i.valid": 1}, "o.valid", StreamFifo.LATENCY),
        (StreamBuffer(8), {"i.valid": 1}, "o.valid", StreamBuffer.LATENCY),
        (TileFifo(rows=1, cols=2, ingest=1, tiles=2), {"i.valid": 1}, "available", 1),
        (MemoryReader(TINY), {"fetch.valid": 1, "fetch.payload": {"beats": 1}}, "axi.arvalid",
         MemoryReader.FETCH_LATENCY),
        (MemoryReader(TINY), {"load_cmd.valid": 1, "load_cmd.payload": ONE_RUN}, "axi.arvalid",
         MemoryReader.COMMAND_LATENCY),
        (MemoryReader(TINY), {"weight_cmd.valid": 1, "weight_cmd.payload": ONE_RUN}, "axi.arvalid",
         MemoryReader.COMMAND_LATENCY),
        (StoreUnit(TINY), {"cmd.valid": 1, "cmd.payload": STORE}, "axi.awvalid", StoreUnit.COMMAND_LATENCY),
        (Sequencer(TINY), {"start": 1}, "fetch.valid", Sequencer.START_LATENCY),
        (VectorUnit(TINY), {"cmd.valid": 1, "cmd.payload": VECTOR}, "acc_en", VectorUnit.ISSUE_LATENCY),
        (ControlRegisters(TINY), {"bus.awvalid": 1, "bus.wvalid": 1, "bus.bready": 1}, "bus.bvalid",
         ControlRegisters.WRITE_LATENCY),
        (ControlRegisters(TINY), {"bus.arvalid": 1, "bus.rready": 1}, "bus.rvalid", ControlRegisters.READ_LATENCY),
        pytest.param(
            Accelerator(TINY), {"s_axil_awvalid": 1, "s_axil_awaddr": REGISTERS["CONTROL"].address, "s_axil_wvalid": 1,
                                "s_axil_wdata": 1, "s_axil_wstrb": 15}, "m_axi_arvalid", Accelerator.START_LATENCY,
            marks=pytest.mark.slow),
    ],
    ids=lambda part: type(part).__name__ if hasattr(part, "elaborate") else part if isinstance(part, str) else "",
)  # fmt: skip
def test_latencies(dut, inputs, wanted, latency):
    assert cycles_until(dut, inputs, wanted) == latency


@pytest.mark.parametrize("slot", [2, 4, 8, 16])
def test_the_latency_of_a_width_converter(slot):
    """A word is there with its last beat (of one or several), or in the cycle after that."""
    dut = WidthConverter(bus_bytes=4, slot=slot, used=slot)
    assert dut.latency == (slot > 4)
    found = []

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        beats = max(1, slot // 4)
        for cycle in range(beats + dut.latency):
            if ctx.get(dut.o.valid):
                found.append(cycle - (beats - 1))
            if dut.latency:
                await ctx.tick()

    simulate(dut, bench)
    assert found == [dut.latency]


@pytest.mark.parametrize(("count", "step"), [(1, 1), (4, 1), (3, 2)])
def test_the_latency_of_a_skew(count, step):
    """A row of ones: lane k shows it k * step cycles later, and no cycle before."""
    dut = Skew(1, count, step)
    assert dut.latency == (count - 1) * step
    seen = {}

    async def bench(ctx):
        ctx.set(dut.valid, 1)
        ctx.set(dut.i, [1] * count)
        for cycle in range(dut.latency + 1):
            for lane in range(count):
                if ctx.get(dut.o)[lane]:
                    seen.setdefault(lane, cycle)
            if dut.latency:
                await ctx.tick()

    simulate(dut, bench)
    assert seen == {lane: lane * step for lane in range(count)}


@pytest.mark.parametrize(("lanes", "words", "max_words"), [(1, 1, 4), (2, 5, 5), (3, 2, 4), (4, 1, 1)])
def test_the_latency_of_a_softmax(lanes, words, max_words):
    dut = Softmax(lanes=lanes, max_length=lanes * max_words)
    found = []

    async def bench(ctx):
        for cycle in range(120):
            word = {"data": [0x3F8000] * lanes, "keep": (1 << lanes) - 1, "last": cycle == words - 1}
            ctx.set(dut.i.payload, word)
            ctx.set(dut.i.valid, cycle < words)
            if ctx.get(dut.o.valid):
                found.append(cycle)
                return
            await ctx.tick()

    simulate(dut, bench)
    assert found == [dut.latency(words)]


def test_the_latency_of_an_activation_buffer():
    """What is written in a cycle is read in the next, and there a cycle later."""
    dut = ActBuffer(TINY)
    found = []

    async def bench(ctx):
        for name, value in {"en": 1, "addr": 3, "part": 1, "data": [-5, 7]}.items():
            ctx.set(getattr(dut.write, name), value)
        await ctx.tick()
        ctx.set(dut.write.en, 0)
        ctx.set(dut.en, 1)
        ctx.set(dut.addr, 3)
        for _ in range(ActBuffer.LATENCY):
            await ctx.tick()
        found.extend(ctx.get(dut.data)[2 + k] for k in range(2))

    simulate(dut, bench)
    assert found == [-5, 7]
    assert ActBuffer.LATENCY == 1
