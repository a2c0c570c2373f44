"""Norms of rows: RMSNorm and LayerNorm, and the quantised rows that come of them."""

from __future__ import annotations

from tilewright.compiler.block import Block, Operands, when
from tilewright.compiler.emit import Region
from tilewright.formats import bf16_field, f24_bits
from tilewright_hw.arch.isa import Add, Mul, Reduce, Scale


class NormBlock(Block):
    """A block that normalises its residual stream."""

    def normalise(self, name: str, quantise: bool = True, first: str = "") -> None:
        """X -> norm -> quantised rows in act_x, scales in `sx`; x stays.

        `first` names what is taken off a text's first row, here and below; see `subtract_first`.
        """
        self._norm(name, self.plan.normed)
        if quantise:
            self._quantise_dim(self.plan.normed, first)

    def normalise_x(self, name: str, first: str = "") -> None:
        """X = norm(x), less `first`, and quantised rows in act_x, scales in `sx`."""
        self._norm(name, self.plan.x)
        self._quantise_dim(self.plan.x, first)

    def quantise_x(self, first: str = "") -> None:
        """X less `first` -> quantised rows in act_x, scales in `sx`: no norm."""
        self.row_scale(self.plan.x, self.spec.dim, "sx")
        self._quantise_dim(self.plan.x, first)

    def _quantise_dim(self, rows: Region, first: str) -> None:
        """Rows whose scales are known, less `first` -> quantised rows in act_x."""
        self.subtract_first(rows, self.spec.dim, first, "sx")
        self.quantise(rows, self.spec.dim, self.plan.act_x, "sx")

    def _norm(self, name: str, into: Region) -> None:
        """Rows of x, whose absolute maxima are known -> normalised rows, and their scales in `sx`."""
        self.e.part = name
        if self.spec.norm == "layer":
            self._layer_norm(name, into)
        else:
            self._rms_norm(name, into)

    def _rms_norm(self, name: str, into: Region) -> None:
        x, parts = self.plan.x, self.vector_parts()
        weights = self.norm_vector(name, *parts[0])
        self.vector(
            [x], [], stat="x", red="rms", comment="sum of squares", **self.x_rows(),
            reduce=Reduce.SUMSQ, const1=f24_bits(1.0 / self.spec.dim), const2=bf16_field(self.spec.norm_eps),
        )  # fmt: skip
        for first, count in parts:
            if first:
                weights = self.norm_vector(name, first, count)
            self.vector(
                [x, weights], [into], stat="rms", comment="normalise", **self.columns(x, first, count),
                scale=Scale.STAT_A, param=1, par=weights.start, **self.to_columns(into, first),
                **self._row_scale_of(parts),
            )  # fmt: skip
        self._row_scale_after(parts, into)

    def _layer_norm(self, name: str, into: Region) -> None:
        """(x * r - mean * r) * weight in one pass, + bias in the next."""
        x, parts = self.plan.x, self.vector_parts()
        weights, bias = self.norm_vector(name, *parts[0]), self.norm_vector(name + "_bias", *parts[0])
        self.vector(
            [x], [], stat="x", red="rms", comment="mean and variance", **self.x_rows(),
            reduce=Reduce.VAR, const1=f24_bits(1.0 / self.spec.dim), const2=bf16_field(self.spec.norm_eps),
        )  # fmt: skip
        for first, count in parts:
            if first:
                weights = self.norm_vector(name, first, count)
                bias = self.norm_vector(name + "_bias", first, count)
            to_rows = self.to_columns(into, first)
            self.vector(
                [x, weights], [into], stat="rms", comment="normalise", **self.columns(x, first, count),
                scale=Scale.STAT_A, add=Add.STAT_B, mul=Mul.PARAM, par=weights.start, **to_rows,
            )  # fmt: skip
            self.vector(
                [into, bias], [into], comment="the norm's bias", **self.columns(into, first, count), add=Add.PARAM,
                par=bias.start, **to_rows, **self._row_scale_of(parts),
            )  # fmt: skip
        self._row_scale_after(parts, into)

    def _row_scale_of(self, parts: list[tuple[int, int]]) -> Operands:
        """Return the operands that record the scales of rows, if an instruction makes whole ones."""
        return when(len(parts) == 1, red="sx", reduce=Reduce.QSCALE)

    def _row_scale_after(self, parts: list[tuple[int, int]], rows: Region) -> None:
        """Record the scales of rows that were made in parts: the same ones."""
        if len(parts) > 1:
            self.row_scale(rows, self.spec.dim, "sx")
