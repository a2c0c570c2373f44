"""Checks of the parameters that a block is constructed with: what must hold, and what was given."""

from __future__ import annotations

from amaranth.hdl import Shape

from tilewright_hw.arch.config import AcceleratorConfig

__all__ = ["check_config", "check_integer", "check_power_of_two", "check_shape"]

MAX_BITS = 65536
"""The widest payload of a stream."""


def check_integer(name, value, *, least=1, most):
    """Return an integer parameter; TypeError if it is none, ValueError if it is out of its range."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, not {value!r}")
    return value


def check_power_of_two(name, value, *, least, most):
    """Return an integer parameter that must be a power of two; errors as `check_integer`."""
    check_integer(name, value, least=least, most=most)
    if value & (value - 1):
        raise ValueError(f"{name} must be a power of two, not {value!r}")
    return value


def check_shape(name, value):
    """Return the shape of a payload, which has bits; TypeError if it is none, ValueError if it has none or too many."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a shape, not {value!r}")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"{name} must have 1 to {MAX_BITS} bits, not {value!r}")
    try:
        width = Shape.cast(value).width
    except (TypeError, RecursionError) as e:
        raise TypeError(f"{name} must be a shape, not {value!r}") from e
    if not 1 <= width <= MAX_BITS:
        raise ValueError(f"{name} must have 1 to {MAX_BITS} bits, not {value!r}")
    return value


def check_config(config):
    """Return the configuration; TypeError if it is none."""
    if not isinstance(config, AcceleratorConfig):
        raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
    return config
