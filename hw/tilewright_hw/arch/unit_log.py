"""What a simulated accelerator tells of its units, cycle by cycle: the bits of the probe, and the log of a program.

The probe is a port that only a build for this purpose has (tilewright_sim/rtl/probe.py). Instructions are issued in
program order, and each unit takes and completes its own in that order; so counting tells which one a bit is about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch.isa import Unit

UNITS = len(Unit)
ISSUED = 0
"""An instruction is issued."""
TAKEN, DONE, WAITS = 1, 1 + UNITS, 1 + 2 * UNITS
"""The first of five bits each, one per `Unit`: it takes an instruction; one of its own is completed; it has nothing to
do because the next one waits for another unit."""
MATRIX_WAITS_TILE, VECTOR_WAITS_STORE = 1 + 3 * UNITS, 2 + 3 * UNITS
"""The unit waits in the middle of an instruction: for a weight tile, for room in the store stream."""
READ_BEAT, FETCH_BEAT, WRITE_BEAT = (3 + 3 * UNITS + i for i in range(3))
"""A beat on the bus: read, read as instructions (also counted as read), written."""
WIDTH = 6 + 3 * UNITS

EVENTS = (1 << WAITS) - 1
"""Bits that say something by themselves, in one cycle; the levels after them do by their changes."""
LEVELS = (1 << READ_BEAT) - 1 & ~EVENTS
BEATS_CYCLES = 64
"""Beats are counted over so many cycles."""


@dataclass(frozen=True)
class UnitLog:
    """One run of a program.

    Parameters
    ----------
    program : bytes
        Its instructions as they lay in memory, END included.
    start, end : int
        The cycles in which it was started, and in which its end was seen.
    log : uint64 (n, 2)
        (cycle, bits) wherever there is an event or a level changes, in order.
    beats : uint64 (b, 4)
        (first cycle, beats read, of these instructions, beats written) for every BEATS_CYCLES cycles.
    """

    program: bytes
    start: int
    end: int
    log: NDArray[np.uint64]
    beats: NDArray[np.uint64]

    def cycles(self, bit: int) -> list[int]:
        """Return the cycles in which a bit is set, as far as they are in the log: those of an event are."""
        return [int(c) for c in self.log[self.log[:, 1] >> np.uint64(bit) & np.uint64(1) == 1, 0]]

    def intervals(self, bit: int) -> list[tuple[int, int]]:
        """Return (first cycle, one past the last) of the times that a level is up."""
        up = (self.log[:, 1] >> np.uint64(bit) & np.uint64(1)).astype(np.int8)
        edges = np.diff(up, prepend=0, append=0)
        cycles = np.append(self.log[:, 0].astype(np.int64), self.end)
        return list(zip(cycles[edges > 0].tolist(), cycles[edges < 0].tolist(), strict=True))
