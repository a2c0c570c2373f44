"""What a package's bench plays: recorded cycles of a block, or programs with the memory that they must leave."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright_hw.arch import REGISTERS, AcceleratorConfig, Instruction, Op, Unit, assemble
from tilewright_hw.arch.isa import Dest, Element, LoadDest, Reduce, Scale, Source
from tilewright_hw.arch.registers import IDENTITY, VERSION
from tilewright_sim.golden import GoldenDevice
from tilewright_sim.package.blocks import Block

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["accelerator_vectors", "block_vectors"]

SEED = 1
CYCLES = 240
"""Cycles recorded of a block."""
MEMORY = 1 << 14
PROGRAM, OPERANDS, RESULT = 0x0000, 0x0800, 0x3000
"""Places in the memory of a whole accelerator's bench."""


def block_vectors(block: Block) -> dict[str, Any]:
    """Return recorded cycles: random inputs, and what Amaranth's simulation of the component answers.

    Streams keep their rules (an offer stands until it is taken); all other inputs are random in every cycle.
    """
    from amaranth.sim import Simulator

    from tilewright_hw.generate import plain_ports

    component = block.make()
    stimulus = _Stimulus(component, random.Random(f"{SEED} {block.name}"))
    dut = plain_ports(component)
    inputs: dict[str, list[str]] = {name: [] for name in stimulus.inputs}
    outputs: dict[str, list[str]] = {name: [] for name in stimulus.outputs}

    async def play(ctx: Any) -> None:
        for _ in range(CYCLES):
            for name, value in stimulus.next(lambda name: ctx.get(getattr(dut, name))).items():
                ctx.set(getattr(dut, name), value)
                inputs[name].append(f"{value:x}")
            for name in outputs:
                outputs[name].append(f"{ctx.get(getattr(dut, name)):x}")
            stimulus.taken(lambda name: ctx.get(getattr(dut, name)))
            await (ctx.tick() if clocked else ctx.delay(1e-8))

    simulator = Simulator(dut)
    clocked = "sync" in simulator._design.fragment.domains
    if clocked:
        simulator.add_clock(1e-8)
    simulator.add_testbench(play)
    simulator.run()
    trace = {"cycles": CYCLES, "inputs": inputs, "outputs": outputs}
    return {"bench": "replay", "clocked": clocked, "seed": SEED, "trace": trace}


class _Stimulus:
    """Random inputs for a component's plain ports, cycle by cycle."""

    def __init__(self, component: Component, rng: random.Random) -> None:
        from amaranth.lib import wiring

        from tilewright_hw.generate import _plain_groups

        self._rng = rng
        self._shapes: dict[str, list[Any]] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        for name, parts in _plain_groups(component).items():
            if parts[0][0].flow == wiring.In:
                self.inputs.append(name)
                self._shapes[name] = [member.shape for member, _ in parts]
            else:
                self.outputs.append(name)
        self._offers: dict[str, int] = {}

    def next(self, read: Any) -> dict[str, int]:
        """Return the inputs of the next cycle."""
        return {name: self._value(name) for name in self.inputs}

    def taken(self, read: Any) -> None:
        """Look which offers are taken in this cycle: the others stand."""
        for name in self.inputs:
            stem = name.removesuffix("_valid")
            if stem != name and f"{stem}_ready" in self.outputs and read(name) and not read(f"{stem}_ready"):
                self._offers |= {f"{stem}_valid": 1, f"{stem}_payload": read(f"{stem}_payload")}
            elif stem != name:
                self._offers.pop(f"{stem}_valid", None)
                self._offers.pop(f"{stem}_payload", None)

    def _value(self, name: str) -> int:
        if name in self._offers:
            return self._offers[name]
        value = at = 0
        for shape in self._shapes[name]:
            bits, width = _random(shape, self._rng)
            value |= bits << at
            at += width
        return value


def _random(shape: Any, rng: random.Random) -> tuple[int, int]:
    """Return random bits of a shape, and how many: fields of structs are small numbers more often than not."""
    from amaranth.hdl import Shape
    from amaranth.lib import data

    layout = data.Layout.cast(shape) if isinstance(shape, (data.Layout, type)) and _is_layout(shape) else None
    if layout is None:
        width = Shape.cast(shape).width
        small = width > 3 and rng.random() < 0.6
        return rng.getrandbits(3 if small else width) if width else 0, width
    value = 0
    for _, field in layout:
        value |= _random(field.shape, rng)[0] << field.offset
    return value, layout.size


def _is_layout(shape: Any) -> bool:
    from amaranth.lib import data

    try:
        data.Layout.cast(shape)
    except TypeError:
        return False
    return True


def accelerator_vectors(config: AcceleratorConfig) -> dict[str, Any]:
    """Return programs with memory before and after, as the golden model has it."""
    rng = random.Random(f"{SEED} accelerator")
    shapes = ((1, config.rows, config.cols), (3, 2 * config.rows - 1, config.cols + 2))
    runs = [_run(config, _image(rng, _product(config, m, k, n))) for m, k, n in shapes]
    sizes = (config.acc_rows, config.act_words, config.row_words, config.param_words)
    identity = {
        "IDENTITY": IDENTITY,
        "VERSION": VERSION,
        "SHAPE": config.rows | config.cols << 8 | config.lanes << 16 | config.bus_bytes << 24,
        "CAPACITY": sum((size.bit_length() - 1) << 8 * i for i, size in enumerate(sizes)),
    }
    return {
        "bench": "accelerator",
        "seed": SEED,
        "memory": MEMORY,
        "registers": {name: register.address for name, register in REGISTERS.items()},
        "identity": identity,
        "runs": runs,
    }


def _run(config: AcceleratorConfig, image: bytes) -> dict[str, Any]:
    device = GoldenDevice(config, check=True)
    device.allocate(MEMORY)
    device.write_memory(0, image)
    writes = [("PROGRAM_LO", PROGRAM), ("PROGRAM_HI", 0), ("IRQ_ENABLE", 3), ("IRQ_STATUS", 3), ("CONTROL", 1)]
    for name, value in writes:
        device.write_register(REGISTERS[name].address, value)
    device.wait(10_000)
    status = device.read_register(REGISTERS["STATUS"].address)
    after = device.read_memory(0, MEMORY).tobytes()
    return {"before": image.hex(), "writes": writes, "limit": 100_000, "status": status, "after": after.hex()}


def _up(config: AcceleratorConfig, size: int) -> int:
    return -(-size // config.bus_bytes) * config.bus_bytes


def _product(config: AcceleratorConfig, m: int, k: int, n: int) -> list[Instruction]:
    """Return a program: rows times tiles, stored as int32; and scaled by column, quantised and stored as int8."""
    k_tiles, n_tiles = -(-k // config.rows), -(-n // config.cols)
    words = -(-n // config.lanes)
    rows = _up(config, m * k_tiles * config.row_slot)
    tiles = k_tiles * n_tiles * config.tile_bytes
    at = [OPERANDS]
    for size in (rows, _up(config, 4 * n)):
        at.append(at[-1] + -(-size // 64) * 64)
    acc = {"source": Source.ACC, "n": n, "m": m, "h": 1, "limit": n, "src_n": m, "src_m": 1}
    row = {"source": Source.ROW, "n": n, "m": m, "h": 1, "limit": n, "src_m": words, "stat_m": 1}
    store = {"n": n, "m": m, "h": 1, "run": n}
    one_127th = int(np.float32(1 / 127).view(np.uint32)) & 0xFFFFFF00
    return [
        Instruction(Op.LOAD, {"offset": at[0], "bytes": rows, "count": 1, "dest": LoadDest.ACT}),
        Instruction(Op.LOAD, {"offset": at[1], "bytes": _up(config, 4 * n), "count": 1, "dest": LoadDest.PARAM}),
        Instruction(Op.WEIGHT, {"offset": at[2], "bytes": tiles, "count": 1}),
        Instruction(
            Op.MATMUL,
            {"k": k_tiles, "n": n_tiles, "groups": 1, "rows_outer": m, "rows_inner": 1, "act_outer": k_tiles},
            {Unit.LOAD: 2},
        ),
        Instruction(Op.VECTOR, {**acc, "dest": Dest.STORE_RAW}, {Unit.MATRIX: 1}),
        Instruction(Op.STORE, {**store, "offset": RESULT, "stride_m": 4 * n, "element": Element.FP32}),
        Instruction(
            Op.VECTOR,
            {**acc, "param": 1, "dest": Dest.ROW, "dst_m": words, "reduce": Reduce.QSCALE, "red_m": 1,
             "const1": one_127th},
            {Unit.LOAD: 1},
        ),
        Instruction(Op.VECTOR, {**row, "scale": Scale.STAT_A, "dest": Dest.STORE_INT8}),
        Instruction(Op.STORE, {**store, "offset": RESULT + 0x800, "stride_m": n}),
    ]  # fmt: skip


def _image(rng: random.Random, program: list[Instruction]) -> bytes:
    """Return memory with a program, random bytes for operands, and zeros where results go."""
    code = assemble([*program, Instruction(Op.END)])
    assert len(code) <= OPERANDS
    return code.ljust(OPERANDS, b"\0") + rng.randbytes(RESULT - OPERANDS) + bytes(MEMORY - RESULT)
