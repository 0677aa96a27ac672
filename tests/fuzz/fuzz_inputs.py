"""Inputs of the fuzz target: small sound streams, a dictionary, and mutations of them.

``python tests/fuzz/fuzz_inputs.py`` writes `corpus/`, `corpus.sha256` and `container.dict` anew.
The streams are made of integers only, so they are the same on every machine; their digests are
pinned. A new one is added at the end, none is ever changed: decoders must read them for ever.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz_checks import FINGERPRINT, FRAMING_BYTES, SCHEDULE, STRIDE, K, Target, as_file

from percoedge.bitstream.container import Header, pack
from percoedge.bitstream.schedules import SCHEDULES

__all__ = ["DICTIONARY", "Seed", "main", "mutants", "seeds"]

HERE = Path(__file__).parent

DICTIONARY = (
    *(b"\x50\xc0\x01", b"\x50\xc0\x01fuzz"),
    # sizes of 24x16, 48x40, 1x1 and 2048x1 pixels with each of the flags, and the largest size
    *((23 << 18 | 15 << 4 | flags).to_bytes(4, "big") for flags in range(4)),
    *((47 << 18 | 39 << 4 | flags).to_bytes(4, "big") for flags in range(4)),
    *(b"\x00\x00\x00\x00", b"\x1f\xfc\x00\x00", b"\x00\x00\x7f\xf0", b"\xff\xff\xff\xf0"),
    # presence bytes of the options, and options of one field
    *(b"\x01", b"\x02", b"\x03", b"\x04", b"\x08", b"\x10", b"\x1f"),
    *(bytes([1, schedule]) for schedule in range(len(SCHEDULES))),
    # captions of each method, whole ones and heads that lie
    *(b"\x03abc", b"\x83\xe9\xad\x18", b"\x43\x4b\x4c\x02", b"\x7f\xff", b"\xbf\xff", b"\x3f\xff"),
    b"\x4a\x4b\x4c\x4a\x56\x18\xc5\x83\x07\x03\x00",
    *(b"\xff\xff\xff\xff", b"\x00\x00\x00\x00\x00\x00\x00\x01"),
)

# Three spellings of captions that the packer does not choose, or not with every zlib.
_RAW = b"\x05a dog"
_DEFLATE = bytes.fromhex("4a4b4c4a5618c583070300")  # "abc " a hundred times
_LONG_RAW = b"\x3f\xc4" + b"0123456789abcdef" * 64  # 1024 bytes, the longest


@dataclass(frozen=True)
class Seed:
    """A sound stream and how it is framed."""

    name: str
    data: bytes
    bare: bool


def seeds(target: Target) -> list[Seed]:
    """All sound streams: every schedule in both framings, every option, every caption's method."""
    made: list[Seed] = []

    def add(name: str, header: Header, *, bare: bool = False, spelling: bytes = b"") -> None:
        schedule = header.schedule or SCHEDULE
        grid = (-(-header.height // STRIDE), -(-header.width // STRIDE))
        random_bits = np.random.Philox(key=len(made)).random_raw(grid[0] * grid[1])
        tokens = (random_bits % np.uint64(K)).astype(np.int32).reshape(grid)
        coded = target.coder.encode(tokens, schedule, header.passes_sent)
        data = pack(header, coded, None if bare else FINGERPRINT)
        if spelling:  # of a caption, which no header above has together with options
            body = data if bare else data[FRAMING_BYTES:]
            body = body[:3] + bytes([body[3] | 2]) + spelling + body[4:]
            data = body if bare else as_file(body)
        made.append(Seed(name, data, bare))

    for number, schedule in enumerate(SCHEDULES):
        add(f"file-{schedule}", Header(24 + number, 17 + number, schedule))
        add(f"bare-{schedule}", Header(16 + number, 25 - number, schedule), bare=True)
    add("default-schedule", Header(24, 16))
    for width, height in ((1, 1), (8, 8), (9, 7), (48, 40), (160, 3)):
        add(f"size-{width}x{height}", Header(width, height))
    add("passes-1", Header(24, 24, passes_sent=1))
    add("passes-3-of-8", Header(32, 24, "qlds-8", 3))
    add("passes-4-of-5-bare", Header(24, 24, "quincunx", 4), bare=True)
    add("seed", Header(16, 16, seed=0xFFFFFFFF))
    add("steps", Header(16, 16, steps=255))
    add("guidance", Header(16, 16, guidance=15.9375))
    add("caption-model", Header(16, 16, caption="a dog on a beach"))
    add("caption-model-bare", Header(16, 16, caption="two cups of tea"), bare=True)
    add("caption-raw", Header(16, 16), spelling=_RAW)
    add("caption-raw-script", Header(16, 16, caption="猫"))
    add("caption-deflate", Header(16, 16), spelling=_DEFLATE)
    add("caption-deflate-bare", Header(16, 16), spelling=_DEFLATE, bare=True)
    add("caption-longest", Header(16, 16), spelling=_LONG_RAW)
    everything = Header(30, 20, "checkerboard", 1, 0xDEADBEEF, 4, 3.5, "a spoon")
    add("all-options", everything)
    add("all-options-bare", everything, bare=True)
    return made


def mutants(streams: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Yield for ever: streams with up to four changes each, the same for the same seed."""
    source = random.Random(seed)
    while True:
        data = bytearray(source.choice(streams))
        for _ in range(source.randint(1, 4)):
            at = source.randint(0, len(data))
            kind = source.randrange(7)
            if kind == 0 and data:
                data[at - 1] ^= 1 << source.randrange(8)
            elif kind == 1 and data:
                data[at - 1] = source.choice((0x00, 0x01, 0x7F, 0x80, 0xFF, source.randrange(256)))
            elif kind == 2:
                del data[at : at + source.randint(1, 8)]
            elif kind == 3:
                data[at:at] = source.randbytes(source.randint(1, 8))
            elif kind == 4:
                word = source.choice(DICTIONARY)
                data[at : at + source.choice((0, len(word)))] = word
            elif kind == 5:
                other = source.choice(streams)
                data[at:] = other[source.randint(0, len(other)) :]
            else:
                del data[at:]
        yield bytes(data)


def main() -> None:
    """Write the corpus, its digests and the dictionary."""
    folder, digests = HERE / "corpus", []
    folder.mkdir(exist_ok=True)
    for seed in seeds(Target()):
        path = folder / f"{seed.name}.pco"
        path.write_bytes(seed.data)
        digests.append(f"{hashlib.sha256(seed.data).hexdigest()}  corpus/{path.name}\n")
    (HERE / "corpus.sha256").write_text("".join(digests))
    words = ["".join(f"\\x{byte:02X}" for byte in word) for word in dict.fromkeys(DICTIONARY)]
    lines = ["# Made by fuzz_inputs.py.\n", *(f'"{word}"\n' for word in words)]
    (HERE / "container.dict").write_text("".join(lines))


if __name__ == "__main__":
    main()
