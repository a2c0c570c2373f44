"""`StreamFifo`: what goes in comes out, in order, whatever the stalls; `level` says how much is inside."""

from __future__ import annotations

from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge

from tilewright_sim.benches.testbench import Passes, StreamTestbench, generator, parameters, random_items

WIDTH, DEPTH = parameters()["shape"], parameters()["depth"]


async def watch_level(bench: StreamTestbench) -> None:
    """Fail if `level` is not the number of items taken and not given back."""
    dut = bench.dut
    while True:
        await RisingEdge(dut.clk)
        inside = bench.checker.missing  # before or after this edge's transfers are counted
        moves = int(dut.i_valid.value and dut.i_ready.value), int(dut.o_valid.value and dut.o_ready.value)
        level = dut.level.value.to_unsigned()
        assert level <= DEPTH
        assert inside - moves[0] <= level <= inside + moves[1], f"level is {level}, with {inside} inside"


@cocotb.test()
@cocotb.parametrize(idle=[0.0, 0.5], back_pressure=[0.0, 0.5])
async def test_order(dut: Any, idle: float, back_pressure: float) -> None:
    rng = generator(f"order {idle} {back_pressure}")
    bench = StreamTestbench(dut, Passes(), rng, idle=idle, back_pressure=back_pressure)
    await bench.start()
    cocotb.start_soon(watch_level(bench))
    bench.source.send(random_items(rng, 400, WIDTH))
    await bench.finish()
    assert bench.checker.checked == 400


@cocotb.test(skip=DEPTH < 3)  # an item stays for two cycles, so two of them fill it
async def test_one_item_per_cycle(dut: Any) -> None:
    rng = generator("throughput")
    bench = StreamTestbench(dut, Passes(), rng)
    await bench.start()
    bench.source.send(random_items(rng, 200, WIDTH))
    await ClockCycles(dut.clk, 200 + 8)
    assert bench.checker.checked == 200


@cocotb.test()
async def test_full(dut: Any) -> None:
    rng = generator("full")
    bench = StreamTestbench(dut, Passes(), rng, back_pressure=1.0)
    await bench.start()
    bench.source.send(random_items(rng, 3 * DEPTH, WIDTH))
    await ClockCycles(dut.clk, 4 * DEPTH)
    assert not dut.i_ready.value
    assert dut.level.value.to_unsigned() == DEPTH == bench.checker.missing


@cocotb.test()
@cocotb.parametrize(cycles=[1, 7, 40])
async def test_reset_in_the_middle(dut: Any, cycles: int) -> None:
    rng = generator(f"reset {cycles}")
    bench = StreamTestbench(dut, Passes(), rng, idle=0.2, back_pressure=0.6)
    await bench.start()
    bench.source.send(random_items(rng, 200, WIDTH))
    await ClockCycles(dut.clk, cycles)
    await bench.reset()
    assert dut.level.value.to_unsigned() == 0
    bench.source.send(random_items(rng, 50, WIDTH))
    await bench.finish()
