"""The base of all detectors: each takes a run's rows one by one and returns the events it finds.

A detector is a pure function of the rows so far: what it says of step s depends on no later row, online (as rows arrive) and
offline (catalogue.py) run the same ``update``, and a detector restored from its ``state`` goes on to the bit.

A value that is missing was not measured at that step. Missing values, NaN and infinities are passed over by every rule but
``non_finite``: as published, a rule with a running mean sees nothing from one NaN until it has left the window (or ever).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from common.registry import Registry

from .events import Event, Spike

DETECTORS = Registry("detection.detector")


class Detector(ABC):
    """Watches ``signal``. All attributes are JSON values, but for ``open``, the spike that is going on now."""

    kind: ClassVar[str]

    @dataclass(frozen=True)
    class Options:
        """No options: a rule is compared as it was published."""

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
        return {"detector": self.kind} | copy.deepcopy(vars(self)) | {"open": opened}

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
            self.open = Spike(self.kind, self.signal, step, step, step, height, sigmas)
        self.open.end_step = step
        if height > self.open.height:
            self.open.peak_step, self.open.height, self.open.sigmas = step, height, sigmas

    def _close(self, recovered: bool) -> list[Event]:
        closed, self.open = self.open, None
        if closed is None:
            return []
        closed.recovered = recovered
        return [closed]
