"""From a configuration to RTLIL, and to Verilog: for people with its hierarchy, for simulation flattened."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.arch.errors import InputError
from tilewright_hw.arch.files import replacing
from tilewright_hw.arch.registers import VERSION

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = [
    "TOP",
    "GenerateError",
    "export_block",
    "flatten",
    "header",
    "plain_ports",
    "run_yosys",
    "to_rtlil",
    "to_verilog",
    "verilog_file_name",
    "write_verilog",
]

TOP = "tilewright"
"""The name of the accelerator's module."""

# Measured on the 16x16 preset: `opt` infers clock enables, without which simulation is a third slower (and compiling
# too); `opt -full` and `wreduce` change nothing.
_FLATTEN = """\
hierarchy -top {top}
proc
flatten
opt -purge
memory_collect
write_verilog -noattr
"""
_KEEP_HIERARCHY = """\
hierarchy -top {top}
proc -nomux -norom
memory_collect
attrmap -remove src -remove generator -remove top -remove amaranth.hierarchy -remove amaranth.decoding
attrmap -modattr -remove src -remove generator -remove top -remove amaranth.hierarchy -remove amaranth.decoding
write_verilog -norename
"""


class GenerateError(InputError):
    """A tool that makes Verilog is missing or has failed."""


def _need_amaranth() -> None:
    try:
        import amaranth  # noqa: F401
    except ImportError as e:
        raise GenerateError("Amaranth is needed to make Verilog: run `pip install 'tilewright[rtl]'`") from e


def _accelerator(config: AcceleratorConfig) -> Component:
    _need_amaranth()
    from tilewright_hw.gateware.top import Accelerator

    return Accelerator(config)


def _without_reset(component: Component) -> Component:
    """Return a component of the same ports in a clock domain without reset.

    Its registers have initial values only, so a simulation spends nothing on reset logic.
    """
    from amaranth import ClockDomain, ClockSignal, Module
    from amaranth.lib import wiring

    members = component.signature.members

    class WithoutReset(wiring.Component):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__({**dict(members), "clk": wiring.In(1)})

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.domains.sync = ClockDomain(reset_less=True)
            m.d.comb += ClockSignal().eq(self.clk)
            m.submodules.top = component
            for name, member in members.items():
                outer, inner = getattr(self, name), getattr(component, name)
                if member.flow == wiring.Out:
                    m.d.comb += outer.eq(inner)
                else:
                    m.d.comb += inner.eq(outer)
            return m

    return WithoutReset()


def to_rtlil(
    config: AcceleratorConfig,
    block: Component | None = None,
    *,
    name: str = TOP,
    reset: bool = True,
    sources: bool = False,
) -> str:
    """Return the RTLIL of the accelerator, or of one block.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    block : Component, optional
        Another component to export in its place; its ports are plain signals.
    name : str
        The top module's name.
    reset : bool
        Whether it has a port `rst`; without, registers have initial values only (for simulation).
    sources : bool
        Whether the line of Python stands beside everything.
    """
    _need_amaranth()
    from amaranth.back import rtlil

    top = block or _accelerator(config)
    text = rtlil.convert(top if reset else _without_reset(top), name=name, emit_src=sources)
    return str(text)


def run_yosys(rtlil: str, script: str) -> str:
    """Return what a script of Yosys, which ends with write_verilog, makes of RTLIL; GenerateError if it fails."""
    from amaranth._toolchain.yosys import YosysError, find_yosys

    try:
        yosys: Any = find_yosys(lambda version: version >= (0, 40))
        # Yosys warns of every process that it cannot turn into Verilog; Amaranth writes none such.
        return str(yosys.run(["-q", "-"], f"read_rtlil <<rtlil\n{rtlil}\nrtlil\n{script}", ignore_warnings=True))
    except YosysError as e:
        raise GenerateError(f"Yosys failed: {e}") from e


_INITIAL = re.compile(r"^  initial begin\n((?:    \S+ \[\d+\] = \d+'h[0-9a-f]+;\n)+)  end\n", re.M)
_ZERO = re.compile(r"    (\S+) \[\d+\] = (\d+)'h0+;\n")


def _loop_over_zeros(match: re.Match[str]) -> str:
    """Write the clearing of a memory as a loop: one statement per word takes minutes to compile."""
    first = _ZERO.match(match[1])
    if first is None or _ZERO.sub("", match[1]):
        return match[0]
    words = match[1].count("\n")
    return (
        f"  initial begin : clear_{match.start()}\n    integer i;\n"
        f"    for (i = 0; i < {words}; i = i + 1) {first[1]} [i] = {first[2]}'h0;\n  end\n"
    )


def flatten(rtlil: str, *, top: str = TOP) -> str:
    """Return Verilog of one module, for simulation: Verilator runs it several times faster."""
    return _INITIAL.sub(_loop_over_zeros, run_yosys(rtlil, _FLATTEN.format(top=top)))


# Yosys declares fields of no bits, which nothing refers to: in Verilog [-1:0] would be two bits.
_NO_BITS = re.compile(r"^  wire \[-1:0\] .*;\n", re.M)


def to_verilog(config: AcceleratorConfig, block: Component | None = None, *, name: str = TOP) -> str:
    """Return hierarchical Verilog of the accelerator, or of one block; the same text each time.

    There is one module for each kind of component, with the ports of its signature (`hierarchy.emit`), and a comment
    before each says which component it is and where it is used.
    """
    _need_amaranth()
    return _hierarchical(block or _accelerator(config), name)


_MODULE = re.compile(r"^(?:\(\*.*\*\)\n)*module (\S+)\(", re.M)


_START = re.compile(r"\\\$auto\$verilog_backend\.cc:\d+:dump_module\$\d+ ")
"""Yosys's name of a register with which it starts the processes that have no input."""
_AUTOMATIC = re.compile(r"\\\$auto\$[\w.]+:\d+:(\w+\$\d+) ")
"""Its names of what it adds, with a line of its own source."""
_CLEARED = re.compile(r"^  initial begin\n((?:    (\w+)\[\d+\] = \d+'(?:d0|h0+);\n){16,})  end\n", re.M)
_WORDS = 64


def _clear_by_loops(match: re.Match[str]) -> str:
    """Write the clearing of a memory as two loops, neither of which is long: some tools limit that."""
    name, words = match[2], match[1].count("\n")
    if words % _WORDS or len(set(re.findall(r"= (.*);", match[1]))) != 1:
        return match[0]
    value = match[1].split("= ", 1)[1].split(";", 1)[0]
    outer, inner = f"{name}_block", f"{name}_word"
    return (
        f"  initial begin : clear_{name}\n    integer {outer}, {inner};\n"
        f"    for ({outer} = 0; {outer} < {words}; {outer} = {outer} + {_WORDS})\n"
        f"      for ({inner} = {outer}; {inner} < {outer} + {_WORDS}; {inner} = {inner} + 1)\n"
        f"        {name}[{inner}] = {value};\n  end\n"
    )


_UNKNOWN = re.compile(r"^  reg ((?:\[\d+:0\] )?(?:\\\S+ |\w+));$", re.M)
"""A variable that begins as unknown: the output of a memory, or one of a process without a clock."""
_START_AT_ZERO = """\
// For simulators that know unknown values: everything starts with 0, as in an FPGA, where a process that reads its own
// results would keep what is unknown; and every process runs once at the start. The others need no word of it.
`ifdef SYNTHESIS
`define TILEWRIGHT_START
`define TILEWRIGHT_RUN
`elsif VERILATOR
`define TILEWRIGHT_START
`define TILEWRIGHT_RUN
`else
`define TILEWRIGHT_START = 0
`define TILEWRIGHT_RUN initial at_start <= 1'h1;
`endif

"""


def _hierarchical(component: Component, name: str) -> str:
    from tilewright_hw.hierarchy import emit

    rtlil, notes = emit(component, name)
    comments = {note.name: note.comment() for note in notes}
    text = _NO_BITS.sub("", run_yosys(rtlil, _KEEP_HIERARCHY.format(top=name)))
    text = _CLEARED.sub(_clear_by_loops, _AUTOMATIC.sub(r"\\$\1 ", _START.sub("at_start", text)))
    text = text.replace("  reg at_start = 0;\n", "  reg at_start = 0;\n  `TILEWRIGHT_RUN\n")
    text = _START_AT_ZERO + _UNKNOWN.sub(r"  reg \1 `TILEWRIGHT_START;", text)
    return _MODULE.sub(lambda match: comments.get(match[1], "") + match[0], text)


def _plain_groups(component: Component) -> dict[str, list[tuple[Any, Any]]]:
    """Return the members of each plain port, and their values, lowest bits first."""
    groups: dict[str, list[tuple[Any, Any]]] = {}
    paths: dict[str, tuple[str | int, ...]] = {}
    for path, member, value in component.signature.flatten(component):
        while isinstance(path[-1], int):  # the elements of an array of signals are one vector
            path = path[:-1]
        name = "_".join(map(str, path))
        if paths.setdefault(name, path) != path:
            raise ValueError(f"{type(component).__name__} has two ports that would be called {name!r}")
        groups.setdefault(name, []).append((member, value))
    return groups


def plain_ports(component: Component) -> Component:
    """Return a component around another one, each of whose ports is one plain vector.

    The members of an interface get its name before theirs (`i.valid` becomes `i_valid`), and the elements of arrays and
    the fields of structs lie in one vector, the first in the lowest bits.

    Raises
    ------
    ValueError
        Two ports would have the same name.
    """
    from amaranth import Cat, Module, Shape, Value, unsigned
    from amaranth.lib import wiring

    groups = _plain_groups(component)

    class PlainPorts(wiring.Component):  # type: ignore[misc]
        def __init__(self) -> None:
            ports = {}
            for name, parts in groups.items():
                width = sum(Shape.cast(member.shape).width for member, _ in parts)
                ports[name] = wiring.Member(parts[0][0].flow, unsigned(width))
            super().__init__(ports)

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.submodules.block = component
            for name, parts in groups.items():
                outer, inner = getattr(self, name), Cat(Value.cast(value) for _, value in parts)
                m.d.comb += outer.eq(inner) if parts[0][0].flow == wiring.Out else inner.eq(outer)
            return m

    return PlainPorts()


def export_block(component: Component, name: str) -> str:
    """Return hierarchical Verilog of one block by itself, with ports as `plain_ports` makes them, and clk and rst.

    The block's own module is called after its class, `name_Class`.
    """
    _need_amaranth()
    return _hierarchical(plain_ports(component), name)


def verilog_file_name(config: AcceleratorConfig) -> str:
    """Return the name of the file that `write_verilog` writes."""
    return f"{TOP}_{config.name.replace('-', '_')}.v"


def header(config: AcceleratorConfig) -> str:
    """Return the comment at the head of an accelerator's Verilog."""
    fields = config.to_dict()
    width = max(map(len, fields))
    lines = [
        f"Tilewright {version('tilewright')}, configuration {config.name}",
        f"Register interface {VERSION >> 16}.{VERSION >> 8 & 255}.{VERSION & 255}",
        "",
        *(f"  {key:<{width}} = {value}" for key, value in fields.items()),
        "",
        f"Top module: {TOP}. AXI4 master m_axi_*, AXI4-Lite slave s_axil_*, interrupt irq;",
        "one clock clk, synchronous reset rst (active high).",
        "Made from Amaranth by `tilewright verilog`; do not edit.",
    ]
    return "".join(f"// {line}".rstrip() + "\n" for line in lines) + "\n"


def write_verilog(config: AcceleratorConfig, directory: str | Path) -> Path:
    """Write the accelerator's Verilog into a folder, whole or not at all, and return the file's path.

    Raises
    ------
    InputError
        The folder cannot be written.
    GenerateError
        Amaranth or Yosys is missing or fails.
    """
    text = header(config) + to_verilog(config)
    directory = Path(directory)
    path = directory / verilog_file_name(config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as e:
        raise InputError(f"cannot write {path}: {e.strerror}") from e
    return path
