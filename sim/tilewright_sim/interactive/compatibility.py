"""PyVerilator 0.7.0 on current Pythons."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from tilewright_hw.arch import InputError

__all__ = ["import_pyverilator"]


class _NoGtkWave:
    """Takes the place of the class with which PyVerilator drives GTKWave."""

    def __init__(self, *arguments: object) -> None:
        raise InputError("GTKWave cannot be driven from here: write a dump, and open it in GTKWave")


@contextlib.contextmanager
def _stand_in(name: str, **members: Any) -> Iterator[None]:
    """Have a module of this name for a while, with these members."""
    before = sys.modules.get(name)
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def import_pyverilator() -> ModuleType:
    """Return the module `pyverilator`.

    It imports tclwrapper, which uses a method of tkinter that Python 3.11 has not, and tkinter itself, which many
    distributions package apart. Both serve to drive GTKWave alone, so something else is there while it is imported.

    Raises
    ------
    InputError
        It is not installed.
    """
    with _stand_in("tclwrapper", TCLWrapper=_NoGtkWave):
        try:
            import pyverilator
            import pyverilator.verilatorcpp
        except ModuleNotFoundError as e:
            raise InputError("a block at the prompt needs PyVerilator: pip install 'tilewright[interactive]'") from e
    module: ModuleType = pyverilator
    return module
