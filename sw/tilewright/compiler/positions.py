"""Operands that depend on the position of a block's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.compiler.emit import Value
from tilewright.compiler.image import ModelImage
from tilewright.compiler.layout import ceil_div, round_up


@dataclass(frozen=True)
class KeyPart:
    """Keys that are scored together, from key `start` on; operands of its loads and products."""

    start: int
    last_keys: Value
    """How many they are."""
    key_tiles: Value
    key_bytes: Value
    scale_bytes: Value
    score_stride: Value


@dataclass(frozen=True)
class Positions:
    """Position-dependent operands of a block of m rows of one sequence, from position `first` on.

    Registers hold which sequence it is, as the offset of its cache, and the byte offsets of the block's tokens in the
    embedding table. Where `first` is None (decode), others between them hold all else. A row of a batch has its
    registers from `register` on, and its token in `token_register`.
    """

    image: ModelImage
    m: int
    first: int | None
    register: int = 0
    token_register: int | None = None
    keys: int | None = None
    """Keys that all rows see; None: those up to the block's last row."""
    piece: int | None = None
    """Keys of all parts of attention but the last; None: there is one part."""

    NAMES = (
        "cache",
        "keys", "last_keys", "key_tiles", "value_tiles", "key_bytes", "value_bytes", "scale_bytes", "key_at",
        "value_at", "scale_at", "rope_at", "score_stride", "position_at",
    )  # fmt: skip

    def values(self, first: int, sequence: int = 0) -> dict[str, int]:
        """Return all operands of a block whose first row is at position `first` of a sequence.

        Those of the keys, but for `keys` itself, are the last part's.
        """
        image, config = self.image, self.image.config
        keys = self.keys or first + self.m
        last = keys - self.starts(keys)[-1]
        value_tiles = ceil_div(keys, config.rows)
        cache = sequence * image.sequence_bytes
        return {
            "cache": cache,
            "keys": keys,
            "value_tiles": value_tiles,
            "value_bytes": value_tiles * config.tile_bytes,
            **self._of_keys(last),
            "key_at": cache + first // config.cols * image.key_block + first % config.cols * config.row_slot,
            "value_at": cache + first * config.col_slot,
            "scale_at": cache + 2 * first,
            "rope_at": first * image.rope_row,
            "position_at": first * image.dim_row,
        }

    def _of_keys(self, keys: int) -> dict[str, int]:
        """Return the operands of a part of so many keys."""
        image, config = self.image, self.image.config
        tiles = ceil_div(keys, config.cols)
        return {
            "last_keys": keys,
            "key_tiles": tiles,
            "key_bytes": tiles * image.key_block,
            "scale_bytes": round_up(2 * keys, config.bus_bytes),
            # Shares its word with src_m, and lies in the upper half.
            "score_stride": tiles * image.spec.group * self.m * image.formats.parts,
        }

    def starts(self, keys: int) -> range:
        """Return the first key of each part of so many."""
        return range(0, keys, self.piece or keys)

    def parts(self, t: int) -> list[KeyPart]:
        """Return the parts of the keys: up to t of them where registers hold how many there are."""
        if self.first is not None:
            t = self.values(self.first)["keys"]
        starts = self.starts(t)
        full = {name: Value(value) for name, value in self._of_keys(starts.step).items()}
        last = {name: self[name] for name in full}
        return [KeyPart(start, **(last if start == starts[-1] else full)) for start in starts]

    def __getitem__(self, name: str) -> Value:
        if self.first is None:
            return Value(0, self.register + self.NAMES.index(name))
        in_cache = name in ("cache", "key_at", "value_at", "scale_at")
        return Value(self.values(self.first)[name], self.register if in_cache else None)

    def token(self, row: int) -> int:
        """Return the register of a row's token."""
        first = self.token_register
        if first is None:
            first = self.register + (1 if self.first is not None else len(self.NAMES))
        return first + row

    @property
    def registers(self) -> int:
        """Registers that are loaded."""
        return self.token(self.m)

    def arguments(self, first: int, sequence: int = 0) -> list[int]:
        """Return the values of the registers, but for the tokens, at position `first` of a sequence."""
        values = self.values(first, sequence)
        if self.first is not None:
            return [values["cache"]]
        values["score_stride"] <<= 16
        return [values[name] for name in self.NAMES]

    def token_offsets(self, tokens: Sequence[int]) -> list[int]:
        """Return the values of the tokens' registers."""
        return [int(token) * self.image.embedding_row for token in tokens]
