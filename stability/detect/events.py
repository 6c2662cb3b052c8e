"""Events that detectors find: spikes, non-finite values, stalls, rises, saturations."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


class _Recorded:
    def event(self) -> dict[str, Any]:
        """The fields of the event in events.jsonl."""
        return asdict(self)  # type: ignore[call-overload]


@dataclass
class Spike(_Recorded):
    """One spike of one signal, in steps: it began at ``start_step``, and ``opened_step`` was the first that showed it.

    ``height`` is the peak's distance from the expected level, in the signal's unit; ``sigmas`` the same in standard
    deviations of the noise (0 from a rule that measures no noise). ``recovered`` is False for a spike that was still open
    at the end of the run, or whose level has become the usual one.
    """

    kind: ClassVar[str] = "spike"
    detector: str
    signal: str
    start_step: int
    opened_step: int
    peak_step: int
    end_step: int
    height: float
    sigmas: float
    recovered: bool = False

    def __str__(self) -> str:
        end = "recovered" if self.recovered else "not recovered"
        return (
            f"spike in {self.signal}: steps {self.start_step} to {self.end_step}, peak at {self.peak_step}, "
            f"{self.height:+.3g} ({self.sigmas:.1f} sigma), {end}"
        )


@dataclass
class NonFinite(_Recorded):
    """A run of consecutive non-finite values, in steps. Its height is null."""

    kind: ClassVar[str] = "non_finite"
    detector: str
    signal: str
    start_step: int
    end_step: int
    height: None = None

    def __str__(self) -> str:
        return f"{self.signal} is not finite: steps {self.start_step} to {self.end_step}"


@dataclass
class Stall(_Recorded):
    """The loss stood still, changing by ``height`` nats from ``start_step`` to ``end_step``, while logits grew or were
    saturated. ``logits`` is their metric, ``growth`` the factor by which it grew meanwhile, ``size`` its last value."""

    kind: ClassVar[str] = "stall"
    detector: str
    signal: str
    start_step: int
    end_step: int
    height: float
    logits: str
    growth: float
    size: float

    def __str__(self) -> str:
        return (
            f"stall of {self.signal}: steps {self.start_step} to {self.end_step}, {self.height:+.3g}, "
            f"while {self.logits} became {self.growth:.2f} times as large: {self.size:.3g}"
        )


@dataclass
class Rise(_Recorded):
    """The level of a loss has risen, by ``height`` so far: from ``start_step`` on; noticed at ``opened_step``,
    as soon as the values so far showed it. ``sigmas``: in standard errors of the average that showed it."""

    kind: ClassVar[str] = "rise"
    detector: str
    signal: str
    start_step: int
    opened_step: int
    height: float
    sigmas: float

    @property
    def end_step(self) -> int:
        """The last step that the event rests on."""
        return self.opened_step

    def __str__(self) -> str:
        return (
            f"rise of {self.signal}: since step {self.start_step}, noticed at {self.opened_step}, "
            f"{self.height:+.3g} ({self.sigmas:.1f} standard errors)"
        )


@dataclass
class Saturated(_Recorded):
    """A metric of a softmax is beyond its ``limit``: from ``start_step`` on, noticed at ``opened_step``, where it was
    ``height``. ``layers``: those that are beyond it, where layers are measured, as in the metrics' names."""

    kind: ClassVar[str] = "saturated"
    detector: str
    signal: str
    start_step: int
    opened_step: int
    height: float
    limit: float
    layers: list[str] = field(default_factory=list)

    @property
    def end_step(self) -> int:
        """The last step that the event rests on."""
        return self.opened_step

    def __str__(self) -> str:
        where = f" ({', '.join(self.layers)})" if self.layers else ""
        return (
            f"{self.signal} is saturated: since step {self.start_step}, noticed at {self.opened_step}, "
            f"{self.height:.3g}{where}; the limit is {self.limit:.3g}"
        )


Event = Spike | NonFinite | Stall | Rise | Saturated


def told_by(event: Event, spikes: Iterable[Event]) -> bool:
    """Whether a rise is the level of one of the ``spikes`` of its signal: one that lasts, or did not recover."""
    return isinstance(event, Rise) and any(
        spike.opened_step <= event.opened_step <= spike.end_step
        or (not spike.recovered and spike.opened_step <= event.opened_step and event.start_step <= spike.end_step)
        for spike in spikes
        if isinstance(spike, Spike) and spike.signal == event.signal
    )


@dataclass(frozen=True)
class Alarm:
    """A reason to rewind: a spike, over or not, or a non-finite value (of infinite sigmas)."""

    signal: str
    start_step: int
    end_step: int
    sigmas: float
