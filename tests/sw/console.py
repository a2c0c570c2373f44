"""What a command gave."""

from dataclasses import dataclass


@dataclass
class Done:
    """Exit code and what went to stdout and stderr."""

    code: int
    out: str
    err: str
