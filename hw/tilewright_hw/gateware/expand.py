"""int4 weights on their way into the weight FIFO: from nibbles and group scales to rows of int8."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tilewright_hw.gateware.checks import check_config
from tilewright_hw.gateware.layouts import tile_rows
from tilewright_hw.gateware.width import WidthConverter, beat

__all__ = ["EXPANSION", "NibbleExpander", "scaled"]

GROUP = 32
"""Inputs (weight rows) that share a scale."""
EXPANSION = 2
"""Beats of int8 rows that one beat of int4 becomes at most, on every configuration."""


def scaled(m, scale, nibble, name):
    """Return scale * nibble: unsigned times signed, of four bits each, as an int8.

    Two sums of two partial products and one more sum: a multiply operator would take a DSP.
    """
    low, high, product = (
        Signal(6, name=f"{name}_low"),
        Signal(signed(6), name=f"{name}_high"),
        Signal(signed(8), name=name),
    )
    m.d.comb += [
        low.eq(Mux(nibble[0], scale, 0) + (Mux(nibble[1], scale, 0) << 1)),
        high.eq(Mux(nibble[2], scale, 0) - (Mux(nibble[3], scale, 0) << 1)),
        product.eq(low + (high << 2)),
    ]
    return product


class NibbleExpander(wiring.Component):
    """Takes the beats of int4 weights and gives the int8 rows g * q (docs/architecture.md, Memory layout).

    A *unit* is S nibble rows: a bus word, or the words of one row where a row takes several. Each chunk of a run is a
    unit of scales, then up to 32 units of weights, S rows each; S divides 32, so that the rows of a unit share their
    scales. A run's last unit has S rows, or S/2 with the mark `half`: a tile is a multiple of the bus word, and so
    `rows` is a multiple of S/2.

    Flow control: `o` is taken without fail. A unit of scales takes a cycle, one of weights as many as it has `count`
    rows, or a cycle per beat where that is more.

    Latency: rows are on `o` the cycle after their beat is offered, one later where a unit has several beats.

    Number format: unsigned 4 bits times signed 4 bits, exact in int8.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator's parameters.
    count : int
        Rows given at a time: a power of two, at most S, that divides the rows of a tile.

    Members
    -------
    i : In(stream of beat(bus_bytes, 2))
        Beats; end bit 0 marks the last of a run, bit 1 says that a run's last unit is half full.
    o_valid : Out(1), o : Out(tile_rows(cols, count))
        Rows.
    surplus : Out
        Beats of room, out of two for every beat taken, that the unit taken in this cycle does not need.
    """

    def __init__(self, config, count):
        check_config(config)
        if count < 1 or config.nibble_rows % count or config.rows % count:
            raise ValueError(f"count must divide {config.nibble_rows} and {config.rows}, not {count!r}")
        self.config, self.count = config, count
        self.unit_rows = config.nibble_rows
        self.unit_beats = max(1, config.nibble_slot // config.bus_bytes)
        super().__init__(
            {
                "i": In(stream.Signature(beat(config.bus_bytes, 2))),
                "o_valid": Out(1),
                "o": Out(tile_rows(config.cols, count)),
                "surplus": Out(range(EXPANSION * self.unit_beats + 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        valid, taken, unit, end = self._units(m)
        place = Signal(range(GROUP + 1))  # 0: scales come; else the unit of weights, counted from 1
        is_scales = Signal()
        half = Signal()
        step, last_step = self._steps(m, half)
        width = 4 * self.config.cols
        per_group = GROUP // self.unit_rows  # units that share their scales
        rows = self._rows(unit)
        scales = Signal(self.unit_rows * width, reset_less=True)
        m.d.comb += [
            is_scales.eq(place == 0),
            half.eq(end[0] & end[1]),
            taken.eq(valid & (is_scales | last_step)),
        ]
        m.d.sync += self.o_valid.eq(valid & ~is_scales)
        with m.If(valid & ~is_scales):
            m.d.sync += step.eq(Mux(last_step, 0, step + 1))
            self._multiply(m, rows, step, scales[:width])
        with m.If(taken):
            m.d.sync += place.eq(Mux(end[0] | (place == GROUP), 0, place + 1))
            with m.If(is_scales):
                m.d.sync += scales.eq(Cat(rows))
            with m.Elif(place[: exact_log2(per_group)] == 0):
                m.d.sync += scales.eq(scales[width:])
        self._give_back(m, taken, is_scales, half)
        return m

    def _units(self, m):
        """Return whether a unit is offered, what takes it, its data and its marks."""
        taken = Signal()
        offered = self.i
        if self.unit_beats > 1:
            slot = self.config.nibble_slot
            m.submodules.gather = gather = WidthConverter(bus_bytes=self.config.bus_bytes, slot=slot, used=slot, ends=2)
            wiring.connect(m, wiring.flipped(self.i), gather.i)
            offered = gather.o
        m.d.comb += offered.ready.eq(taken)
        return offered.valid, taken, Cat(offered.p.data), offered.p.end

    def _rows(self, unit):
        """Return the nibble rows of a unit without their padding."""
        slot = 8 * self.config.nibble_slot
        return [unit[slot * r :][: 4 * self.config.cols] for r in range(self.unit_rows)]

    def _steps(self, m, half):
        """Count the steps in which a unit of weights is given; return the step and whether it is the last."""
        steps = self.unit_rows // self.count
        step = Signal(range(steps))
        last = Signal()
        if steps == 1:
            m.d.comb += last.eq(1)
        else:
            m.d.comb += last.eq(step == Mux(half, steps // 2 - 1, steps - 1))
        return step, last

    def _multiply(self, m, rows, step, scales):
        """Register the products of the rows whose turn it is."""
        now = Cat(rows).word_select(step, self.count * len(scales))
        for r in range(self.count):
            for c in range(self.config.cols):
                at = r * len(scales) + 4 * c
                product = scaled(m, scales[4 * c :][:4], now[at : at + 4], f"product_{r}_{c}")
                m.d.sync += self.o[r][c].eq(product)

    def _give_back(self, m, taken, scales, half):
        """Say how much of the room that was reserved for the unit taken its rows do not need."""
        reserved = EXPANSION * self.unit_beats
        room = self.unit_rows * self.config.col_slot // self.config.bus_bytes  # of the rows of a full unit
        with m.If(taken & scales):
            m.d.comb += self.surplus.eq(reserved)
        with m.Elif(taken):
            m.d.comb += self.surplus.eq(reserved - (Mux(half, room // 2, room) if self.unit_rows > 1 else room))
