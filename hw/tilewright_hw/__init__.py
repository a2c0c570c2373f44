"""The machine: what it is (arch) and its gateware in Amaranth."""
