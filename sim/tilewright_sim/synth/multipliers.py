"""Which multiplications become multiplier blocks on ECP5, and how.

Yosys makes a block of every product, whether the device has enough or not. Here the products of two int8 take blocks as
long as `FILL` of the device's are enough, and tables (about 80 each) beyond that: a placer needs some choice of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tilewright_sim.synth.design import Design

__all__ = ["FILL", "TECHMAP", "in_tables", "map_multipliers"]

FILL = 0.85
"""The share of a device's multiplier blocks that a design to be placed may take."""

TECHMAP = Path(__file__).with_name("ecp5_multipliers.v")

_NARROW = "t:$mul r:A_SIGNED=1 %i r:B_SIGNED=1 %i r:A_WIDTH=8 %i r:B_WIDTH=8 %i r:Y_WIDTH=16 %i"
_SMALLEST = 8  # bits of the narrower factor: below, synthesis makes something else of it (counted on `edge`)

_PRODUCT = re.compile(
    r"  cell \$mul .*\n"
    r"    parameter \\A_SIGNED (?P<a_signed>\d)\n    parameter \\B_SIGNED (?P<b_signed>\d)\n"
    r"    parameter \\A_WIDTH (?P<a_width>\d+)\n    parameter \\B_WIDTH (?P<b_width>\d+)\n"
    r"    parameter \\Y_WIDTH (?P<y_width>\d+)\n"
)


def _products(design: Design) -> Iterator[tuple[str, bool]]:
    """Yield, for each product that takes a block, its module, and whether it is one of two int8."""
    for text in re.split(r"^(?=module )", design.rtlil, flags=re.M)[1:]:
        module = text[len("module \\") : text.index("\n")]
        if module == design.module or module.startswith(f"{design.module}."):
            for found in _PRODUCT.finditer(text):
                values = tuple(map(int, found.group("a_signed", "b_signed", "a_width", "b_width", "y_width")))
                if min(values[2:4]) >= _SMALLEST:
                    yield module, values == (1, 1, 8, 8, 16)


def in_tables(design: Design, blocks: float) -> list[str]:
    """Return the modules whose products of two int8 are to be tables, so that a device's blocks are enough.

    Parameters
    ----------
    design : Design
        The design.
    blocks : float
        Multiplier blocks that it may take.
    """
    products = list(_products(design))
    narrow = [module for module, is_narrow in products if is_narrow]
    return narrow[: max(0, len(products) - int(blocks))]


def map_multipliers(tables: list[str]) -> str:
    """Return the lines of a Yosys script that map products of two int8, those in `tables` without blocks."""
    lines = [f"chtype -set $__table_multiplier {module}/{_NARROW}" for module in tables]
    lines += [f"chtype -set $__block_multiplier {_NARROW}"]
    return "\n".join([*lines, f"techmap -map {TECHMAP.name}"])
