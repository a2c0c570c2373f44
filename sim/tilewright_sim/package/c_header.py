"""A C header of the register map and the instruction set, for drivers that are not written in Python."""

from __future__ import annotations

from tilewright_hw.arch import REGISTERS, AcceleratorConfig, ErrorCode, Op, Unit
from tilewright_hw.arch.isa import BYTES, FIELDS, PATCHES, REG_COUNT, WORDS

__all__ = ["c_header"]

_HEAD = """\
/* Registers and instructions of Tilewright ({name}). Generated; do not edit.
 *
 * Registers are 32 bits at byte offsets from the AXI4-Lite slave's base address. An instruction is {words} 32-bit
 * words, little-endian; TILEWRIGHT_FIELD sets one of its operands:
 *
 *     uint32_t ins[TILEWRIGHT_INSTRUCTION_WORDS] = {{TILEWRIGHT_OP_MATMUL}};
 *     TILEWRIGHT_FIELD(ins, MATMUL_K, 4);
 *     TILEWRIGHT_WAIT(ins, TILEWRIGHT_UNIT_LOAD, 1);
 */
#ifndef TILEWRIGHT_H
#define TILEWRIGHT_H

#include <stdint.h>

"""
_TAIL = """\

static inline void tilewright_set(uint32_t *words, unsigned word, unsigned lsb, unsigned width, uint32_t value)
{
    uint32_t mask = (width == 32 ? UINT32_MAX : (UINT32_C(1) << width) - 1) << lsb;
    words[word] = (words[word] & ~mask) | ((value << lsb) & mask);
}

#define TILEWRIGHT_FIELD(words, field, value) \\
    tilewright_set((words), TILEWRIGHT_##field##_WORD, TILEWRIGHT_##field##_LSB, TILEWRIGHT_##field##_WIDTH, (value))
/* Wait for the distance-th most recent instruction of a unit, 1 to 15. */
#define TILEWRIGHT_WAIT(words, unit, distance) tilewright_set((words), 0, 8 + 4 * (unit), 4, (distance))

#endif
"""


def c_header(config: AcceleratorConfig) -> str:
    """Return the header; its macros all begin with TILEWRIGHT_."""
    lines = ["/* Configuration */"]
    lines += [_define(key, value) for key, value in config.to_dict().items()]
    lines += ["", "/* Registers */"]
    for register in REGISTERS.values():
        lines.append(f"{_define(f'REG_{register.name}', register.address, 3)} /* {register.access}: {register.doc} */")
        for bits in register.bits:
            name = f"{register.name}_{bits.name}"
            mask = ((1 << bits.width) - 1) << bits.lsb
            lines += [_define(f"{name}_LSB", bits.lsb), _define(f"{name}_MASK", mask, 8)]
    lines += ["", "/* Register ERROR */", *(_define(f"ERROR_{code.name}", code) for code in ErrorCode)]
    lines += ["", "/* Instructions */", _define("INSTRUCTION_WORDS", WORDS), _define("INSTRUCTION_BYTES", BYTES)]
    lines += [_define("PATCHES", PATCHES), _define("REGISTERS", REG_COUNT)]
    lines += [_define(f"OP_{op.name}", op) for op in Op]
    lines += [_define(f"UNIT_{unit.name}", unit) for unit in Unit]
    enums = {}
    for op, fields in FIELDS.items():
        lines += ["", f"/* {op.name} */"]
        for f in fields:
            name = f"{op.name}_{f.name}"
            lines += [_define(f"{name}_{part}", value) for part, value in _place(f.word, f.lsb, f.width)]
            if f.enum is not None:
                enums[f.enum.__name__] = f.enum
    for enum_name, members in enums.items():
        lines += ["", f"/* {enum_name} */"]
        lines += [_define(f"{enum_name}_{member.name}", int(member)) for member in members]
    return _HEAD.format(name=config.name, words=WORDS) + "\n".join(lines) + "\n" + _TAIL


def _place(word: int, lsb: int, width: int) -> tuple[tuple[str, int], ...]:
    return (("WORD", word), ("LSB", lsb), ("WIDTH", width))


def _define(name: str, value: int, digits: int = 0) -> str:
    text = f"0x{int(value):0{digits}x}u" if digits else str(int(value))
    return f"#define TILEWRIGHT_{name.upper()} {text}"
