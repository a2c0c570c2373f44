"""The blocks by name: imported from `tilewright_hw` without cost, documented, exported with plain ports."""

import re
import subprocess
import sys

import pytest
from amaranth import Module, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

import tilewright_hw
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.generate import export_block, plain_ports

CONFIG = AcceleratorConfig.preset("tiny")
BLOCKS = [name for name in tilewright_hw.__all__ if name != "AcceleratorConfig"]
UNITS = [
    "Accelerator",
    "ActBuffer",
    "ControlRegisters",
    "MatrixUnit",
    "MemoryReader",
    "Sequencer",
    "StoreUnit",
    "VectorUnit",
]


def test_the_package_imports_no_amaranth():
    code = (
        "import sys, tilewright, tilewright_hw.arch\n"
        "assert 'Softmax' in dir(tilewright_hw) and tilewright_hw.AcceleratorConfig\n"
        "assert 'amaranth' not in sys.modules\n"
        "from tilewright_hw import Softmax\n"
        "assert 'amaranth' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names():
    with pytest.raises(AttributeError, match=r"^module 'tilewright_hw' has no attribute 'Sofmax'$"):
        _ = tilewright_hw.Sofmax


@pytest.mark.parametrize("name", BLOCKS)
def test_docstrings_are_contracts(name):
    block = getattr(tilewright_hw, name)
    assert block.__name__ == name
    assert issubclass(block, wiring.Component)
    for heading in ("Parameters", "Members"):
        assert re.search(rf"^ +{heading}\n +-{{{len(heading)}}}$", block.__doc__, re.M), heading


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.filterwarnings("ignore::amaranth.UnusedElaboratable")
def test_ports_have_plain_names(name):
    ports = plain_ports(getattr(tilewright_hw, name)(CONFIG)).signature.members
    assert all(re.fullmatch(r"[a-z]\w*", port) and isinstance(ports[port].shape, type(unsigned(1))) for port in ports)


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.filterwarnings("ignore::amaranth.UnusedElaboratable")
def test_the_configuration_is_checked(name):
    with pytest.raises(TypeError, match=r"^config must be an AcceleratorConfig, not 'tiny'$"):
        getattr(tilewright_hw, name)("tiny")


class Shapes(wiring.Component):
    i: In(stream.Signature(data.StructLayout({"a": 3, "b": data.ArrayLayout(unsigned(2), 2)})))
    x: In(4).array(2)
    y: Out(4).array(2)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.y[0].eq(self.x[1]), self.y[1].eq(self.x[0])]
        m.d.sync += self.i.ready.eq(self.i.valid & self.i.p.b[1].any())
        return m


def test_an_exported_block_has_plain_ports():
    text = export_block(Shapes(), "shapes")
    top = re.search(r"^module shapes\(.*?^endmodule", text, re.M | re.S)[0]
    ports = set(re.findall(r"^  ((?:input|output) .*);", top, re.M))
    assert ports == {
        "input clk",
        "input rst",
        "input [6:0] i_payload",
        "input i_valid",
        "output i_ready",
        "input [7:0] x",
        "output [7:0] y",
    }
    assert "[-1:0]" not in text
    assert text == export_block(Shapes(), "shapes")


@pytest.mark.filterwarnings("ignore::amaranth.UnusedElaboratable")
def test_ports_of_one_name_are_refused():
    class Twice(wiring.Component):
        i: In(stream.Signature(1))
        i_valid: In(1)

    with pytest.raises(ValueError, match="Twice has two ports that would be called 'i_valid'"):
        plain_ports(Twice())
