"""`tilewright bench`: measured speed and utilisation."""

from __future__ import annotations

from tilewright import bench
from tilewright.cli.options import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "bench", bench.run, "measure speed and utilisation", bench.EXAMPLES)
    bench.add_arguments(parser)
