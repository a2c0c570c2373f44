"""The program of a Llama model: one block of rows through all layers.

A block is either m tokens at known positions (prefill) or one token whose position comes from registers (decode). The
same code emits both: what depends on the position is asked of a `Positions` object.
"""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.compiler.emit import Emitter
from tilewright.compiler.image import LOGIT_ROWS, ModelImage
from tilewright.compiler.layout import address
from tilewright.compiler.plan import Tiling, make_plans
from tilewright.compiler.positions import TOKEN_REGISTER, Positions
from tilewright.compiler.transformer import TransformerBlock
from tilewright_hw.arch import InputError
from tilewright_hw.arch.isa import Op, assemble


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
        """Return the program for m tokens from position `first` on; logits: 'none', 'last', 'all' rows, 'token'."""
        return self._block(first, m, first + m, logits)

    def decode(self, logits: str = "last") -> bytes:
        """Return the program for one token at the position that the argument block gives.

        logits: 'last', or 'token' for the index of the largest one instead (`ModelImage.token`).
        """
        return self._block(None, 1, self.image.spec.context, logits)

    def _block(self, first: int | None, m: int, t: int, logits: str) -> bytes:
        if logits == "all" and m > LOGIT_ROWS:
            raise InputError(f"a block with all logits has at most {LOGIT_ROWS} rows, not {m}")
        emitter = Emitter()
        emitter.control(Op.LDREGS, count=TOKEN_REGISTER + m, **address(self.image.arguments.start))
        plans = make_plans(self.image.spec, self.image.config, m, t, self.tiling, self.image.formats)
        row, phases = 0, []
        for plan in plans:
            positions = Positions(self.image, plan.m, None if first is None else first + row)
            block = TransformerBlock(self.image, plan, positions, emitter, row)
            last = row + plan.m == m
            phases.append(block.emit(logits if logits == "all" or last else "none"))
            row += plan.m
        take_turns(phases)
        emitter.control(Op.END)
        return assemble(emitter.program)


def take_turns(blocks: list[Iterator[None]]) -> None:
    """Advance each block by one phase in turn, until all are done."""
    while blocks:
        blocks = [b for b in blocks if next(b, _DONE) is not _DONE]


_DONE = object()
