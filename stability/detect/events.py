"""What detectors find: spikes, values that are not finite, stalls."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass
class Spike:
    """One spike of one signal, in steps.

    ``height`` is the peak's distance from the level expected there, in the unit of the signal; ``sigmas`` the same in
    standard deviations of the noise (0 from a rule that measures no noise). ``recovered`` is False for a spike that the run
    ended in, or that was closed because its level has become the usual one.
    """

    kind: ClassVar[str] = "spike"
    detector: str
    signal: str
    start_step: int
    peak_step: int
    end_step: int
    height: float
    sigmas: float
    recovered: bool = False

    def event(self) -> dict[str, Any]:
        """The fields of the event in events.jsonl."""
        return asdict(self)

    def __str__(self) -> str:
        end = "recovered" if self.recovered else "not recovered"
        return (
            f"spike in {self.signal}: steps {self.start_step} to {self.end_step}, peak at {self.peak_step}, "
            f"{self.height:+.3g} ({self.sigmas:.1f} sigma), {end}"
        )


@dataclass
class NonFinite:
    """An unbroken row of values that are not finite, in steps. Nothing says how high they are: the height is null."""

    kind: ClassVar[str] = "non_finite"
    detector: str
    signal: str
    start_step: int
    end_step: int
    height: None = None

    def event(self) -> dict[str, Any]:
        """The fields of the event in events.jsonl."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.signal} is not finite: steps {self.start_step} to {self.end_step}"


@dataclass
class Stall:
    """Logits grew while the loss stood still: from ``start_step`` to ``end_step`` the loss changed by ``height`` (nats).

    ``logits`` is the metric that grew, ``growth`` the factor by which it did.
    """

    kind: ClassVar[str] = "stall"
    detector: str
    signal: str
    start_step: int
    end_step: int
    height: float
    logits: str
    growth: float

    def event(self) -> dict[str, Any]:
        """The fields of the event in events.jsonl."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"stall of {self.signal}: steps {self.start_step} to {self.end_step}, {self.height:+.3g}, "
            f"while {self.logits} grew by a factor of {self.growth:.2f}"
        )


Event = Spike | NonFinite | Stall


@dataclass(frozen=True)
class Alarm:
    """Something a run may go back for: a spike, over or not, or a value that is not finite (of infinite height)."""

    signal: str
    start_step: int
    end_step: int
    sigmas: float
