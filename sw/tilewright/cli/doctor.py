"""`tilewright doctor`: what is installed, what is missing, how to get it."""

from __future__ import annotations

from tilewright import doctor
from tilewright.cli.options import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands, "doctor", doctor.run, "say what is installed, what is missing, how to get it", doctor.EXAMPLES
    )
    doctor.add_arguments(parser)
