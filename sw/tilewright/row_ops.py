"""More operations on rows, beside those of `tilewright.ops`, under whose name they are public."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilewright import tables
from tilewright.compiler.emit import Region
from tilewright.compiler.layout import address, round_up
from tilewright.formats import bf16_field, f24_bits
from tilewright.model import Floats
from tilewright.ops import _device, _float_rows, _RowJob, _run
from tilewright_hw.arch import Device, InputError
from tilewright_hw.arch.isa import Add, Dest, Element, Func, LoadDest, Mul, Op, Reduce, Scale, Source

MAX_VAR = 32767
"""The longest row of LayerNorm."""


def table(x: ArrayLike, table: tables.Table, device: Device | str | None = None) -> Floats:
    """Return the function of a table (`tilewright.tables`) of each x, float32 of x's shape.

    InputError if x is not finite numbers or `table` is none; DeviceError if the device stops.
    """
    if not isinstance(table, tables.Table):
        raise InputError(f"table must be a tilewright.tables.Table, not {table!r}")
    return _with_table(x, table, table.name, device)


def gelu(x: ArrayLike, approximate: str = "none", device: Device | str | None = None) -> Floats:
    """Return x * Phi(x), or with `approximate` "tanh" the formula of GPT-2, float32 of x's shape."""
    if approximate not in ("none", "tanh"):
        raise InputError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")
    return _with_table(x, tables.gelu() if approximate == "none" else tables.gelu_tanh(), "gelu", device)


def _with_table(x: ArrayLike, used: tables.Table, name: str, device: Device | str | None) -> Floats:
    rows, shape = _float_rows(x, name)
    opened = _device(device)
    job = _RowJob(opened.config, rows.shape[0], rows.shape[1], name)
    memory = job.memory.add("table", used.data.size)
    space = Region("table", 0, tables.SEGMENTS)
    job.constants.append(space)
    job.e.emit(
        Op.LOAD, [memory], [space], "table", bytes=memory.size, count=1, dest=LoadDest.TABLE, dst=used.dst,
        **address(memory.start),
    )  # fmt: skip
    job.emit(lambda _: job.vector(last=True, func=Func.TABLE, mul=Mul.SELF if used.times_x else Mul.NONE))
    return job.run(opened, rows, shape, table=used.data)


def layernorm(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike, eps: float = 1e-5, device: Device | str | None = None
) -> Floats:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, float32 of x's shape.

    `weight` and `bias` have the length of a row; eps is rounded to bfloat16. Errors as in `softmax`.
    """
    rows, shape = _float_rows(x, "layernorm")
    n = rows.shape[1]
    parameters = [_parameter(values, name, n) for values, name in ((weight, "weight"), (bias, "bias"))]
    if not 0 <= eps < float("inf"):
        raise InputError(f"layernorm: eps must be a number from 0 on, not {eps!r}")
    if n > MAX_VAR:
        raise InputError(f"layernorm: a row must have at most {MAX_VAR} elements, not {n}")
    opened = _device(device)
    job = _RowJob(opened.config, rows.shape[0], n, "layernorm")
    if 2 * job.words > opened.config.param_words:
        raise InputError(
            f"layernorm: weight and bias of {n} elements need {2 * job.words} words; "
            f"the parameter buffer has {opened.config.param_words}"
        )
    stride = round_up(4 * n, opened.config.bus_bytes)
    memory = job.memory.add("parameters", 2 * stride)
    job.e.emit(
        Op.LOAD, [memory], [job.constants[0]], "weight, bias", bytes=stride, count=2, stride=stride,
        dest=LoadDest.PARAM, dst_stride=job.words, **address(memory.start),
    )  # fmt: skip

    def passes(_: int) -> None:
        job.vector(red=0, reduce=Reduce.ABSMAX, dest=Dest.NONE)
        job.vector(stat=0, red=1, reduce=Reduce.VAR, const1=f24_bits(1.0 / n), const2=bf16_field(eps), dest=Dest.NONE)
        job.vector(stat=1, scale=Scale.STAT_A, add=Add.STAT_B, mul=Mul.PARAM)
        job.vector(last=True, add=Add.PARAM, par=job.words)

    job.emit(passes)
    packed = np.zeros((2, stride // 4), np.float32)
    packed[:, :n] = parameters
    return job.run(opened, rows, shape, parameters=packed.view(np.uint8))


def _parameter(values: ArrayLike, name: str, n: int) -> Floats:
    row, shape = _float_rows(values, f"layernorm: {name}")
    if shape != (n,):
        raise InputError(f"layernorm: {name} must have shape ({n},), not {shape}")
    return row[0]


class _ArgmaxJob(_RowJob):
    """Rows whose result is one integer each."""

    def store(self, first: int, m: int) -> None:
        """Emit the store of a block's indices."""
        self.e.emit(
            Op.STORE, [], [self.y], "indices", element=Element.FP32, n=1, m=m, h=1, run=1, stride_m=4,
            **address(self.y.start + 4 * first),
        )  # fmt: skip


def argmax(x: ArrayLike, device: Device | str | None = None) -> NDArray[np.int64]:
    """Return the index of the first largest element over the last axis, x rounded to F24. Errors as in `softmax`."""
    rows, shape = _float_rows(x, "argmax")
    opened = _device(device)
    job = _ArgmaxJob(opened.config, rows.shape[0], rows.shape[1], "argmax")

    def passes(_: int) -> None:
        job.vector(red=0, reduce=Reduce.ARGMAX, dest=Dest.NONE)
        job.vector(last=True, stat=0, source=Source.STAT, n=1, dest=Dest.STORE_RAW)

    job.emit(passes)
    padded = np.zeros((job.rows, job.stride // 4), np.float32)
    padded[:, : job.n] = rows
    _run(opened, job.memory, job.e, {"x": padded.view(np.uint8)})
    raw = opened.read_memory(job.y.start, 4 * job.rows).view(np.uint32)
    return raw.astype(np.int64).reshape(shape[:-1])
