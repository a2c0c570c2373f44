"""Tilewright: a language-model accelerator that a Python programmer can read, change, simulate and put on an FPGA.

>>> import tilewright as tw
>>> model = tw.load(None, device=tw.open_device("golden", "default"))
>>> print(model.generate("Once upon a time", max_new_tokens=5).text)
 there was a king who
"""

from importlib.metadata import PackageNotFoundError, version

from tilewright import ops, tables
from tilewright.api import Check, Generation, Model, Stats, load
from tilewright.compiler.plan import Tiling
from tilewright.devices import open_device
from tilewright_hw.arch import AcceleratorConfig, DeviceError, InputError, TilewrightError
from tilewright_hw.arch.memory_model import MemoryModel

try:
    __version__ = version("tilewright")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "AcceleratorConfig",
    "Check",
    "DeviceError",
    "Generation",
    "InputError",
    "MemoryModel",
    "Model",
    "Stats",
    "TilewrightError",
    "Tiling",
    "load",
    "open_device",
    "ops",
    "tables",
]
