"""Operands that depend on the position of a block's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.compiler.emit import Value
from tilewright.compiler.image import ModelImage
from tilewright.compiler.layout import ceil_div, round_up


@dataclass(frozen=True)
class Positions:
    """Position-dependent operands of a block of m rows from position `first` on.

    Registers hold the byte offsets of the block's tokens in the embedding table. Where `first` is None (decode), others
    before them hold all else.
    """

    image: ModelImage
    m: int
    first: int | None

    NAMES = (
        "keys", "key_tiles", "value_tiles", "key_bytes", "value_bytes", "scale_bytes", "key_at", "value_at",
        "scale_at", "rope_at", "score_stride",
    )  # fmt: skip

    def values(self, first: int) -> dict[str, int]:
        """Return all operands of a block whose first row is at position `first`."""
        image, config = self.image, self.image.config
        keys = first + self.m
        key_tiles, value_tiles = ceil_div(keys, config.cols), ceil_div(keys, config.rows)
        return {
            "keys": keys,
            "key_tiles": key_tiles,
            "value_tiles": value_tiles,
            "key_bytes": key_tiles * image.key_block,
            "value_bytes": value_tiles * config.tile_bytes,
            "scale_bytes": round_up(2 * keys, config.bus_bytes),
            "key_at": first // config.cols * image.key_block + first % config.cols,
            "value_at": first * config.col_slot,
            "scale_at": 2 * first,
            "rope_at": first * image.rope_row,
            # Shares its word with src_m, and lies in the upper half.
            "score_stride": key_tiles * image.spec.group * self.m,
        }

    def __getitem__(self, name: str) -> Value:
        if self.first is not None:
            return Value(self.values(self.first)[name])
        return Value(0, self.NAMES.index(name))

    def token(self, row: int) -> int:
        """Return the register of a row's token."""
        return row if self.first is not None else len(self.NAMES) + row

    @property
    def registers(self) -> int:
        """Registers in use."""
        return self.token(self.m)

    def arguments(self, first: int, tokens: Sequence[int]) -> list[int]:
        """Return the register values of the block for tokens from position `first` on."""
        offsets = [int(token) * self.image.embedding_row for token in tokens]
        if self.first is not None:
            return offsets
        values = self.values(first)
        values["score_stride"] <<= 16
        return [values[name] for name in self.NAMES] + offsets
