"""The control registers: an AXI4-Lite slave over the register map of `arch/registers.py`."""

from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.arch.isa import BASES
from tilewright_hw.arch.registers import COUNTERS, IDENTITY, REGISTERS, VERSION, ErrorCode
from tilewright_hw.gateware.axi import AxiLite, Response
from tilewright_hw.gateware.checks import check_config

__all__ = ["EVENTS", "ControlRegisters"]

ADDRESS_BITS = 12
GROUP = 8
"""Registers that a read chooses from in its first cycle."""

EVENTS = data.StructLayout({name.lower(): 1 for name, _ in COUNTERS if name != "CYCLES"})
"""What is counted, one bit per counter; a bit that is set counts the cycle."""


class ControlRegisters(wiring.Component):
    """Identity, start and status, errors, interrupts, base addresses and counters.

    Known addresses answer OKAY; unknown ones and writes to read-only registers answer SLVERR, and
    such reads give 0. AW and W may come in any order. A write takes effect one cycle before bvalid.

    Flow control: AXI4-Lite; one write and one read are handled at a time. All else is rigid.

    Latency: a write's response follows WRITE_LATENCY cycles after its address and data were taken, a read's
    READ_LATENCY after its address. No output depends combinationally on an input.

    Number format: 32 bits (docs/registers.md); 64-bit addresses in two registers, the low half first.

    `start` pulses when 1 is written to CONTROL and neither a program runs nor an error stands. It
    clears done and the counters, which then count while `busy`.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator: what SHAPE and the CAPACITY registers say.

    Members
    -------
    bus : In(AxiLite)
        The registers. Protection bits are ignored.
    start : Out(1), program : Out(64), bases : Out(64).array(8)
        To the sequencer and the memory units.
    busy : In(1), finished : In(1)
        From the sequencer: a program runs; it has ended (pulse).
    error_code : In(8), pc : In(32)
        The sequencer's error, until reset, and the instruction it is at.
    read_error : In(1), write_error : In(1)
        A memory unit saw an error response, until reset.
    stop : Out(1)
        An error stands: issue nothing more.
    events : In(EVENTS)
        What the counters count.
    irq : Out(1)
        An enabled interrupt is pending.
    """

    WRITE_LATENCY = 2
    READ_LATENCY = 3

    def __init__(self, config: AcceleratorConfig):
        self.config = check_config(config)
        super().__init__(
            {
                "bus": In(AxiLite(addr_bits=ADDRESS_BITS)),
                "start": Out(1),
                "program": Out(64),
                "bases": Out(64).array(BASES),
                "busy": In(1),
                "finished": In(1),
                "error_code": In(8),
                "pc": In(32),
                "read_error": In(1),
                "write_error": In(1),
                "stop": Out(1),
                "events": In(EVENTS),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self._write = Signal()  # a write takes effect
        self._write_addr = Signal(ADDRESS_BITS)
        self._write_data = Signal(32)
        self._write_strobe = Signal(4)
        self._done = Signal()
        self._error = Signal(8)
        self._error_pc = Signal(32)
        self._irq_enable = Signal(2)
        self._irq_status = Signal(2)
        self._status(m)
        self._settings(m)
        counters = self._counters(m)
        self._write_channel(m)
        self._read_channel(m, self._values(counters))
        return m

    def _written(self, name):
        """Return whether the register is being written."""
        return self._write & (self._write_addr[2:] == REGISTERS[name].address >> 2)

    def _store(self, m, name, target):
        """Let a write set a register of up to 32 bits, byte by byte."""
        with m.If(self._written(name)):
            for i in range(0, len(target), 8):
                with m.If(self._write_strobe[i // 8]):
                    m.d.sync += target[i : i + 8].eq(self._write_data[i : i + 8])

    def _settings(self, m):
        """Add the registers that the host sets."""
        self._store(m, "IRQ_ENABLE", self._irq_enable)
        self._store(m, "PROGRAM_LO", self.program[:32])
        self._store(m, "PROGRAM_HI", self.program[32:])
        for i, base in enumerate(self.bases):
            self._store(m, f"BASE{i}_LO", base[:32])
            self._store(m, f"BASE{i}_HI", base[32:])

    def _status(self, m):
        """Add start, done, the error that was seen first, and the interrupt."""
        failed = Signal(8)
        idle = ~self.busy & ~self.start & (self._error == ErrorCode.NONE)
        low_byte = self._write_strobe[0]
        m.d.comb += [
            self.stop.eq(self.read_error | self.write_error),
            self.irq.eq((self._irq_status & self._irq_enable).any()),
        ]
        m.d.sync += self.start.eq(self._written("CONTROL") & low_byte & self._write_data[0] & idle)
        with m.If(self._written("IRQ_STATUS") & low_byte):
            m.d.sync += self._irq_status.eq(self._irq_status & ~self._write_data[:2])
        with m.If(self.error_code != ErrorCode.NONE):
            m.d.comb += failed.eq(self.error_code)
        with m.Elif(self.read_error):
            m.d.comb += failed.eq(ErrorCode.READ_RESPONSE)
        with m.Elif(self.write_error):
            m.d.comb += failed.eq(ErrorCode.WRITE_RESPONSE)
        with m.If((failed != ErrorCode.NONE) & (self._error == ErrorCode.NONE)):
            m.d.sync += [
                self._error.eq(failed),
                self._error_pc.eq(self.pc),
                self._irq_status[1].eq(1),
            ]
        with m.If(self.finished):
            m.d.sync += [self._done.eq(1), self._irq_status[0].eq(1)]
        with m.If(self.start):
            m.d.sync += self._done.eq(0)

    def _counters(self, m):
        """Add one 32-bit counter per event; the events pass a register first, to keep paths short."""
        counters = {"CYCLES": (Signal(32, name="count_cycles"), self.busy)}
        for name, _ in COUNTERS:
            if name != "CYCLES":
                event = Signal(name=f"event_{name.lower()}")
                m.d.sync += event.eq(self.events[name.lower()] & self.busy & ~self.start)
                counters[name] = (Signal(32, name=f"count_{name.lower()}"), event)
        with m.If(self.start):
            m.d.sync += [counter.eq(0) for counter, _ in counters.values()]
        with m.Else():
            for counter, event in counters.values():
                with m.If(event):
                    m.d.sync += counter.eq(counter + 1)
        return {name: counter for name, (counter, _) in counters.items()}

    def _values(self, counters):
        """Return what each register reads."""
        c = self.config
        sizes = (c.acc_rows, c.act_words, c.row_words, c.param_words)
        values = {
            "IDENTITY": Const(IDENTITY, 32),
            "VERSION": Const(VERSION, 32),
            "SHAPE": Const(c.rows | c.cols << 8 | c.lanes << 16 | c.bus_bytes << 24, 32),
            "CAPACITY": Const(sum(exact_log2(n) << 8 * i for i, n in enumerate(sizes)), 32),
            "CAPACITY2": Const(exact_log2(c.stat_entries) | c.ingest << 8, 32),
            "CONTROL": Const(0, 32),
            "STATUS": Cat(self.busy, self._done, self._error != ErrorCode.NONE),
            "ERROR": self._error,
            "ERROR_PC": self._error_pc,
            "IRQ_ENABLE": self._irq_enable,
            "IRQ_STATUS": self._irq_status,
            "PROGRAM_LO": self.program[:32],
            "PROGRAM_HI": self.program[32:],
        }
        for i, base in enumerate(self.bases):
            values |= {f"BASE{i}_LO": base[:32], f"BASE{i}_HI": base[32:]}
        values |= {f"COUNT_{name}": counter for name, counter in counters.items()}
        assert values.keys() == REGISTERS.keys()
        return values

    def _write_channel(self, m):
        """Hold an address and a word until both are there; answer one cycle after they took effect."""
        bus = self.bus
        has_addr = Signal()
        has_data = Signal()
        writable = Signal()
        m.d.comb += [
            bus.awready.eq(~has_addr),
            bus.wready.eq(~has_data),
            self._write.eq(has_addr & has_data & ~bus.bvalid),
        ]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [has_addr.eq(1), self._write_addr.eq(bus.awaddr)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [
                has_data.eq(1),
                self._write_data.eq(bus.wdata),
                self._write_strobe.eq(bus.wstrb),
            ]
        with m.Switch(self._write_addr[2:]):
            for register in REGISTERS.values():
                if register.access != "ro":
                    with m.Case(register.address >> 2):
                        m.d.comb += writable.eq(1)
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(self._write):
            m.d.sync += [
                has_addr.eq(0),
                has_data.eq(0),
                bus.bvalid.eq(1),
                bus.bresp.eq(Mux(writable, Response.OKAY, Response.SLVERR)),
            ]

    def _read_channel(self, m, values):
        """Hold an address; choose within every group of registers in one cycle, and among the groups in the next."""
        bus = self.bus
        has_addr = Signal()
        chosen = Signal()
        addr = Signal(ADDRESS_BITS)
        m.d.comb += bus.arready.eq(~has_addr)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [has_addr.eq(1), addr.eq(bus.araddr)]
        m.d.sync += chosen.eq(has_addr)
        with m.If(has_addr):
            groups = self._groups(m, addr[2:][: exact_log2(GROUP)], values)
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(has_addr & chosen & ~bus.rvalid):
            m.d.sync += [
                has_addr.eq(0),
                bus.rvalid.eq(1),
                bus.rdata.eq(0),
                bus.rresp.eq(Response.SLVERR),
            ]
            with m.Switch(addr[2:] // GROUP):
                for group, (value, known) in groups.items():
                    with m.Case(group):
                        m.d.sync += [bus.rdata.eq(value), bus.rresp.eq(Mux(known, Response.OKAY, Response.SLVERR))]

    def _groups(self, m, place, values):
        """Return, per group, registers with the value at a place of it, and whether there is a register."""
        groups = {}
        for name, value in values.items():
            group, index = divmod(REGISTERS[name].address >> 2, GROUP)
            if group not in groups:
                groups[group] = Signal(32, name=f"group_{group}"), Signal(name=f"group_{group}_known")
                m.d.sync += [part.eq(0) for part in groups[group]]
            chosen, known = groups[group]
            with m.If(place == index):
                m.d.sync += [chosen.eq(value), known.eq(1)]
        return groups
