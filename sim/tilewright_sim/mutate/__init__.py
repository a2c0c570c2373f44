"""Planted bugs: does each block's bench find what is wrong with the block?

`plant` puts bugs into the netlist that Amaranth makes of a block, all into one, with a port that says which of them is
in force; so a block is compiled once. `campaign` runs the block's bench for each of them and counts those that make a
test fail. `python -m tilewright_sim.mutate` (`make mutate`) does it for every block.
"""

from tilewright_sim.mutate.campaign import Outcome, Score, mutate
from tilewright_sim.mutate.plant import KINDS, Mutant, planted_verilog

__all__ = ["KINDS", "Mutant", "Outcome", "Score", "mutate", "planted_verilog"]
