"""Random programs for the gateware: every instruction with many of its operands, in an order that cannot hang.

They compute nothing sensible and race on their data; they are for those who ask how long things take. What a program
takes from a FIFO it also puts there, whoever waits for a completion cannot be what keeps it from coming, and all
accesses lie within `MEMORY` bytes. A LOAD never shares the port of a buffer with a VECTOR's writes.
"""

from __future__ import annotations

import numpy as np

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.arch.isa import MAX_WAIT as MAX_DISTANCE
from tilewright_hw.arch.isa import (
    Add,
    Dest,
    Element,
    Func,
    Instruction,
    LoadDest,
    Mul,
    Op,
    Reduce,
    Scale,
    Source,
    Unit,
    WeightFormat,
)

MEMORY = 1 << 21
TABLE = 0x1000
"""Address of a register table; it is zero."""
PROGRAM = 0x2000
"""A program may begin between here and one page further."""
DATA = 1 << 18
"""Reads and writes of data lie from here on."""
MAX_WAIT = 4


class RandomProgram:
    """Makes one program.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    rng : np.random.Generator
        Source of all choices.
    kinds : tuple of str
        Which of `KINDS` occur.
    """

    KINDS = ("weights", "streamed", "load", "vector", "control")

    def __init__(self, config: AcceleratorConfig, rng: np.random.Generator, kinds: tuple[str, ...] = KINDS) -> None:
        self.config, self.rng, self.kinds = config, rng, kinds
        self.program: list[Instruction] = []
        self._issued = dict.fromkeys(Unit, 0)
        self._filled = 0  # the last LOAD into a buffer that VECTORs write, too
        self.waits = float(rng.choice([0.0, 0.1, 0.4]))

    def make(self, blocks: int) -> list[Instruction]:
        """Return a program of so many groups of instructions that belong together."""
        for _ in range(blocks):
            getattr(self, f"_{self.rng.choice(self.kinds)}")()
        self.program.append(Instruction(Op.END))
        return self.program

    def _number(self, low: int, high: int) -> int:
        """Return a number of low..high, more often a small one."""
        if self.rng.random() < 0.5:
            high = min(high, low + 3)
        return int(self.rng.integers(low, high + 1))

    def _flag(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def _emit(
        self, op: Op, unit: Unit | None, may: tuple[Unit, ...] = tuple(Unit), *, must: dict[Unit, int] | None = None,
        **fields: int,
    ) -> None:  # fmt: skip
        """Emit an instruction that may wait for instructions of the units `may`, and waits for those of `must`."""
        waits: dict[Unit, int] = {}
        for other in may:
            if self._issued[other] and self._flag(self.waits):
                waits[other] = int(self.rng.integers(1, min(self._issued[other], MAX_WAIT) + 1))
        waits |= must or {}
        patches = []
        if self._flag(0.2) and op in (Op.WEIGHT, Op.LOAD, Op.STORE):
            patches = [("offset", int(self.rng.integers(0, 128))) for _ in range(int(self.rng.integers(1, 5)))]
        self.program.append(Instruction(op, {k: int(v) for k, v in fields.items()}, waits, patches))
        if unit is not None:
            self._issued[unit] += 1

    def _others(self, *excluded: Unit) -> tuple[Unit, ...]:
        return tuple(unit for unit in Unit if unit not in excluded)

    def _run(self, length: int, most: int) -> dict[str, int]:
        """Return where runs of `length` bytes lie, up to `most` of them."""
        bus = self.config.bus_bytes
        count = self._number(1, most)
        stride = length if self._flag() else bus * self._number(0, 600)
        return {
            "offset": DATA + bus * int(self.rng.integers(0, 3000)), "bytes": length, "count": count, "stride": stride,
        }  # fmt: skip

    def _matmul(self, tiles: int, *, stream: bool, may: tuple[Unit, ...]) -> None:
        """Emit a MATMUL that takes so many tiles."""
        c, rng = self.config, self.rng
        k = int(rng.choice([d for d in range(1, tiles + 1) if tiles % d == 0]))
        n = int(rng.choice([d for d in range(1, tiles // k + 1) if tiles // k % d == 0]))
        self._emit(
            Op.MATMUL, Unit.MATRIX, may, k=k, n=n, groups=tiles // k // n, stream=stream, bank=self._flag(),
            accumulate=self._flag(), pair=self._flag(0.3), act=self._number(0, c.act_words - 1),
            act_group=self._number(0, 9), rows_outer=self._number(1, 5), rows_inner=self._number(1, 12),
            act_outer=self._number(0, 9), act_inner=self._number(0, 9), acc=self._number(0, c.acc_rows - 1),
        )  # fmt: skip

    def _weights(self) -> None:
        """One or two WEIGHTs, and as many MATMULs that take their tiles."""
        c = self.config
        tiles = []
        for _ in range(self._number(1, 2)):
            k = self._number(1, 20)
            if self._flag(0.35):
                rows = k * c.rows
                units = -(-rows // (32 * c.nibble_rows)) * c.nibble_rows + rows
                length = -(-units * c.nibble_slot // c.bus_bytes) * c.bus_bytes
                fields = self._run(length, 6) | {"format": WeightFormat.INT4, "rows": rows}
            else:
                fields = self._run(k * c.tile_bytes, 6)
            self._emit(Op.WEIGHT, Unit.WEIGHT, self._others(Unit.WEIGHT), **fields)
            tiles.append(k * fields["count"])
        if self._flag(0.3):
            tiles = [sum(tiles)]
        for count in tiles:
            self._matmul(count, stream=False, may=self._others(Unit.WEIGHT))

    def _streamed(self) -> None:
        """A LOAD into the stream FIFO and the MATMUL that takes its tiles."""
        c = self.config
        transpose = self._flag()
        k = self._number(1, 8)
        fields = self._run(k * (c.transposed_tile_bytes if transpose else c.tile_bytes), 4)
        self._emit(Op.LOAD, Unit.LOAD, dest=LoadDest.STREAM, transpose=transpose, **fields)
        self._matmul(k * fields["count"], stream=True, may=self._others(Unit.LOAD))

    def _load(self) -> None:
        c, bus = self.config, self.config.bus_bytes
        dest = LoadDest(int(self.rng.choice([d for d in LoadDest if d != LoadDest.STREAM])))
        fields: dict[str, int] = {"dst": self._number(0, 60), "dst_stride": self._number(0, 60)}
        if dest == LoadDest.ACT:
            unit = max(bus, c.row_slot)
            fields |= self._run(unit * self._number(1, 40), 5)
        elif dest == LoadDest.TABLE:
            fields |= self._run(2048, 1) | {"count": 1, "dst": 0}
        else:
            fields |= self._run(bus * self._number(1, 40), 5)
            fields["format"] = self._flag()
        shared = dest in (LoadDest.ACT, LoadDest.ROW)
        must = {Unit.VECTOR: 1} if shared and self._issued[Unit.VECTOR] else None
        self._emit(Op.LOAD, Unit.LOAD, must=must, dest=dest, **fields)
        if shared:
            self._filled = self._issued[Unit.LOAD]

    def _vector(self) -> None:
        source = Source(int(self.rng.integers(0, 3)))
        dest = Dest(int(self.rng.integers(0, len(Dest))))
        if dest == Dest.STORE_RAW and source == Source.ROW:
            source = Source.ACC
        n = 1 if source == Source.STAT else self._number(1, 100)
        fields: dict[str, int] = {
            "n": n, "m": self._number(1, 6), "h": self._number(1, 4), "limit": self._number(0, 120), "source": source,
            "dest": dest, "src": self._number(0, 60), "src_n": self._number(0, 9), "src_m": self._number(0, 9),
            "bank": self._flag(), "causal": self._flag(),
        }  # fmt: skip
        if dest != Dest.STORE_RAW:
            fields |= self._path(source)
            if fields.get("add") == Add.ROTATE:
                fields["n"] += fields["n"] % 2
            fields["wide"] = source == Source.ACC and self._flag(0.3)
        since = self._issued[Unit.LOAD] - self._filled + 1
        must = {Unit.LOAD: since} if self._filled and since <= MAX_DISTANCE else None
        self._emit(Op.VECTOR, Unit.VECTOR, must=must, **fields)
        if dest >= Dest.STORE_INT8:
            self._store(dest, fields)

    def _path(self, source: Source) -> dict[str, int]:
        """Return which stages an instruction takes."""
        rng = self.rng
        fields = {
            "scale": rng.choice(list(Scale)), "param": self._flag(0.3), "add": rng.choice(list(Add)),
            "func": rng.choice(list(Func)), "mul": rng.choice(list(Mul)), "reduce_outer": self._flag(0.3),
        }  # fmt: skip
        if self._flag(0.5):
            fields["reduce"] = rng.choice(list(Reduce))
            fields["merge"] = self._flag()
        if source == Source.STAT and fields["add"] == Add.ROTATE:
            fields["add"] = Add.NONE
        if fields["add"] == Add.ROTATE:
            fields["scale"] = fields["param"] = 0
        if fields.get("reduce") == Reduce.VAR:
            fields["reduce_outer"] = 0
        return {name: int(value) for name, value in fields.items()}

    def _store(self, dest: Dest, vector: dict[str, int]) -> None:
        """Emit the STORE of what a VECTOR stores."""
        c = self.config
        element = {Dest.STORE_INT8: Element.INT8, Dest.STORE_BF16: Element.BF16}.get(dest, Element.FP32)
        n = vector["n"]
        run = n if self._flag() else self._number(1, n)
        size = run << element
        unit = min(c.bus_bytes, size & -size)
        self._emit(
            Op.STORE, Unit.STORE, self._others(Unit.VECTOR), element=element, n=n, m=vector["m"], h=vector["h"],
            run=run, offset=DATA + unit * self._number(0, 500), stride_m=unit * self._number(0, 300),
            stride_h=unit * self._number(0, 300), stride_run=unit * self._number(0, 300),
            wrap_first=self._number(0, 5), wrap_period=self._number(0, 5), wrap_stride=unit * self._number(0, 300),
        )  # fmt: skip

    def _control(self) -> None:
        if self._flag():
            self._emit(Op.NOP, None)
        else:
            self._emit(Op.LDREGS, None, offset=TABLE, count=self._number(1, 128))
