"""Files that are copied into a Verilog package as they are: nothing in them imports Tilewright."""
