"""Attention over the KV cache: rotate, store, scores, softmax, values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tilewright.compiler.block import Block, Operands
from tilewright.compiler.emit import Region, Value
from tilewright.compiler.layout import address, ceil_div
from tilewright.compiler.plan import w_t_bytes
from tilewright_hw.arch.isa import (
    Add,
    Dest,
    Element,
    Func,
    LoadDest,
    LoadFormat,
    Op,
    Reduce,
    Scale,
    Source,
)


class AttentionBlock(Block):
    """A block with grouped-query attention."""

    def load_rotary_factors(self) -> None:
        """Load the factors of the rows' positions."""
        self.load_param(
            self.image.rope, self.at["rope_at"], 4 * self.spec.head_dim, self.plan.rope, self.m, self.image.rope_row,
            self.plan.head_words, LoadFormat.FP32, "rotary factors",
        )  # fmt: skip

    def attention(self, layer: int) -> Iterator[None]:
        """Add a layer's attention to the residual stream, phase by phase."""
        plan, spec = self.plan, self.spec
        self.normalise(self.image.norms[f"layers.{layer}.attn_norm"])
        yield
        matrix = self.image.matrices[f"layers.{layer}.qkv"]
        width = (spec.heads + 2 * spec.kv_heads) * plan.head_words
        for first, tiles in self.chunks(matrix):
            scales = self.scales(matrix, first, tiles)
            acc = self.product(matrix, plan.act_x, first, tiles)
            self.dequantise(
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
        yield
        yield from self.attend_rows(layer)
        n = spec.heads * plan.head_words * self.config.lanes
        self.row_scale(plan.heads_out, n, "so")
        self.quantise(plan.heads_out, n, plan.act_o, "so")
        yield
        self.add_product(self.image.matrices[f"layers.{layer}.wo"], plan.act_o, "so", "x += attention")

    def attend_rows(self, layer: int) -> Iterator[None]:
        """Queries, keys and values -> the attention's output, of all rows."""
        self.store_keys_values(layer)
        yield
        for first in range(0, self.spec.kv_heads, self.plan.kv_chunk):
            yield from self.attend(layer, first, min(self.plan.kv_chunk, self.spec.kv_heads - first))

    def store_keys_values(self, layer: int) -> None:
        """Rotate queries and keys, store keys and values in the cache, and quantise the queries."""
        plan, spec, image = self.plan, self.spec, self.image
        width = (spec.heads + 2 * spec.kv_heads) * plan.head_words
        d, hw, m = spec.head_dim, plan.head_words, self.m
        qk = spec.heads + spec.kv_heads
        rows: Operands = {"n": d, "m": m, "source": Source.ROW, "src_m": width, "src_h": hw}
        base = plan.qkv.start
        self.vector(
            [plan.qkv, plan.rope], [plan.qkv], red="sq", comment="rotate queries and keys", **rows, h=qk, src=base,
            add=Add.ROTATE, par=plan.rope.start, par_m=hw, reduce=Reduce.QSCALE, scale16=1, red_m=qk, red_h=1,
            dest=Dest.ROW, dst=base, dst_m=width, dst_h=hw,
        )  # fmt: skip
        self.vector(
            [plan.qkv], [], red="sv", comment="scales of the values", **rows, h=spec.kv_heads, src=base + qk * hw,
            reduce=Reduce.QSCALE, scale16=1, red_m=spec.kv_heads, red_h=1,
        )  # fmt: skip
        key_src, value_src = base + spec.heads * hw, base + qk * hw
        keys: Operands = {"stat": "sq", "stat_offset": spec.heads, "stat_m": qk}
        values: Operands = {"stat": "sv", "stat_offset": 0, "stat_m": spec.kv_heads}
        self._store_rows(rows, key_src, keys)
        first = self.at.first or 0
        self.store(
            image.keys[layer], self.at["key_at"], n=d, run=1, stride_run=self.config.col_slot, stride_m=1,
            stride_h=image.key_head, wrap_first=self.config.cols - first % self.config.cols,
            wrap_period=self.config.cols, wrap_stride=image.key_block - self.config.cols + 1, comment="keys",
        )  # fmt: skip
        self._store_rows(rows, value_src, values)
        self.store(
            image.values[layer], self.at["value_at"], n=d, run=self.config.cols, stride_run=image.value_run,
            stride_m=self.config.col_slot, stride_h=image.value_head, comment="values",
        )  # fmt: skip
        for region, stats in ((image.key_scales[layer], keys), (image.value_scales[layer], values)):
            self.vector(
                [], [], comment="scales to memory", **stats, n=1, m=m, h=spec.kv_heads, source=Source.STAT,
                stat_h=1, dest=Dest.STORE_BF16,
            )  # fmt: skip
            self.store(
                region, self.at["scale_at"], n=1, run=1, stride_m=2, stride_h=image.scale_head,
                element=Element.BF16, comment="scales",
            )  # fmt: skip
        k = ceil_div(d, self.config.rows)
        self.vector(
            [plan.qkv], [plan.act_q], stat="sq", comment="quantise queries", **rows, h=spec.heads, src=base,
            stat_m=qk, stat_h=1, scale=Scale.STAT_A, dest=Dest.ACT, dst=plan.act_q.start, dst_m=spec.heads * k,
            dst_h=k,
        )  # fmt: skip

    def _store_rows(self, rows: Operands, src: int, stats: Operands) -> None:
        self.vector(
            [self.plan.qkv], [], comment="quantise for the cache", **rows, **stats, h=self.spec.kv_heads, src=src,
            stat_h=1, scale=Scale.STAT_A, dest=Dest.STORE_INT8,
        )  # fmt: skip

    def _load_cache(self, region: Region, start: int, count: int, stride: int, size: Value) -> None:
        part = region.part(start, count * stride)
        at = address(part.start)
        self.e.emit(
            Op.LOAD, [part], [], "cached tiles", bytes=size, count=count, stride=stride, dest=LoadDest.STREAM,
            base=at["base"], offset=Value(at["offset"], self.at["cache"].register),
        )  # fmt: skip

    def attend(self, layer: int, g0: int, kv: int) -> Iterator[None]:
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
        scores = Region(f"acc{self.e.bank}", 0, config.acc_rows)
        self.e.emit(
            Op.MATMUL, [plan.act_q], [scores], "scores", stream=1, bank=self.e.bank, k=head_k, n=at["key_tiles"],
            groups=kv, act=plan.act_q.start + g0 * group * head_k, act_group=group * head_k, rows_outer=group,
            act_outer=head_k, rows_inner=m, act_inner=spec.heads * head_k,
        )  # fmt: skip
        self.e.bank ^= 1
        qk = spec.heads + spec.kv_heads
        stride = at["score_stride"]
        for j, outer in self._group_loops():
            # With one row, the group's heads are the outer loop; else one instruction for each of them.
            self.vector(
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
        rows: Operands = {
            "source": Source.ROW,
            "src": plan.scores.start,
            "dest": Dest.ROW,
            "dst": plan.scores.start,
        }
        flat: Operands = {"m": m, "h": hc, "src_m": hc * w_t, "src_h": w_t, "dst_m": hc * w_t, "dst_h": w_t}
        by_head: Operands = {"stat_m": hc, "stat_h": 1}
        self.vector(
            [plan.scores], [plan.scores], stat="max", red="sum", comment="2 ** (score - max)", n=at["keys"],
            **rows, **flat, **by_head, **self._mask(False), red_m=hc, red_h=1, add=Add.NEG_STAT_A, func=Func.EXP2,
            reduce=Reduce.EXPSUM,
        )  # fmt: skip
        for j, outer in self._group_loops():
            outer_words, inner_words = (w_t if outer else hc * w_t), group * w_t
            self.vector(
                [plan.scores, plan.value_scales], [plan.scores], stat="sum", stat_offset=j, red="sp", red_offset=j,
                comment="probabilities, times the value scales", n=at["keys"], m=group if outer else m, h=kv,
                **rows | {"src": plan.scores.start + j * w_t, "dst": plan.scores.start + j * w_t},
                src_m=outer_words, src_h=inner_words, dst_m=outer_words, dst_h=inner_words, scale=Scale.STAT_A,
                stat_m=1 if outer else hc, stat_h=group, param=1, par=plan.value_scales.start, par_h=ws,
                **self._mask(outer), reduce=Reduce.QSCALE, red_m=1 if outer else hc, red_h=group,
            )  # fmt: skip
        self.vector(
            [plan.scores], [plan.act_p], stat="sp", comment="quantise probabilities", n=at["keys"],
            **flat | {"dst_m": hc * k_t, "dst_h": k_t}, **by_head, **self._mask(False), source=Source.ROW,
            src=plan.scores.start, scale=Scale.STAT_A, dest=Dest.ACT, dst=plan.act_p.start,
        )  # fmt: skip
        yield
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
        acc = Region(f"acc{self.e.bank}", 0, config.acc_rows)
        self.e.emit(
            Op.MATMUL, [plan.act_p], [acc], "probabilities times values", stream=1, bank=self.e.bank,
            k=self.at["value_tiles"], n=image.value_tiles, groups=kv, act=plan.act_p.start, act_group=group * k_t,
            rows_outer=group, act_outer=k_t, rows_inner=m, act_inner=hc * k_t,
        )  # fmt: skip
        self.e.bank ^= 1
        hw = plan.head_words
        width = spec.heads * hw
        for j, outer in self._group_loops():
            self.vector(
                [acc], [plan.heads_out], stat="sp", stat_offset=j, comment="attention output", n=spec.head_dim,
                m=group if outer else m, h=kv, source=Source.ACC, bank=int(acc.space[-1]), src=j * m, src_m=1,
                src_h=image.value_tiles * group * m, src_n=group * m, scale=Scale.STAT_B,
                stat_m=1 if outer else hc, stat_h=group, dest=Dest.ROW,
                dst=plan.heads_out.start + (g0 * group + j) * hw, dst_m=hw if outer else width, dst_h=group * hw,
            )  # fmt: skip

    def _load_scales(self, memory: Region, g0: int, kv: int, dst: Region, words: int) -> None:
        stride = self.image.scale_head
        self.load_param(
            memory.part(g0 * stride, kv * stride), self.at["cache"], self.at["scale_bytes"], dst.part(0, kv * words),
            kv, stride, words, LoadFormat.BF16, "cache scales",
        )  # fmt: skip

    def _group_loops(self) -> list[tuple[int, bool]]:
        """(first head of a KV head's group, whether the outer loop runs over the group)."""
        if self.m == 1:
            return [(0, True)]
        return [(j, False) for j in range(self.spec.group)]

    def _mask(self, outer: bool) -> Operands:
        """Causal mask of rows m; a single row sees all keys."""
        if outer or self.m == 1:
            return {}
        assert self.at.first is not None
        return {"limit": self.at.first + 1, "causal": 1}
