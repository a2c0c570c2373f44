"""Attention over the KV cache: project, rotate, store, scores, softmax, values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tilewright.compiler.block import INT8, Operands, when
from tilewright.compiler.emit import Region, Value
from tilewright.compiler.layout import address, ceil_div
from tilewright.compiler.norms import NormBlock
from tilewright.compiler.plan import run_words, w_t_bytes
from tilewright.compiler.positions import KeyPart
from tilewright.formats import bf16_field, f24_bits
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


@dataclass(frozen=True)
class _Heads:
    """Query heads of one pass: `group` of each of `kv` KV heads."""

    kv_first: int
    kv: int
    first: int
    """The first query head."""
    group: int

    @property
    def count(self) -> int:
        """How many query heads they are."""
        return self.kv * self.group


@dataclass(frozen=True)
class _View:
    """Loops of an instruction over the heads of a pass, from `first` on.

    The inner loop goes from head to head by `step`, and by `kv_step` KV heads; the outer one over the rows, or, with
    `over_heads`, from head to head.
    """

    first: int
    m: int
    h: int
    over_heads: bool
    step: int
    kv_step: int

    def loops(self, heads: int, **words: int) -> Operands:
        """Return the loops, and the operands by which src and dst walk rows of `heads` times so many words."""
        operands: Operands = {"m": self.m, "h": self.h}
        for name, size in words.items():
            operands |= {f"{name}_m": size if self.over_heads else heads * size, f"{name}_h": self.step * size}
        return operands

    def stats(self, which: str, name: str, first: int, heads: int) -> Operands:
        """Return the operands of statistics with an entry for each of `heads` heads of a row."""
        return {
            which: name, f"{which}_offset": first + self.first, f"{which}_m": 1 if self.over_heads else heads,
            f"{which}_h": self.step,
        }  # fmt: skip


class AttentionBlock(NormBlock):
    """A block with grouped-query attention."""

    def load_rotary_factors(self) -> None:
        """Load the factors of the rows' positions."""
        if self.spec.rope_theta is None:
            return
        self.load(
            self.image.rope, self.at["rope_at"], 4 * self.spec.head_dim, self.plan.rope, self.m, self.image.rope_row,
            self.plan.head_words, LoadFormat.FP32, "rotary factors",
        )  # fmt: skip

    def attention(self, layer: int) -> Iterator[None]:
        """Add a layer's attention to the residual stream, phase by phase."""
        if not self.spec.norm_after:
            self.normalise(f"layers.{layer}.attn_norm", first=f"layers.{layer}.qkv_first")
        yield
        self._project(f"layers.{layer}.qkv", 0)
        yield
        yield from self.attend_rows(layer)
        yield from self._output(layer)

    def attend_rows(self, layer: int) -> Iterator[None]:
        """Queries, keys and values -> the attention's output, of all rows."""
        self.e.part = f"layers.{layer}.attention"
        heads = self.spec.heads + self.spec.kv_heads
        if self.parts == 1 and not self.spec.qk_norm:
            self._rotate(0, heads, INT8)
        else:
            self._finish_heads(layer, 0, self.spec.heads)
            self._finish_heads(layer, self.spec.heads, self.spec.kv_heads)
        self._store_keys_values(layer)
        self._quantise_queries()
        yield
        yield from self._attend_all(layer)

    def keys_values(self, layer: int) -> Iterator[None]:
        """Write a layer's keys and values of the rows in act_x to the cache."""
        spec, image = self.spec, self.image
        self._project(f"layers.{layer}.k", spec.heads)
        yield
        self._finish_heads(layer, spec.heads, spec.kv_heads)
        self._store_keys(layer)
        self._store_scales(image.key_scales[layer], self._head_stats("sq", spec.heads))
        self._project(f"layers.{layer}.v", spec.heads + spec.kv_heads)
        yield
        self._scale_values()
        self._store_values(layer)
        self._store_scales(image.value_scales[layer], self._value_stats)

    def attention_of_queries(self, layer: int) -> Iterator[None]:
        """Add a layer's attention to the residual stream; the keys and values are in the cache, the rows in act_x."""
        self._project(f"layers.{layer}.q", 0)
        yield
        self._finish_heads(layer, 0, self.spec.heads)
        self._quantise_queries()
        yield
        yield from self._attend_all(layer)
        yield from self._output(layer)

    def _attend_all(self, layer: int) -> Iterator[None]:
        """Quantised queries -> the attention's output; their rows are not needed any more."""
        self._clear_padding()
        for heads in self._passes():
            yield from self._attend(layer, heads)

    def _output(self, layer: int) -> Iterator[None]:
        """Project the attention's output, and add it to the residual stream."""
        self.e.part = f"layers.{layer}.wo"
        plan, spec = self.plan, self.spec
        wo = self.image.matrices[f"layers.{layer}.wo"]
        self.add_bias(wo)
        n = spec.heads * plan.head_words * self.config.lanes
        if not self._scales_fused:
            self.row_scale(plan.heads_out, n, "so")
        self.quantise(plan.heads_out, n, plan.act_o, "so")
        yield
        self.add_product(wo, plan.act_o, "so", "x += attention")
        if spec.norm_after:
            self.normalise_x(f"layers.{layer}.attn_norm", first=f"layers.{layer}.up_first")

    def _clear_padding(self) -> None:
        """Write zeros to the words between the heads' outputs: four-bit weights leave some."""
        plan, spec = self.plan, self.spec
        used = ceil_div(spec.head_dim, self.config.lanes)
        if used == plan.head_words:
            return
        start, n = plan.heads_out.start + used, (plan.head_words - used) * self.config.lanes
        loops: Operands = {"_m": spec.heads * plan.head_words, "_h": plan.head_words}
        self.vector(
            [], [plan.heads_out], comment="zeros", n=n, m=self.m, h=spec.heads, limit=0, source=Source.ROW, src=start,
            dest=Dest.ROW, dst=start, **{f"{to}{loop}": s for to in ("src", "dst") for loop, s in loops.items()},
        )  # fmt: skip

    @property
    def _qkv_width(self) -> int:
        """Words of a row of queries, keys and values."""
        return self.plan.row_heads * self.plan.head_words

    def _place(self, head: int) -> int:
        """Return where a head (of queries, then keys, then values) is among those that a row holds at a time."""
        spec = self.spec
        return head if spec.causal or head < spec.heads else (head - spec.heads) % spec.kv_heads

    def _project(self, name: str, head: int) -> None:
        """Rows in act_x -> queries, keys, values, from head `head` of their rows on."""
        self.e.part = name
        matrix, rows = self.image.matrices[name], self.plan.qkv
        offset = self._place(head) * self.plan.head_words
        part = rows.part(offset, rows.size - offset)
        for first, tiles in self.chunks(matrix):
            scales = self.scales(matrix, first, tiles)
            acc = self.product(matrix, self.plan.act_x, first, tiles)
            self.dequantise_biased(
                matrix, acc, first, tiles, matrix.shape.n, scales, "sx", part, self._qkv_width,
                comment="queries, keys, values",
            )  # fmt: skip

    def _rows(self, head: int, heads: int) -> Operands:
        """Return the operands that read some heads of the rows of queries, keys and values."""
        hw = self.plan.head_words
        return {
            "n": self.spec.head_dim, "m": self.m, "h": heads, "source": Source.ROW,
            "src": self.plan.qkv.start + self._place(head) * hw, "src_m": self._qkv_width, "src_h": hw,
        }  # fmt: skip

    def _in_place(self, head: int, heads: int) -> Operands:
        rows = self._rows(head, heads)
        return rows | {"dest": Dest.ROW, "dst": rows["src"], "dst_m": rows["src_m"], "dst_h": rows["src_h"]}

    def _head_stats(self, name: str, head: int, which: str = "stat") -> Operands:
        """Return the operands for the statistics of queries and keys from a head on."""
        return {
            which: name, f"{which}_offset": self._place(head), f"{which}_m": self.plan.stat_heads, f"{which}_h": 1
        }  # fmt: skip

    def _finish_heads(self, layer: int, head: int, heads: int) -> None:
        """Norm, rotation and scales of some heads: queries or keys."""
        self.e.part = f"layers.{layer}.attention"
        if self.spec.qk_norm:
            self._head_norm(layer, head, heads)
        self._rotate(head, heads, self.act_quantum if head < self.spec.heads else INT8)

    def _head_norm(self, layer: int, head: int, heads: int) -> None:
        """RMSNorm of each head."""
        plan, image, spec = self.plan, self.image, self.spec
        hw, run = plan.head_words, run_words(spec.head_dim, 4, self.config)
        weights = plan.head_norms.part(head * hw, (heads - 1) * hw + max(run, hw))
        row = image.rope_row if head else 0
        self.load(
            image.head_norms[layer].part(row, image.rope_row), Value(0), image.rope_row, weights, heads, 0, hw,
            LoadFormat.FP32, "norms of the heads",
        )  # fmt: skip
        of_head, red = self._head_stats("sq", head), self._head_stats("sq", head, "red")
        rows = self._rows(head, heads)
        self.vector([plan.qkv], [], comment="absmax of the heads", **rows, **red, reduce=Reduce.ABSMAX)
        self.vector(
            [plan.qkv], [], comment="sums of squares of the heads", **rows, **of_head, **red, reduce=Reduce.SUMSQ,
            const1=f24_bits(1.0 / spec.head_dim), const2=bf16_field(spec.norm_eps),
        )  # fmt: skip
        self.vector(
            [plan.qkv, weights], [plan.qkv], comment="normalise the heads", **self._in_place(head, heads), **of_head,
            scale=Scale.STAT_A, param=1, par=weights.start, par_h=hw,
        )  # fmt: skip

    def _rotate(self, head: int, heads: int, quantum: int) -> None:
        """RoPE, if the model has it, and the scales of some heads."""
        plan = self.plan
        scales: Operands = {
            "reduce": Reduce.QSCALE, "const1": quantum, "scale16": int(quantum == INT8),
            **self._head_stats("sq", head, "red"),
        }  # fmt: skip
        if self.spec.rope_theta is None:
            self.vector([plan.qkv], [], comment="scales of queries and keys", **self._rows(head, heads), **scales)
            return
        self.vector(
            [plan.qkv, plan.rope], [plan.qkv], comment="rotate queries and keys", **self._in_place(head, heads),
            **scales, add=Add.ROTATE, par=plan.rope.start, par_m=plan.head_words,
        )  # fmt: skip

    def _quantise_queries(self) -> None:
        plan, spec = self.plan, self.spec
        k = ceil_div(spec.head_dim, self.config.rows) * self.parts
        self.vector(
            [plan.qkv], [plan.act_q], comment="quantise queries", **self._rows(0, spec.heads),
            **self._head_stats("sq", 0), scale=Scale.STAT_A, dest=self.act_dest, dst=plan.act_q.start,
            dst_m=spec.heads * k, dst_h=k,
        )  # fmt: skip

    def _store_keys_values(self, layer: int) -> None:
        image = self.image
        self._scale_values()
        self._store_keys(layer)
        self._store_values(layer)
        self._store_scales(image.key_scales[layer], self._head_stats("sq", self.spec.heads))
        self._store_scales(image.value_scales[layer], self._value_stats)

    @property
    def _value_stats(self) -> Operands:
        return {"stat": "sv", "stat_offset": 0, "stat_m": self.spec.kv_heads, "stat_h": 1}

    def _scale_values(self) -> None:
        spec = self.spec
        self.vector(
            [self.plan.qkv], [], red="sv", comment="scales of the values",
            **self._rows(spec.heads + spec.kv_heads, spec.kv_heads), reduce=Reduce.QSCALE, const1=INT8, scale16=1,
            red_m=spec.kv_heads, red_h=1,
        )  # fmt: skip

    def _store_keys(self, layer: int) -> None:
        image, config, first = self.image, self.config, self.at.first or 0
        self._store_rows(self.spec.heads, self._head_stats("sq", self.spec.heads))
        self.store(
            image.keys[layer], self.at["key_at"], n=self.spec.head_dim, run=config.rows,
            stride_run=config.transposed_tile_bytes, stride_m=config.row_slot, stride_h=image.key_head,
            wrap_first=config.cols - first % config.cols, wrap_period=config.cols,
            wrap_stride=image.key_block - (config.cols - 1) * config.row_slot, comment="keys",
        )  # fmt: skip

    def _store_values(self, layer: int) -> None:
        image, config = self.image, self.config
        self._store_rows(self.spec.heads + self.spec.kv_heads, self._value_stats)
        self.store(
            image.values[layer], self.at["value_at"], n=self.spec.head_dim, run=config.cols,
            stride_run=image.value_run, stride_m=config.col_slot, stride_h=image.value_head, comment="values",
        )  # fmt: skip

    def _store_scales(self, region: Region, stats: Operands) -> None:
        self.vector(
            [], [], comment="scales to memory", **stats, n=1, m=self.m, h=self.spec.kv_heads, source=Source.STAT,
            dest=Dest.STORE_BF16,
        )  # fmt: skip
        self.store(
            region, self.at["scale_at"], n=1, run=1, stride_m=2, stride_h=self.image.scale_head, element=Element.BF16,
            comment="scales",
        )  # fmt: skip

    def _store_rows(self, head: int, stats: Operands) -> None:
        self.vector(
            [self.plan.qkv], [], comment="quantise for the cache", **self._rows(head, self.spec.kv_heads), **stats,
            scale=Scale.STAT_A, dest=Dest.STORE_INT8,
        )  # fmt: skip

    def _load_cache(
        self, region: Region, start: int, count: int, stride: int, size: Value, transpose: int = 0
    ) -> None:  # fmt: skip
        part = region.part(start, min(count * stride, region.size - start))
        at = address(part.start)
        self.e.emit(
            Op.LOAD, [part], [], "cached tiles", bytes=size, count=count, stride=stride, dest=LoadDest.STREAM,
            transpose=transpose, base=at["base"], offset=Value(at["offset"], self.at["cache"].register),
        )  # fmt: skip

    def _attend(self, layer: int, heads: _Heads) -> Iterator[None]:
        """Attention of some query heads.

        Keys come in parts where all at once do not fit. Their scores lie in whole rows, and what a part's instruction
        would record of its row, an instruction of its own does afterwards: the same bits.
        """
        plan, at = self.plan, self.at
        w_t, k_t = (r.size // (self.m * plan.kv_chunk * plan.group_chunk) for r in (plan.scores, plan.act_p))
        start = plan.scores.start
        parts = at.parts(plan.t)
        whole = len(parts) == 1
        rows: Operands = {"n": at["keys"], "source": Source.ROW, "src": start}
        every = _View(0, self.m, heads.count, False, 1, 0)
        maxima = every.stats("red", "max", 0, heads.count) | {"reduce": Reduce.MAX}
        scales = every.stats("red", "sp", 0, heads.count) | {"reduce": Reduce.QSCALE}
        if whole:
            self._load_scales(self.image.value_scales[layer], heads, parts[0], plan.value_scales)
        for i, part in enumerate(parts):
            self._score(layer, heads, part, (plan.key_scales, plan.value_scales)[i % 2], w_t, last=part is parts[-1])
        if not whole:
            self.vector(
                [plan.scores], [], comment="largest scores", **rows, **every.loops(heads.count, src=w_t), **maxima,
                **self._mask(False),
            )  # fmt: skip
        self.vector(
            [plan.scores], [plan.scores], comment="2 ** (score - max)", **rows, dest=Dest.ROW, dst=start,
            **every.loops(heads.count, src=w_t, dst=w_t), **every.stats("stat", "max", 0, heads.count),
            **every.stats("red", "sum", 0, heads.count),
            **self._mask(False), add=Add.NEG_STAT_A, func=Func.EXP2, reduce=Reduce.EXPSUM,
        )  # fmt: skip
        for i, part in enumerate(parts):
            slot = (plan.value_scales, plan.key_scales)[i % 2]
            if not whole:
                self._load_scales(self.image.value_scales[layer], heads, part, slot)
            self._scale_probabilities(heads, part, slot, w_t, last=part is parts[-1])
        if not whole:
            self.vector(
                [plan.scores], [], comment="scales of the probabilities", **rows, **every.loops(heads.count, src=w_t),
                **scales, **self._mask(False),
            )  # fmt: skip
        self.vector(
            [plan.scores], [plan.act_p], comment="quantise probabilities", **rows,
            **every.loops(heads.count, src=w_t, dst=k_t), **every.stats("stat", "sp", 0, heads.count),
            **self._mask(False), scale=Scale.STAT_A, dest=self.act_dest, dst=plan.act_p.start,
        )  # fmt: skip
        yield
        self._weigh_values(layer, heads, k_t)

    def _score(self, layer: int, heads: _Heads, part: KeyPart, slot: Region, w_t: int, last: bool) -> None:
        """Queries times some keys, into the rows of scores; with the rows' maxima if these are all keys."""
        plan, config, group, image = self.plan, self.config, heads.group, self.image
        self._load_scales(image.key_scales[layer], heads, part, slot)
        self._load_cache(
            image.keys[layer], heads.kv_first * image.key_head + part.start // config.cols * image.key_block,
            heads.kv, image.key_head, part.key_bytes, 1,
        )  # fmt: skip
        scores = self._products(heads, part)
        start = plan.scores.start + part.start // config.lanes
        for view in self._views(heads):
            # A register of the tiles' number says how far apart KV heads are; it shares its word with src_m.
            stride: Operands = {"src_m": self.parts, "src_h": self.m * self.parts}
            if heads.kv > 1:
                known = part.score_stride
                stride = {"src_m": self.parts, "src_h": known.constant}
                if known.register is not None:
                    stride = {"src_m": replace(known, constant=self.parts)}
            self.vector(
                [scores, slot], [plan.scores], comment="scores", n=part.last_keys, source=Source.ACC,
                bank=int(scores.space[-1]), src=view.first * self.m * self.parts,
                src_n=group * self.m * self.parts, wide=self.parts - 1, **stride, scale=Scale.STAT_B, param=1,
                par=slot.start, par_h=view.kv_step * self._scale_words, dest=Dest.ROW,
                dst=start + view.first * w_t, **view.loops(heads.count, dst=w_t),
                **self._mask_part(view, part, last),
                **view.stats("stat", "sq", heads.first, plan.stat_heads),
                **when(last and not part.start, **view.stats("red", "max", 0, heads.count), reduce=Reduce.MAX),
            )  # fmt: skip

    def _scale_probabilities(self, heads: _Heads, part: KeyPart, slot: Region, w_t: int, last: bool) -> None:
        """Exponentials -> probabilities times the value scales; with the rows' scales if these are all keys."""
        plan, start = self.plan, self.plan.scores.start + part.start // self.config.lanes
        for view in self._views(heads):
            first = start + view.first * w_t
            self.vector(
                [plan.scores, slot], [plan.scores], comment="probabilities, times the value scales",
                n=part.last_keys, source=Source.ROW, dest=Dest.ROW, src=first, dst=first,
                **view.loops(heads.count, src=w_t, dst=w_t), scale=Scale.STAT_A, param=1, par=slot.start,
                par_h=view.kv_step * self._scale_words, **self._mask_part(view, part, last),
                **view.stats("stat", "sum", 0, heads.count),
                **when(last and not part.start, **view.stats("red", "sp", 0, heads.count), reduce=Reduce.QSCALE),
            )  # fmt: skip

    @property
    def _scale_words(self) -> int:
        """Parameter words from one KV head's scales to the next one's."""
        return w_t_bytes(self.plan.piece, self.config)

    def _products(self, heads: _Heads, part: KeyPart) -> Region:
        """Queries times keys; returns the accumulators."""
        words = ceil_div(self.spec.head_dim, self.config.rows) * self.parts
        scores = Region(f"acc{self.e.bank}", 0, self.config.acc_rows)
        self.e.emit(
            Op.MATMUL, [self.plan.act_q], [scores], "scores", stream=1, bank=self.e.bank, k=words // self.parts,
            n=part.key_tiles, groups=heads.kv, act=self.plan.act_q.start + heads.first * words,
            act_group=heads.group * words, rows_outer=heads.group, act_outer=words, rows_inner=self.m,
            act_inner=self.spec.heads * words, pair=self.parts - 1,
        )  # fmt: skip
        self.e.bank ^= 1
        return scores

    def _weigh_values(self, layer: int, heads: _Heads, k_t: int) -> None:
        """Probabilities times values, into heads_out; with the rows' scales if these are all heads."""
        plan, config, image, m, parts = self.plan, self.config, self.image, self.m, self.parts
        kv, group, tiles, hw = heads.kv, heads.group, image.value_tiles, plan.head_words
        self._load_cache(
            image.values[layer],
            heads.kv_first * image.value_head,
            kv * tiles,
            image.value_run,
            self.at["value_bytes"],
        )
        acc = Region(f"acc{self.e.bank}", 0, config.acc_rows)
        self.e.emit(
            Op.MATMUL, [plan.act_p], [acc], "probabilities times values", stream=1, bank=self.e.bank,
            k=self.at["value_tiles"], n=tiles, groups=kv, act=plan.act_p.start, act_group=group * k_t,
            rows_outer=group, act_outer=k_t, rows_inner=m, act_inner=heads.count * k_t, pair=parts - 1,
        )  # fmt: skip
        self.e.bank ^= 1
        fused = self._scales_fused
        # Where the accumulators of all heads are equally far apart, one instruction does.
        views = [_View(0, m, heads.count, False, 1, 0)] if self._uniform(heads) else self._views(heads)
        for view in views:
            step = tiles * group if view.kv_step or group == 1 else 1
            self.vector(
                [acc], [plan.heads_out], comment="attention output", n=self.spec.head_dim, source=Source.ACC,
                bank=int(acc.space[-1]), src=view.first * m * parts, src_m=parts, src_h=step * m * parts,
                src_n=group * m * parts, wide=parts - 1, scale=Scale.STAT_B, dest=Dest.ROW,
                dst=plan.heads_out.start + (heads.first + view.first) * hw,
                **view.loops(self.spec.heads, dst=hw), **view.stats("stat", "sp", 0, heads.count),
                **when(fused, red="so", reduce=Reduce.QSCALE, reduce_outer=1),
            )  # fmt: skip

    @property
    def _scales_fused(self) -> bool:
        """Whether one instruction makes the outputs of all heads, and so their rows' scales."""
        passes = list(self._passes())
        return len(passes) == 1 and self._uniform(passes[0])

    def _uniform(self, heads: _Heads) -> bool:
        return heads.group == 1 or heads.kv == 1 or self.image.value_tiles == 1

    def _passes(self) -> Iterator[_Heads]:
        """Cut the query heads into passes: some KV heads with all of their group, or part of one's group."""
        plan, spec = self.plan, self.spec
        for kv in range(0, spec.kv_heads, plan.kv_chunk):
            for j in range(0, spec.group, plan.group_chunk):
                group = min(plan.group_chunk, spec.group - j)
                yield _Heads(kv, min(plan.kv_chunk, spec.kv_heads - kv), kv * spec.group + j, group)

    def _views(self, heads: _Heads) -> list[_View]:
        """Return the loops over rows and heads of a pass, where an instruction has two of them."""
        if heads.kv == 1:
            return [_View(0, self.m, heads.group, False, 1, 0)]
        if self.m == 1:
            return [_View(0, heads.group, heads.kv, True, heads.group, 1)]
        return [_View(j, self.m, heads.kv, False, heads.group, 1) for j in range(heads.group)]

    def _load_scales(self, memory: Region, heads: _Heads, part: KeyPart, dst: Region) -> None:
        """Load the scales of some keys or values of the KV heads of a pass."""
        stride, words = self.image.scale_head, self._scale_words
        self.load(
            memory.part(heads.kv_first * stride, heads.kv * stride), self.at["cache"] + 2 * part.start,
            part.scale_bytes, dst.part(0, heads.kv * words), heads.kv, stride, words, LoadFormat.BF16, "cache scales",
        )  # fmt: skip

    def _mask_part(self, view: _View, part: KeyPart, last: bool) -> Operands:
        """Mask of a part of the keys. All rows see all keys before the last part: it begins before the first row."""
        mask = self._mask(view.over_heads) if last else {}
        if mask:
            mask["limit"] -= part.start
            assert mask["limit"] > 0, "a block's rows lie in one part"
        return mask

    def _mask(self, over_heads: bool) -> Operands:
        """Causal mask of rows m; a single row sees all keys."""
        if over_heads or self.m == 1 or not self.spec.causal:
            return {}
        assert self.at.first is not None
        return {"limit": self.at.first + 1, "causal": 1}
