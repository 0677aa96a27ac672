"""What a part finds: written to its file as it goes, so that a crash loses nothing found before."""

from __future__ import annotations

import json
import math
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

__all__ = ["Options", "Record", "Skipped"]

Value = TypeVar("Value")
Given = ParamSpec("Given")


class Skipped(Exception):
    """A part cannot be tried on this machine; the message says what it needs."""


@dataclass(frozen=True)
class Options:
    """``out``: the folder of the results; ``bundle``: name or folder; ``limit_s``: of the part."""

    out: Path
    bundle: str
    limit_s: float


class Record:
    """The results of one part in the JSON file ``path``; ``head`` comes before them.

    "status" is "running" until ``end`` says how it went.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self._path = path
        self._document: dict[str, Any] = {**head, "status": "running", "results": {}}
        self._write()

    def put(self, name: str, value: object) -> None:
        """Keep a result; a name with slashes lies in objects of these names."""
        place = self._document["results"]
        *outer, last = name.split("/")
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value
        self._write()

    def attempt(
        self, name: str, function: Callable[Given, Value], *args: Given.args, **kwargs: Given.kwargs
    ) -> Value | None:
        """Keep what the function returns, or its error; None then, and the part goes on."""
        print(name, flush=True)
        try:
            value = function(*args, **kwargs)
        except Skipped as reason:
            self.put(name, {"skipped": str(reason)})
            return None
        except Exception as error:
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}, {last.line}"
            self.put(name, {"error": f"{type(error).__name__}: {error}", "where": where})
            return None
        self.put(name, value)
        return value

    def end(self, status: str, seconds: float) -> None:
        """Say how it went."""
        self._document |= {"status": status, "seconds": round(seconds, 1)}
        self._write()

    def _write(self) -> None:
        text = json.dumps(_plain(self._document), indent=2, default=str)
        partial = self._path.with_suffix(".partial")
        partial.write_text(text + "\n")
        os.replace(partial, self._path)


def _plain(value: Any) -> Any:
    """The same with rounded numbers, of which JSON knows all."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return round(value, 4) if abs(value) < 1e4 else round(value)
    return value
