"""What comes out of a model: logits, the token of the largest one, or the rows themselves."""

from __future__ import annotations

from typing import Any

from tilewright.compiler.emit import Region
from tilewright.compiler.layout import address
from tilewright.compiler.norms import NormBlock
from tilewright_hw.arch.isa import Dest, Element, Op, Reduce, Scale, Source


class HeadBlock(NormBlock):
    """A block that ends with results."""

    def logits(self, row: int, rows: int, at_row: int) -> None:
        """Final norm of all rows, then the classifier for `rows` rows from `row` on.

        Float32 rows are stored from row `at_row` of the logits on.
        """
        image, cols = self.image, self.config.cols
        self._final_norm()
        for first, tiles in self.chunks(image.matrices["classifier"]):
            n = self._classify(row, rows, first, tiles, dest=Dest.STORE_FP32)
            at = address(image.logits.start + at_row * image.logits_row + 4 * cols * first)
            self.e.emit(
                Op.STORE, [], [image.logits], "logits", element=Element.FP32, n=n, m=rows, h=1, run=n,
                stride_m=image.logits_row, **at,
            )  # fmt: skip

    def choose(self, row: int, rows: int, at_row: int) -> None:
        """Final norm, classifier, and the index of the largest logit (the lowest of equal ones).

        uint32 indices of `rows` rows from `row` on are stored from element `at_row` of the tokens on.
        """
        plan, lanes = self.plan, self.config.lanes
        self._final_norm()
        scratch = plan.late
        most = scratch.size * lanes // (rows * self.config.cols)
        for first, tiles in self.chunks(self.image.matrices["classifier"], most):
            width = tiles * self.config.cols // lanes
            logits = scratch.part(0, rows * width)
            n = self._classify(
                row, rows, first, tiles, writes=[logits], dest=Dest.ROW, dst=logits.start, dst_m=width,
            )  # fmt: skip
            self.vector(
                [logits], [], stat="best", red="best", comment="the largest so far", n=n, m=rows, source=Source.ROW,
                src=logits.start, src_m=width, reduce=Reduce.ARGMAX, merge=int(first > 0),
                const1=first * self.config.cols << 8,
            )  # fmt: skip
        self.vector([], [], stat="best", comment="token", n=1, m=rows, source=Source.STAT, dest=Dest.STORE_RAW)
        at = address(self.image.token.start + 4 * at_row)
        self.e.emit(
            Op.STORE, [], [self.image.token], "token", element=Element.FP32, n=1, m=rows, h=1, run=1, stride_m=4, **at
        )

    def hidden(self, row: int, rows: int, at_row: int) -> None:
        """Final norm of all rows; float32 rows of `rows` of them go to row `at_row` of the logits on."""
        plan, image = self.plan, self.image
        self.e.part, source = "hidden", plan.x
        if self.spec.final_norm:
            self.normalise("final_norm", quantise=False)
            source = plan.normed
        start = source.start + row * self.w_dim
        self.vector(
            [source], [], comment="hidden rows", **self.x_rows(source) | {"src": start, "m": rows},
            dest=Dest.STORE_FP32,
        )  # fmt: skip
        at = address(image.logits.start + at_row * image.logits_row)
        self.e.emit(
            Op.STORE, [], [image.logits], "hidden rows", element=Element.FP32, n=self.spec.dim, m=rows, h=1,
            run=self.spec.dim, stride_m=image.logits_row, **at,
        )  # fmt: skip

    def _final_norm(self) -> None:
        """Quantised rows in act_x, normalised if the model has a final norm."""
        if self.spec.final_norm:
            self.normalise("final_norm")
        elif not self.spec.norm_after:
            self.quantise_x()

    def _classify(
        self, row: int, rows: int, first: int, tiles: int, writes: list[Region] | None = None, **operands: Any
    ) -> int:
        """Drain some tiles of the classifier; returns how many logits they are."""
        self.e.part = "classifier"
        matrix = self.image.matrices["classifier"]
        scales = self.scales(matrix, first, tiles)
        acc = self.product(matrix, self.plan.act_x, first, tiles, row, rows)
        n = min(tiles * self.config.cols, self.spec.vocab - first * self.config.cols)
        self.vector(
            [acc, scales], writes or [], stat="sx", stat_offset=row, comment="logits", n=n, m=rows, source=Source.ACC,
            bank=int(acc.space[-1]), src=acc.start, src_m=self.parts, src_n=rows * self.parts, wide=self.parts - 1,
            scale=Scale.STAT_B, param=1, par=scales.start, **operands,
        )  # fmt: skip
        return n
