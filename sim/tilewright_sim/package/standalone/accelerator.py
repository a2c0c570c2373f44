"""Bench of a whole accelerator: memory, program and registers from vectors.json, memory afterwards compared.

cocotbext-axi is the memory and the host. Every channel pauses at random; the seed is in vectors.json.
"""

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRamRead, AxiRamWrite

VECTORS = json.loads((Path(__file__).resolve().parent / "vectors.json").read_text())
REGISTERS = VECTORS["registers"]
logging.getLogger("cocotb").setLevel(logging.WARNING)
logging.getLogger("cocotb.regression").setLevel(logging.INFO)


def pauses(rng: random.Random, share: float) -> Iterator[bool]:
    """Pause in a share of the cycles."""
    while True:
        yield rng.random() < share


class System:
    """The accelerator with its memory and host."""

    def __init__(self, dut: Any, size: int, share: float) -> None:
        self.dut, self.memory = dut, bytearray(size)
        bus = AxiBus.from_prefix(dut, "m_axi")
        read = AxiRamRead(bus.read, dut.clk, dut.rst, mem=self.memory)
        write = AxiRamWrite(bus.write, dut.clk, dut.rst, mem=self.memory)
        self.host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        rng = random.Random(f"{VECTORS['seed']} {share}")
        if share:
            for channel in (read.ar_channel, read.r_channel, write.aw_channel, write.w_channel, write.b_channel):
                channel.set_pause_generator(pauses(rng, share))

    async def reset(self) -> None:
        """Reset for a few cycles."""
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 4)
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 2)

    async def get(self, name: str) -> int:
        """Read a register."""
        return int(await self.host.read_dword(REGISTERS[name]))

    async def put(self, name: str, value: int) -> None:
        """Write a register."""
        await self.host.write_dword(REGISTERS[name], value)

    async def run(self, run: dict[str, Any]) -> None:
        """Run one program and compare the whole memory."""
        self.memory[:] = bytes.fromhex(run["before"])
        for name, value in run["writes"]:
            await self.put(name, value)
        for _ in range(run["limit"]):
            await RisingEdge(self.dut.clk)
            if self.dut.irq.value:
                break
        else:
            raise AssertionError(f"no interrupt within {run['limit']} cycles")
        assert await self.get("STATUS") == run["status"]
        after = bytes.fromhex(run["after"])
        different = [i for i, (a, b) in enumerate(zip(self.memory, after, strict=True)) if a != b]
        assert not different, f"{len(different)} bytes differ, the first at {different[0]:#x}"
        await self.put("IRQ_STATUS", 3)


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.3])
async def test_programs(dut: Any, share: float) -> None:
    """Each program leaves the memory that the golden model says."""
    Clock(dut.clk, 10, unit="ns").start()
    system = System(dut, VECTORS["memory"], share)
    await system.reset()
    for run in VECTORS["runs"]:
        await system.run(run)


@cocotb.test()
async def test_identity(dut: Any) -> None:
    """The registers that say what this is have their values."""
    Clock(dut.clk, 10, unit="ns").start()
    system = System(dut, VECTORS["memory"], 0.0)
    await system.reset()
    for name, value in VECTORS["identity"].items():
        assert await system.get(name) == value, name
