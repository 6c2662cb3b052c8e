"""Events in the metrics of a run or of a log, those in abandoned branches included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from analysis.show.stresses import ACTING, Spans, spans, within
from analysis.show.style import Floats
from record.logs.base import Abandoned, Log
from record.logs.columns import BY_KEY, SIGNALS, measures_model, role_of
from record.metrics import SignalKind, kind_of
from record.table import Table
from stability.detect.base import Detector
from stability.detect.baseline import FEWEST
from stability.detect.catalogue import DEFAULT, DETECTORS, detect_columns, detect_series, judged_from, make_detector
from stability.detect.events import Event, Spike, told_by
from stability.detect.median_mad import MedianMad
from stability.detect.outliers import FAR
from stability.detect.precursors import LOOK_BACK, precursors
from stability.detect.saturation import LIMITS


@dataclass(frozen=True)
class Series:
    """The metrics of one run."""

    label: str
    table: Table
    warmup_steps: int = 0
    log: Log | None = None
    """Where the metrics come from, if it is no run directory."""
    kinds: Mapping[str, SignalKind] = field(default_factory=dict)
    """How to judge columns that are no known metrics, as the user says."""
    history_to: int = 0
    """Step up to which the table has rows of the run that a branch comes from: what is usual is learnt from them, but events that
    end there are not the branch's."""

    def values(self, name: str) -> tuple[Floats, Floats]:
        """The run's own steps and values at which ``name`` was logged, NaN and infinities included."""
        written = self.table.written(name) & (self.table.steps > self.history_to)
        return self.table.steps[written].astype(np.float64), self.table.columns[name][written]

    @property
    def default_signals(self) -> list[str]:
        """The columns in which spikes are looked for by default: the loss and the gradient norm, where they are. In a log that
        has neither, the validation loss."""
        if self.log is None:
            return [name for name in (BY_KEY[key].metric for key in SIGNALS) if name in self.table.columns]
        there = {key: column for key, column in self.log.roles.items() if column in self.table.columns}
        return [there[key] for key in SIGNALS if key in there] or [there[key] for key in ("val_loss",) if key in there]

    @property
    def saturable(self) -> list[str]:
        """The columns that are looked at for saturation by default."""
        return [column for column in self.table.columns if self.metric(column) in LIMITS]

    def metric(self, column: str) -> str:
        """The metric of this project that a column is: it is judged by the same rule. An unknown column is itself."""
        if self.log is None:
            return column
        key = next((key for key, name in self.log.roles.items() if name == column), None)
        role = BY_KEY[key] if key else role_of(column)
        return column if role is None else role.metric

    def kind(self, column: str) -> SignalKind:
        """How a column is judged."""
        return self.kinds.get(column) or kind_of(self.metric(column))

    def stressed(self, first: int, last: int) -> Spans:
        """The stretches of these steps and what continues them at which a stress of the run's configuration acted."""
        if ACTING not in self.table.columns:
            return []
        return within(spans(self.table.steps, self.table.columns[ACTING]), max(first, self.history_to + 1), last)

    def branches(self) -> Iterator[tuple[Abandoned, Series]]:
        """Each abandoned branch, and the metrics as they were logged up to its end."""
        for left in self.log.abandoned if self.log else ():
            yield left, replace(self, table=left.branch)


@dataclass(frozen=True)
class Found:
    """An event in a run, with its precursors if it is a spike."""

    run: str
    event: Event
    precursors: list[dict[str, Any]] = field(default_factory=list)
    abandoned: Abandoned | None = None
    """The branch that it is in, if it was left."""
    stressed: Spans = field(default_factory=list)
    """The stretches at which a stress acted in it or shortly before."""

    def row(self) -> dict[str, Any]:
        """The event in events.json."""
        left = self.abandoned
        where = {} if left is None else {"abandoned": {"from_step": left.from_step, "to_step": left.to_step}}
        stress = {"stress": [list(span) for span in self.stressed]} if self.stressed else {}
        more = where | stress | {"precursors": self.precursors}
        return {"run": self.run, "kind": self.event.kind} | self.event.event() | more


def find_all(series: Series, column: str, rule: str) -> tuple[list[Found], Detector | None]:
    """The events that the detector ``rule`` finds in a column, first what was kept, then each abandoned branch; and the detector
    after what was kept. Nothing for a rule that means nothing for the column."""
    metric, kind = series.metric(column), series.kind(column)
    if not DETECTORS[rule].applies_to(metric, kind):
        return [], None
    detector = make_detector(rule, metric, kind)
    found = find_events(series, column, detector)
    for left, branch in series.branches():
        if column in branch.table.columns:
            along = find_events(branch, column, make_detector(rule, metric, kind))
            found += [replace(one, abandoned=left) for one in along if one.event.end_step >= left.to_step]
    return found, detector


def find_watched(series: Series, column: str) -> tuple[list[Found], Detector | None]:
    """The events in a column that a run reports by default, each only once, and the default detector after what was kept."""
    found, detector = find_all(series, column, DEFAULT)
    found += [one for rule in ("level", "stall", "saturated") for one in find_all(series, column, rule)[0]]
    once = [
        one
        for one in found
        if not told_by(one.event, (each.event for each in found if each.abandoned is one.abandoned))
    ]
    return once, detector


def remark(series: Series, column: str, detector: Detector | None) -> str | None:
    """What a reader has to know of the default detector's silence about a column; None if there is nothing."""
    count = int(np.isfinite(series.values(column)[1]).sum())
    if count <= 2 * FEWEST:
        return f"only {count} values, of which none can be judged: the first verdict is on the {2 * FEWEST + 1}th"
    more = detector.outliers.passed_over if isinstance(detector, MedianMad) else 0
    return f"{more} more single values of {FAR:.0f} sigma or more, too frequent here to be spikes" if more > 0 else None


def find_events(series: Series, column: str, detector: Detector) -> list[Found]:
    """The events that ``detector`` finds in a column, in the order in which they end. They are named after the column."""
    if column not in series.table.columns:
        return []
    if beside := detector.reads(series.table.columns):
        names = {column: detector.signal, **{name: name for name in beside}}
        columns = {n: (series.table.columns[c], series.table.written(c)) for c, n in names.items()}
        events = detect_columns(detector, series.table.steps, columns)
    else:
        written = series.table.written(column)
        written &= series.table.steps >= judged_from(detector, series.warmup_steps)
        events = detect_series(detector, series.table.steps[written], series.table.columns[column][written])
    return [
        Found(
            series.label,
            _named(event, detector.signal, column),
            _precursors(event, series) if isinstance(event, Spike) else [],
            stressed=series.stressed(event.start_step - LOOK_BACK, event.end_step),
        )
        for event in events
        if event.end_step > series.history_to
    ]


def _named(event: Event, metric: str, column: str) -> Event:
    return replace(event, signal=column) if event.signal == metric != column else event


def _precursors(spike: Spike, series: Series) -> list[dict[str, Any]]:
    """The spike's precursors among all columns that measure the model."""
    table = series.table
    before, after = np.searchsorted(table.steps, [spike.start_step - LOOK_BACK, spike.start_step + 1])
    window = slice(int(before), int(after))
    names = dict(_judged(series))
    kinds = {metric: series.kind(column) for metric, column in names.items()}
    columns = {metric: table.columns[names[metric]][window].tolist() for metric in sorted(names)}
    found = precursors(spike, table.steps[window].tolist(), columns, kinds)
    return [asdict(replace(p, signal=names[p.signal])) for p in found]


def _judged(series: Series) -> Iterable[tuple[str, str]]:
    """The metrics that may be precursors, and their columns."""
    for column in series.table.columns:
        if series.log is None or column in series.log.roles.values():
            yield series.metric(column), column
        elif measures_model(column):
            yield column, column


@dataclass(frozen=True)
class Rollback:
    """A log that went back: ``from_step`` was the last step before, ``to_step`` the first after."""

    run: str
    from_step: int
    to_step: int

    def row(self) -> dict[str, Any]:
        """The event in events.json."""
        back = {"from_step": self.from_step, "to_step": self.to_step, "precursors": []}
        return {"run": self.run, "kind": "rollback", "start_step": self.to_step, "end_step": self.from_step} | back


def rollbacks(series: Sequence[Series]) -> list[Rollback]:
    """All returns in the logs."""
    return [Rollback(one.label, left.from_step, left.to_step) for one in series for left, _ in one.branches()]
