"""Tables: in columns for a terminal, and as Markdown to paste elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["column_lines", "markdown_lines"]


def column_lines(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of as many cells each, one line a row; no spaces at the end of a line.

    The first ``left`` columns are words and begin at the left, the others are numbers and end at
    the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown_lines(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The same as GitHub and most other places show it; the first row is the header."""
    header, *others = rows
    rule = ["---" if index < left else "---:" for index in range(len(header))]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *others)]
