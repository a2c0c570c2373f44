"""A stand-alone softmax over rows of a stream."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw.gateware.layouts import vector_word

__all__ = ["Softmax", "row_word"]


def row_word(lanes):
    """Return the payload of a stream of rows.

    data: L floats. keep: which lanes of a row's last word belong to the row (ignored in other words). last: the row's
    last word.
    """
    return data.StructLayout({"data": vector_word(lanes), "keep": unsigned(lanes), "last": 1})


class Softmax(wiring.Component):
    """o = softmax of each row of i: p[k] = exp(x[k] - max x) / sum exp(x[j] - max x), as docs/numerics.md defines it.

    Parameters
    ----------
    lanes : int
        Floats per word.
    max_length : int
        Elements of the longest row.

    Members
    -------
    i : In(stream.Signature(row_word(lanes)))
        Rows.
    o : Out(stream.Signature(row_word(lanes)))
        Probabilities in the same packing; +0 in the lanes that do not belong to the row.
    """

    def __init__(self, *, lanes, max_length):
        self.lanes = lanes
        self.max_length = max_length
        super().__init__(
            {
                "i": In(stream.Signature(row_word(lanes))),
                "o": Out(stream.Signature(row_word(lanes))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        return m
