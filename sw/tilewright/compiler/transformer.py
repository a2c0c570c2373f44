"""A transformer, block by block of its rows, out of the building blocks."""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.compiler.attention import AttentionBlock
from tilewright.compiler.embedding import EmbeddingBlock
from tilewright.compiler.feed_forward import FeedForwardBlock
from tilewright.compiler.head import HeadBlock
from tilewright_hw.arch.isa import LoadFormat


class TransformerBlock(EmbeddingBlock, AttentionBlock, FeedForwardBlock, HeadBlock):
    """One block of rows of any model that a `ModelSpec` describes."""

    def emit(self, results: str) -> Iterator[None]:
        """Emit the whole block of a causal model, phase by phase.

        results: 'none', 'last' or 'all' of its rows' logits (hidden rows where the model has no classifier), or
        'token': the index of the last row's largest logit.
        """
        if self.first_row == 0:
            self.load_table()
        self.embed()
        self.load_rotary_factors()
        for layer in range(self.spec.layers):
            yield from self.attention(layer)
            yield
            yield from self.feed_forward(layer)
            yield
        self._finish(results)

    def load_rotary_factors(self) -> None:
        """Load the factors of the block's positions."""
        if self.spec.rope_theta is None:
            return
        self.load(
            self.image.rope, self.at["rope_at"], 4 * self.spec.head_dim, self.plan.rope, self.m, self.image.rope_row,
            self.plan.head_words, LoadFormat.FP32, "rotary factors",
        )  # fmt: skip

    def _finish(self, results: str) -> None:
        if results == "none":
            return
        if not self.spec.classifier:
            self.hidden(*((0, self.m, self.first_row) if results == "all" else (self.m - 1, 1, 0)))
        elif results == "all":
            self.logits(0, self.m, self.first_row)
        elif results == "token":
            self.choose(self.m - 1, 1, 0)
        else:
            self.logits(self.m - 1, 1, 0)
