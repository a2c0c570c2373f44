"""Checks that a program does not depend on how fast the machine is.

The machine's units run side by side; what is certain about their order comes from dependencies, from each unit's own
order and from the FIFOs. A clock says, for a moment, how many instructions of each unit must have completed by then,
and of how many all that they read must have been read. Two accesses to the same word, one of them a write, are in
order if the later instruction's clock at its start covers the earlier one; if not, HazardError is raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import DeviceError, Instruction, Unit
from tilewright_hw.arch.isa import PATCHES, REG_COUNT, UNIT_OF
from tilewright_sim.golden.state import Buffers, Fault, Region

if TYPE_CHECKING:
    from tilewright_sim.golden.machine import Step

Clock = NDArray[np.int64]
"""Ten counts: instructions completed of each unit, then instructions whose reads are done of each unit."""

UNITS = len(Unit)


class HazardError(DeviceError):
    """A result depends on timing, or on what an earlier program left behind."""


class HazardFault(Fault):
    """What is out of order; the machine adds the instruction and raises HazardError."""


class _MemoryLog:
    """The memory accesses of one unit's instructions, in its order."""

    def __init__(self) -> None:
        self.count = 0
        self.bounds = np.zeros((2, 64), np.int64)  # first byte, one past the last
        self.regions: list[list[Region]] = []

    def append(self, regions: list[Region]) -> None:
        """Add one instruction."""
        if self.count == self.bounds.shape[1]:
            self.bounds = np.concatenate([self.bounds, np.zeros_like(self.bounds)], axis=1)
        if regions:
            self.bounds[0, self.count] = min(r.start for r in regions)
            self.bounds[1, self.count] = max(r.end for r in regions)
        self.regions.append(regions)
        self.count += 1

    def meeting(self, region: Region, done: int) -> int | None:
        """Return the number of an instruction after the first `done` that touches `region`, or None."""
        first, last = self.bounds[:, done : self.count]
        for i in np.flatnonzero((first < region.end) & (last > region.start)):
            if any(region.overlaps(other) for other in self.regions[done + i]):
                return int(done + i + 1)
        return None


class Hazards:
    """The order of one run's accesses.

    Parameters
    ----------
    buffers : Buffers
        The machine's buffers, for their sizes.
    """

    def __init__(self, buffers: Buffers) -> None:
        self._sizes = {name: buffers.array(name).shape[0] for name in Buffers.NAMES}
        self.begin()

    def begin(self) -> None:
        """Forget everything: a program starts."""
        # For each word, the last instruction of each unit that accessed it (0: none).
        self._read = {name: self._shadow(size) for name, size in self._sizes.items()}
        self._written = {name: self._shadow(size) for name, size in self._sizes.items()}
        self._memory_reads = [_MemoryLog() for _ in Unit]
        self._memory_writes = [_MemoryLog() for _ in Unit]
        self._sequencer: Clock = np.zeros(2 * UNITS, np.int64)
        self._starts: list[list[Clock]] = [[] for _ in Unit]
        self._completes: list[list[Clock]] = [[] for _ in Unit]
        self._indices: list[list[int]] = [[] for _ in Unit]
        self._place: dict[int, tuple[Unit, int]] = {}
        self._registers = 0

    def _shadow(self, size: int) -> list[NDArray[np.int32]]:
        return [np.zeros((size, 1), np.int32) for _ in Unit]

    def check_registers(self, data: bytes) -> None:
        """Fault if a patch takes a register that was not loaded since the start."""
        for i in range(PATCHES):
            half = int.from_bytes(data[4 + 2 * i : 6 + 2 * i], "little")
            if half & 15 and (half >> 4 & (REG_COUNT - 1)) >= self._registers:
                raise HazardFault(f"register {half >> 4 & (REG_COUNT - 1)} has not been loaded")

    def load_registers(self, region: Region, count: int) -> None:
        """Check what LDREGS reads."""
        self._registers = max(self._registers, count)
        self._check_memory(region, self._sequencer, None, write=False)

    def wait(self, ins: Instruction) -> None:
        """Let the sequencer wait for the dependencies of one of its own instructions."""
        self._sequencer = self._join_waits(self._sequencer, ins)

    def _join_waits(self, clock: Clock, ins: Instruction) -> Clock:
        for unit, distance in ins.waits.items():
            done = self._completes[unit]
            if distance <= len(done):
                clock = np.maximum(clock, done[-distance])
        return clock

    def before(self, index: int, ins: Instruction, step: Step, source: int | None) -> None:
        """Check the accesses of an instruction; `source` pushed the first of what it takes from a FIFO."""
        unit = UNIT_OF[ins.op]
        clock = self._join_waits(self._sequencer, ins)
        if self._starts[unit]:
            clock = np.maximum(clock, self._starts[unit][-1])
            if unit in (Unit.VECTOR, Unit.STORE):
                clock = np.maximum(clock, self._completes[unit][-1])
        self._starts[unit].append(clock)
        self._indices[unit].append(index)
        number = len(self._starts[unit])
        self._place[index] = (unit, number)
        self._unit, self._start = unit, clock
        for region in step.reads:
            self._check_defined(region, step)
            self._check(region, clock, unit, write=False)
        if source is not None:  # nothing is written before the first of the data is there
            clock = np.maximum(clock, self._start_of(source))
        for region in step.writes:
            self._check(region, clock, unit, write=True)
        self._record(step, unit, number)

    def _record(self, step: Step, unit: Unit, number: int) -> None:
        for regions, shadow, logs in (
            (step.reads, self._read, self._memory_reads),
            (step.writes, self._written, self._memory_writes),
        ):
            logs[unit].append([r for r in regions if r.name == "memory"])
            for region in regions:
                if region.name != "memory":
                    region.view(shadow[region.name][unit])[...] = number

    def after(self, taken: list[tuple[int, bool]]) -> None:
        """Conclude the instruction: `taken` says whose data it took from a FIFO, and whether to the last."""
        unit, clock = self._unit, self._start.copy()
        if self._completes[unit]:  # units complete their instructions in order
            np.maximum(clock, self._completes[unit][-1], out=clock)
        number = len(self._starts[unit])
        clock[unit] = clock[UNITS + unit] = number
        for source, last in taken:
            np.maximum(clock, self._start_of(source), out=clock)
            producer, its_number = self._place.get(source, (unit, 0))
            seen = its_number if last else its_number - 1
            clock[UNITS + producer] = max(clock[UNITS + producer], seen)
        self._completes[unit].append(clock)

    def _start_of(self, source: int) -> Clock:
        unit, number = self._place[source]
        return self._starts[unit][number - 1]

    def fetch(self, region: Region) -> None:
        """Check that nothing was stored into an instruction, which may have been fetched long before."""
        self._check_memory(region, np.zeros(2 * UNITS, np.int64), None, write=False)

    def _check_defined(self, region: Region, step: Step) -> None:
        """Fault if a word was not written since the start."""
        if region.name == "memory":
            return
        written = np.zeros(region.view(self._written[region.name][0]).shape, np.bool_)
        for shadow in self._written[region.name]:
            written |= region.view(shadow) > 0
        needed = step.needs(region)
        if needed is not None:
            written |= ~needed
        if not written.all():
            at = np.unravel_index(np.argmin(written), written.shape)
            word = region.start + int(at[-1])
            word += sum(int(i) * s for i, (_, s) in zip(at[:-1], region.loops, strict=True))
            raise HazardFault(f"reads word {word} of the {region.name} buffer, which was not written since the start")

    def _check(self, region: Region, clock: Clock, unit: Unit, write: bool) -> None:
        if region.name == "memory":
            self._check_memory(region, clock, unit, write)
            return
        for other in Unit:
            if other == unit:
                continue  # a unit's own accesses are in order
            self._check_last(region, self._written, other, int(clock[other]), write, "written")
            if write:
                self._check_last(region, self._read, other, int(clock[UNITS + other]), write, "read")

    def _check_last(
        self,
        region: Region,
        shadow: dict[str, list[NDArray[np.int32]]],
        other: Unit,
        done: int,
        write: bool,
        how: str,
    ) -> None:
        last = int(region.view(shadow[region.name][other]).max())
        if last > done:
            self._report(region, other, last, write, how)

    def _check_memory(self, region: Region, clock: Clock, unit: Unit | None, write: bool) -> None:
        for other in Unit:
            if other == unit:
                continue
            logs: list[tuple[Any, int, str]] = [(self._memory_writes[other], int(clock[other]), "written")]
            if write:
                logs.append((self._memory_reads[other], int(clock[UNITS + other]), "read"))
            for log, done, how in logs:
                number = log.meeting(region, done)
                if number is not None:
                    self._report(region, other, number, write, how)

    def _report(self, region: Region, other: Unit, number: int, write: bool, how: str) -> None:
        where = "memory" if region.name == "memory" else f"the {region.name} buffer"
        raise HazardFault(
            f"{'writes' if write else 'reads'} {where} where it is {how} by instruction "
            f"{self._indices[other][number - 1]} ({other.name}), on which it does not depend"
        )
