"""One thin door to TensorRT in its forms: ``tensorrt`` (10.3 to 11) and ``tensorrt_rtx``.

The only module that imports them, and only at use. What differs between releases is asked with
``hasattr`` where it is used: everything else is common to all of them.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from percoedge.errors import BackendError, UsageError

__all__ = ["DTYPES", "LIBRARIES", "Library", "Sink", "find_library", "log_to", "supported_targets"]

LIBRARIES = ("tensorrt", "tensorrt-rtx")
"""Names as in backends, on the command line and in the cache of plans."""

DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "HALF": "float16",
    "FLOAT": "float32",
}
"""The libraries' names of types -> numpy's."""

Sink = Callable[[str, str], None]
"""Takes severity ("ERROR", "WARNING", "INFO") and text of one message; must not raise."""

_OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}

# Before Ampere the compiler has no matrix product in FP32, which the exact graph is made of.
_OLDEST_SM = 80

_INSTALL = {
    "tensorrt": "on Jetson it comes with JetPack (6 or later), for the system's Python: make the "
    "environment with python3 -m venv --system-site-packages; elsewhere: "
    "pip install 'percoedge[tensorrt]'",
    "tensorrt-rtx": "for Windows, and for Linux on x86-64 or (Python 3.12, no Jetson) 64-bit Arm: "
    "pip install 'percoedge[rtx]'",
}


@dataclass(frozen=True)
class Library:
    """A library that was imported: one of LIBRARIES, its version, and its module."""

    name: str
    version: str
    module: Any


def find_library(name: str) -> Library:
    """Import a library; raises BackendError that says what to install, UsageError for the name."""
    if name not in LIBRARIES:
        raise UsageError(f"expected a library of {', '.join(LIBRARIES)}, got {name!r}")
    try:
        module = _import(name)
    except Exception as error:  # besides ImportError, whatever a broken installation raises
        raise BackendError(
            f"expected the package {name}, cannot import it ({error}); {_INSTALL[name]}"
        ) from error
    library = Library(name, str(getattr(module, "__version__", "0")), module)
    if _numbers(library.version) < _OLDEST[name]:
        oldest = ".".join(map(str, _OLDEST[name]))
        raise BackendError(
            f"expected {name} {oldest} or newer, got {library.version}; {_INSTALL[name]}"
        )
    return library


def supported_targets(library: Library) -> tuple[int, ...]:
    """Compute capabilities (SM 8.9 is 89) that can be built for without their GPU, ascending.

    Empty for a library that builds for the GPU at hand only.
    """
    names = getattr(getattr(library.module, "ComputeCapability", None), "__members__", {})
    known = (int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name))
    return tuple(sorted(sm for sm in known if sm >= _OLDEST_SM))


@contextlib.contextmanager
def log_to(library: Library, sink: Sink) -> Iterator[Any]:
    """Lead the library's messages to ``sink`` inside the ``with``; yields the logger to hand over.

    There is one logger per process, as the library wants it: with nested uses the innermost sink
    of the thread gets the messages, those of the library's own threads the innermost of all, and
    outside of all they are dropped.
    """
    logger, entry = _logger(library), (threading.get_ident(), sink)
    logger.sinks.append(entry)
    try:
        yield logger
    finally:
        logger.sinks.remove(entry)


_LOGGERS: dict[str, Any] = {}


def _logger(library: Library) -> Any:
    if library.name not in _LOGGERS:
        base = library.module.ILogger

        def create(self: Any) -> None:
            base.__init__(self)
            self.sinks = []

        def log(self: Any, severity: Any, message: str) -> None:
            name = str(severity).rpartition(".")[2]
            if name == "VERBOSE":  # of which there are thousands
                return
            sinks = list(self.sinks)
            own = [entry for entry in sinks if entry[0] == threading.get_ident()]
            for _, sink in (own or sinks)[-1:]:
                sink(name, message)

        logger_type = type("Logger", (base,), {"__init__": create, "log": log})
        _LOGGERS[library.name] = logger_type()
    return _LOGGERS[library.name]


def _import(name: str) -> Any:
    if name == "tensorrt":
        import tensorrt

        return tensorrt
    import tensorrt_rtx

    return tensorrt_rtx


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
