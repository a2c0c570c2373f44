"""`StreamBuffer`: what goes in comes out in order, whatever the stalls, one item per cycle; outputs are registers."""

from __future__ import annotations

from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge, Timer

from tilewright_sim.benches.testbench import (
    Passes,
    StreamTestbench,
    generator,
    parameters,
    pulse_reset,
    random_items,
    start_clock,
)

WIDTH = parameters()["shape"]


@cocotb.test()
@cocotb.parametrize(idle=[0.0, 0.5], back_pressure=[0.0, 0.5])
async def test_order(dut: Any, idle: float, back_pressure: float) -> None:
    rng = generator(f"order {idle} {back_pressure}")
    bench = StreamTestbench(dut, Passes(), rng, idle=idle, back_pressure=back_pressure)
    await bench.start()
    bench.source.send(random_items(rng, 300, WIDTH))
    await bench.finish()
    assert bench.checker.checked == 300


@cocotb.test()
async def test_one_item_per_cycle(dut: Any) -> None:
    rng = generator("throughput")
    bench = StreamTestbench(dut, Passes(), rng)
    await bench.start()
    bench.source.send(random_items(rng, 200, WIDTH))
    await ClockCycles(dut.clk, 200 + 3)
    assert bench.checker.checked == 200


@cocotb.test()
async def test_holds_two(dut: Any) -> None:
    rng = generator("full")
    bench = StreamTestbench(dut, Passes(), rng, back_pressure=1.0)
    await bench.start()
    bench.source.send(random_items(rng, 9, WIDTH))
    await ClockCycles(dut.clk, 20)
    assert not dut.i_ready.value
    assert bench.checker.missing == 2


@cocotb.test()
async def test_no_path_from_side_to_side(dut: Any) -> None:
    """Outputs are registers: they do not move while inputs do, between two edges of the clock."""
    rng = generator("paths")
    start_clock(dut)
    dut.i_valid.value = dut.o_ready.value = dut.i_payload.value = 0
    await pulse_reset(dut)
    for _ in range(60):
        await RisingEdge(dut.clk)
        dut.i_valid.value, dut.o_ready.value = rng.getrandbits(1), rng.getrandbits(1)
        dut.i_payload.value = rng.getrandbits(WIDTH)
        await FallingEdge(dut.clk)
        before = [int(signal.value) for signal in (dut.i_ready, dut.o_valid, dut.o_payload)]
        held = int(dut.i_valid.value), int(dut.o_ready.value)
        for valid, ready in ((0, 0), (0, 1), (1, 0), (1, 1), held):
            dut.i_valid.value, dut.o_ready.value = valid, ready
            await Timer(1, unit="ns")
            assert [int(signal.value) for signal in (dut.i_ready, dut.o_valid, dut.o_payload)] == before


@cocotb.test()
@cocotb.parametrize(cycles=[2, 3, 4, 5, 40])
async def test_reset_in_the_middle(dut: Any, cycles: int) -> None:
    rng = generator(f"reset {cycles}")
    bench = StreamTestbench(dut, Passes(), rng, idle=0.1, back_pressure=0.8)
    await bench.start()
    bench.source.send(random_items(rng, 200, WIDTH))
    await ClockCycles(dut.clk, cycles)
    await bench.reset()
    bench.source.send(random_items(rng, 50, WIDTH))
    await bench.finish()
