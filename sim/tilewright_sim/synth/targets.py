"""FPGA families and devices: how many of each resource a cell takes, and how many there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

__all__ = ["LUT_RAM", "TARGETS", "Family", "Resources", "Target", "resources"]

Family = Literal["ecp5", "xc7", "gowin"]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources that a design takes, or a device has.

    Parameters
    ----------
    luts : float
        Lookup tables (of four inputs on ECP5 and Gowin, six on xc7), also those of carry chains (not on xc7), LUT RAM
        and shift registers.
    flip_flops : float
        Flip-flops.
    dsps : float
        Multipliers.
    block_rams : float
        Block RAMs, in the family's own size: 18 kbit on ECP5 and Gowin, 36 kbit on xc7 (an 18-kbit one is a half).
    """

    luts: float = 0
    flip_flops: float = 0
    dsps: float = 0
    block_rams: float = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def __rmul__(self, count: int) -> Resources:
        return Resources(**{name: count * value for name, value in asdict(self).items()})

    def lacking(self, device: Resources) -> list[str]:
        """Return what a device has too little of, in words; empty if this fits."""
        return [
            f"{getattr(self, field.name):,g} {NAMES[field.name]} of {getattr(device, field.name):,g}"
            for field in fields(self)
            if getattr(self, field.name) > getattr(device, field.name)
        ]


NAMES = {"luts": "LUT", "flip_flops": "flip-flops", "dsps": "DSP", "block_rams": "block RAM"}
"""The names of the resources, for people."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device.

    Parameters
    ----------
    device : str
        Its maker's name for it.
    family : {"ecp5", "xc7", "gowin"}
        Its family, which decides how Yosys maps the design.
    has : Resources
        What there is on it.
    nextpnr : tuple of str
        The arguments that name it to nextpnr; empty: there is no open place and route in the wheels.
    """

    device: str
    family: Family
    has: Resources
    nextpnr: tuple[str, ...] = ()


TARGETS: Mapping[str, Target] = {
    "ecp5-85k": Target(
        device="LFE5U-85F, speed grade 6",
        family="ecp5",
        has=Resources(luts=83640, flip_flops=83640, dsps=156, block_rams=208),
        nextpnr=("--85k", "--speed", "6", "--package", "CABGA381"),
    ),
    "xc7a100t": Target(
        device="XC7A100T",
        family="xc7",
        has=Resources(luts=63400, flip_flops=126800, dsps=240, block_rams=135),
    ),
}
"""The devices by name."""

LUT_RAM: Mapping[Family, Mapping[str, int]] = {
    # Four tables hold a DPR16X4's words, and its write port takes the place of two more.
    "ecp5": {"TRELLIS_DPR16X4": 6},
    "xc7": {"RAM(32|64)X1S": 1, "RAM(32|64)X1D|RAM128X1S": 2, "RAM(32|64)M|RAM128X1D|RAM256X1S": 4},
    # As Gowin's own reports count them, whatever their width.
    "gowin": {"RAM16(S|SDP)[124]": 6},
}
"""The cells of LUT RAM, and how many tables each takes."""

_COSTS: dict[Family, dict[str, Resources]] = {
    "ecp5": {
        "LUT4": Resources(luts=1),
        "CCU2C": Resources(luts=2),
        "TRELLIS_FF": Resources(flip_flops=1),
        "MULT18X18D|MULT9X9D": Resources(dsps=1),
        "DP16KD|PDPW16KD": Resources(block_rams=1),
    },
    "xc7": {
        "LUT[1-6]|INV|SRL16E|SRLC32E": Resources(luts=1),
        "FD[RSCP]E(_1)?": Resources(flip_flops=1),
        "DSP48E1": Resources(dsps=1),
        "RAMB36E1": Resources(block_rams=1),
        "RAMB18E1": Resources(block_rams=0.5),
    },
    "gowin": {
        "LUT[1-4]|INV|ALU|ROM16": Resources(luts=1),
        "DFFN?[SRPC]?E?": Resources(flip_flops=1),
        "MULT(9X9|18X18)": Resources(dsps=1),
        "MULT36X36": Resources(dsps=4),
        "(SP|DPB?|SDPB?|pROM)(X9B?)?": Resources(block_rams=1),
    },
}
for _family in get_args(Family):
    _COSTS[_family] |= {cell: Resources(luts=tables) for cell, tables in LUT_RAM[_family].items()}


def resources(family: Family, cell: str) -> Resources:
    """Return what one cell of a family takes; nothing for multiplexers and buffers, which lie beside the tables."""
    return next((cost for pattern, cost in _COSTS[family].items() if re.fullmatch(pattern, cell)), Resources())
