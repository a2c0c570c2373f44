"""Tiling of one matrix product: which rows and output tiles each pass takes, and what is done with the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, gcd, lcm, sqrt

import numpy as np
from numpy.typing import NDArray

from tilewright.compiler.emit import Emitter, Region
from tilewright.compiler.image import MAX_K_INT4
from tilewright.compiler.int4 import Int4Matrix, pack_int4
from tilewright.compiler.layout import MemoryMap, TiledMatrix, address, ceil_div, pack_tiles, round_up
from tilewright.formats import GROUP, f24_bits
from tilewright_hw.arch import AcceleratorConfig, InputError
from tilewright_hw.arch.isa import BYTES, Dest, Element, LoadDest, Op, Reduce, Scale, Source, WeightFormat

INSTRUCTIONS = 3
"""Of a pass: MATMUL, VECTOR, STORE."""
PASS_OVERHEAD = 20
"""Cycles of a pass in which neither its rows nor its sums move: queues, pipelines; and the way through the array."""
BUS_MARGIN = 1.06
"""What reading takes over its beats, where loads, weights and instructions take turns."""


@dataclass(frozen=True)
class Pass:
    """Rows `row` to row + rows - 1 times output tiles `tile` to tile + tiles - 1, drained by one instruction."""

    row: int
    rows: int
    tile: int
    tiles: int


class Product:
    """The program of one matrix product (m, k) @ (k, n): blocks of rows, and in each passes over the output tiles.

    A block of rows stays in the activation buffer while every weight tile passes once; what does not fit it along k is
    cut into parts, and b lies in memory part by part. A pass fills one accumulator bank, which is drained while the
    next pass fills the other. The last pass is cut in rows, so that little is left to store after it.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    m, k, n : int
        Shape.
    quantise : bool
        Store each row as int8 with one float32 scale (QSCALE), not as int32.
    int4 : bool
        b is in four bits, with scales of groups (docs/architecture.md); the result is that of the int8 g * q.
    """

    def __init__(
        self, config: AcceleratorConfig, m: int, k: int, n: int, *, quantise: bool = False, int4: bool = False
    ) -> None:
        self.config, self.m, self.n, self.quantise = config, m, n, quantise
        self.matrix = Int4Matrix if int4 else TiledMatrix
        self.shape = self.matrix(n, k, config)
        self.memory = MemoryMap()
        # Runs of activation words are whole bus words: parts of a row are cut and padded to multiples of this.
        self.align = max(1, config.bus_bytes // config.row_slot)
        self.row_words = round_up(self.shape.k_tiles, self.align)
        self.row_bytes = self.row_words * config.row_slot
        self.k_step = self._k_step()
        self.starts = range(0, k, self.k_step * config.rows)
        self.parts = [self.matrix(n, min(self.starts.step, k - at), config) for at in self.starts]
        self.overhead = config.rows + config.cols + PASS_OVERHEAD
        self.block = self._block_rows()
        self.a = self.memory.add("a", m * self.row_bytes)
        self.b = self.memory.add("b", sum(part.bytes for part in self.parts))
        self.stride = round_up(n if quantise else 4 * n, config.bus_bytes)
        self.result = self.memory.add("result", m * self.stride)
        self.scales = self.memory.add("scales", 4 * m) if quantise else None
        self.bank = 0
        self.e = Emitter()
        self._half, self._stat = 1, 0
        self._held = (-1, -1, 0)  # what the activation buffer's half holds: block, first word of k, rows

    def _k_step(self) -> int:
        """Return the most tiles along k of a part."""
        config, unit, most = self.config, self.align, self.config.act_words // 2
        if self.matrix is Int4Matrix:  # a part is whole groups, and its rows are an operand
            unit = lcm(unit, GROUP // gcd(GROUP, config.rows))
            most = min(most, MAX_K_INT4 // config.rows)
        return min(self.row_words, most // unit * unit)

    def _block_rows(self) -> int:
        """Return the rows of a block."""
        config, nt = self.config, self.shape.n_tiles
        # Rows that keep the array busy for twice as long as the bus needs for a tile; with more the first pass starts
        # later, and with fewer the bus is the limit.
        best = max(2 * self.shape.column_bytes // (config.bus_bytes * self.shape.k_tiles), 8)
        most = min(best, config.acc_rows, config.act_words // 2 // self.k_step)
        if self.quantise:
            if nt > config.acc_rows or self.n > 65535:
                raise InputError(
                    f"matmul: a quantised result must have at most {min(config.acc_rows * config.cols, 65535)} columns "
                    f"on {config.name}, not {self.n}"
                )
            most = min(most, config.acc_rows // nt, config.stat_entries // 2)
        most = min(most, self.m)
        return min(range(1, most + 1), key=lambda rows: (self._estimate(rows), -rows))

    def _estimate(self, rows: int) -> float:
        """Return about the cycles that all takes with blocks of so many rows."""
        config, nt, kt = self.config, self.shape.n_tiles, self.shape.k_tiles
        bus = config.bus_bytes
        read = float(self.m * self.row_bytes)
        multiply = 0.0
        for m0 in range(0, self.m, rows):
            count = min(rows, self.m - m0)
            passes = nt / self._pass_tiles(count)
            one = nt / passes * kt * max(count, config.rows // config.ingest)
            drained = nt / passes * count * config.cols / config.lanes
            multiply += passes * max(one, (one + drained + self.overhead) / 2)
            read += self.shape.bytes + ceil(passes) * INSTRUCTIONS * BYTES
        first = min(nt, self._pass_tiles(rows)) * kt * rows
        written = self.m * self.n * (1 if self.quantise else 4)
        return max(BUS_MARGIN * read / bus, rows * self.row_bytes / bus + max(multiply, first + written / bus))

    def _pass_tiles(self, rows: int) -> int:
        """Return the output tiles of a pass: as few as keep both banks busy, and as make up for their instructions.

        A pass may be stored only when its last row is there, so what the last pass leaves to do counts in full; but
        each pass costs the bus its instructions, which counts where the bus is the limit.
        """
        config, nt, kt = self.config, self.shape.n_tiles, self.shape.k_tiles
        if self.quantise:  # whole rows
            return nt
        most = max(1, min(nt, config.acc_rows // rows))
        bus = self.shape.column_bytes // config.bus_bytes  # cycles per output tile
        multiply = max(bus, kt * max(rows, config.rows // config.ingest))
        drain = rows * config.cols // config.lanes
        # Two passes share the banks: while one drains, the other must not be over.
        least = ceil_div(self.overhead, multiply - drain) if multiply > drain else most
        fetch = INSTRUCTIONS * BYTES / config.bus_bytes if bus >= multiply else 0.0
        tail = max(drain, 4 * rows * config.cols / config.bus_bytes)
        return max(1, min(most, max(least, ceil(sqrt(fetch * nt / tail)))))

    def passes(self) -> Iterator[Pass]:
        """Yield the passes in their order; a block's rows come before the next block's."""
        nt = self.shape.n_tiles
        for m0 in range(0, self.m, self.block):
            rows = min(self.block, self.m - m0)
            step = self._pass_tiles(rows)
            for n0 in range(0, nt, step):
                tiles = min(step, nt - n0)
                for row, count in self._parts(rows, last=m0 + rows == self.m and n0 + tiles == nt):
                    yield Pass(m0 + row, count, n0, tiles)

    def _parts(self, rows: int, *, last: bool) -> list[tuple[int, int]]:
        """Cut the rows of the last pass: (first, count) of each part."""
        least = self.config.rows // self.config.ingest  # fewer take the array as long
        if not last or rows < 2 * least or self.k_step < self.row_words:
            return [(0, rows)]
        tail = max(least, rows // 4)
        return [(0, rows - tail), (rows - tail, tail)]

    def pad_rows(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pad packed rows (m, words, row_slot) with zero words to whole bus words."""
        return np.pad(packed, ((0, 0), (0, self.row_words - packed.shape[1]), (0, 0)))

    def pack(self, b: NDArray[np.int8], groups: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return b, int8 (n, k), as it lies in memory; in four bits with the scales `groups` (n, ceil(k / 32))."""
        packed = []
        for part, at in zip(self.parts, self.starts, strict=True):
            columns = b[:, at : at + part.k]
            if isinstance(part, Int4Matrix):
                assert groups is not None
                scales = groups[:, at // GROUP : ceil_div(at + part.k, GROUP)]
                packed.append(pack_int4(columns, scales, self.config).reshape(-1))
            else:
                packed.append(pack_tiles(columns, self.config).reshape(-1))
        return np.concatenate(packed)

    def emit(self) -> Emitter:
        """Emit all passes."""
        for run in self._runs():
            for p in run:
                # The tiles of several passes come by one instruction, if b is in one piece.
                ahead = p.tiles if len(self.parts) > 1 else sum(each.tiles for each in run) if p is run[0] else 0
                self._emit_pass(p, ahead)
        return self.e

    def _runs(self) -> Iterator[list[Pass]]:
        """Yield the passes in their order, together as long as each one's output tiles follow those before."""
        run: list[Pass] = []
        for p in self.passes():
            if run and p.tile != run[-1].tile + run[-1].tiles:
                yield run
                run = []
            run.append(p)
        yield run

    def _emit_pass(self, p: Pass, fetched: int) -> None:
        """Emit a pass; of each part of b, the columns of `fetched` output tiles are fetched after its rows of a."""
        start = self.b.start
        for number, part in enumerate(self.parts):
            act = self._activations(p, number * self.k_step, part.k_tiles)
            if fetched:
                self._fetch(part, start, p.tile, fetched)
            self._multiply(p, act, part.k_tiles, accumulate=number > 0)
            start += part.bytes
        if self.quantise:
            self._store_quantised(p)
        else:
            self._store_raw(p)
        self.bank ^= 1

    def _activations(self, p: Pass, k0: int, depth: int) -> Region:
        """Load what of the pass's rows is not there yet; return the activation words of all of them."""
        block, padded = p.row // self.block, round_up(depth, self.align)
        if self._held[:2] != (block, k0):
            self._held = (block, k0, 0)
            self._half ^= 1
        first, loaded = block * self.block, self._held[2]
        start, wanted = self._half * (self.config.act_words // 2), p.row + p.rows - first
        if loaded < wanted:
            self._held = (block, k0, wanted)
            part = Region("act", start + loaded * padded, (wanted - loaded) * padded)
            at = self.a.start + (first + loaded) * self.row_bytes + k0 * self.config.row_slot
            self._load(part, at, wanted - loaded, padded)
        return Region("act", start + (p.row - first) * padded, p.rows * padded)

    def _load(self, part: Region, at: int, rows: int, padded: int) -> None:
        if padded == self.row_words:  # whole rows lie one after another: longer bursts
            run = {"bytes": rows * self.row_bytes, "count": 1}
        else:
            run = {"bytes": padded * self.config.row_slot, "count": rows, "stride": self.row_bytes}
        self.e.emit(
            Op.LOAD, [self.a], [part], "rows of a", dest=LoadDest.ACT, dst=part.start, dst_stride=padded,
            **run, **address(at),
        )  # fmt: skip

    def _fetch(self, part: TiledMatrix, start: int, tile: int, tiles: int) -> None:
        """Fetch columns of output tiles of a part of b, which lies at `start`."""
        run = part.column_bytes
        form = {"format": WeightFormat.INT4, "rows": part.rows} if isinstance(part, Int4Matrix) else {}
        self.e.emit(
            Op.WEIGHT, [self.b], [], "tiles of b", bytes=run, count=tiles, stride=run, **form,
            **address(start + tile * run),
        )  # fmt: skip

    def _multiply(self, p: Pass, act: Region, depth: int, *, accumulate: bool) -> None:
        self.e.emit(
            Op.MATMUL, [act], [self._sums(p)], "product", k=depth, n=p.tiles, groups=1,
            rows_outer=1, rows_inner=p.rows, act=act.start, act_inner=act.size // p.rows, bank=self.bank,
            accumulate=int(accumulate),
        )  # fmt: skip

    def _sums(self, p: Pass) -> Region:
        return Region(f"acc{self.bank}", 0, p.tiles * p.rows)

    def _drain(self, p: Pass, n: int, stat: Region | None, comment: str, **operands: int) -> None:
        """Emit a VECTOR over the pass's sums; a reduction writes `stat`, anything else reads it."""
        reads = [self._sums(p)]
        writes: list[Region] = []
        if stat is not None:
            reduces = operands.get("reduce", Reduce.NONE) != Reduce.NONE
            (writes if reduces else reads).append(stat)
            operands |= {"red": stat.start, "red_m": 1} if reduces else {"stat": stat.start, "stat_m": 1}
        self.e.emit(
            Op.VECTOR, reads, writes, comment,
            **{"n": n, "m": p.rows, "h": 1, "limit": 65535, "source": Source.ACC, "bank": self.bank,
               "src_m": 1, "src_n": p.rows} | operands,
        )  # fmt: skip

    def _store(self, p: Pass, n: int, element: Element, target: Region, at: int, stride: int) -> None:
        self.e.emit(
            Op.STORE, [], [target], "result", element=element, n=n, m=p.rows, h=1, run=n, stride_m=stride,
            **address(target.start + p.row * stride + at),
        )  # fmt: skip

    def _store_raw(self, p: Pass) -> None:
        first = p.tile * self.config.cols
        n = min(p.tiles * self.config.cols, self.n - first)
        self._drain(p, n, None, "drain", dest=Dest.STORE_RAW)
        self._store(p, n, Element.FP32, self.result, 4 * first, self.stride)

    def _store_quantised(self, p: Pass) -> None:
        """Take each row's scale, then the row times its reciprocal; a pass holds whole rows."""
        assert self.scales is not None
        stat = Region("stat", self._stat * (self.config.stat_entries // 2), p.rows)
        self._stat ^= 1
        self._drain(p, self.n, stat, "row scales", reduce=Reduce.QSCALE, const1=f24_bits(1 / 127))
        self._drain(p, self.n, stat, "quantise", scale=Scale.STAT_A, dest=Dest.STORE_INT8)
        self._store(p, self.n, Element.INT8, self.result, 0, self.stride)
        self._drain(p, 1, stat, "store scales", source=Source.STAT, dest=Dest.STORE_FP32)
        self._store(p, 1, Element.FP32, self.scales, 0, 4)
