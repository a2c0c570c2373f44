"""Norms of rows: RMSNorm and LayerNorm, and the quantised rows that come of them."""

from __future__ import annotations

from tilewright.compiler.block import Block, Operands
from tilewright.compiler.emit import Region
from tilewright.formats import bf16_field, f24_bits
from tilewright_hw.arch.isa import Add, Dest, Mul, Reduce, Scale


class NormBlock(Block):
    """A block that normalises its residual stream."""

    def normalise(self, name: str, quantise: bool = True) -> None:
        """X -> norm -> quantised rows in act_x, scales in `sx`; x stays."""
        self._norm(name, self.plan.normed)
        if quantise:
            self.quantise(self.plan.normed, self.spec.dim, self.plan.act_x, "sx")

    def normalise_x(self, name: str) -> None:
        """X = norm(x), and quantised rows in act_x, scales in `sx`."""
        self._norm(name, self.plan.x)
        self.quantise(self.plan.x, self.spec.dim, self.plan.act_x, "sx")

    def quantise_x(self) -> None:
        """X -> quantised rows in act_x, scales in `sx`: no norm."""
        self.row_scale(self.plan.x, self.spec.dim, "sx")
        self.quantise(self.plan.x, self.spec.dim, self.plan.act_x, "sx")

    def _norm(self, name: str, into: Region) -> None:
        """Rows of x, whose absolute maxima are known -> normalised rows, and their scales in `sx`."""
        self.e.part = name
        if self.spec.norm == "layer":
            self._layer_norm(name, into)
        else:
            self._rms_norm(name, into)

    def _rms_norm(self, name: str, into: Region) -> None:
        x, n = self.plan.x, self.spec.dim
        weights = self.norm_vector(name)
        self.vector(
            [x], [], stat="x", red="rms", comment="sum of squares", **self.x_rows(),
            reduce=Reduce.SUMSQ, const1=f24_bits(1.0 / n), const2=bf16_field(self.spec.norm_eps),
        )  # fmt: skip
        self.vector(
            [x, weights], [into], stat="rms", red="sx", comment="normalise", **self.x_rows(),
            scale=Scale.STAT_A, param=1, par=weights.start, reduce=Reduce.QSCALE,
            dest=Dest.ROW, dst=into.start, dst_m=self.w_dim,
        )  # fmt: skip

    def _layer_norm(self, name: str, into: Region) -> None:
        """(x * r - mean * r) * weight in one pass, + bias in the next."""
        x, n = self.plan.x, self.spec.dim
        weights = self.norm_vector(name)
        bias = self.norm_vector(name + "_bias")
        self.vector(
            [x], [], stat="x", red="rms", comment="mean and variance", **self.x_rows(),
            reduce=Reduce.VAR, const1=f24_bits(1.0 / n), const2=bf16_field(self.spec.norm_eps),
        )  # fmt: skip
        to_rows: Operands = {"dest": Dest.ROW, "dst": into.start, "dst_m": self.w_dim}
        self.vector(
            [x, weights], [into], stat="rms", comment="normalise", **self.x_rows(), scale=Scale.STAT_A,
            add=Add.STAT_B, mul=Mul.PARAM, par=weights.start, **to_rows,
        )  # fmt: skip
        self.vector(
            [into, bias], [into], red="sx", comment="the norm's bias", **self.x_rows(into), add=Add.PARAM,
            par=bias.start, reduce=Reduce.QSCALE, **to_rows,
        )  # fmt: skip
