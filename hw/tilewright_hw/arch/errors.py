"""The errors that a user may see: one line each, saying what must hold and what was given."""

from __future__ import annotations


class TilewrightError(Exception):
    """Base of all errors that Tilewright raises on purpose."""


class InputError(TilewrightError, ValueError):
    """Bad input: a file, shape, type, option or configuration. The command line exits with 2."""


class DeviceError(TilewrightError, RuntimeError):
    """A device stopped, or cannot run. The command line exits with 1.

    `code` is the value of the ERROR register (0: the error was found outside the device).
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code
