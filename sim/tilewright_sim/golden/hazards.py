"""Checks that a program does not depend on how fast the machine is."""

from __future__ import annotations

from tilewright_sim.golden.state import Buffers


class Hazards:
    """Stand-in."""

    def __init__(self, buffers: Buffers) -> None:
        raise NotImplementedError
