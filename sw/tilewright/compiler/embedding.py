"""From tokens to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.compiler.block import Operands, when
from tilewright.compiler.emit import Region, Value
from tilewright.compiler.image import has_positions
from tilewright.compiler.layout import address
from tilewright.compiler.norms import NormBlock
from tilewright.compiler.plan import run_words
from tilewright.formats import f24_bits
from tilewright_hw.arch.isa import Add, Dest, LoadDest, LoadFormat, Op, Reduce, Scale


class EmbeddingBlock(NormBlock):
    """A block that begins with tokens."""

    def embed(self) -> None:
        """Gather the tokens' embeddings into the residual stream, with their positions; record its maxima."""
        self._gather()
        if has_positions(self.spec):
            self._add_positions()
        else:
            self._scale_and_add(0, self.m, {})
        if self.spec.embedding_norm:
            self.normalise_x("embedding_norm", first="layers.0.qkv_first" if self.spec.norm_after else "")
        elif self.spec.norm_after:
            self.quantise_x(first="layers.0.qkv_first")

    def _gather(self) -> None:
        x, region = self.plan.x, self.image.embedding
        words = run_words(self.spec.dim, 2, self.config)
        for row in range(self.m):
            at = address(region.start)
            self.e.emit(
                Op.LOAD, [region], [x.part(row * self.w_dim, words)], f"embedding of row {row}",
                base=at["base"], offset=Value(at["offset"], self.at.token(row)),
                bytes=self.image.embedding_row, count=1, dest=LoadDest.ROW, format=LoadFormat.BF16,
                dst=x.start + row * self.w_dim,
            )  # fmt: skip

    def _add_positions(self) -> None:
        """Add the position embeddings, as many rows at a time as the parameter buffer has room for."""
        run = run_words(self.spec.dim, 4, self.config)
        slots = self.plan.scales if self.plan.scales[0].size >= run else self.plan.norms
        step = 1 + (slots[0].size - run) // self.w_dim
        for i, first in enumerate(range(0, self.m, step)):
            rows = min(step, self.m - first)
            slot = slots[i % 2]
            self.load_positions(first, rows, slot.part(0, (rows - 1) * self.w_dim + run))
            self._scale_and_add(first, rows, {"add": Add.PARAM, "par": slot.start, "par_m": self.w_dim}, [slot])

    def _scale_and_add(self, first: int, rows: int, added: Operands, reads: Sequence[Region] = ()) -> None:
        """Scale some rows of x and add to them, and record their absolute maxima."""
        x, scale = self.plan.x, self.spec.embedding_scale
        start = x.start + first * self.w_dim
        operands = added | when(scale != 1.0, scale=Scale.CONST, const1=f24_bits(scale))
        if operands:
            operands |= {"dest": Dest.ROW, "dst": start, "dst_m": self.w_dim}
        self.vector(
            [x, *reads], [x] if operands else [], red="x", red_offset=first, comment="absmax of x",
            **self.x_rows() | {"src": start, "m": rows}, reduce=Reduce.ABSMAX, **operands,
        )  # fmt: skip

    def load_positions(self, first: int, rows: int, into: Region) -> None:
        """Load the position embeddings of some rows from row `first` on."""
        step = self.image.dim_row
        self.load(
            self.image.positions, self.at["position_at"] + first * step, step, into, rows, step, self.w_dim,
            LoadFormat.FP32, "positions",
        )  # fmt: skip
