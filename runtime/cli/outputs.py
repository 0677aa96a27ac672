"""Names of results, settled before any work is done: a mistake must not cost minutes.

Nothing is written here; percoedge.runtime.files does that, and has the last word.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from percoedge.errors import InputError, OutputError, UsageError
from percoedge.runtime.files import STANDARD_STREAM

__all__ = ["check_output", "named_outputs", "output_name", "shown_name"]


def output_name(given: str | None, source: str, suffix: str) -> str:
    """Return where a result goes: ``given``, else ``source`` with ``suffix``; stdin to stdout.

    Raises as `check_output`, and UsageError when a name that nobody gave is taken: a photo.png that
    was encoded to photo.pco must not be lost when that is decoded.
    """
    if given is None and source != STANDARD_STREAM:
        if not os.path.exists(source) or os.path.isdir(source):
            return source  # never written to: reading it will say what is wrong
        given = os.fspath(Path(source).with_suffix(suffix))
        if os.path.lexists(given):
            raise UsageError(
                f"expected no file {given!r}, as it would be replaced; name the output with -o"
            )
    given = STANDARD_STREAM if given is None else given
    check_output(given, source)
    return given


def check_output(name: str, source: str | None = None) -> None:
    """Refuse an output that cannot be written, is the input, or would fill a terminal with bytes.

    Raises UsageError or OutputError.
    """
    if name == STANDARD_STREAM:
        if sys.stdout is not None and sys.stdout.isatty():
            raise UsageError(
                "expected standard output to be a file or a pipe, got a terminal; name the output "
                "with -o, or redirect it"
            )
        return
    if source not in (None, STANDARD_STREAM) and _same_file(name, str(source)):
        raise UsageError(f"expected an output other than the input {source!r}; name another one")
    if os.path.isdir(name):
        raise OutputError(
            f"cannot write {name}: expected the name of a file, got a directory; add a file name"
        )
    folder = os.path.dirname(name) or os.curdir
    if not os.path.isdir(folder):
        raise OutputError(f"cannot write {name}: there is no directory {folder!r}; create it first")
    if not os.access(name if os.path.exists(name) else folder, os.W_OK):
        raise OutputError(
            f"cannot write {name}: permission denied; choose a place that you may write to"
        )


def named_outputs(
    folder: str, names: Iterable[str], suffixes: tuple[str, ...], suffix: str
) -> tuple[dict[str, str], dict[str, InputError]]:
    """Names of a folder's inputs with those of their outputs, and of inputs that share one.

    Inputs are files whose ``names``, relative and with "/" between the parts, end in one of
    ``suffixes``, in lower case. What begins with a dot is none, nor is what lies in such a folder:
    systems keep their own files so. Raises InputError when there is no input.
    """
    inputs = [
        name
        for name in sorted(names)
        if name.lower().endswith(suffixes)
        and not any(part.startswith(".") for part in name.split("/"))
    ]
    if not inputs:
        raise InputError(
            f"expected files that end in {', '.join(suffixes)} in {folder}, found none; name their "
            "folder"
        )
    sharing: dict[str, list[str]] = {}
    for name in inputs:
        sharing.setdefault(str(PurePosixPath(name).with_suffix(suffix)), []).append(name)
    outputs = {names[0]: output for output, names in sharing.items() if len(names) == 1}
    clashes = {
        name: InputError(
            f"expected files of different names, got {' and '.join(map(repr, names))}, whose "
            f"outputs would all be {output!r}; rename them"
        )
        for output, names in sharing.items()
        for name in names
        if len(names) > 1
    }
    return outputs, clashes


def shown_name(name: str, standard: str) -> str:
    """A file's name for people; ``standard`` in place of "-"."""
    return standard if name == STANDARD_STREAM else name


def _same_file(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):  # one of them is not there
        return False
