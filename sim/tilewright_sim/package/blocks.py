"""The blocks that can be packaged by name, and the parameters that each has for a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright_hw.arch import AcceleratorConfig, InputError

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["BLOCKS", "TOP_BLOCK", "Block", "resolve"]

TOP_BLOCK = "Accelerator"
"""The block that is the whole accelerator."""

Parameters = dict[str, int]


def _whole(config: AcceleratorConfig) -> Parameters:
    """Return the parameters of a unit that takes the configuration itself."""
    return config.to_dict()


BLOCKS: dict[str, Callable[[AcceleratorConfig], Parameters]] = {
    TOP_BLOCK: _whole,
    "Accumulators": lambda c: {"cols": c.cols, "depth": c.acc_rows, "width": 16 + (c.rows - 1).bit_length()},
    "ActBuffer": _whole,
    "ControlRegisters": _whole,
    "MatrixUnit": _whole,
    "MemoryReader": _whole,
    "Sequencer": _whole,
    "Skew": lambda c: {"shape": 8, "count": c.rows},
    "Softmax": lambda c: {"lanes": c.lanes, "max_length": 16 * c.lanes},
    "StoreUnit": _whole,
    "StreamBuffer": lambda c: {"shape": c.bus_bits},
    "StreamFifo": lambda c: {"shape": c.bus_bits, "depth": 64},
    "SystolicArray": lambda c: {"rows": c.rows, "cols": c.cols, "ingest": c.ingest},
    "TileFifo": lambda c: {
        "rows": c.rows,
        "cols": c.cols,
        "ingest": c.ingest,
        "tiles": c.stream_fifo_bytes // c.tile_bytes,
    },
    "VectorUnit": _whole,
    "WidthConverter": lambda c: {"bus_bytes": c.bus_bytes, "slot": c.col_slot, "used": c.cols},
}
"""Parameters of each block, from a configuration."""


@dataclass(frozen=True)
class Block:
    """A block with its parameters, checked.

    Parameters
    ----------
    name : str
        One of `BLOCKS`.
    config : AcceleratorConfig
        The configuration; for the units, with the changed parameters in it.
    parameters : dict
        What the block is made with.
    """

    name: str
    config: AcceleratorConfig
    parameters: Parameters

    def make(self) -> Component:
        """Return a new component; InputError where the block itself refuses its parameters."""
        import tilewright_hw

        kind = getattr(tilewright_hw, self.name)
        takes_config = BLOCKS[self.name] is _whole
        try:
            made: Component = kind(self.config) if takes_config else kind(**self.parameters)
        except (TypeError, ValueError) as e:
            raise InputError(f"{self.name}: {e}") from e
        return made


def resolve(name: str, config: AcceleratorConfig, changes: Mapping[str, Any]) -> Block:
    """Return a block with some of its parameters changed; InputError names the block or parameter that there is not."""
    if name not in BLOCKS:
        raise InputError(f"unknown block {name!r}: choose one of {', '.join(BLOCKS)}")
    parameters = BLOCKS[name](config)
    for key, value in changes.items():
        if key not in parameters:
            raise InputError(f"{name} has no parameter {key!r}: choose from {', '.join(parameters)}")
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{key} must be an integer, not {value!r}")
    parameters |= changes
    if BLOCKS[name] is _whole:
        config = AcceleratorConfig.from_dict(parameters)
    return Block(name, config, parameters)
