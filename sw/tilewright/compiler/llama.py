"""The program of a Llama model: one block of rows through all layers.

A block is either m tokens at known positions (prefill) or one token whose position comes from registers (decode). The
same code emits both: what depends on the position is asked of a `Positions` object.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tilewright.compiler.attention import AttentionBlock
from tilewright.compiler.batch import MAX_BATCH, BatchedAttention, row_positions
from tilewright.compiler.block import when
from tilewright.compiler.emit import Region
from tilewright.compiler.image import LOGIT_ROWS, ModelImage
from tilewright.compiler.layout import address, ceil_div, round_up
from tilewright.compiler.plan import Blocks, Tiling, cut_rows, make_plan
from tilewright.compiler.positions import Positions
from tilewright.compiler.schedule import Alias, Lane, merge
from tilewright_hw.arch import InputError
from tilewright_hw.arch.isa import (
    Dest,
    Element,
    Func,
    Mul,
    Op,
    Reduce,
    Scale,
    Source,
    assemble,
)

MAX_ROWS = 128
"""Rows of the largest program."""
TABLE_ALIGN = 16
"""Registers that a line of LDREGS brings; each block's table begins a line."""


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
        if logits == "all" and m > LOGIT_ROWS:
            raise InputError(f"a block with all logits has at most {LOGIT_ROWS} rows, not {m}")
        image = self.image
        blocks = self._blocks(first, m)
        lanes = [Lane() for _ in range(blocks.lanes)]
        row, table = 0, image.arguments.start
        for number, positions in enumerate(self._positions(first, m)):
            at = number % blocks.lanes
            lane = lanes[at]
            plan = make_plan(image.spec, image.config, positions.m, first + m, self.tiling, at, blocks.lanes)
            lane.block, lane.aliases = number, _aliases(positions)
            lane.control(Op.LDREGS, count=positions.registers, **address(table))
            table += 4 * round_up(positions.registers, TABLE_ALIGN)
            block = LlamaBlock(image, plan, positions, lane, row)
            last = row + plan.m == m
            block.emit("none" if logits == "last" and not last else logits)
            row += plan.m
        emitter = merge(lanes, image.config)
        emitter.control(Op.END)
        return assemble(emitter.program)

    def decode(self, rows: int = 1) -> bytes:
        """Return the program for the next token of each of some sequences: which, and where, the argument block says.

        The logits of each are stored. InputError if so many rows do not fit the configuration.
        """
        image, spec = self.image, self.image.spec
        plan = make_plan(spec, image.config, rows, spec.context, self.tiling, attending=1)
        lane = Lane()
        positions = row_positions(image, rows)
        lane.control(Op.LDREGS, count=positions[-1].registers, **address(image.arguments.start))
        if rows == 1:
            LlamaBlock(image, plan, positions[0], lane).emit("all")
        else:
            BatchBlock(image, plan, positions, lane).emit("all")
        emitter = merge([lane], image.config)
        emitter.control(Op.END)
        return assemble(emitter.program)

    def decode_arguments(self, rows: Sequence[tuple[int, int, int]]) -> NDArray[np.uint32]:
        """Return the argument block of a decode program; each row is (sequence, position, token)."""
        places = row_positions(self.image, len(rows))
        words = []
        for place, (sequence, position, _) in zip(places, rows, strict=True):
            words += place.arguments(position, sequence)
        return np.array(words + places[0].token_offsets([token for _, _, token in rows]), np.uint32)

    def largest_batch(self) -> int:
        """Return how many sequences one decode program can serve."""

        def fits(rows: int) -> bool:
            try:
                make_plan(self.image.spec, self.image.config, rows, self.image.spec.context, self.tiling, attending=1)
            except InputError:
                return False
            return True

        return next(rows for rows in range(min(self.image.sequences, MAX_BATCH), 0, -1) if rows == 1 or fits(rows))

    def prefill_rows(self, first: int, tokens: int, logits: str = "last") -> int:
        """Return how many of so many tokens from position `first` on the next program should take."""
        return min(tokens, LOGIT_ROWS if logits == "all" else MAX_ROWS)

    def arguments(self, first: int, tokens: Sequence[int], sequence: int = 0) -> NDArray[np.uint32]:
        """Return the argument block of a prefill program: the register tables of all blocks."""
        words: list[int] = []
        row = 0
        for positions in self._positions(first, len(tokens)):
            words += positions.arguments(first + row, sequence)
            words += positions.token_offsets(tokens[row : row + positions.m])
            words += [0] * (-len(words) % TABLE_ALIGN)
            row += positions.m
        return np.array(words, np.uint32)

    def _positions(self, first: int, m: int) -> list[Positions]:
        """Cut a program's rows into blocks."""
        sizes = self._blocks(first, m).sizes
        starts = accumulate(sizes[:-1], initial=first)
        return [Positions(self.image, size, at) for size, at in zip(sizes, starts, strict=True)]

    def _blocks(self, first: int, m: int) -> Blocks:
        return cut_rows(self.image.spec, self.image.config, m, first + m, self.tiling)


def _aliases(positions: Positions) -> list[Alias]:
    """Tell apart what blocks at known positions access of the cache, by token."""
    assert positions.first is not None
    image, config = positions.image, positions.image.config
    first, keys = positions.first, positions.first + positions.m
    loaded = max(round_up(keys, config.cols), round_up(keys, config.rows), round_up(keys, config.bus_bytes // 2))
    return [
        Alias(region, Region(f"mem {region.start}", first, positions.m), Region(f"mem {region.start}", 0, loaded))
        for region in image.cache
    ]


class LlamaBlock(AttentionBlock):
    """One block of a Llama model."""

    def emit(self, logits: str) -> None:
        """Emit the whole block; logits: 'none', 'last' or 'all' of its rows."""
        m = self.m
        self.embed()
        self.load_rotary_factors()
        for layer in range(self.spec.layers):
            for _ in self.attention(layer):
                pass
            self.feed_forward(layer)
        if logits == "last":
            self.logits(m - 1, 1, 0)
        elif logits == "all":
            self.logits(0, m, self.first_row)

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


class BatchBlock(BatchedAttention, LlamaBlock):
    """The next tokens of several sequences."""
