"""The command line: `tilewright COMMAND`. Each command is a module with `add(commands)` and `run(arguments)`.

Exit codes: 0 done; 1 mismatch under --check, or the device failed; 2 usage or bad input; 130 after Ctrl-C. An error is
one line on stderr; TILEWRIGHT_DEBUG=1 shows its traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import tilewright
from tilewright.cli import (
    bench,
    chat,
    compile,
    configs,
    demo,
    doctor,
    embed,
    evaluate,
    generate,
    profile,
    synth,
    verilog,
)
from tilewright.cli.options import Parser, examples
from tilewright_hw.arch import DeviceError, TilewrightError

__all__ = ["main"]

EXAMPLES = examples(
    ('tilewright generate --prompt "Once upon a time"', "the built-in model on the simulated accelerator"),
    ("tilewright demo", "the same with a table of what it took, checked bit for bit"),
    ("tilewright configs", "the presets and their sizes"),
    ("tilewright verilog -o build/verilog", "Verilog for any FPGA toolchain"),
    ("tilewright doctor", "what is installed, what is missing"),
)


def parser() -> Parser:
    """Return the parser of all commands."""
    top = Parser(
        prog="tilewright",
        description="A language-model accelerator: checkpoint in, text out of the simulated gateware.",
        epilog=EXAMPLES,
    )
    top.add_argument("--version", action="version", version=f"tilewright {tilewright.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for module in (generate, chat, compile, demo, embed, evaluate, configs, verilog, synth, bench, profile, doctor):
        module.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    with contextlib.suppress(AttributeError, ValueError):
        # A character that the terminal cannot show is no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        arguments = parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _nobody_reads()
    except DeviceError as e:
        return _fail(e, str(e), 1)
    except TilewrightError as e:  # bad input, or a tool that is missing
        return _fail(e, str(e), 2)
    except OSError as e:
        what = f"{e.filename}: {e.strerror}" if e.filename else e.strerror or str(e)
        return _fail(e, what, 2)
    except MemoryError as e:
        return _fail(e, "not enough memory on this machine", 1)
    except Exception as e:
        return _fail(e, f"internal error: {type(e).__name__}: {e} (TILEWRIGHT_DEBUG=1 shows where)", 1)


def _fail(error: Exception, text: str, code: int) -> int:
    """Print one line, or the traceback if it was asked for."""
    if os.environ.get("TILEWRIGHT_DEBUG"):
        traceback.print_exception(error)
    with contextlib.suppress(OSError):  # stdout may be what failed
        sys.stdout.flush()
    print(f"tilewright: error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _nobody_reads() -> int:
    """End quietly when the reader of stdout (`| head`) has gone; the interpreter must not flush into the pipe again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
