"""What a caller chooses, checked against a bundle.

Steps, guidance and seed of a decode are the caller's, else the stream's, else the bundle's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from percoedge.bitstream.container import Stream
from percoedge.engines.bundle import Bundle
from percoedge.errors import UsageError

__all__ = ["MAX_GUIDANCE", "MAX_STEPS", "Settings", "chosen_graphs"]

MAX_STEPS = 255
MAX_GUIDANCE = 16.0
_MAX_SEED = (1 << 32) - 1


@dataclass(frozen=True)
class Settings:
    """What a caller asks of a decode; None leaves it to the stream and then to the bundle.

    ``steps`` 1..255, ``guidance`` 0..16 (1 is none; others need a bundle with a guided flow graph),
    ``seed`` 0..2^32-1. Raises UsageError.
    """

    bundle: Bundle
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _expect("steps", self.steps, int, 1, MAX_STEPS)
        _expect("guidance", self.guidance, (int, float), 0, MAX_GUIDANCE)
        _expect("seed", self.seed, int, 0, _MAX_SEED)
        if self.guidance not in (None, 1) and not self._guided:
            raise UsageError(
                f"expected guidance 1, for bundle {self.bundle.name!r} has no guided flow graph, "
                f"got {self.guidance}; leave it out, or take a bundle exported with one"
            )

    def steps_for(self, stream: Stream) -> int:
        """Number of Euler steps."""
        return self.steps or stream.header.steps or self.bundle.codec.steps

    def guidance_for(self, stream: Stream) -> float | None:
        """Guidance to feed to the guided flow graph, or None to run the unguided one.

        A stream's guidance is a hint: a bundle without a guided graph passes over it.
        """
        wishes = (self.guidance, stream.header.guidance, self.bundle.codec.guidance)
        strength = next(wish for wish in wishes if wish is not None)
        return strength if self._guided and strength != 1 else None

    def seed_for(self, stream: Stream) -> int:
        """Seed of the noise and of sampled tokens."""
        return stream.seed if self.seed is None else self.seed

    @property
    def _guided(self) -> bool:
        return "flow_guided" in self.bundle.kinds


def _expect(
    name: str, value: float | None, kind: type | tuple[type, ...], low: float, high: float
) -> None:
    """Raise UsageError unless ``value`` is None or a number of that kind in low..high."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        wanted = "an integer of" if kind is int else "a number of"
        raise UsageError(f"expected {name} to be {wanted} {low} to {high}, got {value!r}")


def chosen_graphs(bundle: Bundle, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names of graphs, each once; all of the bundle where none are given. Raises UsageError."""
    kinds = tuple(dict.fromkeys(names or bundle.kinds))
    strangers = [kind for kind in kinds if kind not in bundle.kinds]
    if strangers:
        raise UsageError(
            f"expected graphs of {', '.join(bundle.kinds)}, got {', '.join(strangers)}; "
            "name some of these with --graph, or leave it out for all of them"
        )
    return kinds
