"""What is measured of a decode, and what of it is unknown."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from percoedge.engines import processors
from percoedge.engines.bundle import Bundle
from percoedge.errors import BackendError
from percoedge.runtime import clock
from percoedge.runtime.bench import measure
from percoedge.runtime.bench.case import Case, Limits
from percoedge.runtime.bench.measure import measure_on
from percoedge.runtime.codec import Codec

pytestmark = pytest.mark.slow


def test_stages_are_all_of_the_latency(fake_bundle: Bundle, measured: Any) -> None:
    result = measured(fake_bundle)
    assert result["iterations"] == len(result["times"]) == 4
    for one in result["times"]:
        inside = [t for name, t in one["stages_ms"].items() if name != "write png"]
        assert sum(inside) == pytest.approx(one["latency_ms"], abs=0.02)
    assert list(result["stages_ms"]) == [
        "container",
        *(f"MIM pass {number}" for number in range(1, 5)),
        *("range coder", "noise", "flow step 1", "flow step 2", "flow step 3"),
        *("flow, between steps", "decoder", "image", "other", "write png"),
    ]
    assert 0 < result["outside_engines"] < 1


def test_summary_is_that_of_the_times(fake_bundle: Bundle, measured: Any) -> None:
    result = measured(fake_bundle)
    latency, times = result["latency_ms"], [one["latency_ms"] for one in result["times"]]
    assert latency["p50"] == pytest.approx(np.median(times), abs=0.002)
    assert latency["sd"] == pytest.approx(np.std(times, ddof=1), abs=0.002)
    ordered = [latency[n] for n in ("min", "p50", "p90", "p95", "p99", "max")]
    assert ordered == sorted(ordered)
    assert result["images_per_s"] == pytest.approx(4000 / sum(times), rel=0.01)


def test_a_batch_counts_its_images(fake_bundle: Bundle, measured: Any) -> None:
    result = measured(fake_bundle, Case("fake", "auto", 30, 20, 3, 1, None))
    times = [one["latency_ms"] for one in result["times"]]
    assert result["images_per_s"] == pytest.approx(12000 / sum(times), rel=0.01)
    assert [graph["calls"] for graph in result["graphs"]] == [4, 1, 1]


def test_a_batch_in_parts_has_the_stages_of_one(
    fake_bundle: Bundle, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("percoedge.runtime.tiling.tiles.BATCH_PIXELS", 1)
    whole, parts = (
        measured(fake_bundle, Case("fake", "auto", 30, 20, batch, 3, None)) for batch in (1, 3)
    )
    assert list(parts["stages_ms"]) == list(whole["stages_ms"])
    assert [graph["calls"] for graph in parts["graphs"]] == [12, 9, 3]


def test_what_cannot_be_known_is_none(fake_bundle: Bundle, measured: Any) -> None:
    result = measured(fake_bundle)
    assert result["ceiling"]["float_ops_per_s"] is None
    assert [graph["ops_per_s"] for graph in result["graphs"]] == [None] * 3


def test_low_memory_shows_loading(fake_bundle: Bundle, measured: Any) -> None:
    case = Case("fake", "auto", 30, 20, 1, 1, None, low_memory=True)
    assert "load" in measured(fake_bundle, case)["stages_ms"]


def test_profilers_see_the_stages(
    fake_bundle: Bundle, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Annotate:
        def __init__(self, message: str, domain: str) -> None:
            seen.append(f"{domain}: {message}")

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=Annotate))
    clock._maker.cache_clear()
    try:
        measured(fake_bundle)
    finally:
        clock._maker.cache_clear()
    stages = {"percoedge: container", "percoedge: flow", "percoedge: entropy"}
    assert stages <= set(seen)


def test_streams_decode_at_the_same_time(fakes: Any, fake_bundle: Bundle) -> None:
    """Images of all are counted, calls of one; engines are loaded once, and errors are told."""
    threads: set[int] = set()
    decoder = fakes.functions["decoder"]

    def noted(feeds: Any) -> Any:
        threads.add(threading.get_ident())
        return decoder(feeds)

    case = Case("fake", "auto", 30, 20, 2, 1, None, streams=3)
    stream = Codec(fake_bundle, fakes.backend()).encode(fakes.photo(20, 30))
    backend = fakes.backend(decoder=noted)
    result = measure_on(fake_bundle, backend, case, Limits(0, 0.2, 4), stream)
    busy = 2 * result["iterations"] / (sum(result["latencies_ms"]) / 1000)
    assert result["images_per_s"] > busy
    assert len(threads) == 3
    assert [kind for kind, _ in backend.engines].count("decoder") == 1
    assert [graph["calls"] for graph in result["graphs"]] == [4, 1, 1]
    assert "write png" not in result["stages_ms"]
    main = threading.get_ident()

    def fail(feeds: Any) -> Any:
        if threading.get_ident() != main:
            raise BackendError("broken")
        return decoder(feeds)

    with pytest.raises(BackendError, match="broken"):
        measure_on(fake_bundle, fakes.backend(decoder=fail), case, Limits(0, 0, 4), stream)


def test_encoding_is_measured_too(fake_bundle: Bundle, measured: Any) -> None:
    result = measured(fake_bundle)
    assert 0 < result["encode_ms"]["p50"] <= result["encode_ms"]["p99"]
    stages = result["encode_stages_ms"]
    assert {"encoder", "entropy coding", "other"} < stages.keys()
    assert "latency" not in stages


@pytest.mark.parametrize(
    ("streams", "threads", "chosen"), [(1, None, None), (2, None, 1), (2, 5, 5)]
)
def test_streams_share_the_processors(
    monkeypatch: pytest.MonkeyPatch, streams: int, threads: int | None, chosen: int | None
) -> None:
    asked: list[int | None] = []

    def select(name: str, *, bundle: Bundle, threads: int | None) -> None:
        asked.append(threads)
        raise BackendError("seen")

    monkeypatch.setattr(measure, "select", select)
    monkeypatch.setattr(processors, "usable_processors", lambda: 2)
    with pytest.raises(BackendError, match="seen"):
        measure.measure(Case("tiny", "auto", 30, 20, 1, 1, threads, streams=streams), Limits(), b"")
    assert asked == [chosen]
