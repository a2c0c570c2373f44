"""`tilewright chat`: a conversation with a model that has a chat template."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from tilewright.api import Model, read_model
from tilewright.chat import Conversation, read_template
from tilewright.cli.options import Commands, add_device, add_model, add_sampling, add_stops, command, examples
from tilewright.cli.progress import Progress
from tilewright.cli.session import Continuation, check_line, open_model
from tilewright_hw.arch import InputError

EXAMPLES = examples(
    ("tilewright chat path/to/folder", "a conversation in the terminal, on the golden model"),
    (
        'tilewright chat path/to/folder --system "Answer in one sentence." --temperature 0.7 < questions.txt',
        "each line of a file is a message",
    ),
)
HELP = "/reset begins anew, /quit or Ctrl-D ends, Ctrl-C stops an answer"


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "chat", run, "talk with a model that has a chat template", EXAMPLES)
    add_model(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="the message before all others")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="of one answer (default: %(default)s)"
    )
    add_stops(parser)
    add_device(parser, default="golden")
    add_sampling(parser)
    parser.add_argument("--check", action="store_true", help="run the golden model beside it and compare every answer")
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")


def run(arguments: argparse.Namespace) -> int:
    """Talk; 1 if --check found a difference."""
    progress = Progress(arguments.quiet)
    wanted = Continuation.check(arguments)
    checkpoint, tokenizer = read_model(arguments.model, arguments.tokenizer, arguments.context)
    template = read_template(checkpoint.files)
    conversation = Conversation(template, tokenizer, checkpoint.spec.context, arguments.system)
    conversation.ask("?")  # does the template work at all?
    conversation.reset()
    with open_model(arguments, wanted, checkpoint, tokenizer, progress) as model:
        terminal = sys.stdin.isatty()
        if terminal:
            progress.note(HELP)
        answers = [_answer(model, wanted, conversation, line, progress, terminal) for line in _lines(terminal)]
    return 0 if all(answers) else 1


def _lines(terminal: bool) -> Iterator[str]:
    """Yield what the user says, to the end of input or /quit."""
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then edits lines and remembers them)
    while True:
        try:
            # The prompt is for people: elsewhere stdout holds answers alone.
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            return
        except UnicodeDecodeError as e:
            raise InputError(f"messages must be UTF-8: {e.reason} at byte {e.start}") from e
        if not terminal and not line:
            return
        line = line.strip()
        if line == "/quit":
            return
        if line:
            yield line


def _answer(
    model: Model, wanted: Continuation, conversation: Conversation, line: str, progress: Progress, terminal: bool
) -> bool:
    """Answer one message; returns whether golden agrees, as far as it was asked."""
    if line == "/reset":
        conversation.reset()
        return True
    before = list(conversation.messages)
    try:
        ids, forgotten = conversation.ask(line)
    except InputError as e:
        if not terminal:
            raise
        progress.note(f"{e}")
        return True
    if forgotten:
        progress.note(f"(the oldest {forgotten} messages no longer fit the context)")
    options = wanted.options.copy()
    options["stop_tokens"] = [*options.get("stop_tokens", ()), *conversation.stop_tokens]
    run = model.start(ids, wanted.max_new_tokens, **options)
    text = ""
    try:
        for piece in run:
            text += piece
            _write(piece)
    except KeyboardInterrupt:
        if not terminal:
            raise
        conversation.messages = before
        _write("\n")
        progress.note("(stopped; the message is forgotten)")
        return True
    _write("\n")
    generation = run.result()
    conversation.answered(text)
    if generation.check is not None:
        progress.note(check_line(generation.check, model.device.name))
    return generation.check is None or generation.check.exact


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
