"""`RtlDevice`: the Device protocol on the verilated accelerator."""

from __future__ import annotations

import ctypes
import functools
import gzip
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.arch.errors import DeviceError, InputError
from tilewright_hw.arch.memory_model import MemoryModel
from tilewright_hw.arch.registers import REGISTERS
from tilewright_sim.rtl.build import VERILOG, Progress, build_accelerator
from tilewright_sim.toolchain import Trace as TraceFormat

__all__ = ["RtlDevice", "Trace"]

_CHUNK = 1 << 18
"""Cycles per call into the library: between calls Python sees Ctrl-C."""
_POLL = 256
"""Cycles between two looks at STATUS, where no interrupt will tell."""
COVERAGE = "TILEWRIGHT_COVERAGE"
"""The environment variable that asks every device for coverage."""
_DONE, _FAILED = 0, -1
_BUSY = 1
_BOTH = 3


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Waves of a window of cycles.

    Parameters
    ----------
    path : Path
        The file to write; its suffix, .vcd or .fst, is the format.
    first, last : int
        The cycles to record, counted from the device's making.
    """

    path: Path
    first: int = 0
    last: int = (1 << 63) - 1

    def __post_init__(self) -> None:
        if self.path.suffix not in (".vcd", ".fst"):
            raise InputError(f"a trace must be a .vcd or .fst file, not {str(self.path)!r}")
        if not 0 <= self.first <= self.last:
            raise InputError(f"a trace's cycles must be from first to last, not {self.first} to {self.last}")

    @property
    def format(self) -> TraceFormat:
        """`vcd` or `fst`."""
        return "vcd" if self.path.suffix == ".vcd" else "fst"


_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "create": (ctypes.c_void_p, (ctypes.c_uint64, ctypes.c_double, ctypes.c_uint64, ctypes.c_double)),
    "destroy": (None, ()),
    "allocate": (ctypes.c_int, (ctypes.c_uint64,)),
    "reset": (None, ()),
    "memory": (ctypes.c_void_p, ()),
    "run": (ctypes.c_int, (ctypes.c_uint64,)),
    "irq": (ctypes.c_int, ()),
    "write_register": (ctypes.c_int, (ctypes.c_uint32, ctypes.c_uint32)),
    "read_register": (ctypes.c_int, (ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32))),
    "failure": (ctypes.c_char_p, ()),
    "cycle": (ctypes.c_uint64, ()),
    "trace": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64)),
    "check_outputs": (None, (ctypes.c_int,)),
    "write_coverage": (ctypes.c_int, (ctypes.c_char_p,)),
}  # fmt: skip


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    """Load a simulator; all calls but `create` take the simulation first."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"tilewright_{name}")
        function.restype = result
        function.argtypes = arguments if name == "create" else (ctypes.c_void_p, *arguments)
    return library


class RtlDevice:
    """The accelerator's RTL in Verilator, with a modelled AXI memory.

    Memory is reserved, not occupied, until it is written: sizes far above the host's are fine.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator. Its simulator is built at first use, and cached.
    memory : MemoryModel
        Latency, bandwidth and random stalls.
    trace : Trace, optional
        Waves to write (a slower build of its own).
    on_progress : callable, optional
        Told in a few words what a build is doing.
    library : Path, optional
        A library from `build_library`, in place of the accelerator's own.
    coverage : Path, optional
        A folder: count which lines run and which signals toggle (a slower build of its own), and write that there when
        closed. By default the environment's TILEWRIGHT_COVERAGE.

    Raises
    ------
    InputError
        The simulator cannot be built: what is missing.
    """

    name = "rtl"

    def __init__(
        self,
        config: AcceleratorConfig,
        memory: MemoryModel | None = None,
        trace: Trace | None = None,
        *,
        on_progress: Progress | None = None,
        library: Path | None = None,
        coverage: Path | None = None,
    ) -> None:
        self._simulation: int | None = None
        if coverage is None and trace is None and library is None and (folder := os.environ.get(COVERAGE)):
            coverage = Path(folder)
        self.coverage = coverage
        self.config = config
        self.memory = memory or MemoryModel()
        self.trace = trace
        self._size = 0
        self._seconds = 0.0
        kind = trace.format if trace else None
        path = library or build_accelerator(config, trace=kind, coverage=coverage is not None, on_progress=on_progress)
        self._verilog = path.with_name(VERILOG)
        self._library = _library(path)
        m = self.memory
        self._simulation = self._library.tilewright_create(m.latency, m.stall, m.seed, m.bandwidth)
        self._view: NDArray[np.uint8] = np.zeros(0, np.uint8)
        if trace is not None:
            self._open_trace(trace)

    def _open_trace(self, trace: Trace) -> None:
        path = str(trace.path).encode()
        if not self._call("trace", path, trace.first, trace.last):
            raise InputError(f"cannot write the trace {trace.path}")

    def _call(self, name: str, *arguments: object) -> int:
        if self._simulation is None:
            raise DeviceError("the device is closed")
        result: int = getattr(self._library, f"tilewright_{name}")(self._simulation, *arguments)
        return result

    def _fail(self) -> None:
        """Raise what the harness found."""
        text: bytes = self._library.tilewright_failure(self._simulation)
        raise DeviceError(f"cycle {self.cycle}: {text.decode()}")

    def allocate(self, size: int) -> None:
        """Give the device `size` bytes of zeroed memory from address 0 on, and reset it."""
        if not isinstance(size, int) or size < 0:
            raise InputError(f"memory size must be a non-negative integer, not {size!r}")
        self._view = np.zeros(0, np.uint8)
        if not self._call("allocate", size):
            raise InputError(f"the host has no room for {size} bytes of device memory")
        self._size = size
        self._seconds = 0.0
        if size:
            pointer = ctypes.cast(self._call("memory"), ctypes.POINTER(ctypes.c_uint8))
            self._view = np.ctypeslib.as_array(pointer, shape=(size,))

    @property
    def memory_size(self) -> int:
        """Bytes of device memory."""
        return self._size

    def _range(self, address: int, size: int) -> slice:
        if not (0 <= address and 0 <= size and address + size <= self._size):
            raise InputError(f"bytes {address} to {address + size} must lie in the device's {self._size} bytes")
        return slice(address, address + size)

    def write_memory(self, address: int, data: bytes | NDArray[np.uint8]) -> None:
        """Write bytes at a byte address."""
        values = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.asarray(data)
        values = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._view[self._range(address, values.size)] = values

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes from a byte address, as a copy."""
        return self._view[self._range(address, size)].copy()

    def write_register(self, address: int, value: int) -> None:
        """Write a 32-bit control register (byte address)."""
        if not 0 <= value < 1 << 32:
            raise InputError(f"a register holds 32 bits, not {value!r}")
        self._answer(self._call("write_register", address, value), "written", address)

    def read_register(self, address: int) -> int:
        """Read a 32-bit control register."""
        value = ctypes.c_uint32()
        self._answer(self._call("read_register", address, ctypes.byref(value)), "read", address)
        return value.value

    def _answer(self, response: int, verb: str, address: int) -> None:
        if response == _FAILED:
            self._fail()
        if response != 0:
            raise InputError(f"the register at {address:#x} cannot be {verb}")

    def _get(self, name: str) -> int:
        return self.read_register(REGISTERS[name].address)

    def wait(self, max_cycles: int) -> None:
        """Run until done or error; DeviceError if neither comes within `max_cycles`.

        With both interrupts enabled and none pending the harness runs until the interrupt; else
        STATUS is looked at every few hundred cycles.
        """
        if not self._get("STATUS") & _BUSY:
            return
        # A stale interrupt would end the run at once.
        told = self._get("IRQ_ENABLE") & _BOTH == _BOTH and not self._call("irq")
        end = self.cycle + max_cycles
        while self.cycle < end:
            stopped = self._run(min(_CHUNK if told else _POLL, end - self.cycle))
            if stopped if told else not self._get("STATUS") & _BUSY:
                return
        raise DeviceError(f"the device did not finish within {max_cycles} cycles")

    def _run(self, cycles: int) -> bool:
        """Run for some cycles; True if the interrupt came."""
        begin = time.perf_counter()
        result = self._call("run", cycles)
        self._seconds += time.perf_counter() - begin
        if result == _FAILED:
            self._fail()
        return result == _DONE

    def idle(self, cycles: int) -> None:
        """Let cycles pass, whatever the interrupt says."""
        for _ in range(cycles):
            self._get("STATUS")

    def reset(self) -> None:
        """Reset registers and units; memory stays."""
        self._call("reset")

    @property
    def seconds(self) -> float:
        """Host seconds spent in simulation since `allocate`."""
        return self._seconds

    @property
    def cycle(self) -> int:
        """Cycles simulated since the device was made."""
        return self._call("cycle")

    def check_outputs(self, on: bool = True) -> None:
        """Also fail when an output follows an input within a cycle, which AXI forbids; runs slower."""
        self._call("check_outputs", int(on))

    def close(self) -> None:
        """Release memory and simulation, and finish the trace."""
        if self._simulation is not None:
            self._view = np.zeros(0, np.uint8)
            if self.coverage is not None:
                self._write_coverage(self.coverage)
            self._library.tilewright_destroy(self._simulation)
            self._simulation = None

    def _write_coverage(self, folder: Path) -> None:
        """Write the counts into a folder under a name of their own, and beside them the Verilog that they are of."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self._verilog.parent.name}.v"  # the cache entry's: the same for the same design
        if not (folder / name).exists():
            shutil.copyfile(self._verilog, folder / name)
        path = folder / f"{Path(name).stem}.{uuid.uuid4().hex}.dat"
        self._call("write_coverage", str(path).encode())
        with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb", compresslevel=1) as packed:
            shutil.copyfileobj(plain, packed)  # tens of megabytes, of which most is the same text
        path.unlink()

    def __enter__(self) -> RtlDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
