"""Saturation: an instability without a spike, in which a softmax has become all but one-hot and passes on hardly any gradient.

At too high a learning rate attention logits grow without bound, the entropy of the attention weights collapses, and the run
falls behind for good (Wortsman et al. 2023, arXiv 2309.14322; Zhai et al. 2023, arXiv 2303.06296). The rule is this project's
own. Its limits come from runs of a million parameters. Those that were not behind had attention logits up to 115 and, in the
layer with the least, an entropy of at least 0.77 nats; those that ended 0.25 to 0.4 nats behind 240 to 370 and 0.14 to 0.33;
those that stalled 550 to 12,000 and 0.01 to 0.14. The spread of the output logits was at most 4.4 in all of these, and
20 to 140 at absurd rates.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from record.metrics import SignalKind

from .base import DETECTORS, Detector
from .events import Event, Saturated


@dataclass(frozen=True)
class Limit:
    """From where on a metric is saturated, in nats. ``sign``: 1 for what must not exceed it, -1 for what must not be less."""

    value: float
    over: float
    """Back on the good side of this, the saturation is over."""
    in_a_row: int
    """Measured values that must be beyond the limit, or back, in a row."""
    sign: int = 1
    of_start: float = 0.0
    """The limit is at least this multiple of the size of the run's first value."""

    def beyond(self, value: float, mark: float) -> bool:
        """Whether a value is on the bad side of ``mark``."""
        return self.sign * value > self.sign * mark


LIMITS = {
    "attention/logit_max": Limit(200.0, over=100.0, in_a_row=2),
    "attention/entropy": Limit(0.2, over=0.4, in_a_row=2, sign=-1),
    "logit/max": Limit(200.0, over=100.0, in_a_row=10, of_start=20.0),
    "logit/std": Limit(20.0, over=10.0, in_a_row=10, of_start=20.0),
}
"""The metrics that the rule judges. Attention is measured every so many steps, so that two values must do."""


@DETECTORS.register("saturated")
class SaturationRule(Detector):
    """A metric of :data:`LIMITS` that is beyond its limit: attention logits, the entropy of attention, output logits.

    One event when it is noticed, and another only after the metric has been back on the good side of ``over``. Where layers are
    written attention is judged by the worst one, whose metric is then the event's signal: a mean over layers hides one that is
    saturated. Output logits are held against the run's own start too, since a head of large scale begins with a large spread.

    Not covered: ``logit/max`` of a metric head, which is never above 0 (its spread ``logit/std`` is covered); a drift of all
    logits together; single heads that are saturated in a layer that is not; a run that starts with saturated output logits.
    A body that is taken over with attention logits beyond the limit is reported once. Other signals have no events.
    """

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.start: float | None = None
        """Size of the first value."""
        self.layers: dict[str, float] = {}
        """The last row's values of the layers' columns."""
        self.saturated = False
        self.since: int | None = None
        self.count = 0
        """First step and number of the values in a row that are beyond the limit; or back, while it is saturated."""

    @classmethod
    def applies_to(cls, signal: str, signal_kind: SignalKind) -> bool:
        return signal in LIMITS

    def update(self, row: Mapping[str, Any]) -> list[Event]:
        there = row.get(self.signal) is not None
        layers = {name: float(row[name]) for name in self.reads(row) if row[name] is not None} if there else {}
        self.layers = {name: value for name, value in layers.items() if math.isfinite(value)}
        return super().update(row)

    def reads(self, columns: Iterable[str]) -> list[str]:
        """The layers' columns of the metric."""
        layer = _layers(self.signal)
        return [column for column in columns if layer.fullmatch(column)]

    def mark(self, saturated: bool) -> float:
        """The value beyond which the metric is saturated, or from which on it no longer is; known after the first value."""
        limit, start = LIMITS[self.signal], self.start or 0.0
        # A head of large scale starts with a large spread.
        return max(1.0, limit.of_start * start / limit.value) * (limit.over if saturated else limit.value)

    def take(self, step: int, value: float) -> list[Event]:
        limit = LIMITS.get(self.signal)
        values = {name: each for name, each in {self.signal: value, **self.layers}.items() if math.isfinite(each)}
        if limit is None or not values:
            return []
        worst = max(values, key=lambda name: limit.sign * values[name])
        if self.start is None:
            self.start = abs(values[worst])
        mark = self.mark(self.saturated)
        if limit.beyond(values[worst], mark) == self.saturated:
            self.since, self.count = None, 0
            return []
        self.since, self.count = step if self.since is None else self.since, self.count + 1
        if self.count < limit.in_a_row:
            return []
        since, self.since, self.count, self.saturated = self.since, None, 0, not self.saturated
        if not self.saturated:
            return []
        layers = [name.split("/")[1] for name in sorted(self.layers) if limit.beyond(self.layers[name], mark)]
        return [Saturated(self.kind, worst, since, step, values[worst], mark, layers)]


@cache
def _layers(signal: str) -> re.Pattern[str]:
    """Matches the layers' columns of a metric."""
    group, _, name = signal.partition("/")
    return re.compile(rf"{re.escape(group)}/layer_\d+/{re.escape(name)}")
