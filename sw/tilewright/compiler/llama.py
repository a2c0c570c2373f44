"""The program of a causal model: blocks of rows through all layers.

A block is either m tokens at known positions (prefill) or one token whose position comes from registers (decode). The
same code emits both: what depends on the position is asked of a `Positions` object.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tilewright.compiler.batch import MAX_BATCH, BatchedAttention, row_positions
from tilewright.compiler.emit import Region
from tilewright.compiler.image import LOGIT_ROWS, PROGRAM_BYTES, ModelImage
from tilewright.compiler.layout import address, ceil_div, round_up
from tilewright.compiler.plan import FEW_ROWS, Blocks, Plan, Tiling, cut_rows, key_piece, make_plan
from tilewright.compiler.positions import Positions
from tilewright.compiler.schedule import Alias, Lane, Schedule, merge
from tilewright.compiler.transformer import TransformerBlock
from tilewright_hw.arch import InputError
from tilewright_hw.arch.isa import BYTES, Op

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
        self._pieces: dict[int, int] = {}

    @cached_property
    def piece(self) -> int:
        """Keys that a decode program scores at a time; InputError if no token fits the whole context."""
        image = self.image
        return key_piece(image.spec, image.config, image.spec.context, self.tiling, image.formats)

    def parts(self, keys: int) -> int:
        """Return in how many parts a decode program scores so many keys: it serves all with as many."""
        return ceil_div(keys, self.piece)

    def prefill(self, first: int, m: int, logits: str = "last") -> bytes:
        """Return the program for m tokens from position `first` on; logits: 'none', 'last', 'all' rows, 'token'."""
        return self.schedule(first, m, logits).assemble()

    def schedule(self, first: int, m: int, logits: str = "last") -> Schedule:
        """Return the program of `prefill` before it is assembled."""
        if logits == "all" and m > LOGIT_ROWS:
            raise InputError(f"a block with all logits has at most {LOGIT_ROWS} rows, not {m}")
        image, piece = self.image, self._piece(first + m)
        blocks = self._blocks(first, m)
        lanes = [Lane() for _ in range(blocks.lanes)]
        row, table = 0, image.arguments.start
        for number, positions in enumerate(self._positions(first, m)):
            at = number % blocks.lanes
            lane = lanes[at]
            plan = make_plan(
                image.spec, image.config, positions.m, first + m, self.tiling, image.formats, at, blocks.lanes,
                piece=piece,
            )  # fmt: skip
            lane.block, lane.aliases = number, _aliases(positions)
            lane.control(Op.LDREGS, count=positions.registers, **address(table))
            table += 4 * round_up(positions.registers, TABLE_ALIGN)
            block = TransformerBlock(image, plan, positions, lane, row)
            last = row + plan.m == m
            block.emit(logits if logits == "all" or last else "none")
            row += plan.m
        return merge(lanes, image.config)

    def decode(self, rows: int = 1, logits: str = "all", keys: int | None = None) -> bytes:
        """Return the program for the next token of each of some sequences: which, and where, the argument block says.

        The logits of each are stored, or, if `logits` is 'token', the index of the largest one (`ModelImage.token`).
        Each token and those before it must be as many `parts` as `keys` (None: the whole context) are. InputError if
        so many rows do not fit the configuration.
        """
        return self.decode_schedule(rows, logits, keys).assemble()

    def decode_schedule(self, rows: int = 1, logits: str = "all", keys: int | None = None) -> Schedule:
        """Return the program of `decode` before it is assembled."""
        image = self.image
        plan = self._decode_plan(rows, keys)
        lane = Lane()
        positions = row_positions(image, rows, self.piece)
        lane.control(Op.LDREGS, count=positions[-1].registers, **address(image.arguments.start))
        if rows == 1:
            TransformerBlock(image, plan, positions[0], lane).emit(logits)
        else:
            BatchBlock(image, plan, positions, lane).emit(logits)
        return merge([lane], image.config)

    def _decode_plan(self, rows: int, keys: int | None = None) -> Plan:
        image = self.image
        context = image.spec.context
        t = min(self.parts(keys or context) * self.piece, context)
        return make_plan(
            image.spec, image.config, rows, t, self.tiling, image.formats, attending=1, piece=self.piece
        )  # fmt: skip

    def decode_arguments(self, rows: Sequence[tuple[int, int, int]]) -> NDArray[np.uint32]:
        """Return the argument block of a decode program; each row is (sequence, position, token)."""
        places = row_positions(self.image, len(rows), self.piece)
        words = []
        for place, (sequence, position, _) in zip(places, rows, strict=True):
            words += place.arguments(position, sequence)
        return np.array(words + places[0].token_offsets([token for _, _, token in rows]), np.uint32)

    def largest_batch(self) -> int:
        """Return how many sequences one decode program can serve."""

        def fits(rows: int) -> bool:
            try:
                self._decode_plan(rows)
            except InputError:
                return False
            return True

        return next(rows for rows in range(min(self.image.sequences, MAX_BATCH), 0, -1) if rows == 1 or fits(rows))

    def prefill_rows(self, first: int, tokens: int, logits: str = "last") -> int:
        """Return how many of so many tokens from position `first` on the next program should take.

        Long programs waste least, but must fit their place, and their rows lie in one part of the keys.
        """
        m = min(tokens, LOGIT_ROWS if logits == "all" else MAX_ROWS)
        while (piece := self._piece(first + m)) - first % piece < m:
            m = piece - first % piece
        while m > 1:
            blocks = self._blocks(first, m)
            *_, last = self._positions(first, m)
            lane = Lane()
            image = self.image
            plan = make_plan(
                image.spec, image.config, last.m, first + m, self.tiling, image.formats, 0, blocks.lanes, piece=piece
            )  # fmt: skip
            TransformerBlock(image, plan, last, lane).emit(logits)
            instructions = (len(lane.drafts) + 1) * len(blocks.sizes) + 1
            if BYTES * instructions <= PROGRAM_BYTES:
                break
            m -= ceil_div(m, 8)
        return m

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
        piece = self._piece(first + m)
        return [Positions(self.image, size, at, piece=piece) for size, at in zip(sizes, starts, strict=True)]

    def _blocks(self, first: int, m: int) -> Blocks:
        image, t = self.image, first + m
        return cut_rows(image.spec, image.config, m, t, self.tiling, image.formats, self._piece(t))

    def _piece(self, t: int) -> int:
        """Return how many keys a prefill program with up to t of them scores at a time."""
        image = self.image
        # The same for all up to a power of two, so that few plans are made.
        bound = min(1 << (t - 1).bit_length(), image.spec.context)
        if bound not in self._pieces:
            self._pieces[bound] = key_piece(
                image.spec, image.config, bound, self.tiling, image.formats, wanted=min(FEW_ROWS, bound)
            )  # fmt: skip
        return self._pieces[bound]


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


class BatchBlock(BatchedAttention, TransformerBlock):
    """The next tokens of several sequences."""
