"""Builds `caption_tables.bin` from `caption_text.txt`.

Run as `python -m percoedge.bitstream.tables.build`. The text, one caption a line, was
written for this project. Both files are part of format version 1 and frozen with it (FORMAT.md,
section 5.3): a change of the text would make old captions unreadable.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from percoedge.bitstream.captions import END, ORDER, TABLES_FILE

__all__ = ["build_tables", "main"]

_TEXT_FILE = "caption_text.txt"
_MAX_DICTIONARY_BYTES = 4096
_MAX_COUNT = 255


def build_tables(text: str) -> bytes:
    """Return the tables of a text of one caption a line.

    Two bytes, big endian: length of the dictionary. The dictionary. Then 5 bytes for each
    (ORDER + 1)-gram of the text, ascending: the gram and its count, 255 standing for more.
    """
    captions = text.splitlines()
    grams: Counter[bytes] = Counter()
    for caption in captions:
        padded = bytes([END]) * ORDER + caption.encode() + bytes([END])
        grams.update(padded[i : i + ORDER + 1] for i in range(len(padded) - ORDER))
    entries = b"".join(
        gram + bytes([min(count, _MAX_COUNT)]) for gram, count in sorted(grams.items())
    )
    dictionary = _dictionary(captions)
    return len(dictionary).to_bytes(2, "big") + dictionary + entries


def _dictionary(captions: list[str]) -> bytes:
    """Repeated words, the most frequent last: deflate codes short distances in fewer bits."""
    words = Counter(re.findall(r"[a-z]{3,}", " ".join(captions)))
    dictionary = b""
    for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        if count == 1 or len(dictionary) + len(word) + 1 > _MAX_DICTIONARY_BYTES:
            break
        dictionary = b" " + word.encode() + dictionary
    return dictionary


def main() -> None:
    """Write the tables next to the text."""
    folder = Path(__file__).parent
    text = (folder / _TEXT_FILE).read_text(encoding="utf-8")
    (folder / TABLES_FILE).write_bytes(build_tables(text))


if __name__ == "__main__":
    main()
