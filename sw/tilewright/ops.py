"""Single operations on a device: each is tiled, compiled, loaded and run there.

An operation takes over the device's memory: do not use the device of a loaded model. `device` is an open device or the
name of one; None is the golden model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilewright.compiler.emit import Emitter, Region
from tilewright.compiler.gemm import Product
from tilewright.compiler.image import MAX_K
from tilewright.compiler.layout import MemoryMap, address, ceil_div, pack_activations, round_up
from tilewright.devices import open_device
from tilewright.formats import GROUP, bf16_field, f24, f24_bits
from tilewright.model import Floats
from tilewright.runtime import check_identity, run_program, set_bases
from tilewright_hw.arch import AcceleratorConfig, Device, InputError
from tilewright_hw.arch.isa import (
    BYTES,
    Add,
    Dest,
    Element,
    Func,
    LoadDest,
    Mul,
    Op,
    Reduce,
    Scale,
    Source,
    assemble,
)


def _device(device: Device | str | None) -> Device:
    return open_device(device or "golden") if device is None or isinstance(device, str) else device


def _run(device: Device, memory: MemoryMap, emitter: Emitter, contents: dict[str, NDArray[np.uint8]]) -> dict[str, int]:
    """Load a program behind the operands and run it; returns the counters."""
    emitter.control(Op.END)
    program = memory.add("program", BYTES * len(emitter.program))
    device.allocate(round_up(memory.size, 4096))
    check_identity(device)
    set_bases(device)
    for name, data in contents.items():
        device.write_memory(memory.regions[name].start, data.reshape(-1))
    device.write_memory(program.start, assemble(emitter.program))
    return run_program(device, program.start, 10_000_000 + 1000 * memory.size)


def _int8_matrix(x: ArrayLike, name: str) -> NDArray[np.int8]:
    array = np.asarray(x)
    if array.dtype != np.int8:
        raise InputError(f"matmul: {name} must be int8, not {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"matmul: {name} must be a matrix with at least one row and column, not of shape {array.shape}"
        )
    return array


def matmul(
    a: ArrayLike, b: ArrayLike, device: Device | str | None = None, *, group_scales: ArrayLike | None = None
) -> NDArray[np.int32]:
    """Return a @ b on the device: int8 (m, k) times int8 (k, n) into int32 (m, n), wrapping modulo 2**32.

    Parameters
    ----------
    a : int8 array (m, k)
        Rows.
    b : int8 array (k, n)
        Weights. k is at most 131,071.
    device : Device or str, optional
        An open device or the name of one; None: the golden model.
    group_scales : integer array (ceil(k / 32), n), optional
        b lies in memory in four bits: its values are -8 to 7, and those of 32 rows share one scale of 0 to 15 in each
        column. The product is that of a and scale * b. `tilewright.int4` makes both (transposed) of floats.

    Raises
    ------
    InputError
        Types, shapes or values do not fit.
    DeviceError
        The device stops.
    """
    return matmul_counted(a, b, device, group_scales=group_scales)[0]


def matmul_counted(
    a: ArrayLike, b: ArrayLike, device: Device | str | None = None, *, group_scales: ArrayLike | None = None
) -> tuple[NDArray[np.int32], dict[str, int]]:
    """Return `matmul` and the device's counters."""
    device, job, counters = _multiply(a, b, device, group_scales)
    raw = device.read_memory(job.result.start, job.result.size).view(np.int32)
    return raw.reshape(job.m, -1)[:, : job.n].copy(), counters


def matmul_quantised(
    a: ArrayLike, b: ArrayLike, device: Device | str | None = None, *, group_scales: ArrayLike | None = None
) -> tuple[NDArray[np.int8], Floats]:
    """Return the product of `matmul` quantised per row: int8 (m, n) and float32 scales (m,).

    The product is about q * scales[:, None]. A row's scale is its largest magnitude / 127 in F24, as docs/numerics.md
    defines QSCALE. InputError as for `matmul`, and if a row of the result does not fit a bank of accumulators;
    DeviceError if the device stops.
    """
    return matmul_quantised_counted(a, b, device, group_scales=group_scales)[:2]


def matmul_quantised_counted(
    a: ArrayLike, b: ArrayLike, device: Device | str | None = None, *, group_scales: ArrayLike | None = None
) -> tuple[NDArray[np.int8], Floats, dict[str, int]]:
    """Return `matmul_quantised` and the device's counters."""
    device, job, counters = _multiply(a, b, device, group_scales, quantise=True)
    assert job.scales is not None
    raw = device.read_memory(job.result.start, job.result.size).view(np.int8)
    scales = device.read_memory(job.scales.start, job.scales.size).view(np.float32)
    return raw.reshape(job.m, -1)[:, : job.n].copy(), scales.copy(), counters


def _multiply(
    a: ArrayLike, b: ArrayLike, device: Device | str | None, group_scales: ArrayLike | None, *, quantise: bool = False
) -> tuple[Device, Product, dict[str, int]]:
    """Check the operands and run their product."""
    left, right = _int8_matrix(a, "a"), _int8_matrix(b, "b")
    if left.shape[1] != right.shape[0]:
        raise InputError(f"matmul: a has {left.shape[1]} columns and b {right.shape[0]} rows: they must be equal")
    if left.shape[1] > MAX_K:
        raise InputError(f"matmul: k must be at most {MAX_K}, not {left.shape[1]}")
    groups = None if group_scales is None else _group_scales(group_scales, right)
    opened = _device(device)
    job = Product(
        opened.config, left.shape[0], left.shape[1], right.shape[1], quantise=quantise, int4=groups is not None
    )
    packed = job.pack(right.T, None if groups is None else groups.T)
    counters = _run(
        opened, job.memory, job.emit(), {"a": job.pad_rows(pack_activations(left, opened.config)), "b": packed}
    )
    return opened, job, counters


def _group_scales(x: ArrayLike, b: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Check the scales of a b in four bits, and b's own values."""
    scales, (k, n) = np.asarray(x), b.shape
    if scales.dtype.kind not in "iu":
        raise InputError(f"matmul: group_scales must be integers, not {scales.dtype}")
    if scales.shape != (ceil_div(k, GROUP), n):
        raise InputError(f"matmul: group_scales must have shape {(ceil_div(k, GROUP), n)}, not {scales.shape}")
    for name, values, low, high in (("group_scales", scales, 0, 15), ("b with group_scales", b, -8, 7)):
        bad = values[(values < low) | (values > high)]
        if bad.size:
            raise InputError(f"matmul: {name} must hold {low} to {high}, not {bad[0]}")
    return scales.astype(np.uint8)


def _float_rows(x: ArrayLike, name: str) -> tuple[Floats, tuple[int, ...]]:
    array = np.asarray(x)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: x must be numbers, not {array.dtype}")
    if array.ndim < 1 or array.size == 0:
        raise InputError(f"{name}: x must have at least one element in each dimension, not shape {array.shape}")
    rows = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, array.shape[-1])
    if not np.isfinite(rows).all():
        raise InputError(f"{name}: x must be finite; it holds NaN or infinity")
    if rows.shape[1] > 65535:
        raise InputError(f"{name}: a row must have at most 65535 elements, not {rows.shape[1]}")
    return f24(rows), array.shape


class _RowJob:
    """Runs VECTOR instructions over rows that are loaded into the row buffer, some at a time."""

    def __init__(self, config: AcceleratorConfig, rows: int, n: int, name: str) -> None:
        self.config, self.rows, self.n, self.name = config, rows, n, name
        self.memory = MemoryMap()
        self.words = ceil_div(n, config.lanes)
        if self.words > config.row_words:
            raise InputError(
                f"{name}: a row of {n} elements needs {self.words} words; the row buffer has {config.row_words}"
            )
        self.block = min(rows, config.row_words // self.words, config.stat_entries // 2)
        self.stride = round_up(4 * n, config.bus_bytes)
        self.x = self.memory.add("x", rows * self.stride)
        self.y = self.memory.add("y", rows * self.stride)
        self.constants = [Region("param", 0, config.param_words)]  # what each pass may read besides its rows
        self.e = Emitter()

    def emit(self, passes: Callable[[int], None]) -> None:
        """Emit load, the operation's passes, and store, for each block of rows."""
        for first in range(0, self.rows, self.block):
            m = min(self.block, self.rows - first)
            self.m = m
            self.row = Region("row", 0, m * self.words)
            self.e.emit(
                Op.LOAD, [self.x], [self.row], "rows", bytes=self.stride, count=m, stride=self.stride,
                dest=LoadDest.ROW, dst_stride=self.words, **address(self.x.start + first * self.stride),
            )  # fmt: skip
            passes(m)
            self.store(first, m)

    def store(self, first: int, m: int) -> None:
        """Emit the store of a block's results."""
        self.e.emit(
            Op.STORE, [], [self.y], "result", element=Element.FP32, n=self.n, m=m, h=1, run=self.n,
            stride_m=self.stride, **address(self.y.start + first * self.stride),
        )  # fmt: skip

    def vector(self, last: bool = False, stat: int | None = None, red: int | None = None, **operands: int) -> None:
        """Emit one pass in place (the last one into the store stream); stat/red: 0 or 1, an array of statistics."""
        half = self.config.stat_entries // 2
        reads, writes = [self.row], [] if last else [self.row]
        if stat is not None:
            reads.append(Region("stat", stat * half, self.m))
            operands |= {"stat": stat * half, "stat_m": 1}
        if red is not None:
            writes.append(Region("stat", red * half, self.m))
            operands |= {"red": red * half, "red_m": 1}
        self.e.emit(
            Op.VECTOR, [*reads, *self.constants], writes, self.name,
            **{
                "n": self.n, "m": self.m, "h": 1, "limit": 65535, "source": Source.ROW, "src_m": self.words,
                "dest": Dest.STORE_FP32 if last else Dest.ROW, "dst_m": self.words,
            } | operands,
        )  # fmt: skip

    def run(self, device: Device, x: Floats, shape: tuple[int, ...], **more: NDArray[np.uint8]) -> Floats:
        """Run and return the result in the caller's shape."""
        padded = np.zeros((self.rows, self.stride // 4), np.float32)
        padded[:, : self.n] = x
        _run(device, self.memory, self.e, {"x": padded.view(np.uint8), **more})
        raw = device.read_memory(self.y.start, self.y.size).view(np.float32).reshape(self.rows, -1)
        return raw[:, : self.n].reshape(shape).copy()


def softmax(x: ArrayLike, device: Device | str | None = None) -> Floats:
    """Return softmax over the last axis, float32 of x's shape (values are F24).

    InputError if x is not finite numbers or a row does not fit the row buffer; DeviceError if the device stops.
    """
    rows, shape = _float_rows(x, "softmax")
    opened = _device(device)
    job = _RowJob(opened.config, rows.shape[0], rows.shape[1], "softmax")

    def passes(_: int) -> None:
        job.vector(red=0, reduce=Reduce.MAX, scale=Scale.CONST, const1=f24_bits(float(np.log2(np.e))))
        job.vector(stat=0, red=1, add=Add.NEG_STAT_A, func=Func.EXP2, reduce=Reduce.EXPSUM)
        job.vector(last=True, stat=1, scale=Scale.STAT_A)

    job.emit(passes)
    return job.run(opened, rows, shape)


def rmsnorm(x: ArrayLike, weight: ArrayLike, eps: float = 1e-5, device: Device | str | None = None) -> Floats:
    """Return x / sqrt(mean(x**2) + eps) * weight over the last axis, float32 of x's shape.

    `weight` has the length of a row; eps is rounded to bfloat16. Errors as in `softmax`.
    """
    rows, shape = _float_rows(x, "rmsnorm")
    w, w_shape = _float_rows(weight, "rmsnorm: weight")
    if w_shape != (rows.shape[1],):
        raise InputError(f"rmsnorm: weight must have shape ({rows.shape[1]},), not {w_shape}")
    if not 0 <= eps < float("inf"):
        raise InputError(f"rmsnorm: eps must be a number from 0 on, not {eps!r}")
    opened = _device(device)
    n = rows.shape[1]
    job = _RowJob(opened.config, rows.shape[0], rows.shape[1], "rmsnorm")
    if job.words > opened.config.param_words:
        raise InputError(
            f"rmsnorm: {n} weights need {job.words} words; the parameter buffer has {opened.config.param_words}"
        )
    weights = job.memory.add("weight", round_up(4 * n, opened.config.bus_bytes))
    job.e.emit(
        Op.LOAD, [weights], [Region("param", 0, opened.config.param_words)], "weights", bytes=weights.size, count=1,
        dest=LoadDest.PARAM, **address(weights.start),
    )  # fmt: skip

    def passes(_: int) -> None:
        job.vector(red=0, reduce=Reduce.ABSMAX, dest=Dest.NONE)
        job.vector(stat=0, red=1, reduce=Reduce.SUMSQ, const1=f24_bits(1.0 / n), const2=bf16_field(eps), dest=Dest.NONE)
        job.vector(last=True, stat=1, scale=Scale.STAT_A, param=1)

    job.emit(passes)
    return job.run(opened, rows, shape, weight=w.view(np.uint8))


def _elementwise(x: ArrayLike, name: str, device: Device | str | None, **operands: int) -> Floats:
    rows, shape = _float_rows(x, name)
    opened = _device(device)
    job = _RowJob(opened.config, rows.shape[0], rows.shape[1], name)
    job.emit(lambda _: job.vector(last=True, **operands))
    return job.run(opened, rows, shape)


def silu(x: ArrayLike, device: Device | str | None = None) -> Floats:
    """Return x * sigmoid(x), float32 of x's shape. Errors as in `softmax`."""
    return _elementwise(x, "silu", device, func=Func.SIGMOID, mul=Mul.SELF)


def sigmoid(x: ArrayLike, device: Device | str | None = None) -> Floats:
    """Return 1 / (1 + exp(-x)), float32 of x's shape. Errors as in `softmax`."""
    return _elementwise(x, "sigmoid", device, func=Func.SIGMOID)


from tilewright.row_ops import argmax as argmax  # noqa: E402 - these stand on what is above
from tilewright.row_ops import gelu as gelu  # noqa: E402
from tilewright.row_ops import layernorm as layernorm  # noqa: E402
from tilewright.row_ops import table as table  # noqa: E402
