"""A device that computes nothing and knows how long everything takes."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from tilewright.perf.predict import predict
from tilewright_hw.arch import REGISTERS, AcceleratorConfig, DeviceError, InputError
from tilewright_hw.arch.isa import BASES
from tilewright_hw.arch.memory_model import MemoryModel
from tilewright_hw.arch.registers import COUNTERS, IDENTITY, VERSION

_BY_ADDRESS = {register.address: register for register in REGISTERS.values()}


class ModelDevice:
    """An accelerator whose programs are timed by the cycle model instead of being run.

    Memory holds what is written to it, and no program changes it: results are whatever lay there. The counters are
    those that the cycle model predicts.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    memory : MemoryModel
        Timing of its memory.
    """

    name = "model"

    def __init__(self, config: AcceleratorConfig, memory: MemoryModel | None = None) -> None:
        self.config, self.memory = config, memory or MemoryModel()
        self._bytes = np.zeros(0, np.uint8)
        self._seconds = 0.0
        self._started = False
        self._registers: dict[str, int] = {}
        self.reset()

    def allocate(self, size: int) -> None:
        """Give the device `size` bytes of zeroed memory from address 0 on, and reset it."""
        if not isinstance(size, int) or size < 0:
            raise InputError(f"memory size must be a non-negative integer, not {size!r}")
        self._bytes = np.zeros(size, np.uint8)
        self._seconds = 0.0
        self.reset()

    @property
    def memory_size(self) -> int:
        """Bytes of device memory."""
        return self._bytes.size

    def _range(self, address: int, size: int) -> slice:
        if address < 0 or size < 0 or address + size > self._bytes.size:
            raise InputError(
                f"bytes {address:#x} to {address + size:#x} are outside device memory, which has {self._bytes.size:#x}"
            )
        return slice(address, address + size)

    def write_memory(self, address: int, data: bytes | NDArray[np.uint8]) -> None:
        """Write bytes at a byte address."""
        raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1)
        self._bytes[self._range(address, raw.size)] = raw

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes from a byte address, as a copy."""
        return self._bytes[self._range(address, size)].copy()

    def write_register(self, address: int, value: int) -> None:
        """Write a 32-bit control register; writes to read-only ones do nothing."""
        register = self._register(address)
        if not 0 <= value < 1 << 32:
            raise InputError(f"a register holds 32 bits, not {value!r}")
        if register == "CONTROL":
            self._started |= bool(value & 1)
            self._registers["STATUS"] = int(self._started)
        elif _BY_ADDRESS[address].access == "rw":
            self._registers[register] = value
        elif _BY_ADDRESS[address].access == "w1c":
            self._registers[register] = self._registers.get(register, 0) & ~value

    def read_register(self, address: int) -> int:
        """Read a 32-bit control register."""
        return self._registers.get(self._register(address), 0)

    @staticmethod
    def _register(address: int) -> str:
        if address not in _BY_ADDRESS:
            raise InputError(f"there is no register at address {address!r}")
        return _BY_ADDRESS[address].name

    def _wide(self, name: str) -> int:
        return self._registers.get(f"{name}_LO", 0) | self._registers.get(f"{name}_HI", 0) << 32

    def wait(self, max_cycles: int) -> None:
        """Predict the program, if it was started; DeviceError if it takes more than `max_cycles`.

        InputError if the program is illegal or cannot end.
        """
        if not self._started:
            return
        begin = time.perf_counter()
        bases = [self._wide(f"BASE{i}") for i in range(BASES)]
        prediction = predict(
            self.config, lambda at, size: self.read_memory(at, size).tobytes(), self._wide("PROGRAM"),
            memory=self.memory, bases=bases,
        )  # fmt: skip
        self._seconds += time.perf_counter() - begin
        if prediction.cycles > max_cycles:
            raise DeviceError(f"the device did not finish within {max_cycles} cycles")
        self._started = False
        self._registers |= {f"COUNT_{name}": prediction.counters[name] for name, _ in COUNTERS}
        self._registers |= {"STATUS": 2, "IRQ_STATUS": self._registers.get("IRQ_STATUS", 0) | 1}

    def reset(self) -> None:
        """Reset registers; memory stays."""
        c = self.config
        sizes = (c.acc_rows, c.act_words, c.row_words, c.param_words)
        self._started = False
        self._registers = {
            "IDENTITY": IDENTITY,
            "VERSION": VERSION,
            "SHAPE": c.rows | c.cols << 8 | c.lanes << 16 | c.bus_bytes << 24,
            "CAPACITY": sum((size.bit_length() - 1) << 8 * i for i, size in enumerate(sizes)),
            "CAPACITY2": (c.stat_entries.bit_length() - 1) | c.ingest << 8,
        }

    @property
    def seconds(self) -> float:
        """Seconds spent predicting since `allocate`."""
        return self._seconds

    def close(self) -> None:
        """Release the memory."""
        self.allocate(0)
