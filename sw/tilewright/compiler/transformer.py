"""A transformer, block by block of its rows, out of the building blocks."""

from __future__ import annotations

from tilewright.compiler.attention import AttentionBlock
from tilewright.compiler.embedding import EmbeddingBlock
from tilewright.compiler.feed_forward import FeedForwardBlock
from tilewright.compiler.head import HeadBlock


class TransformerBlock(EmbeddingBlock, AttentionBlock, FeedForwardBlock, HeadBlock):
    """One block of rows of any model that a `ModelSpec` describes."""

    def emit(self, results: str) -> None:
        """Emit the whole block of a causal model.

        results: 'none', 'last' or 'all' of its rows' logits (hidden rows where the model has no classifier), or
        'token': the index of the largest logit of the last row, or, of a batch, of each.
        """
        self.e.part = "embedding"
        if self.first_row == 0:
            self.load_table()
        self.embed()
        self.load_rotary_factors()
        for layer in range(self.spec.layers):
            for _ in self.attention(layer):
                pass
            for _ in self.feed_forward(layer):
                pass
        self._finish(results)

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
