"""percoedge: a generative image codec; photos in a few hundred bytes, decoded on edge devices.

    from percoedge import Codec

    codec = Codec.load("tiny")
    data = codec.encode(image)
    image = codec.decode(data)

`Codec` is imported at its first use, so that parts of the package can be used without the rest.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, without the time to import it: see runtime/cli/main.py
if TYPE_CHECKING:
    from percoedge.runtime.codec import Codec

__all__ = ["Codec", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "Codec":
        from percoedge.runtime.codec import Codec

        return Codec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
