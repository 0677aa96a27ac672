"""ONNX Runtime itself: importing it, and what it needs of CUDA's libraries and of a graph's files.

The only module that imports onnxruntime, and only at use.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from percoedge.errors import BackendError

__all__ = ["SILENT", "import_onnxruntime", "missing_library", "preload", "with_data"]

SILENT = 4
"""ONNX Runtime's severity "fatal": what goes wrong is raised, not printed."""


def import_onnxruntime() -> Any:
    """The library, silenced; raises BackendError that says what to install."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(
            f"expected the package onnxruntime, cannot import it ({error}); "
            "install it with: pip install onnxruntime"
        ) from error
    ort.set_default_logger_severity(SILENT)  # its start-up warnings go past session options
    return ort


def preload(ort: Any) -> None:
    """Let ONNX Runtime find CUDA libraries that were installed as Python packages.

    By itself it looks beside its own package only, and they may lie elsewhere on the path.
    """
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            for folder in _library_folders():
                ort.preload_dlls(directory=folder)
            ort.preload_dlls()


def missing_library(ort: Any) -> str:
    """Which library the CUDA provider does not find, as the system's loader says; empty if none."""
    folder = Path(getattr(ort, "__file__", "")).parent / "capi"
    for path in sorted(folder.glob("*onnxruntime_providers_cuda.*")):
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            # without ONNX Runtime around it, it fails in any case, but last at its own symbols
            return "" if "undefined symbol" in str(error) else str(error)
    return ""


def _library_folders() -> list[str]:
    """Where NVIDIA's packages have libraries of CUDA and cuDNN: nvidia/cu13/lib and its like."""
    found = importlib.util.find_spec("nvidia")
    places = found.submodule_search_locations if found is not None else None
    libraries = ("libcudart*", "libcublas*", "libcudnn.*")
    folders = [lib for place in places or () for lib in sorted(Path(place).glob("*/lib"))]
    return [str(lib) for lib in folders if any(list(lib.glob(name)) for name in libraries)]


@contextlib.contextmanager
def with_data(options: Any, data: Mapping[str, bytes]) -> Iterator[None]:
    """Give external data to the session that is built inside the ``with``.

    Releases without the call for it in Python (1.23, the last for Python 3.10) read the bytes back
    from a private temporary folder that is gone afterwards.
    """
    if not data:
        yield
    elif hasattr(options, "add_external_initializers_from_files_in_memory"):
        options.add_external_initializers_from_files_in_memory(
            list(data), list(data.values()), [len(content) for content in data.values()]
        )
        yield
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            for name, content in data.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", folder
            )
            yield
