"""The base class of detectors, which take a run's rows one by one and return the events they find.

A detector is a pure function of the rows so far: online and offline (catalogue.py) run the same ``update``, and one
restored from its ``state`` continues to the bit. Missing values, NaN and infinities are skipped by every rule except
``non_finite``: as published, one NaN would blind a rule with a running mean until it leaves the window, or forever.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from common.registry import Registry
from record.metrics import SignalKind, kind_of

from .events import Event, Spike

DETECTORS = Registry("detection.detector")


class Detector(ABC):
    """Watches ``signal``. All attributes are JSON values, except ``open``, the current spike."""

    kind: ClassVar[str]

    @dataclass(frozen=True)
    class Options:
        """No options: rules are compared as published."""

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        """``signal_kind``: as declared for the metric ``signal`` by default."""
        self.signal = signal
        self.signal_kind: SignalKind = signal_kind or kind_of(signal)
        self.open: Spike | None = None
        self.last_step: int | None = None

    @classmethod
    def applies_to(cls, signal: str, signal_kind: SignalKind) -> bool:
        """Whether the rule means something for a signal."""
        return True

    def update(self, row: Mapping[str, Any]) -> list[Event]:
        """Take one row ("step" and metrics by name); returns the events that end with it. Raises ValueError if the step is
        not after the last one."""
        step, value = row["step"], row.get(self.signal)
        if self.last_step is not None and step <= self.last_step:
            raise ValueError(f"step {step} after step {self.last_step}: a detector takes rows in order of their steps")
        self.last_step = step
        return [] if value is None else self.take(step, float(value))

    @abstractmethod
    def take(self, step: int, value: float) -> list[Event]:
        """Take one value of the signal; it may be NaN or infinite."""

    def reads(self, columns: Iterable[str]) -> list[str]:
        """Those of ``columns`` that the rule reads besides its signal."""
        return []

    def finish(self) -> list[Event]:
        """Close what is still open at the end of the run, as not recovered."""
        return self._close(recovered=False)

    def suspected_since(self) -> int | None:
        """First step of an open spike, or of what may turn out to be one; else None."""
        return None if self.open is None else self.open.start_step

    def state(self) -> dict[str, Any]:
        """Strict JSON from which :meth:`from_state` continues exactly."""
        opened = None if self.open is None else self.open.event()
        return {"detector": self.kind} | copy.deepcopy(vars(self)) | {"open": opened}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Detector:
        """Restore the detector from its :meth:`state`."""
        signal, kind = state["signal"], state["signal_kind"]
        detector = cls(signal) if kind == kind_of(signal) else cls(signal, kind)
        for key in vars(detector):
            setattr(detector, key, copy.deepcopy(state[key]))
        detector.open = None if state["open"] is None else Spike(**state["open"])
        return detector

    def _extend(self, step: int, height: float, sigmas: float) -> None:
        """Extend the spike to ``step``, or open one that began there."""
        if self.open is None:
            self.open = Spike(self.kind, self.signal, step, step, step, step, height, sigmas)
        self.open.end_step = step
        if height > self.open.height:
            self.open.peak_step, self.open.height, self.open.sigmas = step, height, sigmas

    def _close(self, recovered: bool) -> list[Event]:
        closed, self.open = self.open, None
        if closed is None:
            return []
        closed.recovered = recovered
        return [closed]
