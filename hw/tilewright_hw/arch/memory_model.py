"""Timing of a simulated memory; results never depend on it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tilewright_hw.arch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """An AXI memory that answers reads and writes on separate channels.

    Parameters
    ----------
    latency : int
        Cycles from a request to its first beat; 1 to 10,000.
    stall : float
        Probability that a channel pauses in a cycle; from 0 to below 1.
    seed : int
        Seed of the stalls.
    bandwidth : float
        Beats per cycle, above 0 and at most 1.
    """

    latency: int = 40
    stall: float = 0.0
    seed: int = 0
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.latency, int) or not 1 <= self.latency <= 10_000:
            raise InputError(f"memory: latency must be an integer from 1 to 10000, not {self.latency!r}")
        if not 0 <= self.stall < 1:
            raise InputError(f"memory: stall must be from 0 to below 1, not {self.stall!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise InputError(f"memory: seed must be an integer from 0 to 2**63 - 1, not {self.seed!r}")
        if not 0 < self.bandwidth <= 1:
            raise InputError(f"memory: bandwidth must be above 0 and at most 1, not {self.bandwidth!r}")

    @classmethod
    def parse(cls, text: str) -> MemoryModel:
        """Read `latency=40,stall=0.1,seed=1`; InputError names what is wrong."""
        kinds = {f.name: int if f.name in ("latency", "seed") else float for f in fields(cls)}
        values: dict[str, int | float] = {}
        for part in filter(None, text.split(",")):
            name, equals, value = part.partition("=")
            if name not in kinds or not equals:
                raise InputError(f"memory: {part!r} must be NAME=VALUE with NAME one of {', '.join(kinds)}")
            try:
                values[name] = kinds[name](value)
            except ValueError as e:
                raise InputError(f"memory: {name} must be a number, not {value!r}") from e
        return cls(**values)  # type: ignore[arg-type]
