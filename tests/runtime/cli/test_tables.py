"""percoedge.runtime.cli.tables: columns that line up."""

from __future__ import annotations

from percoedge.runtime.cli.tables import column_lines, markdown_lines

ROWS = [("graph", "size", "s"), ("flow", "1.5 MiB", "0.2"), ("a decoder", "9 KiB", "")]


def test_columns() -> None:
    assert column_lines(ROWS) == [
        "graph         size    s",
        "flow       1.5 MiB  0.2",
        "a decoder    9 KiB",
    ]
    assert column_lines(ROWS, left=2)[2] == "a decoder  9 KiB"
    assert column_lines([]) == []


def test_markdown() -> None:
    assert markdown_lines(ROWS, left=2) == [
        "| graph | size | s |",
        "| --- | --- | ---: |",
        "| flow | 1.5 MiB | 0.2 |",
        "| a decoder | 9 KiB |  |",
    ]
