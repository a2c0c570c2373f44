"""The accelerator's ports and wiring; whole programs are in tests/sim."""

import pytest
from amaranth import unsigned
from amaranth.lib import wiring

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.gateware.top import Accelerator

ODD = AcceleratorConfig(rows=6, cols=10, lanes=2, bus_bits=32, ingest=1)


def test_config_is_checked():
    with pytest.raises(TypeError, match="config must be an AcceleratorConfig, not 'tiny'"):
        Accelerator("tiny")


@pytest.mark.parametrize("config", [ODD, AcceleratorConfig.preset("large")], ids=lambda c: c.name)
def test_ports_are_plain(config):
    top = Accelerator(config)
    members = dict(top.signature.members)
    assert all(member.is_port and not member.dimensions for member in members.values())
    assert all(name.startswith(("m_axi_", "s_axil_")) or name == "irq" for name in members)
    assert members["m_axi_rdata"] == wiring.In(unsigned(config.bus_bits))
    assert members["m_axi_wstrb"] == wiring.Out(unsigned(config.bus_bytes))
    assert members["s_axil_awaddr"] == wiring.In(unsigned(12))
