"""The accelerator: all units, wired together, behind flat AXI ports."""

from __future__ import annotations

from amaranth import Module
from amaranth.lib.wiring import Component, Out, connect

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.arch.isa import Unit
from tilewright_hw.gateware.axi import AxiLite, AxiRead, AxiWrite, connect_flat, flat
from tilewright_hw.gateware.buffers import ActBuffer
from tilewright_hw.gateware.checks import check_config
from tilewright_hw.gateware.matrix import MatrixUnit
from tilewright_hw.gateware.reader import MemoryReader
from tilewright_hw.gateware.registers import ControlRegisters
from tilewright_hw.gateware.sequencer import Sequencer
from tilewright_hw.gateware.store import StoreUnit
from tilewright_hw.gateware.vector import VectorUnit

__all__ = ["Accelerator"]


class Accelerator(Component):
    """A language-model accelerator (docs/architecture.md).

    The host writes base addresses and the program's address, then CONTROL; the accelerator reads
    its program and executes it, and raises `irq` at the end or on an error. One clock, one
    synchronous reset (`clk` and `rst` in Verilog).

    Flow control: AXI4 and AXI4-Lite. Data is read only where there is room for it, and writes wait for no read.

    Latency: the first read address is offered START_LATENCY cycles after the write of CONTROL was taken; the rest
    depends on program and memory, and the counters tell it. No output depends combinationally on an input.

    Number format: int8, int32 and F24 (docs/numerics.md).

    Parameters
    ----------
    config : AcceleratorConfig
        Its sizes.

    Members
    -------
    m_axi_* : AXI4 master
        Memory: `bus_bits` of data, 64-bit addresses, INCR bursts of at most `burst_beats` that do
        not cross 4 KiB; id 0 always.
    s_axil_* : AXI4-Lite slave
        Control registers (`arch/registers.py`), 12-bit addresses.
    irq : Out(1)
        Interrupt, a level: IRQ_STATUS & IRQ_ENABLE.
    """

    START_LATENCY = 6

    def __init__(self, config: AcceleratorConfig):
        self.config = check_config(config)
        super().__init__(
            flat("m_axi_", AxiRead(data_bits=config.bus_bits))
            | flat("m_axi_", AxiWrite(data_bits=config.bus_bits))
            | flat("s_axil_", AxiLite(addr_bits=12).flip())
            | {"irq": Out(1)}
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.registers = self._registers = ControlRegisters(config)
        m.submodules.sequencer = self._sequencer = Sequencer(config)
        m.submodules.reader = self._reader = MemoryReader(config)
        m.submodules.act = self._act = ActBuffer(config)
        m.submodules.matrix = self._matrix = MatrixUnit(config)
        m.submodules.vector = self._vector = VectorUnit(config)
        m.submodules.store = self._store = StoreUnit(config)
        connect_flat(m, self, "m_axi_", self._reader.axi)
        connect_flat(m, self, "m_axi_", self._store.axi)
        connect_flat(m, self, "s_axil_", self._registers.bus)
        m.d.comb += self.irq.eq(self._registers.irq)
        self._connect_control(m)
        self._connect_commands(m)
        self._connect_data(m)
        self._connect_events(m)
        return m

    def _connect_control(self, m):
        """Connect registers, sequencer and what they tell the memory units."""
        registers, sequencer = self._registers, self._sequencer
        m.d.comb += [
            sequencer.start.eq(registers.start),
            sequencer.program.eq(registers.program),
            sequencer.stop.eq(registers.stop),
            registers.busy.eq(sequencer.busy),
            registers.finished.eq(sequencer.finished),
            registers.error_code.eq(sequencer.error_code),
            registers.pc.eq(sequencer.pc),
            registers.read_error.eq(self._reader.error),
            registers.write_error.eq(self._store.error),
        ]
        for unit in (sequencer, self._reader, self._store):
            m.d.comb += [base.eq(value) for base, value in zip(unit.bases, registers.bases, strict=True)]

    def _connect_commands(self, m):
        """Connect fetches, commands and their completions."""
        sequencer, reader = self._sequencer, self._reader
        connect(m, sequencer.fetch, reader.fetch)
        connect(m, reader.o_fetch, sequencer.i_fetch)
        connect(m, sequencer.weight, reader.weight_cmd)
        connect(m, sequencer.load, reader.load_cmd)
        connect(m, sequencer.matrix, self._matrix.cmd)
        connect(m, sequencer.vector, self._vector.cmd)
        connect(m, sequencer.store, self._store.cmd)
        m.d.comb += [
            sequencer.done[Unit.WEIGHT].eq(reader.weight_done),
            sequencer.done[Unit.LOAD].eq(reader.load_done),
            sequencer.done[Unit.MATRIX].eq(self._matrix.done),
            sequencer.done[Unit.VECTOR].eq(self._vector.done),
            sequencer.done[Unit.STORE].eq(self._store.done),
        ]

    def _connect_data(self, m):
        """Connect the way of the data."""
        reader, act, matrix, vector = self._reader, self._act, self._matrix, self._vector
        connect(m, reader.o_weight, matrix.i_weight)
        connect(m, reader.o_stream, matrix.i_stream)
        connect(m, reader.o_act, act.i_load)
        connect(m, reader.o_row, vector.i_row)
        connect(m, reader.o_param, vector.i_param)
        connect(m, reader.o_table, vector.i_table)
        connect(m, vector.act, act.write)
        connect(m, vector.o_store, self._store.i_data)
        m.d.comb += [
            reader.weight_pop.eq(matrix.weight_pop),
            reader.stream_pop.eq(matrix.stream_pop),
            act.en.eq(matrix.act_en),
            act.addr.eq(matrix.act_addr),
            matrix.act_data.eq(act.data),
            matrix.acc_en.eq(vector.acc_en),
            matrix.acc_bank.eq(vector.acc_bank),
            matrix.acc_addr.eq(vector.acc_addr),
            vector.acc_data.eq(matrix.acc_data),
        ]

    def _connect_events(self, m):
        """Connect what the counters count."""
        sequencer, events = self._sequencer, self._registers.events
        waits = sequencer.wait_dependency & ~sequencer.held
        counted = {
            "read_beats": self._reader.beat,
            "write_beats": self._store.beat,
            "array_rows": self._matrix.row_valid,
            "instructions": sequencer.issued,
            "fetch_beats": self._reader.fetch_beat,
            **{f"{unit.name.lower()}_busy": sequencer.held[unit] for unit in Unit},
            "matrix_wait_dependency": waits[Unit.MATRIX],
            "matrix_wait_tile": self._matrix.wait_tile,
            "vector_wait_dependency": waits[Unit.VECTOR],
            "vector_wait_store": self._vector.wait_store,
            "read_idle": self._reader.idle,
        }
        assert counted.keys() == dict(events.shape()).keys()
        m.d.comb += [events[name].eq(event) for name, event in counted.items()]
