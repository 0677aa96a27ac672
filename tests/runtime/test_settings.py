"""A caller's choice beats the stream's, and that the bundle's; each has its range."""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Any

import pytest

from percoedge.bitstream.container import Header, Stream, pack, unpack
from percoedge.engines.bundle import Bundle
from percoedge.errors import UsageError
from percoedge.runtime.settings import Settings


def stream(**header: Any) -> Stream:
    return unpack(pack(Header(8, 8, **header), b"\x07", None), bare=True)


def test_steps(fake_bundle: Bundle) -> None:
    assert Settings(fake_bundle).steps_for(stream()) == 2
    assert Settings(fake_bundle).steps_for(stream(steps=9)) == 9
    assert Settings(fake_bundle, steps=4).steps_for(stream(steps=9)) == 4


def test_seed(fake_bundle: Bundle) -> None:
    assert Settings(fake_bundle).seed_for(stream()) == binascii.crc32(b"\x07")
    assert Settings(fake_bundle).seed_for(stream(seed=0)) == 0
    assert Settings(fake_bundle, seed=0).seed_for(stream(seed=5)) == 0


def test_guidance(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("flow flow_guided", guidance=3.0)
    assert Settings(bundle).guidance_for(stream()) == 3
    assert Settings(bundle).guidance_for(stream(guidance=0.0)) == 0
    assert Settings(bundle, guidance=2).guidance_for(stream(guidance=4.0)) == 2
    assert Settings(bundle, guidance=1).guidance_for(stream(guidance=4.0)) is None
    assert Settings(bundle).guidance_for(stream(guidance=1.0)) is None


def test_without_a_guided_graph_hints_are_passed_over_and_arguments_refused(
    make_bundle: Callable[..., Bundle],
) -> None:
    bundle = make_bundle("flow", guidance=3.0)
    assert Settings(bundle).guidance_for(stream()) is None
    assert Settings(bundle, guidance=1.0).guidance_for(stream(guidance=4.0)) is None
    with pytest.raises(UsageError, match=r"no guided flow graph, got 4\.0; leave it out"):
        Settings(bundle, guidance=4.0)


@pytest.mark.parametrize(
    "choice",
    [
        *({"steps": value} for value in (0, -1, 256, 2.5, True, "4")),
        *({"seed": value} for value in (-1, 1 << 32, 0.5, False)),
        *({"guidance": value} for value in (-0.5, 16.5, float("nan"), float("inf"), True, "2")),
    ],
)
def test_arguments_out_of_range(choice: dict[str, Any], guided_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=f"expected {next(iter(choice))}"):
        Settings(guided_bundle, **choice)


def test_the_ends_of_the_ranges_are_inside(guided_bundle: Bundle) -> None:
    Settings(guided_bundle, steps=1, guidance=0, seed=0)
    Settings(guided_bundle, steps=255, guidance=16.0, seed=(1 << 32) - 1)
