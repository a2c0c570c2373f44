"""MATMUL: the systolic array (docs/architecture.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilewright_sim.golden.state import Fault, Piece, Region

if TYPE_CHECKING:
    from tilewright_sim.golden.machine import Fields, Machine

EXACT_K = 1024
"""Products of int8 (at most 2^14 in magnitude) whose sum float32 holds exactly, whatever the order."""


def integer_product(a: NDArray[Any], w: NDArray[np.float32]) -> NDArray[Any]:
    """Return a (..., rows, K) times w (..., K, N), integers of int8 range, as int32 or as float32 that hold integers.

    Up to EXACT_K products float32 is exact; longer sums are cut there and added up in int32, which wraps.
    """
    x = a.astype(np.float32)
    k = x.shape[-1]
    if k <= EXACT_K:
        product: NDArray[Any] = np.matmul(x, w)
        return product
    total = np.zeros((*x.shape[:-1], w.shape[-1]), np.int32)
    for i in range(0, k, EXACT_K):
        part = np.matmul(x[..., i : i + EXACT_K], w[..., i : i + EXACT_K, :])
        total += part.astype(np.int32)
    return total


class MatmulStep:
    """One MATMUL, its operands checked and its regions laid out; a call executes it.

    acc[g, n, row] (+)= sum over k of act[g, row, k] @ tile[g, n, k]
    """

    def __init__(self, machine: Machine, f: Fields) -> None:
        config = machine.config
        self.k, self.n, self.groups = f["k"], f["n"], f["groups"]
        self.rows = f["rows_outer"] * f["rows_inner"]
        self.accumulate = f["accumulate"]
        self.slots = (config.rows, config.cols, config.col_slot)
        self.fifo_name = "stream" if f["stream"] else "weight"
        loops = (
            (self.groups, f["act_group"]),
            (f["rows_outer"], f["act_outer"]),
            (f["rows_inner"], f["act_inner"]),
        )
        act = Region("act", f["act"], loops, self.k)
        acc_words = self.groups * self.n * self.rows
        acc = Region(f"acc{f['bank']}", f["acc"], (), acc_words)
        buffers = machine.buffers
        self.reads = [buffers.check(act, "the activations")]
        self.writes = [buffers.check(acc, "the result")]
        if self.accumulate:
            self.reads.append(acc)
        self.act = act.view(buffers.act)
        self.acc = acc.view(buffers.array(acc.name)).reshape(self.groups, self.n, self.rows, config.cols)

    def needs(self, region: Region) -> None:
        """Return which words of a source must be defined: all."""

    def first_source(self, machine: Machine) -> int | None:
        """Return the index of the instruction that pushed the first tile to be taken."""
        pieces = machine.fifos[self.fifo_name].pieces
        return pieces[0].source if pieces else None

    def __call__(self, machine: Machine) -> None:
        """Execute."""
        fifo = machine.fifos[self.fifo_name]
        try:
            pieces = fifo.pop(self.groups * self.n * self.k * self.slots[0])
        except Fault as e:
            raise Fault(f"{self.fifo_name} FIFO: {e}") from e
        machine.taken = [(piece.source, piece.last) for piece in pieces]
        w = self._weights(machine, pieces)  # (groups, K, N)
        a = self.act.reshape(self.groups, self.rows, -1)
        out = integer_product(a, w).reshape(self.groups, self.rows, self.n, -1)
        out = out.transpose(0, 2, 1, 3)
        if self.accumulate:
            self.acc += out.astype(np.int32)
        else:
            self.acc[...] = out

    def _weights(self, machine: Machine, pieces: list[Piece]) -> NDArray[np.float32]:
        """Return the tiles as matrices (groups, K, N) of float32."""
        raw = machine.memory.bytes
        slot = self.slots[2]
        if len(pieces) == 1 and pieces[0].data is None:
            start, size = pieces[0].address, pieces[0].rows * slot
            data = raw[start : start + size].view(np.int8)
            if self.fifo_name == "stream":  # depends on data: not worth remembering
                return self._arrange(data)
            shape = (self.groups, self.n, self.k, *self.slots)
            return machine.memory.cached(start, size, shape, lambda: self._arrange(data))
        parts = [
            raw[p.address : p.address + p.rows * slot].view(np.int8).reshape(-1, slot) if p.data is None else p.data
            for p in pieces
        ]
        return self._arrange(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _arrange(self, data: NDArray[np.int8]) -> NDArray[np.float32]:
        rows, cols, slot = self.slots
        tiles = data.reshape(self.groups, self.n, self.k * rows, slot)[..., :cols]
        matrix = np.empty((self.groups, self.k * rows, self.n, cols), np.float32)
        matrix[...] = tiles.transpose(0, 2, 1, 3)
        return matrix.reshape(self.groups, self.k * rows, self.n * cols)
