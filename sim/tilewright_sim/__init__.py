"""Golden model, Verilator harness and cocotb benches."""
