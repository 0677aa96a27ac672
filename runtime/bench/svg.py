"""Pieces of SVG and HTML as text: escaped tags, axes, ticks. Knows nothing of what is plotted."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Axis", "axes", "linear_ticks", "log_ticks", "plot", "short", "tag", "text"]

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element; ``content`` is markup already, attributes are escaped.

    ``_`` in an attribute's name stands for ``-``, one at its end for nothing.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{content}</{name}>"


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """Words at a place of a drawing."""
    return tag("text", html.escape(words), x=x, y=y, **attributes)


def plot(width: int, height: int, parts: Iterable[str], label: str) -> str:
    """A drawing that scales with the page; ``label`` says to those who cannot see it what it is."""
    size = f"0 0 {width} {height}"
    style = f"max-width:{width}px"
    return tag("svg", "".join(parts), viewBox=size, style=style, role="img", aria_label=label)


@dataclass(frozen=True)
class Axis:
    """Maps values ``low``..``high`` to ``start``..``end`` of a drawing; ``log`` by magnitude."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 2)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, about ``count`` steps apart."""
    raw = (high - low) / count or 1.0
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose ``low``..``high``; both are above 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def axes(
    x: Axis,
    y: Axis,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> list[str]:
    """Grid lines with their numbers, and what the axes show."""
    parts = []
    for value, words in y_ticks:
        at = y(value)
        parts.append(tag("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(text(x.start - 6, at + 4, words, class_="tick", text_anchor="end"))
    for value, words in x_ticks:
        at = x(value)
        parts.append(tag("line", x1=at, x2=at, y1=y.start, y2=y.start + 4, class_="grid"))
        parts.append(text(at, y.start + 17, words, class_="tick", text_anchor="middle"))
    middle = (x.start + x.end) / 2
    parts.append(text(middle, y.start + 34, x_label, class_="axis", text_anchor="middle"))
    parts.append(text(x.start, y.end - 9, y_label, class_="axis", text_anchor="start"))
    return parts


def short(value: float) -> str:
    """A number for people: "1.2 G", "340", "0.05"."""
    for size, unit in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _attribute(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
