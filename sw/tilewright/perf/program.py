"""What the sequencer makes of a program in memory: instructions with their patches added, in order, up to END."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tilewright_hw.arch import InputError
from tilewright_hw.arch.isa import BYTES, FIELDS, PATCHES, REG_COUNT, WORDS, Op, Unit

Read = Callable[[int, int], bytes]
"""Returns `size` bytes of memory from an address on."""
MAX_INSTRUCTIONS = 1 << 20


@dataclass(frozen=True)
class Step:
    """One instruction as it is executed.

    `waits` holds the distance per unit (0: none), `patches` the patch slots that the sequencer goes through.
    """

    op: Op
    fields: dict[str, int]
    waits: tuple[int, ...]
    patches: int


def read_program(read: Read, address: int, bases: list[int]) -> list[Step]:
    """Return the instructions from `address` on, END included.

    InputError if one is illegal, or if no END comes. Registers are what LDREGS finds in memory now.
    """
    registers = [0] * REG_COUNT
    steps = []
    for index in range(MAX_INSTRUCTIONS):
        data = read(address + BYTES * index, BYTES)
        step = _decode(data, registers)
        steps.append(step)
        if step.op == Op.END:
            return steps
        if step.op == Op.LDREGS:
            f = step.fields
            table = read(bases[f["base"]] + f["offset"], 4 * f["count"])
            registers[: f["count"]] = struct.unpack(f"<{f['count']}I", table)
    raise InputError(f"the program must end: no END within {MAX_INSTRUCTIONS} instructions")


def _decode(data: bytes, registers: list[int]) -> Step:
    words = list(struct.unpack(f"<{WORDS}I", data))
    code = words[0] & 0xFF
    if code not in Op._value2member_map_:
        raise InputError(f"unknown opcode {code}")
    slots = 0
    for i in range(PATCHES):
        half = words[1 + i // 2] >> (16 * (i % 2)) & 0xFFFF
        if half & 15:
            slots = i + 1
            words[half & 15] = (words[half & 15] + registers[half >> 4 & (REG_COUNT - 1)]) & 0xFFFFFFFF
    op = Op(code)
    waits = tuple(words[0] >> (8 + 4 * u) & 15 for u in Unit)
    return Step(op, _fields(op, tuple(words)), waits, slots)


@lru_cache(maxsize=1 << 14)
def _fields(op: Op, words: tuple[int, ...]) -> dict[str, int]:
    fields = {f.name: words[f.word] >> f.lsb & f.mask for f in FIELDS[op]}
    for f in FIELDS[op]:
        value = fields[f.name]
        if value < f.low:
            raise InputError(f"{op.name}.{f.name} must be at least {f.low}, not {value}")
        if f.enum is not None and value not in f.enum._value2member_map_:
            raise InputError(f"{op.name}.{f.name} has no value {value}")
    if op == Op.LDREGS and fields["count"] > REG_COUNT:
        raise InputError(f"{op.name}.count must be at most {REG_COUNT}, not {fields['count']}")
    return fields
