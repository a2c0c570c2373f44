"""From a program in memory to the cycles that it takes, and the counters that the hardware would show."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.perf.machine import Event, Machine
from tilewright.perf.program import Read, read_program
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import BASES, Unit
from tilewright_hw.arch.memory_model import MemoryModel


@dataclass(frozen=True)
class Prediction:
    """What the cycle model says of one run.

    Parameters
    ----------
    cycles : int
        From start to done.
    counters : dict
        The hardware's counters, by their names.
    events : list of Event
        Every instruction of a unit, in program order.
    """

    cycles: int
    counters: dict[str, int]
    events: list[Event]


def predict(
    config: AcceleratorConfig, read: Read, program: int, *, memory: MemoryModel | None = None,
    bases: list[int] | None = None,
) -> Prediction:  # fmt: skip
    """Predict the run of the program at byte address `program`.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    read : callable
        Returns the bytes of memory (address, size): instructions and register tables are read.
    program : int
        Byte address of the first instruction.
    memory : MemoryModel
        Timing of the memory. Without stalls and at full bandwidth the model follows the gateware cycle by cycle; else
        it takes them at their mean.
    bases : list of int
        The base registers; by default register i is i * 4 GiB, as compiled programs expect.

    Raises
    ------
    InputError
        The program is illegal or does not end.
    """
    bases = [i << 32 for i in range(BASES)] if bases is None else bases
    steps = read_program(read, program, bases)
    machine = Machine(config, memory or MemoryModel(), steps, program, bases)
    cycles = machine.run()
    events = sorted((e for queue in machine.queues.values() for e in queue.events), key=lambda e: e.index)
    return Prediction(cycles, _counters(machine, cycles), events)


def _counters(machine: Machine, cycles: int) -> dict[str, int]:
    counters = {
        "CYCLES": cycles,
        "READ_BEATS": machine.reads.beats,
        "WRITE_BEATS": machine.writes.beats,
        "ARRAY_ROWS": machine.matrix.rows,
        "INSTRUCTIONS": len(machine.steps),
        "FETCH_BEATS": machine.fetch_beats,
    }
    held = {unit: _held(machine.queues[unit].events) for unit in Unit}
    for unit in Unit:
        counters[f"{unit.name}_BUSY"] = sum(end - begin for begin, end in held[unit])
    counters["MATRIX_WAIT_DEPENDENCY"] = _waits(machine, Unit.MATRIX, held[Unit.MATRIX])
    counters["MATRIX_WAIT_TILE"] = machine.matrix.wait_tile
    counters["VECTOR_WAIT_DEPENDENCY"] = _waits(machine, Unit.VECTOR, held[Unit.VECTOR])
    counters["VECTOR_WAIT_STORE"] = machine.wait_store
    counters["READ_IDLE"] = cycles - machine.reads.busy
    return counters


def _held(events: list[Event]) -> list[tuple[int, int]]:
    """Return the intervals [begin, end) in which a unit holds a command."""
    intervals: list[tuple[int, int]] = []
    for event in events:
        begin, end = event.taken + 1, event.done + 1
        if intervals and intervals[-1][1] >= begin:
            intervals[-1] = (intervals[-1][0], max(intervals[-1][1], end))
        else:
            intervals.append((begin, end))
    return intervals


def _waits(machine: Machine, unit: Unit, held: list[tuple[int, int]]) -> int:
    """Return the cycles in which the unit's next command waits for another one while the unit holds none."""
    total = 0
    queue = machine.queues[unit]
    for event, out in zip(queue.events, queue.outs, strict=True):
        begin, end = out + 1, event.met + 1
        if end > begin:
            total += end - begin - sum(max(0, min(end, b) - max(begin, a)) for a, b in held if b > begin and a < end)
    return total
