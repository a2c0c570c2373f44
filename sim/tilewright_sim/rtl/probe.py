"""The accelerator with a window into it: what its units begin, complete and wait for, on a port of its own."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Signal
from amaranth.lib import wiring

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.arch.isa import Unit
from tilewright_hw.arch.unit_log import WIDTH
from tilewright_hw.gateware.top import Accelerator


class ProbedAccelerator(Accelerator):
    """An accelerator, and what its sequencer's ports and its counters' events say in each cycle.

    Members
    -------
    The accelerator's, and:
    probe : Out(WIDTH)
        The bits of `tilewright_hw.arch.unit_log`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(config)
        self.probe = Signal(WIDTH)

    @property
    def signature(self) -> wiring.Signature:
        """The accelerator's ports, and the probe."""
        return wiring.Signature({**super().signature.members, "probe": wiring.Out(WIDTH)})

    def elaborate(self, platform: object) -> Module:
        """Add the probe inside the accelerator, where its units' ports are at hand."""
        m: Module = super().elaborate(platform)  # type: ignore[no-untyped-call]
        m.d.comb += self.probe.eq(self._bits())
        return m

    def _bits(self) -> Any:
        sequencer, events = self._sequencer, self._registers.events
        commands = [getattr(sequencer, unit.name.lower()) for unit in Unit]
        bits = Cat(
            sequencer.issued,
            Cat(command.valid & command.ready for command in commands),
            sequencer.done,
            sequencer.wait_dependency & ~sequencer.held,
            events.matrix_wait_tile,
            events.vector_wait_store,
            events.read_beats,
            events.fetch_beats,
            events.write_beats,
        )
        assert len(bits) == WIDTH
        return bits
