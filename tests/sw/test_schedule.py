"""The scheduler's promises: order within a lane, FIFOs, banks, and the cache; and that it keeps the array busy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.compiler.emit import Region
from tilewright.compiler.image import ModelImage
from tilewright.compiler.llama import LlamaCompiler
from tilewright.compiler.plan import Tiling, cut_rows
from tilewright.compiler.schedule import Alias, Lane, merge
from tilewright.model import LlamaSpec
from tilewright_hw.arch import AcceleratorConfig, Instruction, Op, Unit
from tilewright_hw.arch.isa import Dest, LoadDest, Source

CONFIG = AcceleratorConfig.preset("default")
SPEC = LlamaSpec(dim=64, ffn=160, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=70, context=200)


def product(lane: Lane, at: int, tiles: int = 4) -> None:
    """One pass: a product, and the vector instruction that drains it to word `at` of the row buffer."""
    accumulators = Region(f"acc{lane.bank}", 0, 32 * tiles)
    lane.emit(Op.WEIGHT, bytes=tiles * 256, count=1)
    lane.emit(
        Op.MATMUL, [Region("act", at, 32)], [accumulators], k=1, n=tiles, groups=1, rows_outer=1, rows_inner=32,
        act=at, bank=lane.bank,
    )  # fmt: skip
    lane.emit(
        Op.VECTOR, [accumulators], [Region("row", at, 8)], m=32, h=1, n=16 * tiles, source=Source.ACC, bank=lane.bank,
        dst=at, dest=Dest.ROW,
    )  # fmt: skip
    lane.bank ^= 1


def places(program: list[Instruction], op: Op, **fields: Any) -> list[int]:
    return [
        i for i, ins in enumerate(program) if ins.op == op and all(ins.fields.get(k, 0) == v for k, v in fields.items())
    ]


def test_the_order_within_a_lane_stays() -> None:
    lanes = [Lane(), Lane()]
    for lane, at in zip(lanes, (0, 1000), strict=True):
        for i in range(9):
            product(lane, at + 10 * i)
    program = merge(lanes, CONFIG).emitter.program
    assert len(program) == 54
    for at in (0, 1000):
        order = [places(program, op, **{name: at + 10 * i})[0] for i in range(9) for op, name in STEPS]
        assert order == sorted(order)


STEPS = ((Op.MATMUL, "act"), (Op.VECTOR, "dst"))


def test_a_bank_is_not_overwritten_before_it_is_drained() -> None:
    lanes = [Lane() for _ in range(3)]
    for i in range(24):
        product(lanes[i % 3], 100 * i)
    held: dict[int, int] = {}
    for ins in merge(lanes, CONFIG).emitter.program:
        bank = ins.fields.get("bank", 0)
        if ins.op == Op.MATMUL:
            assert bank not in held
            held[bank] = ins.fields.get("act", 0)
        elif ins.op == Op.VECTOR:
            assert held.pop(bank) == ins.fields.get("dst", 0)
    assert not held


def test_what_passes_a_fifo_stays_with_its_taker() -> None:
    lanes = [Lane(), Lane()]
    for lane in lanes:
        for i in range(6):
            product(lane, 100 * i)
            lane.emit(Op.VECTOR, [Region("row", 0, 8)], [], m=1, h=1, n=8, source=Source.ROW, dest=Dest.STORE_FP32)
            lane.emit(Op.STORE, [], [], m=1, h=1, n=8, run=8, element=2)
            lane.emit(Op.LOAD, [], [], bytes=256, count=1, dest=LoadDest.STREAM)
            lane.emit(
                Op.MATMUL, [], [Region(f"acc{lane.bank}", 0, 8)], stream=1, k=1, n=1, groups=1, rows_outer=1,
                rows_inner=8, bank=lane.bank,
            )  # fmt: skip
    program = merge(lanes, CONFIG).emitter.program
    for i, ins in enumerate(program):
        if ins.op == Op.WEIGHT or ins.op == Op.LOAD:
            assert program[i + 1].op == Op.MATMUL
            assert program[i + 1].fields.get("stream", 0) == (ins.op == Op.LOAD)
        if ins.fields.get("dest") == Dest.STORE_FP32 and ins.op == Op.VECTOR:
            assert program[i + 1].op == Op.STORE


@pytest.mark.parametrize("first", [0, 1])
def test_a_block_waits_for_the_keys_of_earlier_ones(first: int) -> None:
    """Whichever lane the earlier block is in, and however early the later one could load."""
    cache = Region("mem", 4096, 1024)
    lanes = [Lane(), Lane()]
    writer, reader = lanes[first], lanes[1 - first]
    for i in range(10):
        product(writer, 100 * i)
    for block, lane in enumerate((writer, reader)):
        lane.block = block
        lane.aliases = [Alias(cache, Region("keys", 16 * block, 16), Region("keys", 0, 16 * block + 16))]
        lane.emit(Op.VECTOR, [], [], m=1, h=1, n=8, source=Source.ROW, dest=Dest.STORE_INT8)
        lane.emit(Op.STORE, [], [cache], m=1, h=1, n=8, run=8, stride_m=block)
        lane.emit(Op.LOAD, [cache], [], bytes=16 + block, count=1, dest=LoadDest.PARAM)
    program = merge(lanes, CONFIG).emitter.program
    (load,) = places(program, Op.LOAD, bytes=17)
    assert load > places(program, Op.STORE, stride_m=0)[0]
    assert Unit.STORE in program[load].waits


def test_the_array_works_for_one_lane_while_the_vector_unit_works_for_the_other() -> None:
    """Chains of a product and a long vector instruction on it: two lanes take little longer than one."""

    def end(count: int) -> int:
        lanes = [Lane() for _ in range(count)]
        for number, lane in enumerate(lanes):
            rows, act = Region("row", 1000 * number, 800), Region("act", 1000 * number, 32)
            for _ in range(20):
                accumulators = Region(f"acc{lane.bank}", 0, 256)
                lane.emit(Op.WEIGHT, bytes=2048, count=1)
                lane.emit(
                    Op.MATMUL, [act], [accumulators], k=4, n=8, groups=1, rows_outer=1, rows_inner=32, bank=lane.bank,
                )  # fmt: skip
                lane.emit(Op.VECTOR, [accumulators], [rows], m=32, h=1, n=128, source=Source.ACC, bank=lane.bank)
                lane.emit(Op.VECTOR, [rows], [act], m=32, h=1, n=128, source=Source.ROW, dest=Dest.ACT)
                lane.bank ^= 1
        return merge(lanes, CONFIG).cycles

    assert end(2) < 1.15 * end(1)


def test_a_prompt_is_cut_into_as_many_blocks_for_each_lane() -> None:
    for m in (1, 2, 31, 32, 33, 126, 128):
        blocks = cut_rows(SPEC, CONFIG, m, m, Tiling(block_rows=20))
        assert sum(blocks.sizes) == m
        assert max(blocks.sizes) - min(blocks.sizes) <= 1
        assert max(blocks.sizes) <= 20
        assert len(blocks.sizes) % blocks.lanes == 0
        assert blocks.lanes == (2 if m >= 32 else 1)


def test_a_long_prompt_keeps_the_array_busy() -> None:
    """By the scheduler's own estimate of the cycles."""
    spec = LlamaSpec(dim=320, ffn=864, layers=2, heads=5, kv_heads=5, head_dim=64, vocab=64, context=256)
    compiler = LlamaCompiler(ModelImage(spec, CONFIG))
    macs = 126 * spec.layers * (4 * 320 * 320 + 3 * 320 * 864)
    schedule = compiler.schedule(0, 126, "none")
    assert macs / CONFIG.peak_macs > 0.8 * schedule.cycles


def test_compiling_is_repeatable() -> None:
    programs = {LlamaCompiler(ModelImage(SPEC, CONFIG)).prefill(0, 90) for _ in range(2)}
    assert len(programs) == 1
    assert np.frombuffer(programs.pop(), np.uint8).size % 64 == 0
