"""Decoding several sequences together: their rows share every weight tile, and each attends to its own cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tilewright.compiler.attention import AttentionBlock
from tilewright.compiler.emit import Region
from tilewright.compiler.image import ModelImage
from tilewright.compiler.plan import Plan
from tilewright.compiler.positions import Positions
from tilewright.compiler.schedule import Alias, Lane
from tilewright_hw.arch.isa import LoadFormat

MAX_BATCH = 8
"""Most rows of a batch: each needs its own sequencer registers."""


def row_positions(image: ModelImage, rows: int, piece: int | None = None) -> list[Positions]:
    """Return each row's operands, with its keys in parts of `piece`.

    Its registers follow those of the row before it; the tokens' come after all of them.
    """
    each = len(Positions.NAMES)
    return [Positions(image, 1, None, row * each, rows * each + row, piece=piece) for row in range(rows)]


class BatchedAttention(AttentionBlock):
    """A block whose rows are the next tokens of several sequences, each at a position of its own.

    What the rows share is emitted as for any block of m rows; what depends on a row's position or cache, by a block of
    that row alone, which is a part of this one.
    """

    def __init__(self, image: ModelImage, plan: Plan, positions: list[Positions], lane: Lane) -> None:
        super().__init__(image, plan, positions[0], lane)
        self.lane = lane
        self.rows = [AttentionBlock(image, _row(plan, i), at, lane) for i, at in enumerate(positions)]

    def load_rotary_factors(self) -> None:
        """Load the factors of each row's position."""
        for row in self.rows:
            row.load_rotary_factors()

    def load_positions(self, first: int, rows: int, into: Region) -> None:
        """Load the position embedding of each row's own position."""
        step = self.image.dim_row
        run = into.size - (rows - 1) * self.w_dim
        for i, row in enumerate(self.rows[first : first + rows]):
            self.load(
                self.image.positions, row.at["position_at"], step, into.part(i * self.w_dim, run), 1, 0, 0,
                LoadFormat.FP32, "position",
            )  # fmt: skip

    def attend_rows(self, layer: int) -> Iterator[None]:
        """Let the rows take turns, phase by phase: one row's tiles are on their way while another is in the softmax."""
        phases = [row.attend_rows(layer) for row in self.rows]
        while phases:
            going = []
            for i, phase in enumerate(phases):
                self.lane.aliases = self._aliases(i)
                if next(phase, _DONE) is not _DONE:
                    going.append(phase)
            phases = going
            self.lane.aliases = ()
            yield

    def _aliases(self, row: int) -> list[Alias]:
        """Tell the rows' caches apart, which only differ by a register."""
        whole = [Region(f"mem {region.start}", row, 1) for region in self.image.cache]
        return [Alias(region, w, w) for region, w in zip(self.image.cache, whole, strict=True)]


_DONE = object()


def _row(plan: Plan, row: int) -> Plan:
    """Return the plan of one row, whose places are parts of the batch's."""

    def part(region: Region, parts: int = plan.m, at: int = row) -> Region:
        size = region.size // parts
        return region.part(at * size, size)

    rest = plan.rope.size - (plan.m - 1) * plan.head_words if plan.rope.size else 0
    return replace(
        plan,
        m=1,
        qkv=part(plan.qkv),
        heads_out=part(plan.heads_out),
        act_q=part(plan.act_q),
        act_p=part(plan.act_p),
        rope=plan.rope.part(row * plan.head_words if rest else 0, rest),
        key_scales=part(plan.key_scales, 2, row % 2),
        value_scales=part(plan.value_scales, 2, row % 2),
        stats={name: part(region) for name, region in plan.stats.items()},
    )
