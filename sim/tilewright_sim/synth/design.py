"""The accelerator's RTLIL as synthesis wants it: its blocks by name, and a shell of registers for place and route."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tilewright_hw.arch.errors import InputError
from tilewright_hw.generate import TOP

__all__ = ["SHELL", "SOURCE", "Design", "block_names", "find_block", "plain_name", "prepare"]

SHELL = "shell"
"""The name of the module around the design, and the prefix of its registers."""

SOURCE = "block:"
"""What stands before a module's name where it is the source of a cell."""

_MODULE = re.compile(r"^module \\(\S+)$", re.M)
_PORT = re.compile(r"^  wire (?:width (\d+) )?(input|output) \d+\s+(?:signed )?\\(\S+)$", re.M)
_LOGIC = re.compile(r"  (?:cell \\?\$|process )")
_MEMORY = re.compile(r"^  attribute \\no_rw_check 1\n(?:  attribute .*\n)*  memory .* (\\\S+)$", re.M)
_READ = re.compile(
    r'(?P<head>^  cell \$memrd_v2 .*\n    parameter \\MEMID "\\(?P<name>\\\S+)"\n(?:    parameter .*\n)*?'
    r"    parameter \\TRANSPARENCY_MASK \d+'0+\n    parameter \\COLLISION_X_MASK \d+')(?P<mask>0+)$",
    re.M,
)
_ELEMENT = re.compile(r"(\\[^\s\[]+)\[(\d+)\]")


def plain_name(path: str) -> str:
    """Return a path without the numbers that Amaranth puts behind names that occur twice (`row$12`)."""
    return re.sub(r"\$\d+", "", path)


def block_names(rtlil: str) -> dict[str, str]:
    """Return the module of each block: the path of its instance in the accelerator, such as `matrix.array`."""
    names: dict[str, str] = {}
    for module in _MODULE.findall(rtlil):
        if module.startswith(f"{TOP}."):
            names.setdefault(plain_name(module.removeprefix(f"{TOP}.")), module)
    return names


def find_block(rtlil: str, name: str) -> str:
    """Return the path of the block that a user means: a path, or its last part where only one block has it.

    Raises
    ------
    InputError
        There is none, or there are several.
    """
    names = block_names(rtlil)
    if name in names:
        return name
    same = [path for path in names if path.rpartition(".")[2] == name]
    if len(same) == 1:
        return same[0]
    if same:
        raise InputError(f"block must name one block, not {name!r}: choose one of {', '.join(same)}")
    known = [path for path in names if path.count(".") <= 1 and not path[-1].isdigit()]
    close = difflib.get_close_matches(name, {*names, *(path.rpartition(".")[2] for path in names)}, n=3)
    choice = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(known)}"
    raise InputError(f"unknown block {name!r}: {choice}")


@dataclass(frozen=True, kw_only=True)
class Design:
    """What Yosys reads.

    Parameters
    ----------
    rtlil : str
        All modules; that of the design keeps its boundary, so that it is mapped by itself.
    shell : str
        Verilog of a module `SHELL` around it: four pins, a register at each port of the design.
    module : str
        The design's own module.
    blocks : tuple of str
        The paths of all blocks inside, relative to the design, as Yosys writes them.
    """

    rtlil: str
    shell: str
    module: str
    blocks: tuple[str, ...]


def prepare(rtlil: str, block: str | None = None) -> Design:
    """Return the whole accelerator, or one block by itself, ready for synthesis.

    Parameters
    ----------
    rtlil : str
        The accelerator's RTLIL, as `to_rtlil` writes it.
    block : str, optional
        The path of a block (`find_block`).
    """
    module = block_names(rtlil)[block] if block else TOP
    # ABC9 takes no ports whose names end like a selection of bits.
    text = _ELEMENT.sub(r"\1_\2", rtlil)
    text = text.replace("attribute \\top 1\n", "")
    text = _with_sources(_without_collisions(text))
    text = text.replace(f"\nmodule \\{module}\n", f"\nattribute \\keep_hierarchy 1\nmodule \\{module}\n")
    body = text[text.index(f"\nmodule \\{module}\n") :]
    ports = [(name, way, int(width or 1)) for width, way, name in _PORT.findall(body[: body.index("\nend\n")])]
    inside = [name.removeprefix(f"{module}.") for name in _MODULE.findall(rtlil) if name.startswith(f"{module}.")]
    return Design(rtlil=text, shell=_shell(module, ports), module=module, blocks=tuple(inside))


def _without_collisions(rtlil: str) -> str:
    """Tell Yosys which memories are never read where they are written at the same time.

    It heeds the attribute only where it makes a port of a register itself (in Verilog), not where Amaranth says that
    there is one. Without this a block RAM gets comparators, registers and a choice for each bit.
    """

    def mended(module: str) -> str:
        names = set(_MEMORY.findall(module))
        return _READ.sub(
            lambda found: found["head"] + found["mask"].replace("0", "1" if found["name"] in names else "0"), module
        )

    return "".join(mended(module) for module in re.split(r"^(?=module )", rtlil, flags=re.M))


def _with_sources(rtlil: str) -> str:
    """Give all logic its module's name as its source: Yosys keeps that through most of its mapping."""
    lines, module = [], ""
    for line in rtlil.split("\n"):
        if line.startswith("module "):
            module = line.removeprefix("module \\")
        elif _LOGIC.match(line):
            lines.append(f'  attribute \\src "{SOURCE}{module}"')
        lines.append(line)
    return "\n".join(lines)


def _connections(ports: Iterable[tuple[str, int]], bus: str) -> tuple[list[str], int]:
    """Return the connections of ports to one vector, from bit 0 on, and its width."""
    lines, bit = [], 0
    for name, width in ports:
        lines.append(f".\\{name} ({bus}[{bit + width - 1}:{bit}])")
        bit += width
    return lines, bit


def _shell(module: str, ports: list[tuple[str, str, int]]) -> str:
    """Return a module that feeds all inputs from one shift register, and folds all outputs into another.

    The hundreds of port bits need no pins that way, none of them is constant or unused, and every path that starts or
    ends at a port starts or ends at a register, as with a registered interconnect.
    """
    clocks = [f".\\{name} ({name})" for name, _, _ in ports if name in ("clk", "rst")]
    data = [(name, way, width) for name, way, width in ports if name not in ("clk", "rst")]
    inputs, given = _connections([(name, width) for name, way, width in data if way == "input"], "to_design")
    outputs, taken = _connections([(name, width) for name, way, width in data if way == "output"], "from_design")
    connections = ",\n    ".join([*clocks, *inputs, *outputs])
    return f"""\
module {SHELL}(input clk, input rst_pin, input i, output o);
  reg rst;
  reg [{given}:0] to_design;
  reg [{taken}:0] folded;
  wire [{taken}:0] from_design;
  assign from_design[{taken}] = to_design[{given}];
  assign o = folded[{taken}];
  always @(posedge clk) begin
    rst <= rst_pin;
    to_design <= {{to_design, i}};
    folded <= from_design ^ {{folded, 1'b0}};
  end
  \\{module} dut (
    {connections}
  );
endmodule
"""
