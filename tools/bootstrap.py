"""Set up the virtual environment; run by the Makefile with the bare system Python.

This file only checks the Python version, in syntax that old Pythons read too, so that they give one
line and no SyntaxError. The work is in `setup_environment`.
"""

import sys

MINIMUM_PYTHON = (3, 11)

if sys.version_info < MINIMUM_PYTHON:
    found = ".".join([str(part) for part in sys.version_info[:3]])
    wanted = ".".join([str(part) for part in MINIMUM_PYTHON])
    sys.exit(
        "error: Python "
        + wanted
        + " or later is needed, and "
        + sys.executable
        + " is "
        + found
        + ": install one and name it, as in `make PYTHON=python3.12 ...`"
    )

if __name__ == "__main__":
    from setup_environment import main

    sys.exit(main())
