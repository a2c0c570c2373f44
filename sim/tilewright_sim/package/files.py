"""The small files of a Verilog package: constraints, FuseSoC core, Vivado script, makefile, manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tilewright_hw.arch import REGISTERS

__all__ = ["Port", "constraints", "fusesoc_core", "makefile", "manifest", "ports_of", "readme", "vivado_script"]


@dataclass(frozen=True)
class Port:
    """A port of the top module: name, `input` or `output`, bits."""

    name: str
    direction: str
    width: int


def ports_of(verilog: str, top: str) -> list[Port]:
    """Return a module's ports, in the order of its declaration; ValueError if there is no such module."""
    module = re.search(rf"^module {re.escape(top)}\(([^;]*)\);(.*?)^endmodule", verilog, re.M | re.S)
    if module is None:
        raise ValueError(f"no module {top} in the Verilog")
    found = re.findall(r"^  (input|output) (?:\[(\d+):0\] )?\\?(\S+?) ?;", module[2], re.M)
    widths = {name: Port(name, direction, int(high or 0) + 1) for direction, high, name in found}
    return [widths[name.strip().lstrip("\\").strip()] for name in module[1].split(",")]


def constraints(mhz: float, *, clocked: bool) -> dict[str, str]:
    """Return clock constraints by file suffix: SDC, XDC (Vivado) and LPF (Lattice); comments for want of a clock."""
    if not clocked:
        return {suffix: "# There is no clock: the outputs follow the inputs.\n" for suffix in ("sdc", "xdc", "lpf")}
    period = f"{1000 / mhz:.3f}"
    return {
        "sdc": f"create_clock -name clk -period {period} [get_ports clk]\n",
        "xdc": f"create_clock -name clk -period {period} [get_ports clk]\n",
        "lpf": f'FREQUENCY PORT "clk" {mhz:.3f} MHZ;\n',
    }


def fusesoc_core(name: str, version: str, verilog: str, top: str, header: str | None) -> str:
    """Return a FuseSoC core description (CAPI2) with targets for use as a part, for lint and for synthesis."""
    lines = [
        "CAPI=2:",
        f"name: ::{name}:{version}",
        "description: Tilewright, a language-model accelerator",
        "filesets:",
        "  rtl:",
        "    files:",
        f"      - {verilog}: {{file_type: verilogSource}}",
    ]
    if header is not None:
        lines += ["  driver:", "    files:", f"      - {header}: {{file_type: cSource, is_include_file: true}}"]
    lines += [
        "  xdc:",
        "    files:",
        f"      - {name}.xdc: {{file_type: xdc}}",
        "targets:",
        "  default: &default",
        "    description: The Verilog" + (" and the driver's header" if header else "") + ", to depend on",
        f"    filesets: [rtl{', driver' if header else ''}]",
        f"    toplevel: {top}",
        "  lint:",
        "    <<: *default",
        "    description: Verilator's lint",
        "    filesets: [rtl]",
        "    flow: lint",
        "    flow_options: {tool: verilator, verilator_options: [-Wno-fatal, -Wno-WIDTH]}",
        "  synth:",
        "    <<: *default",
        "    description: Vivado's synthesis",
        "    filesets: [rtl, xdc]",
        "    flow: vivado",
        "    flow_options: {part: xc7a100tcsg324-1}",
    ]
    return "\n".join(lines) + "\n"


_VIVADO = """\
# Packages {top} as an IP core{with_axi}: vivado -mode batch -source {name}_ip.tcl
set here [file dirname [file normalize [info script]]]
create_project -in_memory -part xc7a100tcsg324-1
add_files [file join $here {verilog}]
set_property top {top} [current_fileset]
update_compile_order -fileset sources_1
ipx::package_project -root_dir [file join $here ip] -vendor tilewright -library user -taxonomy /UserIP \\
    -import_files -force
set core [ipx::current_core]
set_property name {name} $core
set_property display_name {{Tilewright {name}}} $core
set_property version {version} $core

# An interface for each group of ports, unless packaging has inferred it already.
foreach {{name type ports}} {{
{interfaces}
}} {{
    if {{[ipx::get_bus_interfaces $name -of_objects $core] eq {{}}}} {{
        ipx::infer_bus_interface $ports $type $core
    }}
}}
{associations}
ipx::update_checksums $core
ipx::check_integrity $core
ipx::save_core $core
"""
_AXI = {"m_axi": "xilinx.com:interface:aximm_rtl:1.0", "s_axil": "xilinx.com:interface:aximm_rtl:1.0"}
_SIGNALS = {
    "irq": "xilinx.com:signal:interrupt_rtl:1.0",
    "clk": "xilinx.com:signal:clock_rtl:1.0",
    "rst": "xilinx.com:signal:reset_rtl:1.0",
}
_ASSOCIATION = "ipx::associate_bus_interfaces -busif {bus} -clock clk $core"
_POLARITY = """\
set reset [ipx::get_bus_interfaces rst -of_objects $core]
set polarity [ipx::get_bus_parameters POLARITY -of_objects $reset]
if {$polarity eq {}} { set polarity [ipx::add_bus_parameter POLARITY $reset] }
set_property value ACTIVE_HIGH $polarity"""


def vivado_script(name: str, version: str, verilog: str, top: str, ports: list[Port], *, axi: bool) -> str:
    """Return a Tcl script that packages the Verilog as IP; with `axi`, m_axi_* and s_axil_* become interfaces."""
    names = [port.name for port in ports]
    groups = {bus: (vlnv, [n for n in names if n.startswith(f"{bus}_")]) for bus, vlnv in _AXI.items() if axi}
    groups |= {
        signal: (vlnv, [signal]) for signal, vlnv in _SIGNALS.items() if signal in names and (axi or signal != "irq")
    }
    return _VIVADO.format(
        name=name,
        version=version,
        verilog=verilog,
        top=top,
        with_axi=" with inferred AXI interfaces" if axi else "",
        interfaces="\n".join(
            f"    {group} {vlnv} {{{' '.join(members)}}}" for group, (vlnv, members) in groups.items()
        ),
        associations="\n".join(
            [_ASSOCIATION.format(bus=bus) for bus in _AXI if axi] + [_POLARITY for signal in groups if signal == "rst"]
        ),
    )


def makefile(top: str) -> str:
    """Return the makefile: `make test` runs the bench."""
    return (
        f"# Bench of {top} in a simulator: make test [SIM=verilator|icarus] [PYTHON=python3]\n"
        "PYTHON ?= python3\n\n"
        ".PHONY: test clean\n\n"
        "test:\n\t@$(PYTHON) test/run.py\n\n"
        "clean:\n\t@rm -rf test/build test/__pycache__ ip\n"
    )


_MODULE = re.compile(r"^// (.+)\n(?:// used as (.+)\n)?(?:\(\*.*\*\)\n)*module (\w+)", re.M)
_MULTIPLY = re.compile(r"^  assign .* = (\$signed\((?:o_x|weight)\) \* \$signed\((?:o_x|weight)\));$", re.M)
_README = """\
# {name}

{what}, made by Tilewright {version}. The top module is `{top}` in
[{verilog}]({verilog}). {clocking} manifest.json has all ports{registers}, and the SHA-256 of
every file.

    make test                  # the bench in test/, with its vectors: needs cocotb 2.1{axi} and Verilator
    make test SIM=icarus       # the same in Icarus Verilog

Nothing of Tilewright is needed. {name}.core is for FuseSoC; constraints are in {name}.sdc,
.xdc and .lpf; `vivado -mode batch -source {name}_ip.tcl` packages an IP core.

## Where is what

{multiply}There is one module for each kind of component, described in the Python file that is named.

| line | module | component | used as |
|---|---|---|---|
{modules}
"""


def readme(head: Mapping[str, Any], verilog: str, ports: list[Port]) -> str:
    """Return the page that says what is in a package, and where in the Verilog to find it."""
    name, top, block, config = (str(head[key]) for key in ("name", "top", "block", "configuration"))
    whole = bool(head["whole"])
    clocked = any(port.name == "clk" for port in ports)

    def line(at: int) -> int:
        return verilog.count("\n", 0, at) + 1

    multiply = _MULTIPLY.search(verilog)
    rows = [
        f"| {line(m.start(3))} | `{m[3]}` | {m[1].replace('|', '/')} | {m[2] or 'the top'} |"
        for m in _MODULE.finditer(verilog)
    ]
    return _README.format(
        name=name,
        what=f"A language-model accelerator of configuration {config}"
        if whole
        else f"The block {block} for configuration {config}",
        version=str(head["generator"]).removeprefix("tilewright "),
        top=top,
        verilog=f"{name}.v",
        clocking="One clock `clk`, one synchronous reset `rst`, active high." if clocked else "It has no clock.",
        registers=", registers" if whole else "",
        axi=", cocotbext-axi" if whole else "",
        multiply=f"The multiply of a MAC is in line {line(multiply.start())}: `{multiply[1].strip()}`.\n\n"
        if multiply
        else "",
        modules="\n".join(rows),
    )


def manifest(head: Mapping[str, Any], ports: list[Port], files: Mapping[str, bytes], *, registers: bool) -> str:
    """Return the manifest: what this is, its ports, clock and reset, register map, and every file with its SHA-256."""
    names = {port.name for port in ports}
    content: dict[str, Any] = {
        **head,
        "ports": [asdict(port) for port in ports],
        "clocks": ["clk"] if "clk" in names else [],
        "resets": [{"name": "rst", "active": "high", "synchronous": True}] if "rst" in names else [],
        "registers": [],
        "files": [
            {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(files.items())
        ],
    }
    if registers:
        content["registers"] = [
            {
                "name": r.name,
                "address": r.address,
                "access": r.access,
                "reset": r.reset,
                "description": r.doc,
                "bits": [{"name": b.name, "lsb": b.lsb, "width": b.width, "description": b.doc} for b in r.bits],
            }
            for r in REGISTERS.values()
        ]
    return json.dumps(content, indent=2) + "\n"
