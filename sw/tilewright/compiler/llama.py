"""The program of a Llama model: one block of rows through all layers.

A block is either m tokens at known positions (prefill) or one token whose position comes from registers (decode). The
same code emits both: what depends on the position is asked of a `Positions` object.
"""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.compiler.attention import AttentionBlock
from tilewright.compiler.block import when
from tilewright.compiler.emit import Emitter
from tilewright.compiler.image import LOGIT_ROWS, ModelImage
from tilewright.compiler.layout import address, ceil_div
from tilewright.compiler.plan import Tiling, make_plans
from tilewright.compiler.positions import TOKEN_REGISTER, Positions
from tilewright_hw.arch import InputError
from tilewright_hw.arch.isa import (
    Dest,
    Element,
    Func,
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
        emitter = Emitter()
        emitter.control(Op.LDREGS, count=TOKEN_REGISTER + m, **address(self.image.arguments.start))
        plans = make_plans(self.image.spec, self.image.config, m, t, self.tiling)
        row, phases = 0, []
        for plan in plans:
            positions = Positions(self.image, plan.m, None if first is None else first + row)
            block = LlamaBlock(self.image, plan, positions, emitter, row)
            last = row + plan.m == m
            phases.append(block.emit("none" if logits == "last" and not last else logits))
            row += plan.m
        _take_turns(phases)
        emitter.control(Op.END)
        return assemble(emitter.program)


def _take_turns(blocks: list[Iterator[None]]) -> None:
    """Advance each block by one phase in turn, until all are done."""
    while blocks:
        blocks = [b for b in blocks if next(b, _DONE) is not _DONE]


_DONE = object()


class LlamaBlock(AttentionBlock):
    """One block of a Llama model."""

    def emit(self, logits: str) -> Iterator[None]:
        """Emit the whole block, phase by phase; logits: 'none', 'last' or 'all' of its rows."""
        m = self.m
        self.embed()
        self.load_param(
            self.image.rope, self.at["rope_at"], 4 * self.spec.head_dim, self.plan.rope, m, self.image.rope_row,
            self.plan.head_words, LoadFormat.FP32, "rotary factors",
        )  # fmt: skip
        for layer in range(self.spec.layers):
            yield from self.attention(layer)
            yield
            yield from self.feed_forward(layer)
            yield
        if logits == "last":
            self.logits(m - 1, 1, 0)
        elif logits == "all":
            self.logits(0, m, self.first_row)

    def feed_forward(self, layer: int) -> Iterator[None]:
        """Add a layer's gated feed-forward network to the residual stream, phase by phase."""
        plan, spec = self.plan, self.spec
        self.normalise(self.image.norms[f"layers.{layer}.ffn_norm"])
        yield
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
        yield
        self.quantise(h, spec.ffn, plan.act_h, "sh")
        yield
        self.add_product(self.image.matrices[f"layers.{layer}.w_down"], plan.act_h, "sh", "x += feed-forward")

    def logits(self, row: int, rows: int, at_row: int) -> None:
        """Final norm of all rows, then the classifier for `rows` rows from `row` on.

        Float32 rows are stored from row `at_row` of the logits on.
        """
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
            at = address(image.logits.start + at_row * image.logits_row + 4 * cols * first)
            self.e.emit(
                Op.STORE, [], [image.logits], "logits", element=Element.FP32, n=n, m=rows, h=1, run=n,
                stride_m=image.logits_row, **at,
            )  # fmt: skip
