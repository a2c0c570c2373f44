"""What the machine is: configuration, instruction set, register map, number formats.

Pure Python: nothing here imports Amaranth, and gateware, golden model, compiler and runtime all stand on it.
"""

from tilewright_hw.arch.config import PRESETS, AcceleratorConfig, ConfigError
from tilewright_hw.arch.device import Device
from tilewright_hw.arch.errors import DeviceError, InputError, TilewrightError
from tilewright_hw.arch.isa import Instruction, Op, Unit, assemble, disassemble
from tilewright_hw.arch.registers import REGISTERS, ErrorCode, Register

__all__ = [
    "PRESETS",
    "REGISTERS",
    "AcceleratorConfig",
    "ConfigError",
    "Device",
    "DeviceError",
    "ErrorCode",
    "InputError",
    "Instruction",
    "Op",
    "Register",
    "TilewrightError",
    "Unit",
    "assemble",
    "disassemble",
]
