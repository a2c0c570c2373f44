"""MATMUL: the systolic array (docs/architecture.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilewright_sim.golden.state import Fault, Region

if TYPE_CHECKING:
    from tilewright_sim.golden.machine import Fields, Machine

EXACT_K = 1024
"""Products of int8 (at most 2^14 in magnitude) whose sum float32 holds exactly, whatever the order."""


def integer_product(a: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    """Return a (..., rows, K) times w (..., K, N), integers of int8 range, as int32 or as float32 that hold integers.

    Up to EXACT_K products float32 is exact; longer sums are cut there and added up in int32, which wraps.
    """
    k = a.shape[-1]
    if k <= EXACT_K:
        product: NDArray[Any] = np.matmul(a.astype(np.float32, copy=False), w.astype(np.float32, copy=False))
        return product
    total = 0
    for i in range(0, k, EXACT_K):
        x, y = a[..., i : i + EXACT_K], w[..., i : i + EXACT_K, :]
        total = total + np.matmul(x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)).astype(np.int32)
    return np.asarray(total)


class MatmulStep:
    """One MATMUL, its operands checked and its regions laid out; a call executes it.

    acc[g, n, row] (+)= sum over k of act[g, row, k] @ tile[g, n, k]
    """

    def __init__(self, machine: Machine, f: Fields) -> None:
        config = machine.config
        self.k, self.n, self.groups = f["k"], f["n"], f["groups"]
        self.parts = 1 + f["pair"]  # words, and rows of results, for each row
        self.rows = f["rows_outer"] * f["rows_inner"]
        self.accumulate = f["accumulate"]
        self.array = (config.rows, config.cols)
        self.fifo_name = "stream" if f["stream"] else "weight"
        loops = (
            (self.groups, f["act_group"]),
            (f["rows_outer"], f["act_outer"]),
            (f["rows_inner"], f["act_inner"]),
        )
        act = Region("act", f["act"], loops, self.k * self.parts)
        rows = self.rows * self.parts
        acc = Region(f"acc{f['bank']}", f["acc"], (), self.groups * self.n * rows)
        buffers = machine.buffers
        self.reads = [buffers.check(act, "the activations")]
        self.writes = [buffers.check(acc, "the result")]
        if self.accumulate:
            self.reads.append(acc)
        self.act = act.view(buffers.act)
        self.acc = acc.view(buffers.array(acc.name)).reshape(self.groups, self.n, rows, config.cols)

    def needs(self, region: Region) -> None:
        """Return which words of a source must be defined: all."""

    def first_source(self, machine: Machine) -> int | None:
        """Return the index of the instruction that pushed the first tile to be taken."""
        pieces = machine.fifos[self.fifo_name].pieces
        return pieces[0].source if pieces else None

    def __call__(self, machine: Machine) -> None:
        """Execute."""
        inputs, cols = self.array
        try:
            pieces = machine.fifos[self.fifo_name].pop(self.groups * self.n * self.k * inputs)
        except Fault as e:
            raise Fault(f"{self.fifo_name} FIFO: {e}") from e
        machine.taken = [(piece.source, piece.last) for piece in pieces]
        parts = [piece.weights() for piece in pieces]
        tiles = parts[0] if len(parts) == 1 else np.concatenate(parts)
        w = tiles.reshape(self.groups, self.n, self.k * inputs, cols)
        out = integer_product(self._activations()[:, None], w)
        if self.accumulate:
            self.acc += out.astype(np.int32)
        else:
            self.acc[...] = out

    def _activations(self) -> NDArray[np.float32]:
        """Return the rows (groups, rows, K); those of a pair follow each other."""
        a = self.act.astype(np.float32)
        if self.parts == 2:
            words = a.reshape(self.groups, self.rows, self.k, 2, self.array[0])
            a = words.transpose(0, 1, 3, 2, 4)
        return a.reshape(self.groups, self.rows * self.parts, -1)
