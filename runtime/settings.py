"""What a caller chooses, checked against a bundle.

Steps, guidance and seed of a decode are the caller's, else the stream's, else the bundle's; the
schedule is the stream's, else the bundle's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from percoedge.arguments import expect_int, expect_number
from percoedge.bitstream.container import MAX_SEED, Header, Stream
from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import MAX_STEPS
from percoedge.errors import UsageError

__all__ = ["MAX_GUIDANCE", "MAX_STEPS", "Settings", "chosen_graphs", "schedule_of"]

MAX_GUIDANCE = 16.0


@dataclass(frozen=True)
class Settings:
    """What a caller asks of a decode; None leaves it to the stream and then to the bundle.

    ``steps`` 1..255, ``guidance`` 0..16 (1 is none; others need a bundle with a guided flow graph),
    ``seed`` 0..2^32-1; numbers of numpy will do. Raises UsageError.
    """

    bundle: Bundle
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            object.__setattr__(self, "steps", expect_int("steps", self.steps, 1, MAX_STEPS))
        if self.guidance is not None:
            guidance = expect_number("guidance", self.guidance, 0, MAX_GUIDANCE)
            object.__setattr__(self, "guidance", guidance)
        if self.seed is not None:
            object.__setattr__(self, "seed", expect_int("seed", self.seed, 0, MAX_SEED))
        if self.steps not in (None, 1) and not self.bundle.codec.latent_channels:
            raise UsageError(
                f"expected 1 step, for bundle {self.bundle.name!r} decodes tokens at once, got "
                f"{self.steps}; leave it out"
            )
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
        choices = (self.guidance, stream.header.guidance, self.bundle.codec.guidance)
        strength = next(choice for choice in choices if choice is not None)
        return strength if self._guided and strength != 1 else None

    def seed_for(self, stream: Stream) -> int:
        """Seed of the noise and of sampled tokens."""
        return stream.seed if self.seed is None else self.seed

    @property
    def _guided(self) -> bool:
        return "flow_guided" in self.bundle.kinds


def schedule_of(header: Header, bundle: Bundle) -> str:
    """Name of the schedule that a stream's tokens are coded in: the header's, else the bundle's."""
    return header.schedule or bundle.codec.schedule


def chosen_graphs(
    bundle: Bundle, names: Sequence[str] | None, besides: Sequence[str] = ()
) -> tuple[str, ...]:
    """Names of graphs, each once; all of the bundle where none are given, and those ``besides``.

    Raises UsageError for others.
    """
    known = (*bundle.kinds, *besides)
    kinds = tuple(dict.fromkeys(names or known))
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise UsageError(
            f"expected graphs of {', '.join(known)}, got {', '.join(unknown)}; "
            "name some of these with --graph, or leave it out for all of them"
        )
    return kinds
