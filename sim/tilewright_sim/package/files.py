"""The small files of a Verilog package: constraints, FuseSoC core, Vivado script, makefile, manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tilewright_hw.arch import REGISTERS

__all__ = ["Port", "constraints", "fusesoc_core", "makefile", "manifest", "ports_of", "vivado_script"]


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


def constraints(mhz: float) -> dict[str, str]:
    """Return clock constraints by file suffix: SDC, XDC (Vivado) and LPF (Lattice)."""
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
        lines += [
            "  driver:",
            "    files:",
            f"      - {header}: {{file_type: user, copyto: {header}}}",
        ]
    lines += [
        "  xdc:",
        "    files:",
        f"      - {name}.xdc: {{file_type: xdc}}",
        "targets:",
        "  default: &default",
        "    filesets: [rtl]",
        f"    toplevel: {top}",
        "  lint:",
        "    <<: *default",
        "    flow: lint",
        "    flow_options: {tool: verilator, verilator_options: [-Wno-fatal, -Wno-WIDTH]}",
        "  synth:",
        "    <<: *default",
        "    filesets: [rtl, xdc]",
        "    flow: vivado",
        "    flow_options: {part: xc7a100tcsg324-1}",
    ]
    return "\n".join(lines) + "\n"


_VIVADO = """\
# Packages {top} as an IP core with inferred AXI interfaces: vivado -mode batch -source {name}_ip.tcl
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
{interfaces}
ipx::update_checksums $core
ipx::check_integrity $core
ipx::save_core $core
"""
_INTERFACES = """\
foreach bus {m_axi s_axil} {
    ipx::infer_bus_interface $bus xilinx.com:interface:aximm_rtl:1.0 $core
    ipx::associate_bus_interfaces -busif $bus -clock clk $core
}
ipx::infer_bus_interface irq xilinx.com:signal:interrupt_rtl:1.0 $core
ipx::infer_bus_interface clk xilinx.com:signal:clock_rtl:1.0 $core
ipx::infer_bus_interface rst xilinx.com:signal:reset_rtl:1.0 $core
set_property value ACTIVE_HIGH [ipx::add_bus_parameter POLARITY [ipx::get_bus_interfaces rst -of_objects $core]]"""


def vivado_script(name: str, version: str, verilog: str, top: str, *, axi: bool) -> str:
    """Return a Tcl script that packages the Verilog as IP, with AXI interfaces if it has them."""
    interfaces = _INTERFACES if axi else "# This block has no AXI ports."
    return _VIVADO.format(name=name, version=version, verilog=verilog, top=top, interfaces=interfaces)


def makefile(top: str) -> str:
    """Return the makefile: `make test` runs the bench."""
    return (
        f"# Bench of {top} in a simulator: make test [SIM=verilator|icarus] [PYTHON=python3]\n"
        "PYTHON ?= python3\n\n"
        ".PHONY: test clean\n\n"
        "test:\n\t@$(PYTHON) test/run.py\n\n"
        "clean:\n\t@rm -rf test/build test/__pycache__ ip\n"
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
            {"name": r.name, "address": r.address, "access": r.access, "description": r.doc} for r in REGISTERS.values()
        ]
    return json.dumps(content, indent=2) + "\n"
