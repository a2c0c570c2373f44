"""Devices by name: the only place of the runtime that knows which there are."""

from __future__ import annotations

from collections.abc import Callable

from tilewright_hw.arch import AcceleratorConfig, Device, DeviceError, InputError
from tilewright_hw.arch.memory_model import MemoryModel

DEVICES = ("golden", "rtl")


def open_device(
    name: str,
    config: AcceleratorConfig | str = "default",
    *,
    memory: MemoryModel | None = None,
    progress: Callable[[str], None] | None = None,
    log_units: bool = False,
) -> Device:
    """Open a device: `golden` (NumPy model) or `rtl` (simulated gateware; built on first use, then cached).

    Parameters
    ----------
    name : str
        `golden` or `rtl`.
    config : AcceleratorConfig or str
        A configuration, a preset's name, or the path of a .toml file.
    memory : MemoryModel
        Timing of the simulated memory (rtl only; results do not depend on it).
    progress : callable
        Called with a line of text while the simulator is built.
    log_units : bool
        Keep logs of what the units do in `unit_logs` (rtl only; a simulator of its own, built on first use).

    Raises
    ------
    InputError
        Unknown name or configuration, or logs of a device that has no cycles.
    DeviceError
        The device cannot be built: what is missing, and how to get it.
    """
    config = AcceleratorConfig.resolve(config)
    check_logs(name, log_units)
    if device_kind(name) == "golden":
        from tilewright_sim.golden import GoldenDevice

        return GoldenDevice(config)
    return _open_rtl(config, memory or MemoryModel(), progress, log_units)


def check_logs(name: str, log_units: bool) -> None:
    """Check that a device has what is to be logged; InputError if not."""
    if log_units and device_kind(name) != "rtl":
        raise InputError(f"only the rtl device has cycles, of which units can be traced: not {name!r}")


def device_kind(name: str) -> str:
    """Return which device NAME[:ARGS] means, opening nothing; InputError if there is none such."""
    kind, _, arguments = name.partition(":")
    if kind not in DEVICES:
        raise InputError(f"unknown device {name!r}: choose one of {', '.join(DEVICES)}")
    if arguments:
        raise InputError(f"device {kind!r} takes no arguments, not {arguments!r}")
    return kind


def _open_rtl(
    config: AcceleratorConfig, memory: MemoryModel, progress: Callable[[str], None] | None, log_units: bool
) -> Device:
    try:
        from tilewright_sim.rtl import RtlDevice
    except ModuleNotFoundError as e:
        raise DeviceError(
            f"the rtl device needs the package {e.name}: pip install 'tilewright[rtl]' (tilewright doctor tells more)"
        ) from e
    return RtlDevice(config, memory=memory, on_progress=progress, log_units=log_units)
