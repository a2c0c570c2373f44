"""What the blocks that keep, delay or cut data do, as functions of NumPy arrays; those that compute are in `functions`.

Time is not in them: they say what comes out, and in which order.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilewright_hw.arch import InputError

__all__ = ["accumulators", "act_buffer", "skew", "stream_buffer", "stream_fifo", "tile_fifo", "width_converter"]


def stream_fifo(items: ArrayLike) -> NDArray[Any]:
    """Return the items (n, ...) in the order in which they came."""
    return np.array(items)


def stream_buffer(items: ArrayLike) -> NDArray[Any]:
    """Return the items (n, ...) in the order in which they came."""
    return np.array(items)


def skew(x: ArrayLike, step: int = 1) -> NDArray[Any]:
    """Return rows (n, count), one a cycle, with lane k late by k * step rows: (n + (count - 1) * step, count).

    0 stands where a lane holds nothing.
    """
    x, step = np.asarray(x), _integer("step", step)
    if x.ndim != 2 or not x.shape[1]:
        raise InputError(f"rows must be an array (n, count), not of shape {x.shape}")
    n, count = x.shape
    y = np.zeros((n + (count - 1) * step, count), x.dtype)
    for k in range(count):
        y[k * step : k * step + n, k] = x[:, k]
    return y


def width_converter(beats: ArrayLike, slot: int, used: int) -> NDArray[np.uint8]:
    """Return the first `used` bytes of each slot (n, used), from beats of bytes (m, bus_bytes); whole slots only."""
    beats, slot, used = _bytes(beats, "beats"), _integer("slot", slot), _integer("used", used)
    if slot % beats.shape[1] and beats.shape[1] % slot:
        raise InputError(f"slot must be a multiple or a divisor of {beats.shape[1]}, not {slot}")
    if used > slot:
        raise InputError(f"used must be at most the slot ({slot}), not {used}")
    data = beats.reshape(-1)
    return data[: data.size // slot * slot].reshape(-1, slot)[:, :used]


def tile_fifo(rows: ArrayLike, tile_rows: int) -> NDArray[np.int8]:
    """Return the whole tiles (n, tile_rows, cols) that rows of int8 (m, cols) make, in order."""
    rows, tile_rows = np.asarray(rows), _integer("tile_rows", tile_rows)
    if rows.dtype != np.int8 or rows.ndim != 2:
        raise InputError(f"rows must be int8 (n, cols), not {rows.dtype} of shape {rows.shape}")
    return rows[: len(rows) // tile_rows * tile_rows].reshape(-1, tile_rows, rows.shape[1])


def accumulators(
    sums: ArrayLike, bank: ArrayLike, addr: ArrayLike, overwrite: ArrayLike, *, depth: int
) -> NDArray[np.int32]:
    """Return both banks (2, depth, cols) after rows of sums (n, cols) were added one after the other, modulo 2^32.

    Row i goes to `addr[i]` of `bank[i]`, and takes the place of what is there if `overwrite[i]`. What was never written
    is 0 in the result; InputError where a row is added to it.
    """
    sums = np.asarray(sums)
    if sums.ndim != 2 or not np.issubdtype(sums.dtype, np.integer):
        raise InputError(f"sums must be integers (n, cols), not {sums.dtype} of shape {sums.shape}")
    y = np.zeros((2, _integer("depth", depth), sums.shape[1]), np.int64)
    written = np.zeros(y.shape[:2], bool)
    steps = zip(sums, np.asarray(bank), np.asarray(addr), np.asarray(overwrite), strict=True)
    for i, (row, b, a, over) in enumerate(steps):
        if not (b in (0, 1) and 0 <= a < y.shape[1]):
            raise InputError(f"row {i} goes to bank {b}, address {a}: there are 2 banks of {y.shape[1]}")
        if not over and not written[b, a]:
            raise InputError(f"row {i} is added to bank {b}, address {a}, which was not written")
        y[b, a] = row if over else y[b, a] + row
        written[b, a] = True
    return (y & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def act_buffer(writes: Iterable[tuple[int, int | None, ArrayLike]], *, words: int, rows: int) -> NDArray[np.int8]:
    """Return the buffer (words, rows) after writes (addr, part, data), one after the other; zero where there was none.

    With a part p, `data` takes the place of its elements p * len(data) and following; with None, of the whole word.
    """
    y = np.zeros((_integer("words", words), _integer("rows", rows)), np.int8)
    for addr, part, values in writes:
        data = np.asarray(values)
        start = (part or 0) * data.size
        fits = start + data.size <= rows if part is not None else data.size == rows
        if data.dtype != np.int8 or not 0 <= addr < words or not fits:
            raise InputError(f"a write must be int8 within {words} words of {rows}, not {data!r} at {addr}, {part}")
        y[addr, start : start + data.size] = data
    return y


def _integer(name: str, value: int) -> int:
    """Return a positive integer; InputError if it is none."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise InputError(f"{name} must be a positive integer, not {value!r}")
    return number


def _bytes(x: ArrayLike, name: str) -> NDArray[np.uint8]:
    made = np.asarray(x)
    if made.dtype != np.uint8 or made.ndim != 2 or not made.shape[1]:
        raise InputError(f"{name} must be uint8 (n, bytes), not {made.dtype} of shape {made.shape}")
    return made
