"""`BlockSimulator`: PyVerilator's object, with ports that know their shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tilewright_hw.arch import InputError
from tilewright_sim.interactive.compatibility import import_pyverilator
from tilewright_sim.interactive.ports import Port

__all__ = ["BlockSimulator"]

_PyVerilator: Any = import_pyverilator().PyVerilator


class BlockSimulator(_PyVerilator):  # type: ignore[misc]
    """A block in simulation.

    It is a `pyverilator.PyVerilator`, so `sim.io.i_valid = 1`, `sim["o_valid"]`, `sim.clock.tick()` and
    `sim.start_vcd_trace(...)` work as its documentation says, with raw bits. The methods here know the shapes of the
    component's ports, and refuse what does not fit.

    After `tick` the clock is high: what an output is then, it is until the next tick, unless it depends on an input
    without a register, which is seen at once.

    Parameters
    ----------
    library : str
        The library that was built for it.
    block : str
        The block's name, for messages.
    ports : mapping of str to Port
        The component's ports.
    """

    def __init__(self, library: str, block: str, ports: Mapping[str, Port]) -> None:
        super().__init__(library)
        self.block = block
        self.ports = dict(ports)

    def __repr__(self) -> str:
        return f"<{self.block} in simulation: {', '.join(self.ports)}>"

    def poke(self, port: str, value: Any) -> None:
        """Set an input.

        Parameters
        ----------
        port : str
            Its name.
        value : int, or what the port's shape has constants of
            For a struct a mapping by field, for an array a sequence; an integer is taken as the bits. A sequence of
            them for an array of ports.

        Raises
        ------
        InputError
            There is no such input, or the value does not fit.
        """
        found = self._port(port)
        if found.direction != "input":
            raise InputError(f"{port} is an output of {self.block}: it can be read, not set")
        self._signal(port).write(found.pack(value))

    def peek(self, port: str) -> Any:
        """Return a port's value: an integer, a dictionary for a struct, a list for an array; `poke` takes the same.

        Raises
        ------
        InputError
            There is no such port.
        """
        return self._port(port).unpack(self._signal(port).value)

    def tick(self, cycles: int = 1) -> None:
        """Let clock cycles pass; InputError if the block has no clock or `cycles` is no positive integer."""
        if isinstance(cycles, bool) or not isinstance(cycles, int) or cycles < 1:
            raise InputError(f"cycles must be a positive integer, not {cycles!r}")
        if self.clock is None:
            raise InputError(f"{self.block} has no clock: its outputs follow its inputs at once")
        for _ in range(cycles):
            self.clock.tick()

    def reset(self, cycles: int = 1) -> None:
        """Hold the synchronous reset for clock cycles; InputError if the block has none."""
        if "rst" not in self.io:
            raise InputError(f"{self.block} has no reset")
        reset = self._signal("rst")
        reset.write(1)
        self.tick(cycles)
        reset.write(0)

    @contextlib.contextmanager
    def dump(self, path: str | Path) -> Iterator[None]:
        """Write a VCD file of every signal, also those inside, while the context lasts: one sample per clock edge.

        Raises
        ------
        InputError
            The file cannot be written, or another dump goes on.
        """
        if self.vcd_trace is not None:
            raise InputError(f"a dump goes on: {self.vcd_filename}")
        name = str(path)
        if not name.isascii():
            raise InputError(f"the name of a dump must be in ASCII, not {name!r}")
        try:
            Path(path).open("wb").close()
        except OSError as e:
            raise InputError(f"cannot write {path}: {e.strerror}") from e
        self.start_vcd_trace(name)
        try:
            yield
        finally:
            self.stop_vcd_trace()

    def _port(self, name: str) -> Port:
        if name not in self.ports:
            raise InputError(f"{self.block} has no port {name!r}: choose from {', '.join(self.ports)}")
        return self.ports[name]

    def _signal(self, name: str) -> Any:
        """Return PyVerilator's object of a port, which knows what the port is called in C++."""
        return self.all_signals[(name,)]
