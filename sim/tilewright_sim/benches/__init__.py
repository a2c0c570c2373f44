"""cocotb benches: the exported Verilog of blocks and of the whole accelerator, in Verilator or Icarus.

`run_bench` builds one and runs it; from a shell, `python -m tilewright_sim.benches NAME`. The classes that the benches
are made of are in `testbench`.
"""

from tilewright_sim.benches.runner import BENCHES, Bench, BenchError, run_bench

__all__ = ["BENCHES", "Bench", "BenchError", "run_bench"]
