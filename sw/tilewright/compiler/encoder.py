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

from tilewright.compiler.emit import Emitter, Region, Value
from tilewright.compiler.image import ModelImage
from tilewright.compiler.layout import address, ceil_div, round_up
from tilewright.compiler.llama import take_turns
from tilewright.compiler.plan import Plan, Tiling, largest_block, make_plans
from tilewright.compiler.positions import TOKEN_REGISTER, Positions
from tilewright.compiler.transformer import TransformerBlock
from tilewright_hw.arch.isa import Dest, Element, LoadFormat, Op, assemble

_LINE = 64
"""LDREGS reads from a multiple of this."""


class EncoderBlock(TransformerBlock):
    """One block of rows of a text.

    `table` is where its registers lie in the arguments; `resident` says whether its rows stay in the buffers.
    """

    def __init__(
        self, image: ModelImage, plan: Plan, positions: Positions, emitter: Emitter, table: int, resident: bool
    ) -> None:
        super().__init__(image, plan, positions, emitter)
        self.table, self.resident = table, resident
        self.first = positions.first or 0

    def begin(self) -> Iterator[None]:
        """Emit the first stage."""
        registers = address(self.image.arguments.start + self.table)
        self.e.control(Op.LDREGS, count=TOKEN_REGISTER + self.m, **registers)
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
            self.normalise(f"layers.{layer}.attn_norm")
        yield
        yield from self.keys_values(layer)
        if not self.resident:
            self._spill()

    def _spill(self) -> None:
        """Rows to memory."""
        x, at = self.plan.x, self._memory.start
        self.vector([x], [], comment="rows to memory", **self.x_rows(), dest=Dest.STORE_FP32)
        self.e.emit(
            Op.STORE, [], [self._memory], "rows", element=Element.FP32, n=self.spec.dim, m=self.m, h=1,
            run=self.spec.dim, stride_m=self.image.dim_row, **address(at),
        )  # fmt: skip

    def _fetch(self, layer: int) -> None:
        """Rows from memory, quantised as they were before."""
        row = self.image.dim_row
        self.load(self._memory, Value(0), row, self.plan.x, self.m, row, self.w_dim, LoadFormat.FP32, "rows")
        self.load_rotary_factors()
        if self.spec.norm_after:
            self.quantise_x()
        else:
            self.absmax()
            self.normalise(f"layers.{layer}.attn_norm")

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
        emitter = Emitter()
        cuts, tables = self._cuts(tokens)
        slots = 1 + max(cut.slot for cut in cuts)
        blocks = [
            EncoderBlock(
                self.image, cut.plan, Positions(self.image, cut.plan.m, cut.first, tokens), emitter, table,
                resident=len(cuts) == slots,
            )
            for cut, table in zip(cuts, tables, strict=True)
        ]  # fmt: skip
        blocks[0].load_table()
        lanes = [[b for b, cut in zip(blocks, cuts, strict=True) if cut.slot == slot] for slot in range(slots)]
        for layer in (None, *range(self.image.spec.layers)):
            take_turns([_chain(lane, layer) for lane in lanes])
        emitter.control(Op.END)
        return assemble(emitter.program)

    def arguments(self, tokens: Sequence[int]) -> NDArray[np.uint32]:
        """Return the argument block of a text: each block's registers, which hold its tokens."""
        offsets = np.array(tokens, np.uint32) * np.uint32(self.image.embedding_row)
        cuts, tables = self._cuts(len(tokens))
        words = np.zeros(tables[-1] // 4 + TOKEN_REGISTER + len(tokens), np.uint32)
        for cut, table in zip(cuts, tables, strict=True):
            at = table // 4 + TOKEN_REGISTER
            words[at : at + cut.plan.m] = offsets[cut.first : cut.first + cut.plan.m]
        return words

    def _cuts(self, tokens: int) -> tuple[list[_Cut], list[int]]:
        """Cut a text into blocks, as equal as can be; returns them with the places of their registers."""
        spec, config, formats = self.image.spec, self.image.config, self.image.formats
        most = largest_block(spec, config, tokens, self.tiling, formats)
        rounds = ceil_div(tokens, most)
        cuts, tables, first, at = [], [], 0, 0
        for i in range(rounds):
            rows = (tokens - first) // (rounds - i)
            plans = make_plans(spec, config, rows, tokens, self.tiling, formats)
            for slot, plan in enumerate(plans):
                cuts.append(_Cut(first, plan, slot))
                tables.append(at)
                at += round_up(4 * (TOKEN_REGISTER + plan.m), _LINE)
                first += plan.m
        return cuts, tables


def _chain(blocks: Sequence[EncoderBlock], layer: int | None) -> Iterator[None]:
    """Emit a stage of blocks that share a part of the buffers, one after another."""
    for block in blocks:
        yield from block.begin() if layer is None else block.layer(layer)
        yield
