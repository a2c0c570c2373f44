"""The RTL device: the accelerator's Verilog, verilated, with a memory and a run loop in C++."""

from tilewright_sim.rtl.build import build_library
from tilewright_sim.rtl.device import RtlDevice, Trace

__all__ = ["RtlDevice", "Trace", "build_library"]
