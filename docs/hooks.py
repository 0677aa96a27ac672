"""Hooks of mkdocs: pages that live elsewhere in the repository, and the command line's own help.

``<!-- include: FILE -->`` stands for the text of a file of the repository, ``<!-- commands -->``
for the help of every command. Links to what is not part of the site lead to the repository.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from percoedge.runtime.cli.parser import make_parser

ROOT = Path(__file__).parents[1]
_INCLUDE = re.compile(r"^<!-- include: (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
# Files of the repository that the site shows under another name.
_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "bitstream/FORMAT.md": "format.md",
}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The text of a page with its includes, its commands, and links that lead somewhere."""
    repository = f"{config['repo_url']}/blob/main/"

    def link(match: re.Match[str], base: str) -> str:
        target, anchor = match[1], match[2] or ""
        path = posixpath.normpath(posixpath.join(base, target))
        path = f"docs/{_PAGES[path]}" if path in _PAGES else path
        inside = path.removeprefix("docs/")
        if path.startswith("docs/") and files.get_file_from_path(inside) is not None:
            return inside + anchor
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_path}: no file {path!r} to link to")
        return repository + path + anchor

    def include(match: re.Match[str]) -> str:
        path = match[1]
        text = (ROOT / path).read_text(encoding="utf-8")
        return _LINK.sub(lambda found: link(found, posixpath.dirname(path)), text)

    markdown = _LINK.sub(lambda found: link(found, "docs"), markdown)
    markdown = _INCLUDE.sub(include, markdown)
    return markdown.replace("<!-- commands -->", _commands())


def _commands() -> str:
    os.environ["COLUMNS"] = "100"
    return "\n".join(_described(make_parser(), level=2))


def _described(parser: argparse.ArgumentParser, level: int) -> list[str]:
    lines = [f"{'#' * level} {parser.prog}", "", "```text", parser.format_help().rstrip(), "```"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                lines += ["", *_described(child, min(level + 1, 3))]
    return lines
