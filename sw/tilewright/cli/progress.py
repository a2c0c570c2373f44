"""Progress on stderr: a line that moves where stderr is a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

_FRAMES = "|/-\\"
_INTERVAL = 0.1
_BAR = 24


class Stage:
    """Something that takes a while; made by `Progress.stage`."""

    def __init__(self, what: str, note: Callable[[str], None] | None = None) -> None:
        self.what, self.detail = what, ""
        self._note = note
        self.done = self.total = 0
        self.start = time.perf_counter()

    def update(self, done: int, total: int) -> None:
        """Say how much is done."""
        self.done, self.total = done, total

    def say(self, detail: str) -> None:
        """Say what is being done."""
        before, self.detail = self.detail, " ".join(detail.split())
        if self._note is not None and self.detail not in ("", before):
            self._note(self.detail)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.start


class Progress:
    """Reports stages.

    Parameters
    ----------
    quiet : bool
        Report nothing.
    stream : text file
        stderr, unless a test wants another.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.quiet = quiet
        self.moving = not quiet and self.stream.isatty()

    def note(self, text: str) -> None:
        """Write a line."""
        if not self.quiet:
            print(text, file=self.stream, flush=True)

    @contextlib.contextmanager
    def stage(self, what: str) -> Iterator[Stage]:
        """Report a stage from its start to its end, with its time; one that fails leaves no line behind."""
        stage = Stage(what, None if self.moving else self.note)
        if not self.moving:
            yield stage
            self.note(f"{what}: {stage.seconds:.1f} s")
            return
        ended = threading.Event()
        painter = threading.Thread(target=self._paint, args=(stage, ended), daemon=True)
        painter.start()
        try:
            yield stage
        finally:
            ended.set()
            painter.join()
            self.stream.write("\r\033[K")
            self.stream.flush()
        self.note(f"{what}: {stage.seconds:.1f} s")

    def _paint(self, stage: Stage, ended: threading.Event) -> None:
        frame = 0
        while not ended.wait(_INTERVAL):
            frame += 1
            self.stream.write("\r\033[K" + _line(stage, frame))
            self.stream.flush()


def _line(stage: Stage, frame: int) -> str:
    """Return the moving line: a bar if the total is known, else a spinner."""
    text = f"{_FRAMES[frame % len(_FRAMES)]} {stage.what}"
    if stage.total:
        full = _BAR * stage.done // stage.total
        text += f" [{'#' * full}{'.' * (_BAR - full)}] {stage.done}/{stage.total}"
    if stage.detail:
        text += f" ({stage.detail[:60]})"
    return f"{text} {stage.seconds:.0f} s"
