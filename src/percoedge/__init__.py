"""percoedge: a generative image codec; photos in a few hundred bytes, decoded on edge devices.

    from percoedge import Codec

    codec = Codec.load("tiny")
    data = codec.encode(image)
    image = codec.decode(data)

The names here are imported at their first use, so that parts of the package can be used without
the rest.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing's, without the time to import it: see runtime/cli/main.py
if TYPE_CHECKING:
    from percoedge.engines.bundle import Bundle
    from percoedge.errors import (
        BackendError,
        BundleError,
        BundleMismatchError,
        EngineError,
        ImageError,
        InputError,
        OutputError,
        PercoedgeError,
        StreamError,
        UsageError,
    )
    from percoedge.runtime.codec import Codec, ProgressiveImage

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "BundleMismatchError",
    "Codec",
    "EngineError",
    "ImageError",
    "InputError",
    "OutputError",
    "PercoedgeError",
    "ProgressiveImage",
    "StreamError",
    "UsageError",
    "__version__",
]

__version__ = "0.2.0"

_MODULES = {
    "Bundle": "percoedge.engines.bundle",
    "Codec": "percoedge.runtime.codec",
    "ProgressiveImage": "percoedge.runtime.codec",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES.get(name, "percoedge.errors")), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
