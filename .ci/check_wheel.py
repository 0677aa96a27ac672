"""Checks an installed wheel: ``python check_wheel.py STREAM PNG``, PNG being STREAM decoded.

Imports every module of the base install, and looks whether the picture is one of the right size.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import percoedge
from percoedge.bitstream.container import unpack


def main(stream: str, picture: str) -> None:
    if "site-packages" not in Path(percoedge.__file__).parts:
        sys.exit(f"percoedge was imported from {percoedge.__file__}, not from the wheel")
    names = [f"percoedge.{name}" for name in ("bundles", "errors", "pillow", "replacing")]
    for part in ("percoedge.bitstream", "percoedge.engines", "percoedge.runtime"):
        package = importlib.import_module(part)
        names += [module.name for module in pkgutil.walk_packages(package.__path__, part + ".")]
    for name in names:
        importlib.import_module(name)
    if importlib.util.find_spec("percoedge.export") is None:
        sys.exit("percoedge.export is not in the wheel")
    for name in ("torch", "onnx"):
        if importlib.util.find_spec(name) is not None:
            sys.exit(f"the base install has brought {name}")

    header = unpack(Path(stream).read_bytes()).header
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    if pixels.shape != (header.height, header.width, 3):
        sys.exit(f"expected {header.width}x{header.height} RGB, got an array {pixels.shape}")
    if pixels.std() < 5:
        sys.exit(f"the decoded picture is flat: standard deviation {pixels.std():.1f} of 255")
    print(f"{len(names)} modules imported, {header.width}x{header.height} px decoded")


if __name__ == "__main__":
    main(*sys.argv[1:])
