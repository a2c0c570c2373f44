"""A block at the Python prompt: poke its ports, tick its clock, look, write waves.

    >>> from tilewright_hw import StreamFifo
    >>> from tilewright_sim.interactive import open_block
    >>> fifo = open_block(StreamFifo(8, depth=4))  # doctest: +SKIP
    >>> fifo.poke("i_payload", 42)
    ... fifo.poke("i_valid", 1)  # doctest: +SKIP
    >>> fifo.tick(2)  # doctest: +SKIP
    >>> fifo.peek("o_payload")  # doctest: +SKIP
    42

Needs the extra `interactive` (PyVerilator), besides `rtl`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tilewright_hw.arch import InputError

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

    from tilewright_sim.interactive.simulator import BlockSimulator

__all__ = ["open_block"]


def open_block(component: Component, *, on_progress: Callable[[str], None] | None = None) -> BlockSimulator:
    """Return a simulation of a component, of Tilewright or of your own, as a PyVerilator object.

    The component becomes Verilog with plain ports (`tilewright_hw.generate.plain_ports`: `i.valid` is `i_valid`, a
    payload is one vector), which Verilator turns into a library. That takes half a minute for a small block, and is
    kept in the cache: the next time only the component is elaborated. All inputs begin at 0, all registers at their
    initial values.

    Parameters
    ----------
    component : Component
        Any `amaranth.lib.wiring.Component` in the domain `sync`.
    on_progress : callable, optional
        Told in a few words what is being done.

    Returns
    -------
    BlockSimulator
        A `pyverilator.PyVerilator` with `poke`, `peek`, `tick`, `reset` and `dump`, which know the ports' shapes.

    Raises
    ------
    TypeError
        It is not a component.
    InputError
        PyVerilator or Amaranth is not installed, or two ports would have the same name.
    ToolchainError
        Verilator or the C++ compiler is missing, or refuses the design.
    """
    try:
        from amaranth.lib.wiring import Component
    except ImportError as e:
        raise InputError("a block needs Amaranth: run `pip install 'tilewright[rtl,interactive]'`") from e
    if not isinstance(component, Component):
        raise TypeError(f"component must be an amaranth.lib.wiring.Component, not {component!r}")
    from tilewright_sim.interactive.build import build_block
    from tilewright_sim.interactive.ports import ports_of
    from tilewright_sim.interactive.simulator import BlockSimulator

    ports = ports_of(component)
    library = build_block(component, on_progress=on_progress)
    return BlockSimulator(str(library), type(component).__name__, ports)
