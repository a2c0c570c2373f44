"""What the accelerator costs in an FPGA and how fast it can be clocked there, with open tools."""

from tilewright_sim.synth.cost import Cost, Synthesized, synthesize_blocks
from tilewright_sim.synth.place import Placed, Step, place
from tilewright_sim.synth.targets import TARGETS, Resources, Target
from tilewright_sim.synth.yosys import SynthesisError

__all__ = [
    "TARGETS",
    "Cost",
    "Placed",
    "Resources",
    "Step",
    "SynthesisError",
    "Synthesized",
    "Target",
    "place",
    "synthesize_blocks",
]
