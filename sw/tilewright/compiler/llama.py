"""The program of a Llama model: one block of rows through all layers.

A block is either m tokens at known positions (prefill) or one token whose position comes from registers (decode). The
same code emits both: what depends on the position is asked of a `Positions` object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tilewright.compiler.emit import Emitter, Region, Value
from tilewright.compiler.image import LOGIT_ROWS, Matrix, ModelImage
from tilewright.compiler.layout import address, ceil_div, round_up
from tilewright.compiler.plan import Plan, Tiling, make_plan, w_t_bytes
from tilewright.formats import bf16_field, f24_bits
from tilewright_hw.arch import InputError
from tilewright_hw.arch.isa import (
    Add,
    Dest,
    Element,
    Func,
    LoadDest,
    LoadFormat,
    Mul,
    Op,
    Reduce,
    Scale,
    Source,
    assemble,
)

QUANTISE = f24_bits(1.0 / 127.0)
TOKEN_REGISTER = 16
"""Registers from here on hold the byte offsets of the block's tokens in the embedding table."""


@dataclass(frozen=True)
class Positions:
    """Position-dependent operands of a block of m rows from position `first` on (None: decode, from registers)."""

    image: ModelImage
    m: int
    first: int | None

    NAMES = (
        "keys", "key_tiles", "value_tiles", "key_bytes", "value_bytes", "scale_bytes", "key_at", "value_at",
        "scale_at", "rope_at", "score_stride",
    )  # fmt: skip

    def values(self, first: int) -> dict[str, int]:
        """Return all operands of a block whose first row is at position `first`."""
        image, config = self.image, self.image.config
        keys = first + self.m
        key_tiles, value_tiles = ceil_div(keys, config.cols), ceil_div(keys, config.rows)
        return {
            "keys": keys,
            "key_tiles": key_tiles,
            "value_tiles": value_tiles,
            "key_bytes": key_tiles * image.key_block,
            "value_bytes": value_tiles * config.tile_bytes,
            "scale_bytes": round_up(2 * keys, config.bus_bytes),
            "key_at": first // config.cols * image.key_block + first % config.cols,
            "value_at": first * config.col_slot,
            "scale_at": 2 * first,
            "rope_at": first * image.rope_row,
            # Shares its word with src_m, and lies in the upper half.
            "score_stride": key_tiles * image.spec.group * self.m,
        }

    def __getitem__(self, name: str) -> Value:
        if self.first is not None:
            return Value(self.values(self.first)[name])
        return Value(0, self.NAMES.index(name))

    def arguments(self, first: int) -> list[int]:
        """Return the register values of a decode block at position `first`."""
        values = self.values(first)
        values["score_stride"] <<= 16
        return [values[name] for name in self.NAMES]


class LlamaCompiler:
    """Compiles blocks of one model image.

    Parameters
    ----------
    image : ModelImage
        Layout of the model in memory.
    tiling : Tiling
        Bounds for the tiling.
    """

    def __init__(self, image: ModelImage, tiling: Tiling | None = None) -> None:
        self.image, self.tiling = image, tiling or Tiling()

    def prefill(self, first: int, m: int, logits: str = "last") -> bytes:
        """Return the program for m tokens from position `first` on; logits: 'none', 'last' or 'all' rows."""
        return self._block(first, m, first + m, logits)

    def decode(self) -> bytes:
        """Return the program for one token at the position that the argument block gives."""
        return self._block(None, 1, self.image.spec.context, "last")

    def _block(self, first: int | None, m: int, t: int, logits: str) -> bytes:
        if logits == "all" and m > LOGIT_ROWS:
            raise InputError(f"a block with all logits has at most {LOGIT_ROWS} rows, not {m}")
        plan = make_plan(self.image.spec, self.image.config, m, t, self.tiling)
        block = _Block(self.image, plan, Positions(self.image, m, first))
        return assemble(block.emit(logits))


class _Block:
    def __init__(self, image: ModelImage, plan: Plan, positions: Positions) -> None:
        self.image, self.plan, self.at = image, plan, positions
        self.spec, self.config, self.m = image.spec, image.config, plan.m
        self.e = Emitter()
        self.bank = 0
        self.norm_slot = 0
        self.scale_slot = 0
        self.w_dim = ceil_div(self.spec.dim, self.config.lanes)

    def emit(self, logits: str) -> Sequence:  # type: ignore[type-arg]
        """Emit the whole block."""
        m = self.m
        arguments = self.image.arguments
        self.e.control(Op.LDREGS, count=TOKEN_REGISTER + m, **address(arguments.start))
        self._embed()
        self._load_param(
            self.image.rope, self.at["rope_at"], 4 * self.spec.head_dim, self.plan.rope, m, self.image.rope_row,
            self.plan.head_words, LoadFormat.FP32, "rotary factors",
        )  # fmt: skip
        for layer in range(self.spec.layers):
            self._attention(layer)
            self._feed_forward(layer)
        if logits != "none":
            self._logits(0 if logits == "all" else m - 1, m if logits == "all" else 1)
        self.e.control(Op.END)
        return self.e.program

    # -- building blocks ----------------------------------------------------------------------------------------

    def _embed(self) -> None:
        x, region = self.plan.x, self.image.embedding
        for row in range(self.m):
            at = address(region.start)
            self.e.emit(
                Op.LOAD, [region], [x.part(row * self.w_dim, self.w_dim)], f"embedding of row {row}",
                base=at["base"], offset=Value(at["offset"], TOKEN_REGISTER + row), bytes=self.image.embedding_row,
                count=1, dest=LoadDest.ROW, format=LoadFormat.BF16, dst=x.start + row * self.w_dim,
            )  # fmt: skip
        self._vector(
            [x], [], red="x", comment="absmax of x",
            n=self.spec.dim, m=self.m, source=Source.ROW, src=x.start, src_m=self.w_dim, reduce=Reduce.ABSMAX,
        )  # fmt: skip

    def _load_param(
        self, memory: Region, offset: Value, size: int | Value, dst: Region, count: int, stride: int,
        dst_stride: int, fmt: LoadFormat, comment: str,
    ) -> None:  # fmt: skip
        bus = self.config.bus_bytes
        nbytes = size if isinstance(size, Value) else round_up(size, bus)
        at = address(memory.start + (offset.constant if offset.register is None else 0))
        start: int | Value = at["offset"]
        if offset.register is not None:
            start = Value(at["offset"], offset.register)
        self.e.emit(
            Op.LOAD, [memory], [dst], comment, base=at["base"], offset=start, bytes=nbytes, count=count,
            stride=stride, dest=LoadDest.PARAM, format=fmt, dst=dst.start, dst_stride=dst_stride,
        )  # fmt: skip

    def _vector(
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

    def _normalise(self, weights: Region) -> None:
        """X -> RMSNorm -> quantised rows in act_x, scales in `sx`."""
        plan, n, m = self.plan, self.spec.dim, self.m
        slot = plan.norms[self.norm_slot]
        self.norm_slot ^= 1
        self._load_param(weights, Value(0), 4 * n, slot, 1, 0, 0, LoadFormat.FP32, "norm weights")
        rows = {"n": n, "m": m, "source": Source.ROW, "src": plan.x.start, "src_m": self.w_dim}
        self._vector(
            [plan.x], [], stat="x", red="rms", comment="sum of squares", **rows,
            reduce=Reduce.SUMSQ, const1=f24_bits(1.0 / n), const2=bf16_field(self.spec.norm_eps),
        )  # fmt: skip
        self._vector(
            [plan.x, slot], [plan.normed], stat="rms", red="sx", comment="normalise", **rows,
            scale=Scale.STAT_A, param=1, par=slot.start, reduce=Reduce.QSCALE,
            dest=Dest.ROW, dst=plan.normed.start, dst_m=self.w_dim,
        )  # fmt: skip
        self._quantise(plan.normed, n, plan.act_x, "sx")

    def _quantise(self, rows: Region, n: int, act: Region, stat: str) -> None:
        """Quantise m rows of n elements, packed one after another, into activation words."""
        self._vector(
            [rows], [act], stat=stat, comment=f"quantise into {act.start}",
            n=n, m=self.m, source=Source.ROW, src=rows.start, src_m=ceil_div(n, self.config.lanes),
            scale=Scale.STAT_A, dest=Dest.ACT, dst=act.start, dst_m=ceil_div(n, self.config.rows),
        )  # fmt: skip

    def _row_scale(self, rows: Region, n: int, red: str) -> None:
        """Record the quantisation scale of m rows of n elements."""
        self._vector(
            [rows], [], red=red, comment=f"scale of {red}", n=n, m=self.m, source=Source.ROW, src=rows.start,
            src_m=ceil_div(n, self.config.lanes), reduce=Reduce.QSCALE,
        )  # fmt: skip

    def _product(self, matrix: Matrix, act: Region, first: int, tiles: int, row: int = 0, m: int = 0) -> Region:
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
        acc = Region(f"acc{self.bank}", 0, tiles * m)
        words = shape.k_tiles
        self.e.emit(
            Op.MATMUL, [act], [acc], "matrix product", k=words, n=tiles, groups=1, rows_outer=1, rows_inner=m,
            act=act.start + row * words, act_inner=words, bank=self.bank,
        )  # fmt: skip
        self.bank ^= 1
        return acc

    def _scales(self, matrix: Matrix, first: int, tiles: int) -> Region:
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
        self._load_param(
            Region("mem", memory.start + start, 4 * cols * tiles), Value(0), 4 * cols * tiles, used, 1, 0, 0,
            LoadFormat.FP32, "column scales",
        )  # fmt: skip
        return used

    def _chunks(self, matrix: Matrix) -> list[tuple[int, int]]:
        """Cut a matrix's output tiles into passes: (first tile, tiles)."""
        step, total = self.plan.chunk_tiles, matrix.shape.n_tiles
        align = 1
        while 4 * self.config.cols * align % self.config.bus_bytes:
            align *= 2
        step = max(step // align * align, align)
        return [(i, min(step, total - i)) for i in range(0, total, step)]

    def _dequantise(
        self, acc: Region, first: int, tiles: int, n: int, scales: Region, stat: str, dst: Region, width: int,
        *, comment: str, reads: Sequence[Region] = (), red: str | None = None, **operands: Any,
    ) -> None:  # fmt: skip
        """Accumulators -> floats in rows of `width` words at columns from tile `first` on."""
        cols, lanes = self.config.cols, self.config.lanes
        offset = first * cols // lanes
        self._vector(
            [acc, scales, *reads], [dst], stat=stat, red=red, comment=comment,
            **{
                "n": min(tiles * cols, n - first * cols), "m": self.m, "source": Source.ACC,
                "bank": int(acc.space[-1]), "src": acc.start, "src_m": 1, "src_n": self.m, "scale": Scale.STAT_B,
                "param": 1, "par": scales.start, "dest": Dest.ROW, "dst": dst.start + offset, "dst_m": width,
            } | operands,
        )  # fmt: skip

    def _add_product(self, matrix: Matrix, act: Region, stat: str, comment: str) -> None:
        """X += act @ matrix; records x's absolute maximum."""
        x, chunks = self.plan.x, self._chunks(matrix)
        fused = len(chunks) == 1
        for first, tiles in chunks:
            scales = self._scales(matrix, first, tiles)
            acc = self._product(matrix, act, first, tiles)
            offset = first * self.config.cols // self.config.lanes
            self._dequantise(
                acc, first, tiles, self.spec.dim, scales, stat, x, self.w_dim, comment=comment, reads=[x],
                add=Add.ROW, row=x.start + offset, row_m=self.w_dim,
                **({"red": "x", "reduce": Reduce.ABSMAX} if fused else {}),
            )  # fmt: skip
        if not fused:
            self._vector(
                [x], [], red="x", comment="absmax of x", n=self.spec.dim, m=self.m, source=Source.ROW,
                src=x.start, src_m=self.w_dim, reduce=Reduce.ABSMAX,
            )  # fmt: skip

    # -- attention ----------------------------------------------------------------------------------------------

    def _attention(self, layer: int) -> None:
        plan, spec = self.plan, self.spec
        self._normalise(self.image.norms[f"layers.{layer}.attn_norm"])
        matrix = self.image.matrices[f"layers.{layer}.qkv"]
        width = (spec.heads + 2 * spec.kv_heads) * plan.head_words
        for first, tiles in self._chunks(matrix):
            scales = self._scales(matrix, first, tiles)
            acc = self._product(matrix, plan.act_x, first, tiles)
            self._dequantise(
                acc,
                first,
                tiles,
                matrix.shape.n,
                scales,
                "sx",
                plan.qkv,
                width,
                comment="queries, keys, values",
            )
        self._rotate_and_store(layer, width)
        for first in range(0, spec.kv_heads, plan.kv_chunk):
            self._attend(layer, first, min(plan.kv_chunk, spec.kv_heads - first))
        n = spec.heads * plan.head_words * self.config.lanes
        self._row_scale(plan.heads_out, n, "so")
        self._quantise(plan.heads_out, n, plan.act_o, "so")
        self._add_product(self.image.matrices[f"layers.{layer}.wo"], plan.act_o, "so", "x += attention")

    def _rotate_and_store(self, layer: int, width: int) -> None:
        plan, spec, image = self.plan, self.spec, self.image
        d, hw, m = spec.head_dim, plan.head_words, self.m
        qk = spec.heads + spec.kv_heads
        rows = {"n": d, "m": m, "source": Source.ROW, "src_m": width, "src_h": hw}
        base = plan.qkv.start
        self._vector(
            [plan.qkv, plan.rope], [plan.qkv], red="sq", comment="rotate queries and keys", **rows, h=qk, src=base,
            add=Add.ROTATE, par=plan.rope.start, par_m=hw, reduce=Reduce.QSCALE, scale16=1, red_m=qk, red_h=1,
            dest=Dest.ROW, dst=base, dst_m=width, dst_h=hw,
        )  # fmt: skip
        self._vector(
            [plan.qkv], [], red="sv", comment="scales of the values", **rows, h=spec.kv_heads, src=base + qk * hw,
            reduce=Reduce.QSCALE, scale16=1, red_m=spec.kv_heads, red_h=1,
        )  # fmt: skip
        key_src, value_src = base + spec.heads * hw, base + qk * hw
        keys = {"stat": "sq", "stat_offset": spec.heads, "stat_m": qk}
        values = {"stat": "sv", "stat_offset": 0, "stat_m": spec.kv_heads}
        self._store_rows(rows, key_src, keys)
        first = self.at.first or 0
        self._store(
            image.keys[layer], self.at["key_at"], n=d, run=1, stride_run=self.config.col_slot, stride_m=1,
            stride_h=image.key_head, wrap_first=self.config.cols - first % self.config.cols,
            wrap_period=self.config.cols, wrap_stride=image.key_block - self.config.cols + 1, comment="keys",
        )  # fmt: skip
        self._store_rows(rows, value_src, values)
        self._store(
            image.values[layer], self.at["value_at"], n=d, run=self.config.cols, stride_run=image.value_run,
            stride_m=self.config.col_slot, stride_h=image.value_head, comment="values",
        )  # fmt: skip
        for region, stats in ((image.key_scales[layer], keys), (image.value_scales[layer], values)):
            self._vector(
                [], [], comment="scales to memory", **stats, n=1, m=m, h=spec.kv_heads, source=Source.STAT,  # type: ignore[arg-type]
                stat_h=1, dest=Dest.STORE_BF16,
            )  # fmt: skip
            self._store(
                region, self.at["scale_at"], n=1, run=1, stride_m=2, stride_h=image.scale_head,
                element=Element.BF16, comment="scales",
            )  # fmt: skip
        k = ceil_div(d, self.config.rows)
        self._vector(
            [plan.qkv], [plan.act_q], stat="sq", comment="quantise queries", **rows, h=spec.heads, src=base,
            stat_m=qk, stat_h=1, scale=Scale.STAT_A, dest=Dest.ACT, dst=plan.act_q.start, dst_m=spec.heads * k,
            dst_h=k,
        )  # fmt: skip

    def _store_rows(self, rows: dict[str, int], src: int, stats: dict[str, str | int]) -> None:
        self._vector(
            [self.plan.qkv], [], comment="quantise for the cache", **rows, **stats, h=self.spec.kv_heads, src=src,  # type: ignore[arg-type]
            stat_h=1, scale=Scale.STAT_A, dest=Dest.STORE_INT8,
        )  # fmt: skip

    def _store(self, region: Region, offset: Value, *, comment: str, **operands: Any) -> None:
        at = address(region.start + (offset.constant if offset.register is None else 0))
        start = Value(at["offset"], offset.register)
        self.e.emit(
            Op.STORE, [], [region], comment,
            **{"m": self.m, "h": self.spec.kv_heads, "base": at["base"], "offset": start} | operands,
        )  # fmt: skip

    def _load_cache(self, region: Region, start: int, count: int, stride: int, size: Value) -> None:
        part = region.part(start, count * stride)
        self.e.emit(
            Op.LOAD, [part], [], "cached tiles", bytes=size, count=count, stride=stride, dest=LoadDest.STREAM,
            **address(part.start),
        )  # fmt: skip

    def _attend(self, layer: int, g0: int, kv: int) -> None:
        """Attention of KV heads g0..g0+kv-1 and their query heads."""
        plan, spec, config, image, at = self.plan, self.spec, self.config, self.image, self.at
        group, m = spec.group, self.m
        hc = kv * group
        acc_rows = group * m
        head_k = ceil_div(spec.head_dim, config.rows)
        w_t, k_t = (
            plan.scores.size // (m * plan.kv_chunk * group),
            plan.act_p.size // (m * plan.kv_chunk * group),
        )
        ws = w_t_bytes(plan.t, config)

        self._load_scales(image.key_scales[layer], g0, kv, plan.key_scales, ws)
        self._load_scales(image.value_scales[layer], g0, kv, plan.value_scales, ws)
        self._load_cache(image.keys[layer], g0 * image.key_head, kv, image.key_head, at["key_bytes"])
        scores = Region(f"acc{self.bank}", 0, config.acc_rows)
        self.e.emit(
            Op.MATMUL, [plan.act_q], [scores], "scores", stream=1, bank=self.bank, k=head_k, n=at["key_tiles"],
            groups=kv, act=plan.act_q.start + g0 * group * head_k, act_group=group * head_k, rows_outer=group,
            act_outer=head_k, rows_inner=m, act_inner=spec.heads * head_k,
        )  # fmt: skip
        self.bank ^= 1
        qk = spec.heads + spec.kv_heads
        stride = at["score_stride"]
        for j, outer in self._group_loops():
            # With one row, the group's heads are the outer loop; else one instruction for each of them.
            self._vector(
                [scores, plan.key_scales], [plan.scores], stat="sq", stat_offset=g0 * group + j, red="max",
                red_offset=j, comment="scores", n=at["keys"], m=group if outer else m, h=kv, source=Source.ACC,
                bank=int(scores.space[-1]), src=j * m, src_n=acc_rows,
                src_m=replace(stride, constant=1) if stride.register is not None else 1,
                **({} if stride.register is not None else {"src_h": stride.constant}),
                scale=Scale.STAT_B, stat_m=1 if outer else qk, stat_h=group, param=1, par=plan.key_scales.start,
                par_h=ws, **self._mask(outer), reduce=Reduce.MAX, red_m=1 if outer else hc, red_h=group,
                dest=Dest.ROW, dst=plan.scores.start + j * w_t, dst_m=w_t if outer else hc * w_t,
                dst_h=group * w_t,
            )  # fmt: skip
        rows = {
            "source": Source.ROW,
            "src": plan.scores.start,
            "dest": Dest.ROW,
            "dst": plan.scores.start,
        }
        flat = {"m": m, "h": hc, "src_m": hc * w_t, "src_h": w_t, "dst_m": hc * w_t, "dst_h": w_t}
        by_head = {"stat_m": hc, "stat_h": 1}
        self._vector(
            [plan.scores], [plan.scores], stat="max", red="sum", comment="2 ** (score - max)", n=at["keys"],
            **rows, **flat, **by_head, **self._mask(False), red_m=hc, red_h=1, add=Add.NEG_STAT_A, func=Func.EXP2,
            reduce=Reduce.EXPSUM,
        )  # fmt: skip
        for j, outer in self._group_loops():
            outer_words, inner_words = (w_t if outer else hc * w_t), group * w_t
            self._vector(
                [plan.scores, plan.value_scales], [plan.scores], stat="sum", stat_offset=j, red="sp", red_offset=j,
                comment="probabilities, times the value scales", n=at["keys"], m=group if outer else m, h=kv,
                **rows | {"src": plan.scores.start + j * w_t, "dst": plan.scores.start + j * w_t},
                src_m=outer_words, src_h=inner_words, dst_m=outer_words, dst_h=inner_words, scale=Scale.STAT_A,
                stat_m=1 if outer else hc, stat_h=group, param=1, par=plan.value_scales.start, par_h=ws,
                **self._mask(outer), reduce=Reduce.QSCALE, red_m=1 if outer else hc, red_h=group,
            )  # fmt: skip
        self._vector(
            [plan.scores], [plan.act_p], stat="sp", comment="quantise probabilities", n=at["keys"],
            **flat | {"dst_m": hc * k_t, "dst_h": k_t}, **by_head, **self._mask(False), source=Source.ROW,
            src=plan.scores.start, scale=Scale.STAT_A, dest=Dest.ACT, dst=plan.act_p.start,
        )  # fmt: skip
        self._weigh_values(layer, g0, kv, k_t)

    def _weigh_values(self, layer: int, g0: int, kv: int, k_t: int) -> None:
        """Probabilities times values, into heads_out."""
        plan, spec, config, image = self.plan, self.spec, self.config, self.image
        group, m, hc = spec.group, self.m, kv * spec.group
        self._load_cache(
            image.values[layer],
            g0 * image.value_head,
            kv * image.value_tiles,
            image.value_run,
            self.at["value_bytes"],
        )
        acc = Region(f"acc{self.bank}", 0, config.acc_rows)
        self.e.emit(
            Op.MATMUL, [plan.act_p], [acc], "probabilities times values", stream=1, bank=self.bank,
            k=self.at["value_tiles"], n=image.value_tiles, groups=kv, act=plan.act_p.start, act_group=group * k_t,
            rows_outer=group, act_outer=k_t, rows_inner=m, act_inner=hc * k_t,
        )  # fmt: skip
        self.bank ^= 1
        hw = plan.head_words
        width = spec.heads * hw
        for j, outer in self._group_loops():
            self._vector(
                [acc], [plan.heads_out], stat="sp", stat_offset=j, comment="attention output", n=spec.head_dim,
                m=group if outer else m, h=kv, source=Source.ACC, bank=int(acc.space[-1]), src=j * m, src_m=1,
                src_h=image.value_tiles * group * m, src_n=group * m, scale=Scale.STAT_B,
                stat_m=1 if outer else hc, stat_h=group, dest=Dest.ROW,
                dst=plan.heads_out.start + (g0 * group + j) * hw, dst_m=hw if outer else width, dst_h=group * hw,
            )  # fmt: skip

    def _load_scales(self, memory: Region, g0: int, kv: int, dst: Region, words: int) -> None:
        stride = self.image.scale_head
        self._load_param(
            memory.part(g0 * stride, kv * stride), Value(0), self.at["scale_bytes"], dst.part(0, kv * words), kv,
            stride, words, LoadFormat.BF16, "cache scales",
        )  # fmt: skip

    def _group_loops(self) -> list[tuple[int, bool]]:
        """(first head of a KV head's group, whether the outer loop runs over the group)."""
        if self.m == 1:
            return [(0, True)]
        return [(j, False) for j in range(self.spec.group)]

    def _mask(self, outer: bool) -> dict[str, int]:
        """Causal mask of rows m; a single row sees all keys."""
        if outer or self.m == 1:
            return {}
        assert self.at.first is not None
        return {"limit": self.at.first + 1, "causal": 1}

    # -- feed-forward, output -------------------------------------------------------------------------------------

    def _feed_forward(self, layer: int) -> None:
        plan, spec = self.plan, self.spec
        self._normalise(self.image.norms[f"layers.{layer}.ffn_norm"])
        gate, up = (self.image.matrices[f"layers.{layer}.w_{p}"] for p in ("gate", "up"))
        width, h = ceil_div(spec.ffn, self.config.lanes), plan.hidden
        chunks = self._chunks(gate)
        fused = len(chunks) == 1
        for first, tiles in chunks:
            offset = first * self.config.cols // self.config.lanes
            scales = self._scales(gate, first, tiles)
            acc = self._product(gate, plan.act_x, first, tiles)
            self._dequantise(
                acc, first, tiles, spec.ffn, scales, "sx", h, width, comment="SiLU of the gate",
                func=Func.SIGMOID, mul=Mul.SELF,
            )  # fmt: skip
            scales = self._scales(up, first, tiles)
            acc = self._product(up, plan.act_x, first, tiles)
            self._dequantise(
                acc, first, tiles, spec.ffn, scales, "sx", h, width, comment="times up", reads=[h], mul=Mul.ROW,
                row=h.start + offset, row_m=width, **({"red": "sh", "reduce": Reduce.QSCALE} if fused else {}),
            )  # fmt: skip
        if not fused:
            self._row_scale(h, spec.ffn, "sh")
        self._quantise(h, spec.ffn, plan.act_h, "sh")
        self._add_product(self.image.matrices[f"layers.{layer}.w_down"], plan.act_h, "sh", "x += feed-forward")

    def _logits(self, row: int, rows: int) -> None:
        """Final norm of all rows, then the classifier for `rows` rows from `row` on, stored as float32."""
        plan, image = self.plan, self.image
        self._normalise(image.norms["final_norm"])
        matrix = image.matrices["classifier"]
        cols = self.config.cols
        for first, tiles in self._chunks(matrix):
            scales = self._scales(matrix, first, tiles)
            acc = self._product(matrix, plan.act_x, first, tiles, row, rows)
            n = min(tiles * cols, self.spec.vocab - first * cols)
            self._vector(
                [acc, scales], [], stat="sx", stat_offset=row, comment="logits", n=n, m=rows, source=Source.ACC,
                bank=int(acc.space[-1]), src=acc.start, src_m=1, src_n=rows, scale=Scale.STAT_B, param=1,
                par=scales.start, dest=Dest.STORE_FP32,
            )  # fmt: skip
            at = address(image.logits.start + 4 * cols * first)
            self.e.emit(
                Op.STORE, [], [image.logits], "logits", element=Element.FP32, n=n, m=rows, h=1, run=n,
                stride_m=image.logits_row, **at,
            )  # fmt: skip
