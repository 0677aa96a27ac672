"""Every error that leaves percoedge on purpose, in one tree.

    PercoedgeError                 base; ``exit_code`` is what the command line returns
    ├── UsageError          (2)    an argument is out of its domain
    ├── InputError          (3)    the data given cannot be used
    │   ├── ImageError             not an image, truncated, or of an unsupported size
    │   └── StreamError            not a .pco stream, cut, corrupted, or over a limit
    │       └── BundleMismatchError   a sound stream, made with another bundle
    ├── EngineError         (4)    the models cannot be run
    │   ├── BundleError            a bundle file is missing, altered or inconsistent
    │   └── BackendError           a backend is missing or failed
    └── OutputError         (5)    the result cannot be written

Messages say what was expected, what was found, and how to mend it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = [
    "BackendError",
    "BundleError",
    "BundleMismatchError",
    "EngineError",
    "ImageError",
    "InputError",
    "OutputError",
    "PercoedgeError",
    "StreamError",
    "UsageError",
]


class PercoedgeError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UsageError(PercoedgeError, ValueError):
    """An argument is out of its domain."""

    exit_code = 2


class InputError(PercoedgeError):
    """The data given cannot be used."""

    exit_code = 3


class ImageError(InputError):
    """Not an image, a truncated one, or one of an unsupported size."""


class StreamError(InputError):
    """Not a .pco stream, or one that is cut, corrupted or over a limit."""


class BundleMismatchError(StreamError):
    """A sound stream that was made with another bundle."""


class EngineError(PercoedgeError):
    """The models cannot be run."""

    exit_code = 4


class BundleError(EngineError):
    """A bundle file is missing, altered or inconsistent."""


class BackendError(EngineError):
    """A backend is missing or failed."""


class OutputError(PercoedgeError):
    """The result cannot be written."""

    exit_code = 5


@contextlib.contextmanager
def naming(what: str, *kinds: type[PercoedgeError]) -> Iterator[None]:
    """Put what errors of these kinds are about before their messages; "" changes nothing."""
    try:
        yield
    except kinds as error:
        if not what:
            raise
        raise type(error)(f"{what}: {error}") from error
