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
    """No error."""
    ILLEGAL_OPCODE = 1
    """An opcode the sequencer does not know."""
    ILLEGAL_FIELD = 2
    """A loop count of zero, or an enumerated operand field with an unknown value."""
    READ_RESPONSE = 3
    """An AXI read answered SLVERR or DECERR (an access outside memory)."""
    WRITE_RESPONSE = 4
    """An AXI write answered SLVERR or DECERR."""


@dataclass(frozen=True)
class Bits:
    """A part of a register: `width` bits from bit `lsb` on."""

    name: str
    lsb: int
    width: int
    doc: str


@dataclass(frozen=True)
class Register:
    """One register: byte address, access ('ro', 'rw', 'w1c' write one to clear, 'wo') and meaning."""

    name: str
    address: int
    access: str
    doc: str

    @property
    def bits(self) -> tuple[Bits, ...]:
        """Its parts, if it has any."""
        return _BITS.get(self.name, ())

    @property
    def reset(self) -> int | None:
        """Value after reset; None if it follows from the configuration."""
        if self.name in _FROM_CONFIG:
            return None
        return {"IDENTITY": IDENTITY, "VERSION": VERSION}.get(self.name, 0)


_FROM_CONFIG = ("SHAPE", "CAPACITY", "CAPACITY2")
_BITS: dict[str, tuple[Bits, ...]] = {
    "VERSION": (
        Bits("patch", 0, 8, "Patch version."),
        Bits("minor", 8, 8, "Minor version: grows with what is added."),
        Bits("major", 16, 8, "Major version: grows where a driver must change."),
    ),
    "SHAPE": (
        Bits("rows", 0, 8, "Rows R of the array."),
        Bits("cols", 8, 8, "Columns C of the array."),
        Bits("lanes", 16, 8, "Lanes L of the vector unit."),
        Bits("bus_bytes", 24, 8, "Bytes B of the data bus."),
    ),
    "CAPACITY": (
        Bits("acc_rows", 0, 8, "log2 of the accumulator rows of a bank."),
        Bits("act_words", 8, 8, "log2 of the words of the activation buffer."),
        Bits("row_words", 16, 8, "log2 of the words of the row buffer."),
        Bits("param_words", 24, 8, "log2 of the words of the parameter buffer."),
    ),
    "CAPACITY2": (
        Bits("stat_entries", 0, 8, "log2 of the statistics entries."),
        Bits("ingest", 8, 8, "Weight rows g that enter the array per cycle (not a logarithm)."),
    ),
    "CONTROL": (Bits("start", 0, 1, "Write 1 to start; ignored while a program runs or an error stands."),),
    "STATUS": (
        Bits("busy", 0, 1, "A program runs."),
        Bits("done", 1, 1, "The last program that was started has come to its END."),
        Bits("error", 2, 1, "An error stands: see ERROR."),
    ),
    "ERROR": (Bits("code", 0, 8, "Error code, see below."),),
    "IRQ_ENABLE": (
        Bits("done", 0, 1, "Interrupt when a program is done."),
        Bits("error", 1, 1, "Interrupt on an error."),
    ),
    "IRQ_STATUS": (
        Bits("done", 0, 1, "A program has ended; write 1 to clear."),
        Bits("error", 1, 1, "An error was seen; write 1 to clear."),
    ),
}
"""The parts of those registers that have any, in order."""


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
