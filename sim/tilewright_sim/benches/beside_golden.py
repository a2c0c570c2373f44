"""What benches of the accelerator's units do with the golden machine that stands beside the unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright_hw.arch import AcceleratorConfig
from tilewright_sim.golden.machine import Machine
from tilewright_sim.golden.memory import Memory

__all__ = ["Fields", "machine_with", "mirror", "send_accepted"]

Fields = dict[str, int]
"""Operands of an instruction by name."""


def machine_with(config: AcceleratorConfig, memory: bytearray, bases: Sequence[int]) -> Machine:
    """Return a golden machine with a copy of the memory that the unit sees, and with these base registers."""
    machine = Machine(config, Memory(len(memory)))
    mirror(machine, memory)
    for i, base in enumerate(bases):
        machine.set_base(i, base)
    return machine


def mirror(machine: Machine, memory: bytearray) -> None:
    """Give the machine the memory as the unit left it."""
    machine.memory.write(0, np.frombuffer(bytes(memory), np.uint8))


def send_accepted(send: Callable[[Fields], bool], make: Callable[[], Fields], count: int) -> None:
    """Make instructions and send them until so many are sent: `send` returns False for one that golden refuses."""
    sent = 0
    while sent < count:
        sent += send(make())
