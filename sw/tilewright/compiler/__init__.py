"""From a model to what the accelerator runs: memory layout, tiling, program."""
