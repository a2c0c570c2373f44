"""`open_block`: ports of every shape, the clock, the reset and dumps, on PyVerilator; its build is cached."""

import sys

import numpy as np
import pytest
from amaranth import Module, Signal, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.arch import InputError
from tilewright_sim.interactive import open_block
from tilewright_sim.interactive.ports import ports_of


class Mode(enum.Enum, shape=2):
    HOLD = 0
    ADD = 1


class Pair(data.Struct):
    small: signed(4)
    wide: 70


class Shapes(wiring.Component):
    """A register behind every kind of port, and one path without a register."""

    def __init__(self, step=1):
        self.step = step
        super().__init__(
            {
                "i": In(stream.Signature(Pair)),
                "o": Out(stream.Signature(Pair)),
                "mode": In(Mode),
                "o_mode": Out(Mode),
                "i_x": In(signed(8)).array(2, 3),
                "o_x": Out(signed(8)).array(2, 3),
                "none": In(0),
                "now__later": Out(40),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.i.ready.eq(~self.o.valid | self.o.ready), self.now__later.eq(self.i.p.wide + self.step)]
        with m.If(self.i.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid), self.o.payload.eq(self.i.payload)]
        m.d.sync += self.o_mode.eq(self.mode)
        for row in range(2):
            for column in range(3):
                kept = Signal(signed(8), name=f"kept_{row}_{column}", init=row - column)
                m.d.sync += kept.eq(self.i_x[row][column])
                m.d.comb += self.o_x[row][column].eq(kept)
        return m


class Wire(wiring.Component):
    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(~self.i)
        return m


@pytest.fixture(scope="module")
def opened():
    return open_block(Shapes())


@pytest.fixture
def block(opened):
    for port in opened.ports.values():
        if port.direction == "input":
            opened.io[port.name] = 0
    opened.reset()
    return opened


def test_it_is_a_pyverilator(block):
    import pyverilator

    assert isinstance(block, pyverilator.PyVerilator)
    assert repr(block).startswith("<Shapes in simulation: i_payload, i_valid, i_ready, ")
    assert "none" not in block.ports
    block.io.i_valid = 1
    block.clock.tick()
    assert block.io.o_valid == 1


def test_poke_and_peek_know_the_shapes(block):
    """What is poked comes out a tick later, and not before; wider than 64 bits, negative, nested."""
    x = [[-128, 0, 127], [1, -1, 2]]
    pair = {"small": -5, "wide": (1 << 69) + 3}
    before = block.peek("o_x")
    for port, value in (("i_payload", pair), ("i_valid", 1), ("mode", Mode.ADD), ("i_x", x)):
        block.poke(port, value)
    assert block.peek("i_payload") == pair
    assert (block.peek("o_x"), block.peek("o_valid")) == (before, 0)
    assert block.peek("now__later") == 4  # without a register: at once
    block.tick()
    assert (block.peek("o_x"), block.peek("o_payload"), block.peek("o_mode")) == (x, pair, Mode.ADD)
    block.poke("i_x", np.array(x, np.int8)[::-1])
    block.poke("i_payload", (1 << 74) - 1)
    block.poke("mode", 0)
    block.poke("o_ready", np.uint8(1))
    block.tick(2)
    assert (block.peek("o_x"), block.peek("o_mode")) == (x[::-1], Mode.HOLD)
    assert block.peek("o_payload") == {"small": -1, "wide": (1 << 70) - 1}


def test_reset_and_initial_values(block):
    block.poke("i_valid", 1)
    block.tick()
    assert block.peek("o_valid") == 1
    block.reset()
    assert block.peek("o_valid") == 0
    assert block.peek("o_x") == [[0, -1, -2], [1, 0, -1]]
    assert block["rst"] == 0


def test_a_dump_has_what_is_inside(block, tmp_path):
    path = tmp_path / "waves.vcd"
    with block.dump(path):
        block.poke("i_x", [[1, 2, 3], [4, 5, 6]])
        block.tick(5)
        with pytest.raises(InputError, match=r"^a dump goes on: .*waves\.vcd$"), block.dump(tmp_path / "other"):
            pass
    size = path.stat().st_size
    block.tick(5)
    assert path.stat().st_size == size
    text = path.read_text()
    assert " kept_1_2 " in text
    assert text.count("\n#") >= 20
    with block.dump(path):
        block.tick()


@pytest.mark.parametrize(
    ("port", "value", "message"),
    [
        ("nothing", 1, "Shapes has no port 'nothing': choose from i_payload, i_valid, "),
        ("o_valid", 1, "o_valid is an output of Shapes: it can be read, not set"),
        ("i_valid", 2, "i_valid takes an integer of 1 bits, not 2"),
        ("i_valid", -2, "i_valid takes an integer of 1 bits, not -2"),
        ("i_valid", 0.5, "i_valid takes an integer of 1 bits, not 0.5"),
        ("i_valid", "1", "i_valid takes an integer of 1 bits, not '1'"),
        ("i_x", [[1, 2], [3, 4]], "i_x takes a sequence of 3, not [1, 2]"),
        ("i_x", [[1, 2, 3], [4, 5, 300]], "i_x takes an integer of 8 bits, not 300"),
        ("i_x", 7, "i_x takes a sequence of 2, not 7"),
        ("i_payload", {"large": 1}, "i_payload cannot be {'large': 1}: "),
        ("i_payload", 1 << 74, f"i_payload takes an integer of 74 bits, not {1 << 74}"),
    ],
)
def test_what_does_not_fit(block, port, value, message):
    with pytest.raises(InputError) as caught:
        block.poke(port, value)
    assert str(caught.value).startswith(message)


def test_ticks_and_dumps_that_cannot_be(block, tmp_path):
    for cycles in (0, -1, 1.0, True):
        with pytest.raises(InputError, match=r"^cycles must be a positive integer, not "):
            block.tick(cycles)
    for path, message in (
        (tmp_path / "none" / "a.vcd", "cannot write .*: No such file or directory"),
        (tmp_path / "\xe4.vcd", "the name of a dump must be in ASCII, not "),
    ):
        with pytest.raises(InputError, match=message), block.dump(path):
            pass


def test_a_block_without_a_clock_and_the_cache(tmp_path, monkeypatch):
    """Another component is another build; the same one comes from the cache, and needs no tool's work."""
    said = []
    first = open_block(Wire(), on_progress=said.append)
    first.poke("i", 0x0F)
    assert first.peek("o") == 0xF0
    for use in (first.tick, first.reset):
        with pytest.raises(InputError, match=r"^Wire has no (clock|reset)"):
            use()
    said.clear()
    second = open_block(Wire(), on_progress=said.append)
    assert said == ["elaborating the block"]
    second.poke("i", 1)
    assert (first.peek("i"), second.peek("i")) == (0x0F, 1)


def test_what_is_no_component():
    for wrong in (Wire, 3, "Softmax"):
        with pytest.raises(TypeError, match=r"^component must be an amaranth\.lib\.wiring\.Component, not "):
            open_block(wrong)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyverilator", None)
    with pytest.raises(InputError, match=r"needs PyVerilator: pip install 'tilewright\[interactive\]'$"):
        open_block(Wire())


@pytest.mark.filterwarnings("ignore::amaranth.UnusedElaboratable")
def test_ports_are_those_of_the_verilog():
    from tilewright_hw import MatrixUnit
    from tilewright_hw.arch import AcceleratorConfig
    from tilewright_hw.generate import plain_ports

    for component in (Shapes(), MatrixUnit(AcceleratorConfig.preset("tiny"))):
        members = plain_ports(component).signature.members
        assert [name for name in members if members[name].shape.width] == list(ports_of(component))
