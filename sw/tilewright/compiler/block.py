"""What all building blocks of a program are made of: vector instructions, products, parameters, stores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.compiler.emit import Region, Sink, Value
from tilewright.compiler.image import Matrix, ModelImage
from tilewright.compiler.int4 import Int4Matrix
from tilewright.compiler.layout import address, ceil_div, round_up
from tilewright.compiler.plan import Plan, run_words, tile_step, vector_part
from tilewright.compiler.positions import Positions
from tilewright.formats import f24_bits
from tilewright_hw.arch.isa import (
    Add,
    Dest,
    LoadDest,
    LoadFormat,
    Op,
    Reduce,
    Scale,
    Source,
    WeightFormat,
)

INT8 = f24_bits(1.0 / 127.0)
"""const1 of QSCALE for int8."""
INT15 = f24_bits(1.0 / 16383.0)
"""const1 of QSCALE for pairs."""
Operands = dict[str, Any]


class Block:
    """Emits one block of m rows.

    Rows live in the row buffer as `plan` says. Methods that are generators yield between phases, where the rows of a
    batch take turns.
    """

    def __init__(self, image: ModelImage, plan: Plan, positions: Positions, emitter: Sink, first_row: int = 0) -> None:
        self.image, self.plan, self.at = image, plan, positions
        self.spec, self.config, self.m = image.spec, image.config, plan.m
        self.e = emitter
        self.first_row = first_row
        self.norm_slot = 0
        self.scale_slot = 0
        self.bias_slot = 0
        self.w_dim = ceil_div(self.spec.dim, self.config.lanes)
        self.parts = image.formats.parts
        self.act_dest = Dest.ACT if self.parts == 1 else Dest.ACT16
        self.act_quantum = INT8 if self.parts == 1 else INT15

    def load(
        self, memory: Region, offset: Value, size: int | Value, dst: Region, count: int, stride: int,
        dst_stride: int, fmt: LoadFormat, comment: str,
    ) -> None:  # fmt: skip
        """Load `count` runs of `size` bytes into the parameter or the row buffer, whichever `dst` lies in."""
        bus = self.config.bus_bytes
        nbytes = size if isinstance(size, Value) else round_up(size, bus)
        at = address(memory.start + offset.constant)
        start = Value(at["offset"], offset.register)
        self.e.emit(
            Op.LOAD, [memory], [dst], comment, base=at["base"], offset=start, bytes=nbytes, count=count,
            stride=stride, dest=LoadDest.PARAM if dst.space == "param" else LoadDest.ROW, format=fmt, dst=dst.start,
            dst_stride=dst_stride,
        )  # fmt: skip

    def vector(
        self, reads: list[Region], writes: list[Region], *, comment: str, stat: str | None = None,
        stat_offset: int = 0, red: str | None = None, red_offset: int = 0, **operands: Any,
    ) -> None:  # fmt: skip
        """Emit VECTOR; `stat` and `red` name the statistics read and written (strides are given as operands)."""
        operands = {"h": 1, "limit": 65535} | operands
        if stat is not None:
            region = self.plan.stats[stat]
            reads = [*reads, region]
            operands = {"stat": region.start + stat_offset, "stat_m": 1} | operands
        if red is not None:
            region = self.plan.stats[red]
            writes = [*writes, region]
            operands = {"red": region.start + red_offset, "red_m": 1} | operands
            if operands["reduce"] == Reduce.QSCALE:
                operands = {"const1": self.act_quantum} | operands
        self.e.emit(Op.VECTOR, reads, writes, comment, **operands)

    def vector_parts(self) -> list[tuple[int, int]]:
        """Return the (first, count) of the parts in which vectors of `dim` parameters are loaded."""
        dim, step = self.spec.dim, vector_part(self.spec, self.config)
        return [(first, min(step, dim - first)) for first in range(0, dim, step)]

    def vector_of(self, memory: Region, first: int, count: int, comment: str) -> Region:
        """Load a part of a vector of parameters; returns where it is until the next but one comes."""
        slot = self.plan.norms[self.norm_slot]
        self.norm_slot ^= 1
        part = memory.part(4 * first, min(round_up(4 * count, self.config.bus_bytes), memory.size - 4 * first))
        self.load(part, Value(0), part.size, slot, 1, 0, 0, LoadFormat.FP32, comment)
        return slot

    def norm_vector(self, name: str, first: int, count: int) -> Region:
        """Load a part of a norm's vector, by name; see `vector_of`."""
        return self.vector_of(self.image.norms[name], first, count, name)

    def columns(self, rows: Region, first: int, count: int) -> Operands:
        """Return the operands that read `count` columns of m rows of `dim` elements."""
        return self.x_rows(rows) | {"n": count, "src": rows.start + first // self.config.lanes}

    def to_columns(self, rows: Region, first: int) -> Operands:
        """Return the operands that write columns from column `first` on of m rows of `dim` elements."""
        return {"dest": Dest.ROW, "dst": rows.start + first // self.config.lanes, "dst_m": self.w_dim}

    def x_rows(self, rows: Region | None = None) -> Operands:
        """Return the operands that read m rows of `dim` elements, those of the residual stream by default."""
        start = (rows or self.plan.x).start
        return {"n": self.spec.dim, "m": self.m, "source": Source.ROW, "src": start, "src_m": self.w_dim}

    def quantise(self, rows: Region, n: int, act: Region, stat: str) -> None:
        """Quantise m rows of n elements, packed one after another, into activation words."""
        self.vector(
            [rows], [act], stat=stat, comment=f"quantise into {act.start}",
            n=n, m=self.m, source=Source.ROW, src=rows.start, src_m=ceil_div(n, self.config.lanes),
            scale=Scale.STAT_A, dest=self.act_dest, dst=act.start, dst_m=self.parts * ceil_div(n, self.config.rows),
        )  # fmt: skip

    def row_scale(self, rows: Region, n: int, red: str) -> None:
        """Record the quantisation scale of m rows of n elements."""
        self.vector(
            [rows], [], red=red, comment=f"scale of {red}", n=n, m=self.m, source=Source.ROW, src=rows.start,
            src_m=ceil_div(n, self.config.lanes), reduce=Reduce.QSCALE,
        )  # fmt: skip

    def product(self, matrix: Matrix, act: Region, first: int, tiles: int, row: int = 0, m: int = 0) -> Region:
        """Act rows times `tiles` columns of tiles from tile `first` on; returns the accumulators written."""
        m = m or self.m
        shape = matrix.shape
        at = matrix.tiles.start + first * shape.column_bytes
        tile_region = Region("mem", at, tiles * shape.column_bytes)
        operands: Operands = {}
        size, count = tile_region.size, 1
        if isinstance(shape, Int4Matrix):
            size, count = shape.column_bytes, tiles
            operands = {"format": WeightFormat.INT4, "rows": shape.rows}
        while size >= 1 << 31:  # the operand has 32 bits
            size, count = size // 2, count * 2
        self.e.emit(
            Op.WEIGHT, [tile_region], [], "weights", bytes=size, count=count, stride=size if count > 1 else 0,
            **operands, **address(at),
        )  # fmt: skip
        acc = Region(f"acc{self.e.bank}", 0, tiles * m * self.parts)
        words = shape.k_tiles * self.parts
        self.e.emit(
            Op.MATMUL, [act], [acc], "matrix product", k=shape.k_tiles, n=tiles, groups=1, rows_outer=1, rows_inner=m,
            act=act.start + row * words, act_inner=words, bank=self.e.bank, pair=self.parts - 1,
        )  # fmt: skip
        self.e.bank ^= 1
        return acc

    def scales(self, matrix: Matrix, first: int, tiles: int) -> Region:
        """Load the column scales of some tiles; returns where they are."""
        slot = self.plan.scales[self.scale_slot]
        self.scale_slot ^= 1
        cols = self.config.cols
        memory = matrix.scales
        # Bus words may be wider than the columns of a tile: start at the bus word and skip what comes before.
        start = 4 * cols * first
        aligned = start // self.config.bus_bytes * self.config.bus_bytes
        assert start == aligned, "tiles' scales start at a bus word"
        used = slot.part(0, run_words(tiles * cols, 4, self.config))
        self.load(
            Region("mem", memory.start + start, 4 * cols * tiles), Value(0), 4 * cols * tiles, used, 1, 0, 0,
            LoadFormat.FP32, "column scales",
        )  # fmt: skip
        return used

    @property
    def begins_text(self) -> bool:
        """Whether the block's first row is the first of a text, and known rows are taken off those."""
        return self.spec.first_rows and self.at.first == 0

    def bias(self, memory: Region | None, first: int, tiles: int) -> Operands:
        """Load the biases of some tiles into the row buffer; returns the operands that add them."""
        if memory is None:
            return {}
        slot = self.plan.biases[self.bias_slot]
        self.bias_slot ^= 1
        cols = self.config.cols
        used = slot.part(0, run_words(tiles * cols, 4, self.config))
        part = Region("mem", memory.start + 4 * cols * first, 4 * cols * tiles)
        self.load(part, Value(0), part.size, used, 1, 0, 0, LoadFormat.FP32, "biases")
        return {"reads": [used], "add": Add.ROW, "row": used.start, "row_m": 0}

    def add_bias(self, matrix: Matrix) -> None:
        """X += the bias of a matrix whose product is to be added to x: that addition has no room for it."""
        first = matrix.first if self.begins_text else None
        if first is not None:
            self._add_vector(first, 0, 1, "first row += what it lacks")
        if matrix.bias is not None:
            done = int(first is not None)
            self._add_vector(matrix.bias, done, self.m - done, "x += bias")

    def _add_vector(self, memory: Region, row: int, rows: int, comment: str) -> None:
        """Add a vector of `dim` elements to some rows of x."""
        if not rows:
            return
        x, vector = self.plan.x, Region("mem", memory.start, self.image.dim_row)
        of_rows: Operands = {"m": rows}
        for first, count in self.vector_parts():
            slot = self.vector_of(vector, first, count, "biases")
            source, result = self.columns(x, first, count), self.to_columns(x, first)
            source["src"] += row * self.w_dim
            result["dst"] += row * self.w_dim
            self.vector(
                [x, slot], [x], comment=comment, **source | of_rows, add=Add.PARAM, par=slot.start, **result
            )  # fmt: skip

    def subtract_first(self, rows: Region, n: int, name: str, stat: str) -> None:
        """Take a known row off a text's first one, which is the first of these rows of n elements, and scale it anew.

        Does nothing if this is another block, or the model has no such row.
        """
        known = self.image.firsts.get(name)
        if known is None or not self.begins_text:
            return
        lanes = self.config.lanes
        unit = math.lcm(lanes, self.config.bus_bytes // 4)
        step = min(n, self.plan.norms[0].size * lanes // unit * unit)
        row: Operands = {"m": 1, "source": Source.ROW}
        scale: Operands = {"red": stat, "reduce": Reduce.QSCALE}
        for first in range(0, n, step):
            count, start = min(step, n - first), rows.start + first // lanes
            slot = self.vector_of(known, first, count, "the first row as it is known")
            self.vector(
                [rows, slot], [rows], comment="first row -= known row", n=count, **row, src=start, add=Add.PARAM,
                par=slot.start, dest=Dest.ROW, dst=start, **when(step == n, **scale),
            )  # fmt: skip
        if step < n:
            self.vector([rows], [], comment="scale of the first row", n=n, **row, src=rows.start, **scale)

    def chunks(self, matrix: Matrix, limit: int | None = None) -> list[tuple[int, int]]:
        """Cut a matrix's output tiles into passes of about one size, of `limit` at most: (first tile, tiles)."""
        total, align = matrix.shape.n_tiles, tile_step(self.config)
        most = min(self.plan.chunk_tiles, limit or self.plan.chunk_tiles)
        most = max(most // align * align, align)
        step = round_up(ceil_div(total, ceil_div(total, most)), align)
        return [(i, min(step, total - i)) for i in range(0, total, step)]

    def dequantise(
        self, acc: Region, first: int, tiles: int, n: int, scales: Region, stat: str, dst: Region, width: int,
        *, comment: str, reads: Sequence[Region] = (), red: str | None = None, at_row: int = 0,
        rows: int | None = None, **operands: Any,
    ) -> None:  # fmt: skip
        """Accumulators -> floats in rows of `width` words at columns from tile `first` on.

        Of `rows` rows (None: all) from row `at_row` on; what `operands` say is of all rows alike.
        """
        cols, lanes = self.config.cols, self.config.lanes
        offset = first * cols // lanes
        self.vector(
            [acc, scales, *reads], [dst], stat=stat, stat_offset=at_row, red=red, red_offset=at_row, comment=comment,
            **{
                "n": min(tiles * cols, n - first * cols), "m": self.m if rows is None else rows, "source": Source.ACC,
                "bank": int(acc.space[-1]), "src": acc.start + at_row * self.parts, "src_m": self.parts,
                "src_n": self.m * self.parts, "wide": self.parts - 1, "scale": Scale.STAT_B, "param": 1,
                "par": scales.start, "dest": Dest.ROW, "dst": dst.start + offset + at_row * width, "dst_m": width,
            } | operands,
        )  # fmt: skip

    def dequantise_biased(
        self, matrix: Matrix, acc: Region, first: int, tiles: int, n: int, scales: Region, stat: str, dst: Region,
        width: int, *, reads: Sequence[Region] = (), **operands: Any,
    ) -> None:  # fmt: skip
        """As `dequantise`, with the matrix's biases; a text's first row has one of its own."""
        bias = self.bias(matrix.bias, first, tiles)
        done = 0
        if matrix.first is not None and self.begins_text:
            of_first = self.bias(matrix.first, first, tiles)
            done = 1
            self.dequantise(
                acc, first, tiles, n, scales, stat, dst, width, rows=done,
                reads=[*reads, *of_first.pop("reads")], **of_first, **operands,
            )  # fmt: skip
        if done < self.m:
            self.dequantise(
                acc, first, tiles, n, scales, stat, dst, width, at_row=done, rows=self.m - done,
                reads=[*reads, *bias.pop("reads", ())], **bias, **operands,
            )  # fmt: skip

    def add_product(self, matrix: Matrix, act: Region, stat: str, comment: str) -> None:
        """X += act @ matrix; records x's absolute maximum."""
        x, chunks = self.plan.x, self.chunks(matrix)
        fused = len(chunks) == 1
        for first, tiles in chunks:
            scales = self.scales(matrix, first, tiles)
            acc = self.product(matrix, act, first, tiles)
            offset = first * self.config.cols // self.config.lanes
            self.dequantise(
                acc, first, tiles, self.spec.dim, scales, stat, x, self.w_dim, comment=comment, reads=[x],
                add=Add.ROW, row=x.start + offset, row_m=self.w_dim,
                **when(fused, red="x", reduce=Reduce.ABSMAX),
            )  # fmt: skip
        if not fused:
            self.absmax()

    def absmax(self, **operands: Any) -> None:
        """Record the absolute maximum of x."""
        x = self.plan.x
        self.vector([x], [], red="x", comment="absmax of x", **self.x_rows(), reduce=Reduce.ABSMAX, **operands)

    def store(self, region: Region, offset: Value, *, comment: str, **operands: Any) -> None:
        """Store m rows of each KV head from the store stream to a region that starts at `offset`."""
        at = address(region.start + offset.constant)
        start = Value(at["offset"], offset.register)
        self.e.emit(
            Op.STORE, [], [region], comment,
            **{"m": self.m, "h": self.spec.kv_heads, "base": at["base"], "offset": start} | operands,
        )  # fmt: skip


def when(condition: bool, **operands: Any) -> Operands:
    """Return the operands if the condition holds, else none."""
    return operands if condition else {}
