"""How the simulated memory behaves: one frozen object that devices and the command line take."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tilewright_hw.arch.errors import InputError

MAX_LATENCY = 1_000_000


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """An AXI memory: reads and writes are separate channels of one beat per cycle.

    It changes when things happen, never what is computed.

    Parameters
    ----------
    latency : int
        Cycles from an address to its first read beat, and from a last write beat to its response.
    stall : float
        Probability that a channel (AR, R, AW, W, B) is not ready, or not valid, in a cycle; from 0
        to below 1. A beat that is offered stays offered.
    seed : int
        Of the stalls.
    bandwidth : float
        Beats per cycle that each of the two data channels carries, above 0 and at most 1.
    """

    latency: int = 40
    stall: float = 0.0
    seed: int = 0
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        for name in ("latency", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"memory {name} must be an integer, not {value!r}")
        for name in ("stall", "bandwidth"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise InputError(f"memory {name} must be a number, not {value!r}")
        self._check(1 <= self.latency <= MAX_LATENCY, "latency", f"from 1 to {MAX_LATENCY}")
        self._check(0 <= self.stall < 1, "stall", "from 0 to below 1")
        self._check(0 <= self.seed < 1 << 64, "seed", "from 0 to 2**64 - 1")
        self._check(0 < self.bandwidth <= 1, "bandwidth", "above 0 and at most 1")

    def _check(self, good: bool, name: str, rule: str) -> None:
        if not good:
            raise InputError(f"memory {name} must be {rule}, not {getattr(self, name)!r}")

    @property
    def rate(self) -> float:
        """Beats per cycle that each data channel carries in the mean."""
        return min(self.bandwidth, 1 - self.stall)

    @classmethod
    def parse(cls, text: str) -> MemoryModel:
        """Read `latency=40,stall=0.1,seed=1`: any of the fields, in any order."""
        types: dict[str, type[int] | type[float]] = {f.name: int if f.type == "int" else float for f in fields(cls)}
        values: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, sign, value = (word.strip() for word in part.partition("="))
            if name not in types or not sign:
                raise InputError(f"a memory is written like latency=40,stall=0.1 (of {', '.join(types)}), not {part!r}")
            if name in values:
                raise InputError(f"memory {name} is given twice in {text!r}")
            try:
                values[name] = types[name](value)
            except ValueError:
                kind = "an integer" if types[name] is int else "a number"
                raise InputError(f"memory {name} must be {kind}, not {value!r}") from None
        return cls(**values)

    def __str__(self) -> str:
        return ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
