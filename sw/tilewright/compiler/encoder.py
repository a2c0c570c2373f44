"""The program of a model whose rows see all of their text: sentence encoders.

All keys and values of a layer are in the cache before any row attends. So blocks of rows run stage by stage: in the
first each makes its keys and values of layer 0; in each of the others it runs a layer, and makes those of the next.
Between two stages a block's rows are in memory, or, where all blocks fit, stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.compiler.emit import Region, Sink, Value
from tilewright.compiler.image import ModelImage
from tilewright.compiler.layout import address, round_up
from tilewright.compiler.plan import FEW_ROWS, Plan, Tiling, cut_rows, key_piece, make_plan
from tilewright.compiler.positions import Positions
from tilewright.compiler.schedule import Lane, Schedule, merge
from tilewright.compiler.transformer import TransformerBlock
from tilewright_hw.arch.isa import Dest, Element, LoadFormat, Op

ROWS = "rows"
"""The part of a program that brings rows to memory and back."""
_LINE = 64
"""LDREGS reads from a multiple of this."""


class EncoderBlock(TransformerBlock):
    """One block of rows of a text.

    `table` is where its registers lie in the arguments; `resident` says whether its rows stay in the buffers.
    """

    def __init__(
        self, image: ModelImage, plan: Plan, positions: Positions, emitter: Sink, table: int, resident: bool
    ) -> None:
        super().__init__(image, plan, positions, emitter)
        self.table, self.resident = table, resident
        self.first = positions.first or 0

    def begin(self) -> Iterator[None]:
        """Emit the first stage."""
        self.e.part = "embedding"
        registers = address(self.image.arguments.start + self.table)
        self.e.control(Op.LDREGS, count=self.at.registers, **registers)
        self.embed()
        self.load_rotary_factors()
        yield
        yield from self._next(0)

    def layer(self, layer: int) -> Iterator[None]:
        """Emit the stage of a layer."""
        if not self.resident:
            self._fetch(layer)
            yield
        yield from self.attention_of_queries(layer)
        yield
        yield from self.feed_forward(layer)
        yield
        if layer + 1 < self.spec.layers:
            yield from self._next(layer + 1)
        else:
            self.hidden(0, self.m, self.first)

    def _next(self, layer: int) -> Iterator[None]:
        """Make the keys and values of a layer."""
        if not self.spec.norm_after:
            self.normalise(f"layers.{layer}.attn_norm", first=f"layers.{layer}.qkv_first")
        yield
        yield from self.keys_values(layer)
        if not self.resident:
            self._spill()

    def _spill(self) -> None:
        """Rows to memory."""
        self.e.part = ROWS
        x, at = self.plan.x, self._memory.start
        self.vector([x], [], comment="rows to memory", **self.x_rows(), dest=Dest.STORE_FP32)
        self.e.emit(
            Op.STORE, [], [self._memory], "rows", element=Element.FP32, n=self.spec.dim, m=self.m, h=1,
            run=self.spec.dim, stride_m=self.image.dim_row, **address(at),
        )  # fmt: skip

    def _fetch(self, layer: int) -> None:
        """Rows from memory, quantised as they were before."""
        self.e.part, row = ROWS, self.image.dim_row
        self.load(self._memory, Value(0), row, self.plan.x, self.m, row, self.w_dim, LoadFormat.FP32, "rows")
        self.load_rotary_factors()
        if self.spec.norm_after:
            self.quantise_x()
        else:
            self.absmax()
            self.normalise(f"layers.{layer}.attn_norm", first=f"layers.{layer}.qkv_first")

    @property
    def _memory(self) -> Region:
        row = self.image.dim_row
        return self.image.rows.part(self.first * row, self.m * row)


@dataclass(frozen=True)
class _Cut:
    """Rows of one block: from `first` on, in the buffers' part `slot`."""

    first: int
    plan: Plan
    slot: int


class EncoderCompiler:
    """Compiles programs of one model image: one for each length of text.

    Parameters
    ----------
    image : ModelImage
        Layout of the model in memory.
    tiling : Tiling
        Bounds for the tiling.
    """

    def __init__(self, image: ModelImage, tiling: Tiling | None = None) -> None:
        self.image, self.tiling = image, tiling or Tiling()

    def encode(self, tokens: int) -> bytes:
        """Return the program for a text of so many tokens, whose hidden rows it stores."""
        return self.schedule(tokens).assemble()

    def schedule(self, tokens: int) -> Schedule:
        """Return the program of `encode` before it is assembled."""
        image = self.image
        cuts, tables = self._cuts(tokens)
        lanes = [Lane() for _ in range(1 + max(cut.slot for cut in cuts))]
        blocks = [
            EncoderBlock(
                image, cut.plan, self._positions(cut, tokens), lanes[cut.slot], table, resident=len(cuts) == len(lanes)
            )
            for cut, table in zip(cuts, tables, strict=True)
        ]  # fmt: skip
        for stage, layer in enumerate((None, *range(image.spec.layers))):
            for number, (block, cut) in enumerate(zip(blocks, cuts, strict=True)):
                # What a stage reads of the cache, all blocks have written in the stage before.
                lanes[cut.slot].block = stage * len(blocks) + number
                if stage == number == 0:
                    block.load_table()
                for _ in block.begin() if layer is None else block.layer(layer):
                    pass
        return merge(lanes, image.config)

    def arguments(self, tokens: Sequence[int]) -> NDArray[np.uint32]:
        """Return the argument block of a text: each block's registers, which hold its tokens."""
        cuts, tables = self._cuts(len(tokens))
        words: list[int] = []
        for cut, table in zip(cuts, tables, strict=True):
            words += [0] * (table // 4 - len(words))
            positions = self._positions(cut, len(tokens))
            words += positions.arguments(cut.first)
            words += positions.token_offsets(tokens[cut.first : cut.first + cut.plan.m])
        return np.array(words, np.uint32)

    def _positions(self, cut: _Cut, tokens: int) -> Positions:
        return Positions(self.image, cut.plan.m, cut.first, keys=tokens, piece=cut.plan.piece)

    def _cuts(self, tokens: int) -> tuple[list[_Cut], list[int]]:
        """Cut a text into blocks, as equal as can be; returns them with the places of their registers."""
        image = self.image
        piece = key_piece(
            image.spec, image.config, tokens, self.tiling, image.formats, wanted=min(FEW_ROWS, tokens)
        )  # fmt: skip
        blocks = cut_rows(image.spec, image.config, tokens, tokens, self.tiling, image.formats, piece)
        cuts, tables, first, at = [], [], 0, 0
        for number, rows in enumerate(blocks.sizes):
            slot = number % blocks.lanes
            plan = make_plan(
                image.spec, image.config, rows, tokens, self.tiling, image.formats, slot, blocks.lanes, piece=piece
            )  # fmt: skip
            cuts.append(_Cut(first, plan, slot))
            tables.append(at)
            at += round_up(4 * self._positions(cuts[-1], tokens).registers, _LINE)
            first += rows
        return cuts, tables
