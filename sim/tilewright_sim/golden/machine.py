"""The machine: executes a program on a memory image, one whole instruction at a time, in program order.

Nothing here knows of time. What the machine may do at once is ordered by its dependencies, so that program order gives
the machine's result; `hazards` checks that it is.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch import AcceleratorConfig, DeviceError, Instruction, Op
from tilewright_hw.arch.isa import (
    BASES,
    BYTES,
    FIELDS,
    REG_COUNT,
    UNIT_OF,
    InstructionError,
    apply_patches,
)
from tilewright_hw.arch.registers import ErrorCode
from tilewright_sim.golden.hazards import HazardError, HazardFault, Hazards
from tilewright_sim.golden.matrix import MatmulStep
from tilewright_sim.golden.memory import Memory
from tilewright_sim.golden.state import Buffers, Fault, Region, StoreFifo
from tilewright_sim.golden.tiles import TileFifo
from tilewright_sim.golden.transfer import LoadStep, StoreStep, check_aligned, check_memory
from tilewright_sim.golden.vector import VectorStep

Fields = defaultdict[str, int]
Step = LoadStep | MatmulStep | VectorStep | StoreStep

_LEAST = {op: [(field.name, field.low) for field in fields if field.low] for op, fields in FIELDS.items()}
"""The fields that may not be 0, and their least values."""
_PLANS = 1 << 14
"""Steps kept; when there are more, all are forgotten."""


class Machine:
    """The state of one accelerator, and what its instructions do to it.

    Parameters
    ----------
    config : AcceleratorConfig
        Geometry and sizes.
    memory : Memory
        Device memory.
    check : bool
        Raise HazardError on accesses that no dependency orders, and on reading what this run has not written.

    Members
    -------
    bases : list of int
        Base addresses; set them with `set_base`.
    buffers : Buffers
        Activations, rows, parameters, accumulators and statistics, which stay from one run to the next.
    registers : list of int
        Sequencer registers.
    index : int
        Index of the instruction being executed.
    executed : int
        Instructions executed in this run.
    taken : list of (int, bool)
        For the hazard checks: what the last instruction took from a FIFO, as (index of the instruction that pushed
        it, whether nothing of that one is left).
    """

    def __init__(self, config: AcceleratorConfig, memory: Memory, check: bool = False) -> None:
        self.config, self.memory = config, memory
        self.buffers = Buffers(config)
        self.bases = [0] * BASES
        self.registers = [0] * REG_COUNT
        self.hazards = Hazards(self.buffers) if check else None
        self.index = self.executed = 0
        self._plans: dict[bytes, Step] = {}
        self.clear()

    def clear(self) -> None:
        """Empty the FIFOs, as a reset does."""
        self.fifos = {"weight": TileFifo(), "stream": TileFifo()}
        self.store = StoreFifo()
        self.taken: list[tuple[int, bool]] = []
        self._plans.clear()

    def set_base(self, i: int, address: int) -> None:
        """Set a base address."""
        if self.bases[i] != address:
            self.bases[i] = address
            self._plans.clear()

    def overwrite(self, start: int, end: int) -> NDArray[np.uint8]:
        """Return memory for writing bytes `start` to `end`; tiles that wait there in a FIFO stay as they were."""
        for fifo in self.fifos.values():
            fifo.protect(start, end)
        return self.memory.writable(start, end)

    def run(self, program: int, limit: int | None = None) -> None:
        """Execute the program at byte address `program` until END.

        DeviceError says which instruction cannot be executed and why, or that `limit` instructions did not reach END.
        """
        self.executed = 0
        if self.hazards:
            self.hazards.begin()
        while limit is None or self.executed < limit:
            self.index = self.executed
            data = b""
            try:
                data = self._fetch(program + BYTES * self.index)
                self.executed += 1
                if self._execute(data):
                    return
            except Fault as e:
                kind = HazardError if isinstance(e, HazardFault) else DeviceError
                raise kind(f"{self._describe(data)}: {e}", int(e.code)) from e
        raise DeviceError(f"the program did not end within {limit} instructions")

    def _describe(self, data: bytes) -> str:
        try:
            text = str(Instruction.decode(data))
        except InstructionError:
            text = data.hex()
        return f"instruction {self.index} ({text})"

    def _fetch(self, address: int) -> bytes:
        if address % BYTES or address + BYTES > self.memory.size:
            check_aligned(address, BYTES, "the program's address")
            check_memory(self, Region("memory", address, (), BYTES))
        if self.hazards:
            self.hazards.fetch(Region("memory", address, (), BYTES))
        data = self.memory.bytes[address : address + BYTES].tobytes()
        if data[4:12] != bytes(8):
            if self.hazards:
                self.hazards.check_registers(data)
            data = apply_patches(data, self.registers)
        return data

    def _execute(self, data: bytes) -> bool:
        """Execute one instruction, patched; return whether it was END."""
        step = self._plans.get(data)
        if step is None:
            ins = self._decode(data)
            if ins.op not in UNIT_OF:
                return self._sequence(ins)
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            step = self._plans[data] = self._plan(ins)
        if self.hazards:
            source = step.first_source(self)
            self.hazards.before(self.index, Instruction.decode(data), step, source)
        self.taken = []
        step(self)
        if self.hazards:
            self.hazards.after(self.taken)
        return False

    def _decode(self, data: bytes) -> Instruction:
        """Return the instruction; Fault as the sequencer would stop."""
        try:
            ins = Instruction.decode(data)
        except InstructionError as e:
            known = data[0] in Op._value2member_map_
            raise Fault(str(e), ErrorCode.ILLEGAL_FIELD if known else ErrorCode.ILLEGAL_OPCODE) from e
        for name, low in _LEAST[ins.op]:
            if ins.fields.get(name, 0) < low:
                raise Fault(f"{name} must be at least {low}", ErrorCode.ILLEGAL_FIELD)
        return ins

    def _plan(self, ins: Instruction) -> Step:
        fields: Fields = defaultdict(int, ins.fields)
        if ins.op is Op.MATMUL:
            return MatmulStep(self, fields)
        if ins.op is Op.VECTOR:
            return VectorStep(self, fields)
        if ins.op is Op.STORE:
            return StoreStep(self, fields)
        return LoadStep(self, fields, ins.op)

    def _sequence(self, ins: Instruction) -> bool:
        """Execute one of the sequencer's own instructions; return whether it was END."""
        if self.hazards:
            self.hazards.wait(ins)
        if ins.op is Op.LDREGS:
            self._load_registers(defaultdict(int, ins.fields))
        if ins.op is not Op.END:
            return False
        held = {
            "weight FIFO": self.fifos["weight"].rows,
            "stream FIFO": self.fifos["stream"].rows,
            "store stream": self.store.words,
        }
        for name, amount in held.items():
            if amount:
                raise Fault(f"the {name} still holds {amount} {'words' if 'store' in name else 'rows'}")
        return True

    def _load_registers(self, f: Fields) -> None:
        address, count = self.bases[f["base"]] + f["offset"], f["count"]
        check_aligned(address, BYTES, "the address")
        if count > REG_COUNT:
            raise Fault(f"count must be 1 to {REG_COUNT}, not {count}")
        region = check_memory(self, Region("memory", address, (), 4 * count))
        if self.hazards:
            self.hazards.load_registers(region, count)
        values: Any = self.memory.bytes[address : region.end].view("<u4")
        self.registers[:count] = values.tolist()
