"""The accelerator's parameters: one frozen object that gateware, golden model, compiler and runtime take."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tilewright_hw.arch.errors import InputError


class ConfigError(InputError):
    """A configuration that cannot be built; the message names the field, the rule and the value."""


MAX_FIFO_BYTES = 1 << 24
"""The largest FIFO of tiles that a configuration may have."""


def _slot_bytes(used: int, bus_bytes: int) -> int:
    """Bytes that a row of `used` bytes occupies in memory: divides the bus word or is a multiple of it."""
    if used >= bus_bytes:
        return -(-used // bus_bytes) * bus_bytes
    return 1 << (used - 1).bit_length()


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Raw parameters of one accelerator; derived sizes are properties.

    Parameters
    ----------
    rows : int
        Rows R of the systolic array (the reduction dimension of a weight tile).
    cols : int
        Columns C of the systolic array (the output channels of a weight tile).
    lanes : int
        Elements L that the vector unit handles per cycle: 2, 4, 8 or 16, a divisor of rows and of cols.
    bus_bits : int
        Width of the AXI data bus: 32, 64, 128, 256 or 512.
    ingest : int
        Weight rows g that enter the array per cycle; divides rows, and rows/ingest is at least 4.
    acc_rows : int
        Accumulator rows (of C int32) in each of the two banks.
    act_words : int
        Words (of R bytes) of the activation buffer.
    row_words : int
        Words (of L floats) of the row buffer.
    param_words : int
        Words (of L floats) of the parameter buffer.
    stat_entries : int
        Entries of the row statistics (two floats each).
    weight_fifo_bytes : int
        Size of the weight prefetch buffer.
    stream_fifo_bytes : int
        Size of the buffer for streamed tiles (KV cache).
    burst_beats : int
        Beats of the longest AXI burst.
    reads_in_flight : int
        AXI read bursts that may be outstanding.
    writes_in_flight : int
        AXI write bursts that may be outstanding.
    queue_depth : int
        Instructions that wait in front of each unit.
    """

    rows: int = 16
    cols: int = 16
    lanes: int = 8
    bus_bits: int = 128
    ingest: int = 2
    acc_rows: int = 512
    act_words: int = 4096
    row_words: int = 8192
    param_words: int = 2048
    stat_entries: int = 1024
    weight_fifo_bytes: int = 32768
    stream_fifo_bytes: int = 8192
    burst_beats: int = 32
    reads_in_flight: int = 16
    writes_in_flight: int = 16
    queue_depth: int = 8

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ConfigError(f"{f.name} must be a positive integer, not {value!r}")
        self._check(self.lanes in (2, 4, 8, 16), "lanes", "2, 4, 8 or 16")
        self._check(self.bus_bits in (32, 64, 128, 256, 512), "bus_bits", "32, 64, 128, 256 or 512")
        for name in ("rows", "cols"):
            self._check(
                getattr(self, name) % self.lanes == 0 and 4 <= getattr(self, name) <= 128,
                name,
                f"a multiple of lanes ({self.lanes}) from 4 to 128",
            )
        self._check(
            self.rows % self.ingest == 0 and self.rows // self.ingest >= 4,
            "ingest",
            f"a divisor of rows ({self.rows}) with rows/ingest at least 4",
        )
        for name, low, high in (
            ("acc_rows", 64, 16384),
            ("act_words", 64, 65536),
            ("row_words", 256, 65536),
            ("param_words", 64, 65536),
            ("stat_entries", 64, 65536),
        ):
            value = getattr(self, name)
            self._check(
                low <= value <= high and value & (value - 1) == 0,
                name,
                f"a power of two from {low} to {high}",
            )
        if self.tile_bytes % self.bus_bytes:
            raise ConfigError(
                f"rows * col_slot ({self.rows} * {self.col_slot}) must be a multiple of the bus word "
                f"({self.bus_bytes} bytes), not {self.tile_bytes}: choose more rows or a narrower bus"
            )
        if self.transposed_tile_bytes % self.bus_bytes:
            raise ConfigError(
                f"cols * row_slot ({self.cols} * {self.row_slot}) must be a multiple of the bus word "
                f"({self.bus_bytes} bytes), not {self.transposed_tile_bytes}: choose more columns or a narrower bus"
            )
        for name in ("weight_fifo_bytes", "stream_fifo_bytes"):
            self._check(
                4 * self.tile_bytes <= getattr(self, name) <= MAX_FIFO_BYTES,
                name,
                f"at least four weight tiles ({4 * self.tile_bytes} bytes) and at most {MAX_FIFO_BYTES}",
            )
        self._check(
            self.burst_beats & (self.burst_beats - 1) == 0
            and self.burst_beats * self.bus_bytes <= 4096
            and self.burst_beats <= 256,
            "burst_beats",
            f"a power of two of at most {min(256, 4096 // self.bus_bytes)} (a burst stays within 4 KiB)",
        )
        for name in ("reads_in_flight", "writes_in_flight"):
            self._check(2 <= getattr(self, name) <= 64, name, "from 2 to 64")
        self._check(2 <= self.queue_depth <= 64, "queue_depth", "from 2 to 64")

    def _check(self, good: bool, name: str, rule: str) -> None:
        if not good:
            raise ConfigError(f"{name} must be {rule}, not {getattr(self, name)!r}")

    @property
    def bus_bytes(self) -> int:
        """Bytes of one bus beat."""
        return self.bus_bits // 8

    @property
    def col_slot(self) -> int:
        """Bytes that one row of a weight tile (C int8) occupies in memory; those past C are padding."""
        return _slot_bytes(self.cols, self.bus_bytes)

    @property
    def row_slot(self) -> int:
        """Bytes that one activation word (R int8) occupies in memory; those past R are padding."""
        return _slot_bytes(self.rows, self.bus_bytes)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one weight tile in memory: R rows of `col_slot` bytes."""
        return self.rows * self.col_slot

    @property
    def transposed_tile_bytes(self) -> int:
        """Bytes of one transposed tile in memory: C rows of `row_slot` bytes."""
        return self.cols * self.row_slot

    @property
    def nibble_slot(self) -> int:
        """Bytes that C values of four bits occupy in memory; those past C are padding."""
        return _slot_bytes(-(-self.cols // 2), self.bus_bytes)

    @property
    def nibble_rows(self) -> int:
        """Rows of C four-bit values in a bus word (S of the int4 format); 1 where a row takes several words."""
        return max(1, self.bus_bytes // self.nibble_slot)

    @property
    def peak_macs(self) -> int:
        """Multiply-accumulates per cycle."""
        return self.rows * self.cols

    @classmethod
    def preset(cls, name: str) -> AcceleratorConfig:
        """Return the named preset; ConfigError lists the names if it is unknown."""
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}, or a .toml file")
        return PRESETS[name]

    @classmethod
    def from_toml(cls, path: str | Path) -> AcceleratorConfig:
        """Read a configuration: a TOML table of fields, with an optional `preset` to start from."""
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise ConfigError(f"cannot read configuration {path}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path} is not valid TOML: {e}") from e
        return cls.from_dict(table)

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> AcceleratorConfig:
        """Build from a mapping of fields, with an optional `preset` to start from."""
        table = dict(table)
        start = cls.preset(str(table.pop("preset"))) if "preset" in table else cls()
        known = {f.name for f in fields(cls)}
        for key in table:
            if key not in known:
                raise ConfigError(f"unknown configuration field {key!r}: choose from {', '.join(sorted(known))}")
        return replace(start, **table)

    @classmethod
    def resolve(cls, name_or_path: str | AcceleratorConfig) -> AcceleratorConfig:
        """Take a preset's name, the path of a .toml file, or a configuration."""
        if isinstance(name_or_path, AcceleratorConfig):
            return name_or_path
        if name_or_path.endswith(".toml"):
            return cls.from_toml(name_or_path)
        return cls.preset(name_or_path)

    def to_dict(self) -> dict[str, int]:
        """Return the raw fields."""
        return asdict(self)

    def to_toml(self) -> str:
        """Return TOML text that `from_toml` reads back to an equal configuration."""
        return "".join(f"{key} = {value}\n" for key, value in self.to_dict().items())

    @property
    def name(self) -> str:
        """The preset's name, or a short description such as `6x10x2-b32`."""
        for name, preset in PRESETS.items():
            if preset == self:
                return name
        return f"{self.rows}x{self.cols}x{self.lanes}-b{self.bus_bits}"


PRESETS: dict[str, AcceleratorConfig] = {
    "tiny": AcceleratorConfig(
        rows=4, cols=4, lanes=2, bus_bits=32, ingest=1, acc_rows=256, act_words=2048, row_words=4096,
        param_words=1024, stat_entries=256, weight_fifo_bytes=1024, stream_fifo_bytes=1024, burst_beats=16,
        reads_in_flight=8, writes_in_flight=8, queue_depth=4,
    ),
    "edge": AcceleratorConfig(
        rows=8, cols=16, lanes=4, bus_bits=64, ingest=1, acc_rows=512, act_words=2048, row_words=4096,
        param_words=1024, stat_entries=512, weight_fifo_bytes=16384, stream_fifo_bytes=4096,
    ),
    "default": AcceleratorConfig(),
    "large": AcceleratorConfig(
        rows=32, cols=32, lanes=16, bus_bits=256, ingest=2, weight_fifo_bytes=65536, stream_fifo_bytes=16384,
        acc_rows=512, act_words=4096, row_words=8192, param_words=2048,
    ),
}  # fmt: skip
