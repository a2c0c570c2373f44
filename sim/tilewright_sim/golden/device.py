"""The golden model as a device."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import REGISTERS, AcceleratorConfig, DeviceError, InputError
from tilewright_hw.arch.isa import BASES
from tilewright_hw.arch.registers import COUNTERS, IDENTITY, VERSION, ErrorCode
from tilewright_sim.golden.machine import Machine
from tilewright_sim.golden.memory import Memory

_BY_ADDRESS = {register.address: register for register in REGISTERS.values()}


class GoldenDevice:
    """A device that computes each instruction at once, in NumPy, and has no notion of time.

    What the accelerator itself would stop for is left in STATUS and ERROR, as on any device, and its description in
    `last_error`. What it could not notice, an access out of a buffer or a FIFO that is asked for more than it was
    given, raises DeviceError in `wait`.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    check : bool
        Also raise on accesses that no dependency orders and on reading what the program has not written (slower).
    """

    name = "golden"

    def __init__(self, config: AcceleratorConfig, check: bool = False) -> None:
        self.config, self.check = config, check
        self.last_error: DeviceError | None = None
        self._registers: dict[str, int] = {}
        self._busy = self._done = False
        self.allocate(0)

    def allocate(self, size: int) -> None:
        """Give the device `size` bytes of zeroed memory from address 0 on, and reset it."""
        self.memory = Memory(size)
        self.machine = Machine(self.config, self.memory, self.check)
        self._seconds = 0.0
        self.reset()

    @property
    def memory_size(self) -> int:
        """Bytes of device memory."""
        return self.memory.size

    def _range(self, address: int, size: int) -> None:
        if address < 0 or size < 0 or address + size > self.memory.size:
            raise InputError(
                f"bytes {address:#x} to {address + size:#x} are outside device memory, which has {self.memory.size:#x}"
            )

    def write_memory(self, address: int, data: bytes | NDArray[np.uint8]) -> None:
        """Write bytes at a byte address."""
        if isinstance(data, np.ndarray) and data.dtype != np.uint8:
            raise InputError(f"data must be bytes or an array of uint8, not of {data.dtype}")
        raw = data.reshape(-1) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
        self._range(address, raw.size)
        if raw.size:
            self.machine.overwrite(address, address + raw.size)[address : address + raw.size] = raw

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes from a byte address, as a copy."""
        self._range(address, size)
        return self.memory.bytes[address : address + size].copy()

    def write_register(self, address: int, value: int) -> None:
        """Write a 32-bit control register; writes to read-only ones do nothing."""
        if address not in _BY_ADDRESS:
            raise InputError(f"there is no register at address {address!r}")
        if not 0 <= value < 1 << 32:
            raise InputError(f"a register holds 32 bits, not {value!r}")
        register = _BY_ADDRESS[address]
        if register.name == "CONTROL":
            self._start(value)
        elif register.access == "rw":
            self._registers[register.name] = value
        elif register.access == "w1c":
            self._registers[register.name] = self._get(register.name) & ~value

    def read_register(self, address: int) -> int:
        """Read a 32-bit control register."""
        if address not in _BY_ADDRESS:
            raise InputError(f"there is no register at address {address!r}")
        return self._get(_BY_ADDRESS[address].name)

    def _get(self, name: str) -> int:
        if name == "STATUS":
            return self._busy | self._done << 1 | (self._get("ERROR") != 0) << 2
        if name == "COUNT_INSTRUCTIONS":
            return self.machine.executed & 0xFFFFFFFF
        return self._registers.get(name, 0)

    def _start(self, value: int) -> None:
        """Take a write to CONTROL: only an idle and healthy device starts."""
        if value & 1 and not self._busy and not self._get("ERROR"):
            self._busy, self._done = True, False

    def _wide(self, name: str) -> int:
        return self._get(f"{name}_LO") | self._get(f"{name}_HI") << 32

    def wait(self, max_cycles: int) -> None:
        """Execute the program, if it was started; at most `max_cycles` instructions, as there are no cycles."""
        if not self._busy:
            return
        for i in range(BASES):
            self.machine.set_base(i, self._wide(f"BASE{i}"))
        begin = time.perf_counter()
        try:
            self.machine.run(self._wide("PROGRAM"), max_cycles)
        except DeviceError as e:
            if e.code == ErrorCode.NONE:
                raise
            self.last_error = e
            self._registers["ERROR"], self._registers["ERROR_PC"] = e.code, self.machine.index
        finally:
            self._seconds += time.perf_counter() - begin
        self._busy = False
        self._done = not self._get("ERROR")
        self._interrupt()

    def _interrupt(self) -> None:
        self._registers["IRQ_STATUS"] = self._get("IRQ_STATUS") | (1 if self._done else 2)

    def reset(self) -> None:
        """Reset registers and units; memory and buffers stay."""
        self.machine.clear()
        self.last_error = None
        self._busy = self._done = False
        c = self.config
        sizes = (c.acc_rows, c.act_words, c.row_words, c.param_words)
        self._registers = {
            "IDENTITY": IDENTITY,
            "VERSION": VERSION,
            "SHAPE": c.rows | c.cols << 8 | c.lanes << 16 | c.bus_bytes << 24,
            "CAPACITY": sum((size.bit_length() - 1) << 8 * i for i, size in enumerate(sizes)),
            "CAPACITY2": (c.stat_entries.bit_length() - 1) | c.ingest << 8,
        }
        self._registers |= {f"COUNT_{name}": 0 for name, _ in COUNTERS}

    @property
    def seconds(self) -> float:
        """Seconds spent executing since `allocate`."""
        return self._seconds

    def close(self) -> None:
        """Release the memory."""
        self.allocate(0)
