"""WEIGHT, LOAD and STORE: what moves between memory and the machine (docs/architecture.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilewright_hw.arch.isa import LoadDest, LoadFormat, Op, WeightFormat
from tilewright_hw.arch.registers import ErrorCode
from tilewright_sim.golden import formats
from tilewright_sim.golden.memory import Kept
from tilewright_sim.golden.state import TABLE_WORDS, Fault, Region, put
from tilewright_sim.golden.tiles import NibbleRows, Piece, PlainRows, StoredRows, TransposedRows

if TYPE_CHECKING:
    from tilewright_sim.golden.machine import Fields, Machine


def check_memory(machine: Machine, region: Region, write: bool = False) -> Region:
    """Return the region; Fault if it leaves memory."""
    if region.end > machine.memory.size:
        code = ErrorCode.WRITE_RESPONSE if write else ErrorCode.READ_RESPONSE
        raise Fault(f"byte {region.end - 1:#x} is outside memory, which has {machine.memory.size:#x}", code)
    return region


def check_aligned(value: int, unit: int, what: str) -> None:
    """Fault if `value` is no multiple of `unit`."""
    if value % unit:
        raise Fault(f"{what} must be a multiple of {unit}, not {value:#x}")


class LoadStep:
    """One WEIGHT or LOAD, its operands checked and its regions laid out; a call executes it."""

    def __init__(self, machine: Machine, f: Fields, op: Op) -> None:
        self.runs = f["count"]
        self.memory = self._check_source(machine, f)
        self.reads, self.writes = [self.memory], list[Region]()
        self.source = self.memory.view(machine.memory.bytes)  # (runs, bytes), or both in one
        self.dest = LoadDest.STREAM if op is Op.WEIGHT else LoadDest(f["dest"])
        if f["transpose"] and self.dest is not LoadDest.STREAM:
            raise Fault(f"transpose goes with dest STREAM, not {self.dest.name}")
        if self.dest is LoadDest.STREAM:
            self.fifo = machine.fifos["weight" if op is Op.WEIGHT else "stream"]
            self.tiles = self._tiles(machine, f, op)
            return
        loops = ((self.runs, f["dst_stride"]),)
        if self.dest is LoadDest.TABLE:
            self.dst = self._table(f)
        else:
            self.dst = Region(self.dest.name.lower(), f["dst"], loops, self._run_words(machine, f))
        self.writes.append(machine.buffers.check(self.dst, "what is loaded"))
        self.into = self.dst.view(machine.buffers.array(self.dst.name))  # (runs, words * width)
        self.floats = Kept(machine.memory, self.memory.start, self.memory.end)

    def _tiles(self, machine: Machine, f: Fields, op: Op) -> StoredRows:
        """Return the tiles that are pushed, checked."""
        config = machine.config
        if op is Op.WEIGHT and f["format"] == WeightFormat.INT4:
            rows = f["rows"]
            if not rows or rows % config.rows:
                raise Fault(f"rows of a run must be whole tiles of {config.rows} rows, not {rows}")
            if f["bytes"] != NibbleRows.run_bytes(config, rows):
                raise Fault(
                    f"a run of {rows} int4 rows takes {NibbleRows.run_bytes(config, rows)} bytes, not {f['bytes']}"
                )
            runs = Region("memory", self.memory.start, ((self.runs, f["stride"]),), f["bytes"])
            return NibbleRows(machine.memory, runs, config, rows)
        if f["transpose"]:
            check_aligned(f["bytes"], config.transposed_tile_bytes, "bytes of transposed tiles")
            return TransposedRows(machine.memory, self.memory, config)
        check_aligned(f["bytes"], config.col_slot, "bytes of tiles")
        return PlainRows(machine.memory, self.memory, config)

    def _table(self, f: Fields) -> Region:
        """Return the whole table, and keep its shifts: the output shift is signed."""
        if f["bytes"] * self.runs != 4 * TABLE_WORDS:
            raise Fault(f"a table is {4 * TABLE_WORDS} bytes, not {f['bytes'] * self.runs}")
        self.shifts = [f["dst"] & 31, ((f["dst"] >> 8 & 255) ^ 128) - 128]
        return Region("table", 0, (), TABLE_WORDS)

    def _check_source(self, machine: Machine, f: Fields) -> Region:
        """Return the bytes read; in one piece where they are, so that weights that stay can be recognised."""
        bus = machine.config.bus_bytes
        address = machine.bases[f["base"]] + f["offset"]
        check_aligned(address, bus, "the address")
        check_aligned(f["bytes"], bus, "bytes")
        if self.runs > 1:
            check_aligned(f["stride"], bus, "stride")
        if self.runs == 1 or f["stride"] == f["bytes"]:
            return check_memory(machine, Region("memory", address, ((1, 0),), f["bytes"] * self.runs))
        loops = ((self.runs, f["stride"]),)
        return check_memory(machine, Region("memory", address, loops, f["bytes"]))

    def _run_words(self, machine: Machine, f: Fields) -> int:
        """Return the words of a buffer that a run fills."""
        if self.dest is LoadDest.ACT:
            check_aligned(f["bytes"], machine.config.row_slot, "bytes of activation words")
            return f["bytes"] // machine.config.row_slot
        self.format = LoadFormat(f["format"])
        self.elements = f["bytes"] // (4 if self.format is LoadFormat.FP32 else 2)
        return -(-self.elements // machine.config.lanes)

    def needs(self, region: Region) -> None:
        """Return which words of a source must be defined: all."""

    def first_source(self, machine: Machine) -> None:
        """Return the source of what it takes from a FIFO: it takes nothing."""

    def __call__(self, machine: Machine) -> None:
        """Execute."""
        if self.dest is LoadDest.STREAM:
            self.fifo.push(Piece(self.tiles, 0, self.tiles.rows, machine.index))
        elif self.dest is LoadDest.TABLE:
            self.into[...] = np.ascontiguousarray(self.source).view(np.uint32).reshape(-1)
            machine.buffers.shifts[:] = self.shifts
        elif self.dest is LoadDest.ACT:
            slots = self.source.reshape(self.runs, -1, machine.config.row_slot)
            words = slots[..., : machine.config.rows].view(np.int8)
            put(self.into, words.reshape(self.runs, -1), self.dst)
        else:
            put(self.into, self.floats.get(self._floats), self.dst)

    def _floats(self) -> NDArray[np.float64]:
        """Return the elements as F24, each run filled up with zeros to whole words."""
        data = np.ascontiguousarray(self.source).reshape(self.runs, -1)
        if self.format is LoadFormat.FP32:
            values = formats.load_fp32(data.view(np.uint32))
        else:
            values = formats.load_bf16(data.view(np.uint16))
        width = self.into.shape[-1]
        if width == self.elements:
            return values
        padded = np.zeros((self.runs, width))
        padded[:, : self.elements] = values
        return padded


class StoreStep:
    """One STORE, its operands checked and its regions laid out; a call executes it."""

    def __init__(self, machine: Machine, f: Fields) -> None:
        self.n, self.m, self.h = f["n"], f["m"], f["h"]
        self.element = f["element"]
        self.size = size = 1 << self.element
        self.row_words = -(-self.n // machine.config.lanes)
        self.run = min(f["run"], self.n)
        full, rest = divmod(self.n, self.run)
        start = machine.bases[f["base"]] + f["offset"]
        rows = ((self.h, f["stride_h"]),)
        self.reads = list[Region]()
        self.writes = list[Region]()
        self.spans: list[tuple[slice, Region, Region | None]] = []
        for first, count, at in self._spans(f):
            loops = ((count, f["stride_m"]), *rows)
            runs = Region("memory", start + at, (*loops, (full, f["stride_run"])), self.run * size)
            last = None
            if rest:
                last = Region("memory", start + at + full * f["stride_run"], loops, rest * size)
            self.spans.append((slice(first, first + count), runs, last))
            self.writes += [runs] + ([last] if last else [])
        for region in self.writes:
            check_memory(machine, region, write=True)
            self._check_runs(machine.config.bus_bytes, f["run"] * size, region)
        self.whole = (min(r.start for r in self.writes), max(r.end for r in self.writes))
        self.tangled = any(
            a.meets_itself or any(a.overlaps(b) for b in self.writes[:i]) for i, a in enumerate(self.writes)
        )

    def _spans(self, f: Fields) -> list[tuple[int, int, int]]:
        """Return (first outer row, how many, offset of the first) for the rows between two wraps."""
        starts = [0]
        wrap, period = f["wrap_first"], f["wrap_period"]
        while 0 < wrap < self.m:
            starts.append(wrap)
            if not period:
                break
            wrap += period
        spans = []
        at = 0
        for first, end in zip(starts, [*starts[1:], self.m], strict=True):
            spans.append((first, end - first, at))
            at += (end - first - 1) * f["stride_m"] + f["wrap_stride"]
        return spans

    def _check_runs(self, bus: int, run: int, region: Region) -> None:
        """Fault if runs of `run` bytes do not start where their pieces stay inside bus words."""
        unit = min(bus, run & -run)
        strides = [stride for count, stride in region.loops if count > 1]
        for value in (region.start, *strides):
            if value % unit:
                raise Fault(
                    f"runs of {run} bytes must start at multiples of {unit}: address "
                    f"{region.start:#x}, strides {strides}"
                )

    def needs(self, region: Region) -> None:
        """Return which words of a source must be defined: all."""

    def first_source(self, machine: Machine) -> int | None:
        """Return the index of the VECTOR that pushed the first word to be taken."""
        return machine.store.chunks[0].source if machine.store.chunks else None

    def __call__(self, machine: Machine) -> None:
        """Execute."""
        try:
            words, machine.taken = machine.store.pop(self.m * self.h * self.row_words, self.element)
        except Fault as e:
            raise Fault(f"store stream: {e}") from e
        rows = np.ascontiguousarray(words).reshape(self.m, self.h, -1)[:, :, : self.n]
        data = np.ascontiguousarray(rows).view(np.uint8)  # (m, h, n * size)
        memory = machine.overwrite(*self.whole)
        split = (self.n - self.n % self.run) * self.size
        for which, runs, last in self.spans:
            part = data[which]
            full = runs.view(memory)  # (m, h, runs, run * size)
            rest = last.view(memory) if last else full[:, :, 0, :0]
            whole = part[:, :, :split].reshape(full.shape)
            # Runs may be written twice only in their order, which counts.
            for row in np.ndindex(part.shape[:2]) if self.tangled else ((),):
                for i in range(full.shape[2]) if self.tangled else (...,):
                    full[row][i] = whole[row][i]
                rest[row] = part[:, :, split:][row]
