"""The AXI4-Lite register map: the one definition that gateware, runtime and docs read. All registers are 32 bits."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tilewright_hw.arch.isa import BASES

IDENTITY = 0x54574C52
"""ASCII `TWLR`."""
VERSION = 0x00000100
"""Interface version, major.minor.patch in bytes 2, 1, 0."""


class ErrorCode(enum.IntEnum):
    """Why the accelerator stopped (register ERROR)."""

    NONE = 0
    ILLEGAL_OPCODE = 1
    """An opcode the sequencer does not know."""
    ILLEGAL_FIELD = 2
    """A loop count of zero, or an enumerated operand field with an unknown value."""
    READ_RESPONSE = 3
    """An AXI read answered SLVERR or DECERR (an access outside memory)."""
    WRITE_RESPONSE = 4
    """An AXI write answered SLVERR or DECERR."""


@dataclass(frozen=True)
class Register:
    """One register: byte address, access ('ro', 'rw', 'w1c' write one to clear, 'wo') and meaning."""

    name: str
    address: int
    access: str
    doc: str


def _map() -> dict[str, Register]:
    table: list[tuple[str, int, str, str]] = [
        ("IDENTITY", 0x000, "ro", f"Reads 0x{IDENTITY:08x} (ASCII TWLR)."),
        ("VERSION", 0x004, "ro", "Interface version: major, minor, patch in bytes 2, 1, 0."),
        (
            "SHAPE",
            0x008,
            "ro",
            "rows in bits 0-7, cols in 8-15, lanes in 16-23, bus bytes in 24-31.",
        ),
        (
            "CAPACITY",
            0x00C,
            "ro",
            "log2 of acc_rows, act_words, row_words, param_words in bytes 0 to 3.",
        ),
        ("CAPACITY2", 0x010, "ro", "log2 of stat_entries in byte 0, ingest in byte 1."),
        ("CONTROL", 0x020, "wo", "Bit 0: start (ignored while busy)."),
        ("STATUS", 0x024, "ro", "Bit 0: busy. Bit 1: done (since the last start). Bit 2: error."),
        (
            "ERROR",
            0x028,
            "ro",
            "Error code (0: none); cleared by reset only, as the units are left as they stood.",
        ),
        ("ERROR_PC", 0x02C, "ro", "Index of the instruction last fetched when the error was seen."),
        ("IRQ_ENABLE", 0x030, "rw", "Bit 0: interrupt when done. Bit 1: interrupt on error."),
        ("IRQ_STATUS", 0x034, "w1c", "Bit 0: done. Bit 1: error."),
        ("PROGRAM_LO", 0x040, "rw", "Byte address of the first instruction, a multiple of 64."),
        ("PROGRAM_HI", 0x044, "rw", "Upper 32 bits of the same."),
    ]
    for i in range(BASES):
        table.append((f"BASE{i}_LO", 0x080 + 8 * i, "rw", f"Base address {i}, lower 32 bits."))
        table.append((f"BASE{i}_HI", 0x084 + 8 * i, "rw", f"Base address {i}, upper 32 bits."))
    for i, (name, doc) in enumerate(COUNTERS):
        table.append((f"COUNT_{name}", 0x100 + 4 * i, "ro", doc))
    return {name: Register(name, address, access, doc) for name, address, access, doc in table}


COUNTERS: tuple[tuple[str, str], ...] = (
    ("CYCLES", "Cycles from start to done; cleared by start, as all counters are."),
    ("READ_BEATS", "Read data beats."),
    ("WRITE_BEATS", "Write data beats."),
    ("ARRAY_ROWS", "Activation rows streamed into the array (cycles in which it works)."),
    ("INSTRUCTIONS", "Instructions issued."),
    ("FETCH_BEATS", "Read data beats that were instructions or registers."),
    ("WEIGHT_BUSY", "Cycles in which the weight unit holds an instruction."),
    ("LOAD_BUSY", "The same for the load unit."),
    ("MATRIX_BUSY", "The same for the matrix unit."),
    ("VECTOR_BUSY", "The same for the vector unit."),
    ("STORE_BUSY", "The same for the store unit."),
    (
        "MATRIX_WAIT_DEPENDENCY",
        "Cycles in which the matrix unit idles while its next instruction waits for a unit.",
    ),
    (
        "MATRIX_WAIT_TILE",
        "Cycles in which the matrix unit has an instruction but no tile to stream.",
    ),
    (
        "VECTOR_WAIT_DEPENDENCY",
        "Cycles in which the vector unit idles while its next instruction waits for a unit.",
    ),
    ("VECTOR_WAIT_STORE", "Cycles in which the vector unit waits for room in the store stream."),
    ("READ_IDLE", "Cycles in which no read is outstanding."),
)
"""Name and meaning of each counter, in address order from 0x100 on."""

REGISTERS: dict[str, Register] = _map()
"""All registers by name."""
