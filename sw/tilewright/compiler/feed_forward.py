"""The feed-forward network: gated or not, with its activation function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tilewright.compiler.activations import table_of
from tilewright.compiler.block import Operands, when
from tilewright.compiler.emit import Region
from tilewright.compiler.image import Matrix
from tilewright.compiler.layout import address, ceil_div
from tilewright.compiler.norms import NormBlock
from tilewright_hw.arch.isa import Func, LoadDest, Mul, Op, Reduce

TABLE = Region("table", 0, 1)
"""The vector unit's table."""


class FeedForwardBlock(NormBlock):
    """A block with a feed-forward network."""

    def load_table(self) -> None:
        """Load the activation's table, if it has one: once in a program."""
        self.e.part = "embedding"
        table, region = table_of(self.spec.activation), self.image.table
        if table is not None and region is not None:
            self.e.emit(
                Op.LOAD, [region], [TABLE], f"table for {self.spec.activation}", bytes=region.size, count=1,
                dest=LoadDest.TABLE, dst=table.dst, **address(region.start),
            )  # fmt: skip

    def feed_forward(self, layer: int) -> Iterator[None]:
        """Add a layer's feed-forward network to the residual stream, phase by phase."""
        plan, spec, matrices = self.plan, self.spec, self.image.matrices
        if not spec.norm_after:
            self.normalise(f"layers.{layer}.ffn_norm", first=f"layers.{layer}.up_first")
        yield
        self.e.part = f"layers.{layer}.w_up"
        down = matrices[f"layers.{layer}.w_down"]
        self.add_bias(down)
        gate, up = matrices.get(f"layers.{layer}.w_gate"), matrices[f"layers.{layer}.w_up"]
        chunks = self.chunks(up)
        fused = len(chunks) == 1
        scale = when(fused, red="sh", reduce=Reduce.QSCALE)
        for first, tiles in chunks:
            if gate is not None:
                self._pass(gate, first, tiles, f"{spec.activation} of the gate", **self._activation())
                self._pass(up, first, tiles, "times up", **self._times_gate(first), **scale)
            else:
                self._pass(up, first, tiles, spec.activation, **self._activation(), **scale)
        if not fused:
            self.row_scale(plan.hidden, spec.ffn, "sh")
        self.subtract_first(plan.hidden, spec.ffn, f"layers.{layer}.down_first", "sh")
        yield
        self.e.part = f"layers.{layer}.w_down"
        self.quantise(plan.hidden, spec.ffn, plan.act_h, "sh")
        yield
        self.add_product(down, plan.act_h, "sh", "x += feed-forward")
        if spec.norm_after:
            self.normalise_x(f"layers.{layer}.ffn_norm", first=f"layers.{layer + 1}.qkv_first")

    @property
    def _hidden_width(self) -> int:
        return ceil_div(self.spec.ffn, self.config.lanes)

    def _pass(self, matrix: Matrix, first: int, tiles: int, comment: str, **operands: Any) -> None:
        """Multiply by some tiles of a matrix, into the hidden rows."""
        scales = self.scales(matrix, first, tiles)
        acc = self.product(matrix, self.plan.act_x, first, tiles)
        self.dequantise_biased(
            matrix, acc, first, tiles, self.spec.ffn, scales, "sx", self.plan.hidden, self._hidden_width,
            comment=comment, **operands,
        )  # fmt: skip

    def _activation(self) -> Operands:
        """Return the operands of f(x) = factor(x) * x."""
        if self.image.table is None:
            return {"func": Func.SIGMOID, "mul": Mul.SELF}
        return {"func": Func.TABLE, "mul": Mul.SELF, "reads": [TABLE]}

    def _times_gate(self, first: int) -> Operands:
        hidden = self.plan.hidden
        offset = first * self.config.cols // self.config.lanes
        return {"reads": [hidden], "mul": Mul.ROW, "row": hidden.start + offset, "row_m": self._hidden_width}
