"""A small device under test for the harness: copies memory, with the accelerator's ports, and can break rules."""

from amaranth import Module, Mux, Signal
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import Out

from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.gateware.axi import AxiLite, AxiRead, AxiWrite, connect_flat, drive_address, flat
from tilewright_hw.gateware.registers import ControlRegisters

BURST = 16

FAULTS = (
    "ar_drops",
    "ar_changes",
    "w_drops",
    "w_changes",
    "wlast",
    "size",
    "combinational",
)


class CopyEngine(wiring.Component):
    """Copies PROGRAM bursts of 16 beats from BASE0 to BASE1, burst by burst; BASE2 is the write strobe."""

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            flat("m_axi_", AxiRead(data_bits=config.bus_bits))
            | flat("m_axi_", AxiWrite(data_bits=config.bus_bits))
            | flat("s_axil_", AxiLite(addr_bits=12).flip())
            | {"irq": Out(1)}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = regs = ControlRegisters(self.config)
        connect_flat(m, self, "s_axil_", regs.bus)
        m.submodules.words = words = fifo.SyncFIFOBuffered(width=self.config.bus_bits, depth=BURST)
        m.d.comb += self.irq.eq(regs.irq)
        self._left, self._offset = Signal(32), Signal(64)
        self._late = Signal(8)  # a free-running count, for the faults
        m.d.sync += self._late.eq(self._late + 1)
        m.d.comb += [
            *drive_address("ar", self._port("ar"), self.config.bus_bytes),
            *drive_address("aw", self._port("aw"), self.config.bus_bytes),
            self.m_axi_arlen.eq(BURST - 1),
            self.m_axi_awlen.eq(BURST - 1),
            self.m_axi_araddr.eq(regs.bases[0] + self._offset),
            self.m_axi_awaddr.eq(regs.bases[1] + self._offset),
            self.m_axi_wstrb.eq(regs.bases[2]),
            regs.busy.eq((self._left != 0) & ~regs.stop),
            words.w_data.eq(self.m_axi_rdata),
            words.w_en.eq(self.m_axi_rvalid & self.m_axi_rready),
            self.m_axi_wdata.eq(words.r_data),
            words.r_en.eq(self.m_axi_wvalid & self.m_axi_wready),
        ]
        with m.If(regs.start):
            m.d.sync += [self._left.eq(regs.program), self._offset.eq(0)]
        self._move(m, regs, words)
        self._break(m, regs)
        return m

    def _port(self, prefix):
        return type("Port", (), {n: getattr(self, f"m_axi_{n}") for n in self._names(prefix)})

    def _names(self, prefix):
        return [f"{prefix}{n}" for n in ("id", "size", "burst", "lock", "cache", "prot", "qos")]

    def _move(self, m, regs, words):
        beat = Signal(range(BURST))
        sent, bad = Signal(), Signal()
        with m.FSM():
            with m.State("ASK"), m.If(self._left != 0):
                m.d.comb += self.m_axi_arvalid.eq(1)
                with m.If(self.m_axi_arready):
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += self.m_axi_rready.eq(1)
                with m.If(self.m_axi_rvalid):
                    m.d.sync += regs.read_error.eq(regs.read_error | self.m_axi_rresp[1])
                    with m.If(self.m_axi_rlast):
                        m.d.sync += [sent.eq(0), beat.eq(0)]
                        m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += [
                    self.m_axi_awvalid.eq(~sent),
                    self.m_axi_wvalid.eq(words.r_rdy),
                    self.m_axi_wlast.eq(beat == BURST - 1),
                ]
                with m.If(self.m_axi_awready):
                    m.d.sync += sent.eq(1)
                with m.If(self.m_axi_wvalid & self.m_axi_wready):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(self.m_axi_wlast):
                        m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += self.m_axi_bready.eq(1)
                with m.If(self.m_axi_bvalid):
                    m.d.sync += bad.eq(self.m_axi_bresp[1] | regs.read_error)
                    m.d.sync += regs.write_error.eq(regs.write_error | self.m_axi_bresp[1])
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += [
                    self._left.eq(Mux(bad, 0, self._left - 1)),
                    self._offset.eq(self._offset + BURST * self.config.bus_bytes),
                ]
                m.d.comb += regs.finished.eq((self._left == 1) & ~bad)
                m.next = "ASK"

    def _break(self, m, regs):
        """Break the rule that BASE7 asks for: 1 is the first of FAULTS."""
        fault = {name: regs.bases[7][:8] == 1 + i for i, name in enumerate(FAULTS)}
        now = self._late[:3] == 0
        with m.If(fault["ar_drops"] & now):
            m.d.comb += self.m_axi_arvalid.eq(0)
        with m.If(fault["ar_changes"] & self._late[0]):
            m.d.comb += self.m_axi_araddr.eq(regs.bases[0])
        with m.If(fault["w_drops"] & now):
            m.d.comb += self.m_axi_wvalid.eq(0)
        with m.If(fault["w_changes"]):
            m.d.comb += self.m_axi_wstrb.eq(self._late)
        with m.If(fault["wlast"]):
            m.d.comb += self.m_axi_wlast.eq(0)
        with m.If(fault["size"]):
            m.d.comb += self.m_axi_arsize.eq(0)
        with m.If(fault["combinational"] & ~self.m_axi_rvalid):
            m.d.comb += self.m_axi_rready.eq(0)
