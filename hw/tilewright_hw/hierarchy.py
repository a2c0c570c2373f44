"""RTLIL with one module per kind of component: what people read, and what an FPGA toolchain compiles once.

Amaranth emits a module for each instance, gives it just the ports that this instance uses, and names some of them by
number. Here every component is emitted by itself, with all the ports of its signature under their own names, and its
submodules become instances of modules that were emitted in the same way. Components whose text is equal are one module.

    Accelerator -> tilewright
      matrix    MatrixUnit             -> tilewright_MatrixUnit
        array     SystolicArray          -> tilewright_SystolicArray
          cell_r_c  ProcessingElement      -> tilewright_ProcessingElement, ..._2, ... (one for each width of the sums)
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["ModuleNote", "emit"]

_PLACE = "THIS"
"""The name of a module while its text is compared with others'."""
_PORT = re.compile(r"^  wire width 1 input \d+ +\\(clk|rst)$", re.M)


_INNER = re.compile(rf"\\{_PLACE}(\.[\w.$]+)")
"""A module inside one that is emitted whole (Amaranth's own, or one below inserted clock enables)."""


def _flat_name(match: re.Match[str]) -> str:
    return f"\\{_PLACE}{match[1].replace('.', '__').replace('$', '_')}"


@dataclass
class ModuleNote:
    """What is known of an emitted module.

    Parameters
    ----------
    name : str
        Its name in the Verilog.
    source : str
        The component's class.
    file : str
        The Python file that describes it, from its package on; empty if it was typed at a prompt.
    parameters : dict
        The component's parameters that are numbers, texts or truth values.
    instances : list of str
        Where it is used: paths of submodules from the top.
    """

    name: str
    source: str
    file: str
    parameters: dict[str, int | str | bool]
    instances: list[str] = field(default_factory=list)

    def comment(self) -> str:
        """Return lines of Verilog comment that go before the module."""
        made = ", ".join(f"{key} = {value}" for key, value in self.parameters.items())
        lines = [self.source + (f" of {self.file}" if self.file else "") + (f": {made}" if made else "")]
        if self.instances:
            more = f" and {len(self.instances) - 3} more" if len(self.instances) > 3 else ""
            lines.append(f"used as {', '.join(self.instances[:3])}{more}")
        return "".join(f"// {line}\n" for line in lines)


def emit(top: Component, name: str) -> tuple[str, list[ModuleNote]]:
    """Return the RTLIL of a component, its top module called `name`, and notes on its modules, the top one first."""
    from amaranth.hdl import Fragment

    emitter = _Emitter(name)
    fragment = Fragment.get(top, None)
    try:
        emitter.add(fragment, top, name)
    finally:
        emitter.restore_names()
    emitter.count(emitter.names[name])
    return "\n".join(reversed(emitter.texts)), list(reversed(emitter.notes))


class _Emitter:
    """Emits modules, submodules before what contains them."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.texts: list[str] = []
        self.notes: list[ModuleNote] = []
        self.names: dict[str, _Module] = {}
        self._known: dict[tuple[str, str], _Module] = {}
        self._taken: dict[str, int] = {}
        self._renamed: list[tuple[Any, str]] = []

    def add(self, fragment: Any, component: Component, name: str | None = None) -> _Module:
        """Emit a component, unless an equal one was; return its module."""
        if _is_transformed(fragment):
            self._rename_inner_ports(fragment)
            children = []
        else:
            children = self._replace_submodules(fragment)
        text = _convert(fragment, component)
        source = type(component).__name__
        module = self._known.get((source, text))
        if module is None:
            name = name or self._name(source)
            clocking = tuple(sorted(set(_PORT.findall(text.split("\nend\n", 1)[0]))))
            module = _Module(name, clocking, _note(name, component), children)
            self._known[source, text] = module
            self.names[name] = module
            self.notes.append(module.note)
            text = _INNER.sub(_flat_name, text).replace(f"\\{_PLACE}", f"\\{name}")
            self.texts.append(_MEMORY_PORT.sub(r"\\memory_port__", text))
        return module

    def _name(self, source: str) -> str:
        count = self._taken[source] = self._taken.get(source, 0) + 1
        return f"{self.top}_{source}" + (f"_{count}" if count > 1 else "")

    def _replace_submodules(self, fragment: Any) -> list[tuple[str, _Module]]:
        """Put an instance in the place of every component below a fragment; return their names and modules."""
        from amaranth.hdl import ClockSignal, Instance, ResetSignal

        found = []
        for index, (child, name, location) in enumerate(fragment.subfragments):
            component = _component(child)
            if component is None:
                if not _is_transformed(child):
                    found += [(f"{name}.{path}", module) for path, module in self._replace_submodules(child)]
                continue
            module = self.add(child, component)
            self._rename_ports(component, str(name))
            clocking = {"clk": ClockSignal("sync"), "rst": ResetSignal("sync", allow_reset_less=True)}
            ports: list[tuple[str, str, Any]] = [("i", port, clocking[port]) for port in module.clocking]
            ports += [("i" if is_input else "o", port, value) for port, value, is_input in _ports(component)]
            fragment.subfragments[index] = (Instance(module.name, *ports), name, location)
            found.append((str(name), module))
        return found

    def _rename_ports(self, component: Component, instance: str) -> None:
        """Call a submodule's ports `matrix__acc_addr` in what contains it, where many may have one of that name."""
        from amaranth.hdl import Signal

        for port, value, _ in _ports(component):
            if isinstance(value, Signal):
                self._renamed.append((value, value.name))
                value.name = f"{instance}__{port}"

    def _rename_inner_ports(self, fragment: Any) -> None:
        """Call ports so in all of a component that is emitted whole, where instances have them by these names."""
        for child, name, _ in fragment.subfragments:
            component = _component(child)
            if component is not None:
                self._rename_ports(component, str(name))
            self._rename_inner_ports(child)

    def restore_names(self) -> None:
        """Give the signals back the names that they had."""
        for signal, name in reversed(self._renamed):
            signal.name = name
        self._renamed.clear()

    def count(self, module: _Module, path: str = "") -> None:
        """Note where modules are used, from the top module on."""
        for name, child in module.children:
            at = f"{path}{name}"
            child.note.instances.append(at)
            self.count(child, f"{at}.")


@dataclass
class _Module:
    """A module that was emitted: its name, which of clk and rst it has, its note, and what it contains."""

    name: str
    clocking: tuple[str, ...]
    note: ModuleNote
    children: list[tuple[str, _Module]]


_MEMORY_PORT = re.compile(r"\\\$signature__(?=\w)")
"""Amaranth's name of a memory's port that has none where it is made."""


def _component(fragment: Any) -> Component | None:
    """Return the component that a fragment is, if it is one that is not of Amaranth's own library."""
    from amaranth.lib import wiring

    for origin in fragment.origins or ():
        if isinstance(origin, wiring.Component) and not type(origin).__module__.startswith("amaranth."):
            return origin
    return None


def _is_transformed(fragment: Any) -> bool:
    """Return whether clock enables or the like were inserted: they reach into submodules past their ports."""
    from amaranth.hdl._xfrm import TransformedElaboratable

    return any(isinstance(origin, TransformedElaboratable) for origin in fragment.origins or ())


def _ports(component: Component) -> list[tuple[str, Any, bool]]:
    """Return (name, signal, whether it is an input) of each port that has bits."""
    from amaranth.hdl import Value
    from amaranth.lib import wiring

    found = []
    for path, member, value in component.signature.flatten(component):
        signal = Value.cast(value)
        if len(signal):
            found.append(("__".join(map(str, path)), signal, member.flow == wiring.In))
    return found


def _convert(fragment: Any, component: Component) -> str:
    """Return the RTLIL of a component whose submodules are instances, with all its ports."""
    from amaranth.back import rtlil
    from amaranth.hdl._ir import PortDirection

    direction = {True: PortDirection.Input, False: PortDirection.Output}
    ports = {name: (signal, direction[is_input]) for name, signal, is_input in _ports(component)}
    text, _ = rtlil.convert_fragment(fragment, ports, _PLACE, emit_src=False)
    return str(text)


def _note(name: str, component: Component) -> ModuleNote:
    kind = type(component)
    members = component.signature.members
    parameters = {
        key: value
        for key, value in vars(component).items()
        if isinstance(value, (int, str)) and not key.startswith("_") and key not in members
    }
    parameters = {key: value.name if isinstance(value, Enum) else value for key, value in parameters.items()}
    return ModuleNote(name, kind.__name__, _source_file(kind), parameters)


def _source_file(kind: type) -> str:
    """Return the file that a class is in, from its package on: the same text wherever the package lies."""
    try:
        file = inspect.getsourcefile(kind) or ""
    except (TypeError, OSError):  # a class of a prompt or of exec has none
        return ""
    package = kind.__module__.split(".")[0]
    return file[file.rfind(f"/{package}/") + 1 :] if f"/{package}/" in file else file.rsplit("/", 1)[-1]
