"""AXI4 and AXI4-Lite: signatures with the standard signal names, and flat ports for the top level.

All flows are those of the master. A slave takes the flipped signature.
"""

from __future__ import annotations

import enum

from amaranth import unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["PAGE", "AxiLite", "AxiRead", "AxiWrite", "Burst", "Response", "connect_flat", "drive_address", "flat"]

PAGE = 4096
"""No burst crosses a multiple of this many bytes."""


class Burst(enum.IntEnum):
    """AxBURST: how the address moves from beat to beat."""

    FIXED = 0
    INCR = 1
    WRAP = 2


class Response(enum.IntEnum):
    """RRESP and BRESP; those with bit 1 set are errors."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


CACHE = 0b0011
"""AxCACHE of every access: normal memory, bufferable, not cached."""


def _check_bus(data_bits, addr_bits):
    if not isinstance(data_bits, int) or data_bits < 8 or data_bits & (data_bits - 1):
        raise TypeError(f"AXI data width must be a power of two of at least 8, not {data_bits!r}")
    if not isinstance(addr_bits, int) or not 1 <= addr_bits <= 64:
        raise TypeError(f"AXI address width must be an integer from 1 to 64, not {addr_bits!r}")


def _address(prefix):
    """Return the members of an AXI4 address channel, `aw` or `ar`."""
    widths = {"id": 1, "len": 8, "size": 3, "burst": 2, "lock": 1, "cache": 4, "prot": 3, "qos": 4}
    members = {f"{prefix}{name}": Out(width) for name, width in widths.items()}
    return members | {f"{prefix}valid": Out(1), f"{prefix}ready": In(1)}


class AxiRead(wiring.Signature):
    """The read channels of AXI4 (AR, R), seen from the master; ids are one bit.

    Parameters
    ----------
    data_bits : int
        Width of rdata.
    addr_bits : int
        Width of araddr.
    """

    def __init__(self, *, data_bits, addr_bits=64):
        _check_bus(data_bits, addr_bits)
        self.data_bits, self.addr_bits = data_bits, addr_bits
        super().__init__(
            {"araddr": Out(unsigned(addr_bits))}
            | _address("ar")
            | {
                "rid": In(1),
                "rdata": In(unsigned(data_bits)),
                "rresp": In(2),
                "rlast": In(1),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


class AxiWrite(wiring.Signature):
    """The write channels of AXI4 (AW, W, B), seen from the master; ids are one bit.

    Parameters
    ----------
    data_bits : int
        Width of wdata.
    addr_bits : int
        Width of awaddr.
    """

    def __init__(self, *, data_bits, addr_bits=64):
        _check_bus(data_bits, addr_bits)
        self.data_bits, self.addr_bits = data_bits, addr_bits
        super().__init__(
            {"awaddr": Out(unsigned(addr_bits))}
            | _address("aw")
            | {
                "wdata": Out(unsigned(data_bits)),
                "wstrb": Out(unsigned(data_bits // 8)),
                "wlast": Out(1),
                "wvalid": Out(1),
                "wready": In(1),
                "bid": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
            }
        )


class AxiLite(wiring.Signature):
    """AXI4-Lite with 32 data bits, seen from the master.

    Parameters
    ----------
    addr_bits : int
        Width of awaddr and araddr.
    """

    def __init__(self, *, addr_bits=12):
        _check_bus(32, addr_bits)
        self.addr_bits = addr_bits
        super().__init__(
            {
                "awaddr": Out(unsigned(addr_bits)),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(32),
                "wstrb": Out(4),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(unsigned(addr_bits)),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(32),
                "rresp": In(2),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


def flat(prefix, signature):
    """Return the signature's members with `prefix` before each name: plain ports for a top-level component.

    `flat("m_axi_", AxiRead(data_bits=128))` gives `m_axi_araddr` and the rest; for a slave, pass `signature.flip()`.
    """
    return {f"{prefix}{name}": member for name, member in signature.members.items()}


def connect_flat(m, component, prefix, inner):
    """Connect the flat ports of `component` (see `flat`) to the interface `inner` of one of its submodules."""
    for name, member in inner.signature.members.items():
        outside, inside = getattr(component, f"{prefix}{name}"), getattr(inner, name)
        m.d.comb += outside.eq(inside) if member.flow == Out else inside.eq(outside)


def drive_address(prefix, bus, bus_bytes):
    """Return the assignments that hold for every burst: INCR, full beats, id 0, normal memory."""
    constants = {
        "id": 0,
        "size": bus_bytes.bit_length() - 1,
        "burst": Burst.INCR,
        "lock": 0,
        "cache": CACHE,
        "prot": 0,
        "qos": 0,
    }
    return [getattr(bus, f"{prefix}{name}").eq(value) for name, value in constants.items()]
