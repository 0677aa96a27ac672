"""The fuzz target over its corpus, over blind mutations of it, and guided where atheris is."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_checks import FINGERPRINT, SCHEDULE, Broken, K, Target, as_file, weights
from fuzz_inputs import Seed, mutants

from percoedge.bitstream.container import pack, unpack
from percoedge.bitstream.schedules import SCHEDULES

HERE = Path(__file__).parent
MUTANTS = 5000  # about 7 seconds


def test_the_corpus_is_pinned(golden: list[Seed]) -> None:
    """Code makes the files anew, byte for byte, and none has changed since it was shipped."""
    pinned = dict(line.split()[::-1] for line in (HERE / "corpus.sha256").read_text().splitlines())
    digests = {f"corpus/{s.name}.pco": hashlib.sha256(s.data).hexdigest() for s in golden}
    assert digests == pinned
    files = {path.name: path.read_bytes() for path in (HERE / "corpus").iterdir()}
    assert files == {f"{seed.name}.pco": seed.data for seed in golden}
    assert sum(map(len, files.values())) < 200_000


def test_the_corpus_covers_the_format(golden: list[Seed]) -> None:
    headers = [unpack(seed.data, bare=seed.bare).header for seed in golden]
    for bare in (False, True):
        framed = {h.schedule for h, s in zip(headers, golden, strict=True) if s.bare == bare}
        assert framed >= set(SCHEDULES)
    for name in ("passes_sent", "seed", "steps", "guidance"):
        assert any(getattr(header, name) is not None for header in headers)
    captions = [s.data[4 if s.bare else 13] >> 6 for s in golden if s.name.startswith("caption")]
    assert set(captions) == {0, 1, 2}
    assert len(golden) >= 30


def test_every_seed_is_sound(target: Target, golden: list[Seed]) -> None:
    for seed in golden:
        tokens = target.codec.decode_tokens(seed.data, bare=seed.bare)
        header = unpack(seed.data, bare=seed.bare).header
        if header.passes_sent is None and not header.caption:
            coded = target.coder.encode(tokens, header.schedule or SCHEDULE)
            assert pack(header, coded, None if seed.bare else FINGERPRINT) == seed.data


def test_the_stand_in_gives_legal_weights_of_all_sizes() -> None:
    feeds = {"tokens": np.full((2, 4, 4), K, np.int32), "positions": np.arange(16, dtype=np.int32)}
    table = weights(feeds)["weights"]
    assert table.shape == (2, 16, K)
    assert table.dtype == np.int32
    assert table.min() == 1
    assert table.max() == 1 << 16


def test_the_corpus_breaks_no_rule(target: Target, golden: list[Seed]) -> None:
    tracemalloc.start()
    try:
        for seed in golden:
            target.check(seed.data)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_mutants_break_no_rule(target: Target, golden: list[Seed]) -> None:
    before = target.decoded
    for data in itertools.islice(mutants([seed.data for seed in golden], 1), MUTANTS):
        try:
            target.check(data)
        except BaseException as error:
            pytest.fail(f"{data.hex()}: {error!r}")
    assert target.decoded - before > MUTANTS // 10  # the tokens are reached, not the header alone


def raise_index_error(*_: object, **__: object) -> None:
    raise IndexError


@pytest.mark.parametrize(
    ("place", "fault", "error"),
    [
        ("percoedge.bitstream.container.unpack_caption", raise_index_error, IndexError),
        ("percoedge.bitstream.rangecoder._decode", raise_index_error, IndexError),
        ("percoedge.bitstream.container._checksum", lambda *_: b"\0\0", Broken),
        ("percoedge.runtime.entropy.pass_count", lambda _: 255, IndexError),
        ("fuzz_checks.MAX_SECONDS", 0.0, Broken),
        ("fuzz_checks.MAX_GROWTH_BYTES", 0, Broken),
    ],
)
def test_planted_faults_are_found(
    golden: list[Seed],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    fault: Any,
    error: type[Exception],
) -> None:
    monkeypatch.setattr(place, fault)
    target = Target()
    streams = [seed.data for seed in golden]
    with pytest.raises(error):
        for data in itertools.chain(streams, itertools.islice(mutants(streams, 2), 500)):
            target.check(data)


@pytest.mark.parametrize("method", range(3))
def test_the_largest_captions_are_quick(target: Target, method: int) -> None:
    for filling in (b"\0", b"\xff", b"e", b"\x4b"):
        head = bytes([method << 6 | 0x3F, 0xC4])
        body = (15 << 18 | 15 << 4 | 2).to_bytes(4, "big") + head + filling * 1024 + b"\x01"
        target.check(body)
        target.check(as_file(body))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
def test_guided_fuzzing_finds_nothing(tmp_path: Path) -> None:
    new = tmp_path / "corpus"
    new.mkdir()
    command = [sys.executable, str(HERE / "fuzz_container.py"), str(new), str(HERE / "corpus")]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")}
    result = subprocess.run(
        [*command, "-runs=6000", "-seed=1", f"-artifact_prefix={tmp_path}/"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    crashes = {path.name: path.read_bytes().hex() for path in tmp_path.glob("*-*")}
    assert result.returncode == 0, f"{crashes}\n{result.stderr[-4000:]}"
