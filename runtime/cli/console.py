"""What the command line says: results on stdout, notes and errors on stderr, as text or JSON.

Everything printed is made printable first: names and captions come from unknown sources, and
control characters in them could steer a terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from percoedge.errors import OutputError

__all__ = [
    "Console",
    "ProgressLine",
    "flush_stdout",
    "printable",
    "say",
    "say_error",
    "silence_broken_stdout",
    "size_text",
]

_REDRAW_SECONDS = 0.1


@dataclass(frozen=True)
class Console:
    """Where a command's words go.

    ``json``: one JSON object in place of text. ``quiet``: no text and no notes, but still the JSON.
    ``data_on_stdout``: stdout carries a file, so the result's description goes to stderr.
    """

    json: bool = False
    quiet: bool = False
    data_on_stdout: bool = False

    def notes(self, name: str, notes: Iterable[str]) -> None:
        """Print on stderr what was changed in a file that was read."""
        for note in notes:
            if not self.quiet:
                _note(sys.stderr, f"percoedge: note: {name}: {note}")

    @contextlib.contextmanager
    def progress(self) -> Iterator[ProgressLine]:
        """Show on stderr what is being done, for as long as the ``with`` lasts."""
        line = ProgressLine(None if self.quiet else sys.stderr)
        try:
            yield line
        finally:
            line.clear()

    def report(self, record: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Print the result: ``record`` as JSON, or ``lines``.

        Raises OutputError when standard output takes none of it.
        """
        for line in [json.dumps(record)] if self.json else () if self.quiet else lines:
            if self.data_on_stdout:
                _note(sys.stderr, line)
            else:
                say(line)


class ProgressLine:
    """On a terminal one line that is drawn again and again, elsewhere a line for each task."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._redraws = stream is not None and stream.isatty()
        self._task = ""
        self._width = 0
        self._drawn = 0.0

    def show(self, task: str, share: float = 0.0, detail: str = "") -> None:
        """Show a task, the share of it that is done (0..1), and what is being done at the moment.

        Cheap: a terminal is drawn on a few times a second, elsewhere each task is printed once.
        """
        if self._redraws:
            now = time.monotonic()
            if task != self._task or now - self._drawn >= _REDRAW_SECONDS:
                self._drawn = now
                self._draw(f"{task}: {share:4.0%} {detail}".rstrip())
        elif task != self._task:
            _note(self._stream, f"percoedge: {task}")
        self._task = task

    def clear(self) -> None:
        """Take the line off the terminal."""
        if self._width:
            self._draw("")
            self._draw("")  # and the cursor back to the left

    def _draw(self, text: str) -> None:
        text = printable(text)[: shutil.get_terminal_size().columns - 1]
        padded = text.ljust(self._width)  # over all of the last text
        self._width = len(text)
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):  # it takes no more: nobody watches
                self._stream.write(f"\r{padded}")
                self._stream.flush()


def say(line: str) -> None:
    """Print a line on stdout. Raises OutputError when it is closed or takes none."""
    try:
        if sys.stdout is None:  # closed before the program began
            raise ValueError("it is closed")
        _write(sys.stdout, line)
    except (OSError, ValueError) as error:
        raise _output_error(error) from error


def say_error(message: str) -> None:
    """Print one line on stderr."""
    _note(sys.stderr, f"percoedge: error: {' '.join(message.split())}")


def printable(text: str) -> str:
    """Escape what cannot be printed or could steer a terminal: control, bidi, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size_text(size_bytes: int) -> str:
    """Write a size for people: "412 bytes", "1.5 KiB", "23.1 MiB"."""
    if size_bytes < 1024:
        return f"{size_bytes} byte{'' if size_bytes == 1 else 's'}"
    size, unit = size_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}"


def flush_stdout() -> None:
    """Write out what stdout still holds; raises OutputError when nobody reads it."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        raise _output_error(error) from error


def silence_broken_stdout() -> None:
    """Redirect a broken stdout to the null device, or the interpreter complains at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _note(stream: TextIO | None, line: str) -> None:
    """Print a line on stderr, and give up where it takes none."""
    if stream is not None:  # closed before the program began
        with contextlib.suppress(OSError, ValueError):
            _write(stream, line)


def _write(stream: TextIO, line: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(printable(line).encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _output_error(error: OSError | ValueError) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(f"cannot write standard output: {reason}; redirect it elsewhere")
