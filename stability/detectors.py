"""What a detector is, and the rules of other projects: each takes a run's rows one by one and returns the events it finds.

A detector is a pure function of the rows so far: what it says of step s depends on no later row, online (as rows arrive) and
offline (:func:`stability.spikes.detect`) run the same ``update``, and a detector restored from its ``state`` goes on to the bit.

A value that is missing was not measured at that step. Missing values, NaN and infinities are passed over by every rule but
``non_finite``: as published, a rule with a running mean sees nothing from one NaN until it has left the window (or ever). A
rule whose source has no notion of an event, only of a flagged step, gives one event for each unbroken row of flagged steps.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


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


class Detector(ABC):
    """Watches ``signal``. All attributes are JSON values, but for ``open``, the spike that is going on now."""

    name: ClassVar[str]

    def __init__(self, signal: str) -> None:
        self.signal = signal
        self.open: Spike | None = None
        self.last_step: int | None = None

    def update(self, row: Mapping[str, Any]) -> list[Event]:
        """Take in one row: "step", and metrics by name. The events that are over with it.

        Raises ValueError if the step is not after the last one.
        """
        step, value = row["step"], row.get(self.signal)
        if self.last_step is not None and step <= self.last_step:
            raise ValueError(f"step {step} after step {self.last_step}: a detector takes rows in order of their steps")
        self.last_step = step
        return [] if value is None else self.take(step, float(value))

    @abstractmethod
    def take(self, step: int, value: float) -> list[Event]:
        """Take in one value of the signal; it may be NaN or infinite."""

    def finish(self) -> list[Event]:
        """At the end of the run: what is still open, as not recovered."""
        return self._close(recovered=False)

    def suspected_since(self) -> int | None:
        """First step of what is, or may turn out to be, a spike going on; None if there is nothing of the kind."""
        return None if self.open is None else self.open.start_step

    def state(self) -> dict[str, Any]:
        """Strict JSON from which :meth:`from_state` goes on exactly."""
        opened = None if self.open is None else self.open.event()
        return {"detector": self.name} | copy.deepcopy(vars(self)) | {"open": opened}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Detector:
        """The detector as it was when :meth:`state` was called."""
        detector = cls(state["signal"])
        for key in vars(detector):
            setattr(detector, key, copy.deepcopy(state[key]))
        detector.open = None if state["open"] is None else Spike(**state["open"])
        return detector

    def _extend(self, step: int, height: float, sigmas: float) -> None:
        """The spike goes on at ``step``, or begins there."""
        if self.open is None:
            self.open = Spike(self.name, self.signal, step, step, step, height, sigmas)
        self.open.end_step = step
        if height > self.open.height:
            self.open.peak_step, self.open.height, self.open.sigmas = step, height, sigmas

    def _close(self, recovered: bool) -> list[Event]:
        closed, self.open = self.open, None
        if closed is None:
            return []
        closed.recovered = recovered
        return [closed]


# ------------------------------------------------------------------------------------------------------ published rules


class FlagRule(Detector):
    """A rule that flags single steps. An event begins with the first of ``in_a_row`` flagged steps and ends with the last."""

    in_a_row: ClassVar[int] = 1

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.flags: list[list[Any]] = []
        """Step, height and sigmas of flagged steps that are still too few for an event."""

    def take(self, step: int, value: float) -> list[Event]:
        if not math.isfinite(value):
            return []
        flagged, height, sigmas = self.judge(value)
        if not flagged:
            self.flags = []
            return self._close(recovered=True)
        self.flags.append([step, height, sigmas])
        if self.open is not None or len(self.flags) >= self.in_a_row:
            for flag in self.flags:
                self._extend(*flag)
            self.flags = []
        return []

    @abstractmethod
    def judge(self, value: float) -> tuple[bool, float, float]:
        """Take in a finite value: whether it is flagged, its height above what the rule expects, and that in sigmas."""


class WindowRule(FlagRule):
    """A rule on the mean and the standard deviation of the last ``window`` values before; silent until there are ``fewest``."""

    window: ClassVar[int]
    fewest: ClassVar[int]

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.history: list[float] = []

    def judge(self, value: float) -> tuple[bool, float, float]:
        verdict = (False, 0.0, 0.0)
        if len(self.history) >= self.fewest:
            window = self.compared_with(value)
            mean, deviation = float(window.mean()), float(window.std())
            height = value - mean
            sigmas = height / deviation if deviation > 0 else 0.0
            verdict = (self.flag(value, mean, sigmas), height, sigmas)
        self.history.append(value)
        del self.history[: -self.window]
        return verdict

    def compared_with(self, value: float) -> Floats:
        """The window that ``value`` is held against."""
        return np.asarray(self.history)

    @abstractmethod
    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        """Whether ``value``, so many sigmas above the mean of its window, is flagged."""


class OlmoCore(WindowRule):
    """OLMo-core's stability monitor: more than 6 sigma above the mean of the 128 values before; silent until there are 128.

    Source: olmo_core/train/callbacks/stability_monitor.py. A spike enters the window, so that a plateau becomes usual.
    """

    name = "olmo_core"
    window = fewest = 128

    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        return sigmas > 6.0


class Olmo2(WindowRule):
    """OLMo 2's spike score (arXiv 2501.00656, section 3.2): at least 7 sigma away from the mean of the last 1,000 values.

    ``score`` counts both sides, as the paper does; an event is a rise. The paper does not say what holds before there are
    1,000 values; here the rule speaks from the 129th on (OLMo-core's window), so that short runs have a score.
    """

    name = "olmo2"
    window, fewest = 1000, 128

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.seen = self.outliers = 0

    @property
    def score(self) -> float:
        """Share of all values so far that lie so far from the mean."""
        return self.outliers / self.seen if self.seen else 0.0

    def judge(self, value: float) -> tuple[bool, float, float]:
        self.seen += 1
        return super().judge(value)

    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        self.outliers += abs(sigmas) >= 7.0
        return sigmas >= 7.0


class LlmC(WindowRule):
    """llm.c's outlier detector: the z-score of a value within a window of 128 that includes it.

    Source: llmc/outlier_detector.h. The threshold there is the user's (-sl and -sg; none by default), here 6 as OLMo-core's.
    Since the value is in the window, z cannot pass sqrt(127) = 11.3, and the first steps of a spike hide the rest of it.
    """

    name = "llmc"
    window, fewest = 128, 127

    def compared_with(self, value: float) -> Floats:
        return np.asarray([*self.history[-127:], value])

    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        return sigmas > 6.0


class LlmFoundry(WindowRule):
    """llm-foundry's KillLossSpike: five losses in a row of at least twice the mean of the last 100.

    Source: llmfoundry/callbacks/kill_loss_spike_callback.py, with its defaults. Left out: its alarm for losses that stay high
    from the beginning, and that its window grows to 1/20 of a run of more than 2,000 steps, whose length a detector does not
    know.
    """

    name = "llm_foundry"
    window = fewest = 100
    in_a_row = 5

    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        return value >= 2.0 * mean


class LossRatio(FlagRule):
    """A loss more than 1.2 times the lowest one before it.

    The ratio is that of Li et al. (arXiv 2108.06084, "loss ratio"); that 1.2 makes an event is this project's choice. The
    rule measures no noise, and says nothing of a signal that has been 0 or below.
    """

    name = "loss_ratio"

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.lowest: float | None = None

    def judge(self, value: float) -> tuple[bool, float, float]:
        lowest = value if self.lowest is None else self.lowest
        self.lowest = min(lowest, value)
        return 0 < 1.2 * lowest < value, value - lowest, 0.0


# ---------------------------------------------------------------------------------------------------- other kinds of events


class NonFiniteRule(Detector):
    """Values that are NaN or infinite, an event for each unbroken row of them."""

    name = "non_finite"

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.steps: list[int] = []
        """First and last step of the row that is going on."""

    def take(self, step: int, value: float) -> list[Event]:
        if math.isfinite(value):
            return self.finish()
        self.steps = [*self.steps[:1], step]
        return []

    def finish(self) -> list[Event]:
        steps, self.steps = self.steps, []
        return [NonFinite(self.name, self.signal, steps[0], steps[-1])] if steps else []
