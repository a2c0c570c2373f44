"""AXI signatures: names, widths, directions, and flat ports at a top level."""

import pytest
from amaranth import Module
from amaranth.back import verilog
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware.axi import AxiLite, AxiRead, AxiWrite, connect_flat, drive_address, flat


class Master(wiring.Component):
    def __init__(self):
        super().__init__({"read": Out(AxiRead(data_bits=64)), "write": Out(AxiWrite(data_bits=64))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += drive_address("ar", self.read, 8)
        m.d.comb += drive_address("aw", self.write, 8)
        m.d.comb += self.read.araddr.eq(self.read.rdata)
        return m


class Slave(wiring.Component):
    axil: In(AxiLite(addr_bits=12))

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.axil.rdata.eq(self.axil.araddr)
        return m


class Top(wiring.Component):
    def __init__(self):
        super().__init__(
            flat("m_axi_", AxiRead(data_bits=64))
            | flat("m_axi_", AxiWrite(data_bits=64))
            | flat("s_axil_", AxiLite(addr_bits=12).flip())
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.master = master = Master()
        m.submodules.slave = slave = Slave()
        connect_flat(m, self, "m_axi_", master.read)
        connect_flat(m, self, "m_axi_", master.write)
        connect_flat(m, self, "s_axil_", slave.axil)
        return m


def test_flat_ports():
    text = verilog.convert(Top(), emit_src=False)
    for line in (
        "output [63:0] m_axi_araddr;",
        "output [7:0] m_axi_awlen;",
        "input m_axi_arready;",
        "input [63:0] m_axi_rdata;",
        "output [7:0] m_axi_wstrb;",
        "input [1:0] m_axi_bresp;",
        "output m_axi_arid;",
        "input [11:0] s_axil_awaddr;",
        "output s_axil_awready;",
        "output [31:0] s_axil_rdata;",
    ):
        assert line in text, line
    assert "array" not in text


@pytest.mark.parametrize("bits", [0, 48, "x"])
def test_wrong_data_width(bits):
    with pytest.raises(TypeError, match=f"^AXI data width must be .*, not {bits!r}$"):
        AxiRead(data_bits=bits)


def test_wrong_address_width():
    with pytest.raises(TypeError, match=r"^AXI address width must be .*, not 65$"):
        AxiWrite(data_bits=64, addr_bits=65)
