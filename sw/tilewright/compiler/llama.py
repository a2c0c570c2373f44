"""The program of a Llama model: one block of rows through all layers.

A block is either m tokens at known positions (prefill) or one token whose position comes from registers (decode). The
same code emits both: what depends on the position is asked of a `Positions` object.
"""

from __future__ import annotations

from tilewright.compiler.attention import AttentionBlock
from tilewright.compiler.block import when
from tilewright.compiler.image import LOGIT_ROWS, ModelImage
from tilewright.compiler.layout import address, ceil_div
from tilewright.compiler.plan import Tiling, make_plan
from tilewright.compiler.positions import TOKEN_REGISTER, Positions
from tilewright_hw.arch import InputError
from tilewright_hw.arch.isa import (
    Dest,
    Element,
    Func,
    Instruction,
    LoadFormat,
    Mul,
    Op,
    Reduce,
    Scale,
    Source,
    assemble,
)


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
        block = LlamaBlock(self.image, plan, Positions(self.image, m, first))
        return assemble(block.emit(logits))


class LlamaBlock(AttentionBlock):
    """One block of a Llama model."""

    def emit(self, logits: str) -> list[Instruction]:
        """Emit the whole block."""
        m = self.m
        arguments = self.image.arguments
        self.e.control(Op.LDREGS, count=TOKEN_REGISTER + m, **address(arguments.start))
        self.embed()
        self.load_param(
            self.image.rope, self.at["rope_at"], 4 * self.spec.head_dim, self.plan.rope, m, self.image.rope_row,
            self.plan.head_words, LoadFormat.FP32, "rotary factors",
        )  # fmt: skip
        for layer in range(self.spec.layers):
            self.attention(layer)
            self.feed_forward(layer)
        if logits != "none":
            self.logits(0 if logits == "all" else m - 1, m if logits == "all" else 1)
        self.e.control(Op.END)
        return self.e.program

    def feed_forward(self, layer: int) -> None:
        """Add a layer's gated feed-forward network to the residual stream."""
        plan, spec = self.plan, self.spec
        self.normalise(self.image.norms[f"layers.{layer}.ffn_norm"])
        gate, up = (self.image.matrices[f"layers.{layer}.w_{p}"] for p in ("gate", "up"))
        width, h = ceil_div(spec.ffn, self.config.lanes), plan.hidden
        chunks = self.chunks(gate)
        fused = len(chunks) == 1
        for first, tiles in chunks:
            offset = first * self.config.cols // self.config.lanes
            scales = self.scales(gate, first, tiles)
            acc = self.product(gate, plan.act_x, first, tiles)
            self.dequantise(
                acc, first, tiles, spec.ffn, scales, "sx", h, width, comment="SiLU of the gate",
                func=Func.SIGMOID, mul=Mul.SELF,
            )  # fmt: skip
            scales = self.scales(up, first, tiles)
            acc = self.product(up, plan.act_x, first, tiles)
            self.dequantise(
                acc, first, tiles, spec.ffn, scales, "sx", h, width, comment="times up", reads=[h], mul=Mul.ROW,
                row=h.start + offset, row_m=width, **when(fused, red="sh", reduce=Reduce.QSCALE),
            )  # fmt: skip
        if not fused:
            self.row_scale(h, spec.ffn, "sh")
        self.quantise(h, spec.ffn, plan.act_h, "sh")
        self.add_product(self.image.matrices[f"layers.{layer}.w_down"], plan.act_h, "sh", "x += feed-forward")

    def logits(self, row: int, rows: int) -> None:
        """Final norm of all rows, then the classifier for `rows` rows from `row` on, stored as float32."""
        plan, image = self.plan, self.image
        self.normalise(image.norms["final_norm"])
        matrix = image.matrices["classifier"]
        cols = self.config.cols
        for first, tiles in self.chunks(matrix):
            scales = self.scales(matrix, first, tiles)
            acc = self.product(matrix, plan.act_x, first, tiles, row, rows)
            n = min(tiles * cols, self.spec.vocab - first * cols)
            self.vector(
                [acc, scales], [], stat="sx", stat_offset=row, comment="logits", n=n, m=rows, source=Source.ACC,
                bank=int(acc.space[-1]), src=acc.start, src_m=1, src_n=rows, scale=Scale.STAT_B, param=1,
                par=scales.start, dest=Dest.STORE_FP32,
            )  # fmt: skip
            at = address(image.logits.start + 4 * cols * first)
            self.e.emit(
                Op.STORE, [], [image.logits], "logits", element=Element.FP32, n=n, m=rows, h=1, run=n,
                stride_m=image.logits_row, **at,
            )  # fmt: skip
