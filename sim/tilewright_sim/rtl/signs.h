// Sign extension in two shifts, of which a compiler makes one instruction for a register of a byte or two; Verilator's
// own functions take three. Most of an array's code is this, and code that is not in the first-level cache is what a
// cycle waits for. As in Verilator's, the bits above `lbits` are zero, and those of the result above its width too many.

#pragma once

#include "verilated.h"

#define VL_EXTENDS_II(obits, lbits, lhs) \
    static_cast<IData>(static_cast<int32_t>(static_cast<IData>(lhs) << (32 - (lbits))) >> (32 - (lbits)))
#define VL_MULS_III(lbits, lhs, rhs) (VL_EXTENDS_II(32, lbits, lhs) * VL_EXTENDS_II(32, lbits, rhs))
