"""The documentation speaks of what is there: messages, commands and options that exist."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from percoedge.errors import UsageError
from percoedge.runtime.cli.parser import make_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "ARCHITECTURE.md"]
CODE = "\n".join(
    re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
    for folder in ("bitstream", "engines", "runtime", "export", "src/percoedge")
    for path in (ROOT / folder).rglob("*.py")
)


def test_every_message_of_the_troubleshooting_page_is_in_the_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^`(.+)`\n:", text, re.MULTILINE)
    assert len(messages) > 15
    assert [message for message in messages if message not in CODE] == []


def _commands(page: Path) -> list[str]:
    """Lines of code blocks that begin with percoedge, without comments, pipes and what follows."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\||>", line)]
    return [part for part in parts if re.match(r"percoedge [a-z-]", part)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page: Path) -> None:
    for command in _commands(page):
        try:
            make_parser().parse_known_args(shlex.split(command)[1:])
        except UsageError as error:
            pytest.fail(f"{page.name}: {command}: {error}")
        except SystemExit:  # --help, --version
            pass


def test_every_option_that_the_pages_name_exists() -> None:
    def options(parser: argparse.ArgumentParser) -> set[str]:
        found = set(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= set().union(*map(options, action.choices.values()))
        return found

    known = options(make_parser())
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command in re.findall(r"`(percoedge [^`]+)`", text):
            named = {word.partition("=")[0] for word in command.split() if word.startswith("--")}
            assert named <= known, (page.name, command)
