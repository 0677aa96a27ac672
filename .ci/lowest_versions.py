"""Prints constraints for pip: the lowest version that percoedge admits of each package it needs."""

from importlib.metadata import requires

from packaging.requirements import Requirement

EXTRAS = ("", "compare", "heif", "serve", "text")

for requirement in map(Requirement, requires("percoedge") or ()):
    marker = requirement.marker
    if marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS):
        for lowest in (each for each in requirement.specifier if each.operator == ">="):
            print(f"{requirement.name}=={lowest.version}")
