"""Checks of what a caller passes: each returns the plain value, or raises UsageError.

Numbers of numpy are numbers; a bool is not. Nothing here knows what an argument means.
"""

from __future__ import annotations

import contextlib
import math
import operator
import re
from numbers import Real
from typing import Any

from percoedge.errors import UsageError

__all__ = ["expect_flag", "expect_int", "expect_number", "expect_size", "expect_text", "shown"]

_SHOWN_CHARACTERS = 60


def expect_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return an integer of ``low`` to ``high`` (None: without end), of any type that has an index.

    Raises UsageError for anything else, a bool among them.
    """
    try:
        number = low - 1 if _is_bool(value) else operator.index(value)
    except TypeError:
        number = low - 1
    if number < low or (high is not None and number > high):
        span = f"of {low} or more" if high is None else f"of {low} to {high}"
        raise UsageError(f"expected {name} to be an integer {span}, got {shown(value)}")
    return number


def expect_number(name: str, value: Any, low: float, high: float) -> float:
    """Return a real number of ``low`` to ``high`` as float. Raises UsageError for anything else."""
    number = math.nan
    if isinstance(value, Real) and not _is_bool(value):
        with contextlib.suppress(OverflowError):  # an integer beyond all floats
            number = float(value)
    if not low <= number <= high:  # which NaN is not
        raise UsageError(f"expected {name} to be a number of {low} to {high}, got {shown(value)}")
    return number


def expect_flag(name: str, value: Any) -> bool:
    """Return a bool, numpy's too. Raises UsageError for anything else, 0 and 1 among them."""
    if not _is_bool(value):
        raise UsageError(f"expected {name} to be True or False, got {shown(value)}")
    return bool(value)


def expect_text(name: str, value: Any) -> str:
    """Return a str. Raises UsageError for anything else, bytes among them."""
    if not isinstance(value, str):
        raise UsageError(f"expected {name} to be a str, got {shown(value)}")
    return value


def expect_size(name: str, text: str, longest: int) -> tuple[int, int]:
    """Return width and height in pixels, 1 to ``longest`` each, of a text such as "512x512".

    Raises UsageError for anything else.
    """
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    if match is None or not all(1 <= int(side) <= longest for side in match.groups()):
        raise UsageError(
            f"expected {name} like 512x512,1920x1088 (width x height, 1 to {longest} pixels a "
            f"side), got {text!r}"
        )
    return int(match[1]), int(match[2])


def shown(value: object) -> str:
    """Type and value, if that is short, in one line, for a message."""
    text = repr(value).replace("\n", " ")
    kind = type(value).__name__
    if value is None or len(text) > _SHOWN_CHARACTERS or text.startswith("<"):
        return "None" if value is None else f"an object of type {kind}"
    return f"{text} ({kind})"


def _is_bool(value: Any) -> bool:
    """Whether it is a bool, or numpy's, which numpy 1 and 2 name differently."""
    return type(value).__name__ in ("bool", "bool_")
