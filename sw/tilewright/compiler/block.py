"""Building blocks of decoder programs: what a layer is made of, whatever the architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.compiler.emit import Region, Sink, Value
from tilewright.compiler.image import Matrix, ModelImage
from tilewright.compiler.layout import address, ceil_div, round_up
from tilewright.compiler.plan import Plan
from tilewright.compiler.positions import Positions
from tilewright.formats import bf16_field, f24_bits
from tilewright_hw.arch.isa import (
    Add,
    Dest,
    LoadDest,
    LoadFormat,
    Op,
    Reduce,
    Scale,
    Source,
)

QUANTISE = f24_bits(1.0 / 127.0)
"""const1 of QSCALE."""
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
        self.w_dim = ceil_div(self.spec.dim, self.config.lanes)

    def embed(self) -> None:
        """Gather the tokens' embeddings into the residual stream."""
        x, region = self.plan.x, self.image.embedding
        for row in range(self.m):
            at = address(region.start)
            self.e.emit(
                Op.LOAD, [region], [x.part(row * self.w_dim, self.w_dim)], f"embedding of row {row}",
                base=at["base"], offset=Value(at["offset"], self.at.token(row)),
                bytes=self.image.embedding_row, count=1, dest=LoadDest.ROW, format=LoadFormat.BF16,
                dst=x.start + row * self.w_dim,
            )  # fmt: skip
        self.vector(
            [x], [], red="x", comment="absmax of x",
            n=self.spec.dim, m=self.m, source=Source.ROW, src=x.start, src_m=self.w_dim, reduce=Reduce.ABSMAX,
        )  # fmt: skip

    def load_param(
        self, memory: Region, offset: Value, size: int | Value, dst: Region, count: int, stride: int,
        dst_stride: int, fmt: LoadFormat, comment: str,
    ) -> None:  # fmt: skip
        """Load `count` runs of `size` bytes into the parameter buffer."""
        bus = self.config.bus_bytes
        nbytes = size if isinstance(size, Value) else round_up(size, bus)
        at = address(memory.start + offset.constant)
        start = Value(at["offset"], offset.register)
        self.e.emit(
            Op.LOAD, [memory], [dst], comment, base=at["base"], offset=start, bytes=nbytes, count=count,
            stride=stride, dest=LoadDest.PARAM, format=fmt, dst=dst.start, dst_stride=dst_stride,
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
                operands["const1"] = QUANTISE
        self.e.emit(Op.VECTOR, reads, writes, comment, **operands)

    def normalise(self, weights: Region) -> None:
        """X -> RMSNorm -> quantised rows in act_x, scales in `sx`."""
        plan, n, m = self.plan, self.spec.dim, self.m
        slot = plan.norms[self.norm_slot]
        self.norm_slot ^= 1
        self.load_param(weights, Value(0), 4 * n, slot, 1, 0, 0, LoadFormat.FP32, "norm weights")
        rows: Operands = {"n": n, "m": m, "source": Source.ROW, "src": plan.x.start, "src_m": self.w_dim}
        self.vector(
            [plan.x], [], stat="x", red="rms", comment="sum of squares", **rows,
            reduce=Reduce.SUMSQ, const1=f24_bits(1.0 / n), const2=bf16_field(self.spec.norm_eps),
        )  # fmt: skip
        self.vector(
            [plan.x, slot], [plan.normed], stat="rms", red="sx", comment="normalise", **rows,
            scale=Scale.STAT_A, param=1, par=slot.start, reduce=Reduce.QSCALE,
            dest=Dest.ROW, dst=plan.normed.start, dst_m=self.w_dim,
        )  # fmt: skip
        self.quantise(plan.normed, n, plan.act_x, "sx")

    def quantise(self, rows: Region, n: int, act: Region, stat: str) -> None:
        """Quantise m rows of n elements, packed one after another, into activation words."""
        self.vector(
            [rows], [act], stat=stat, comment=f"quantise into {act.start}",
            n=n, m=self.m, source=Source.ROW, src=rows.start, src_m=ceil_div(n, self.config.lanes),
            scale=Scale.STAT_A, dest=Dest.ACT, dst=act.start, dst_m=ceil_div(n, self.config.rows),
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
        size, count = tile_region.size, 1
        while size >= 1 << 31:  # the operand has 32 bits
            size, count = size // 2, count * 2
        self.e.emit(
            Op.WEIGHT, [tile_region], [], "weights", bytes=size, count=count, stride=size if count > 1 else 0,
            **address(at),
        )  # fmt: skip
        acc = Region(f"acc{self.e.bank}", 0, tiles * m)
        words = shape.k_tiles
        self.e.emit(
            Op.MATMUL, [act], [acc], "matrix product", k=words, n=tiles, groups=1, rows_outer=1, rows_inner=m,
            act=act.start + row * words, act_inner=words, bank=self.e.bank,
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
        used = slot.part(0, tiles * cols // self.config.lanes)
        self.load_param(
            Region("mem", memory.start + start, 4 * cols * tiles), Value(0), 4 * cols * tiles, used, 1, 0, 0,
            LoadFormat.FP32, "column scales",
        )  # fmt: skip
        return used

    def chunks(self, matrix: Matrix) -> list[tuple[int, int]]:
        """Cut a matrix's output tiles into passes of about one size: (first tile, tiles)."""
        total, align = matrix.shape.n_tiles, 1
        while 4 * self.config.cols * align % self.config.bus_bytes:
            align *= 2
        most = max(self.plan.chunk_tiles // align * align, align)
        step = round_up(ceil_div(total, ceil_div(total, most)), align)
        return [(i, min(step, total - i)) for i in range(0, total, step)]

    def dequantise(
        self, acc: Region, first: int, tiles: int, n: int, scales: Region, stat: str, dst: Region, width: int,
        *, comment: str, reads: Sequence[Region] = (), red: str | None = None, **operands: Any,
    ) -> None:  # fmt: skip
        """Accumulators -> floats in rows of `width` words at columns from tile `first` on."""
        cols, lanes = self.config.cols, self.config.lanes
        offset = first * cols // lanes
        self.vector(
            [acc, scales, *reads], [dst], stat=stat, red=red, comment=comment,
            **{
                "n": min(tiles * cols, n - first * cols), "m": self.m, "source": Source.ACC,
                "bank": int(acc.space[-1]), "src": acc.start, "src_m": 1, "src_n": self.m, "scale": Scale.STAT_B,
                "param": 1, "par": scales.start, "dest": Dest.ROW, "dst": dst.start + offset, "dst_m": width,
            } | operands,
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
            self.vector(
                [x], [], red="x", comment="absmax of x", n=self.spec.dim, m=self.m, source=Source.ROW,
                src=x.start, src_m=self.w_dim, reduce=Reduce.ABSMAX,
            )  # fmt: skip

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
