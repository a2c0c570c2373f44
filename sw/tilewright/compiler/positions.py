"""Operands that depend on the position of a block's rows."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.compiler.emit import Value
from tilewright.compiler.image import ModelImage
from tilewright.compiler.layout import ceil_div, round_up

TOKEN_REGISTER = 16
"""Registers from here on hold the byte offsets of the block's tokens in the embedding table."""


@dataclass(frozen=True)
class Positions:
    """Position-dependent operands of a block of m rows from position `first` on (None: decode, from registers)."""

    image: ModelImage
    m: int
    first: int | None
    keys: int | None = None
    """Keys that all rows see; None: those up to the block's last row."""

    NAMES = (
        "keys", "key_tiles", "value_tiles", "key_bytes", "value_bytes", "scale_bytes", "key_at", "value_at",
        "scale_at", "rope_at", "score_stride", "position_at",
    )  # fmt: skip

    def values(self, first: int) -> dict[str, int]:
        """Return all operands of a block whose first row is at position `first`."""
        image, config = self.image, self.image.config
        keys = self.keys or first + self.m
        key_tiles, value_tiles = ceil_div(keys, config.cols), ceil_div(keys, config.rows)
        return {
            "keys": keys,
            "key_tiles": key_tiles,
            "value_tiles": value_tiles,
            "key_bytes": key_tiles * image.key_block,
            "value_bytes": value_tiles * config.tile_bytes,
            "scale_bytes": round_up(2 * keys, config.bus_bytes),
            "key_at": first // config.cols * image.key_block + first % config.cols * config.row_slot,
            "value_at": first * config.col_slot,
            "scale_at": 2 * first,
            "rope_at": first * image.rope_row,
            # Shares its word with src_m, and lies in the upper half.
            "score_stride": key_tiles * image.spec.group * self.m * image.formats.parts,
            "position_at": first * image.dim_row,
        }

    def __getitem__(self, name: str) -> Value:
        if self.first is not None:
            return Value(self.values(self.first)[name])
        return Value(0, self.NAMES.index(name))

    def arguments(self, first: int) -> list[int]:
        """Return the register values of a decode block at position `first`."""
        values = self.values(first)
        values["score_stride"] <<= 16
        return [values[name] for name in self.NAMES]
