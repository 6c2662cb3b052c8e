"""The curves of a page: what is drawn, in which colours, and thinned to what a page can carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from analysis.curves.__main__ import MOST_ALONE, OPENING, TRAINING, VALIDATION, nll_limits, stretches_above
from analysis.curves.palette import Palette, median_curve
from analysis.show import style
from analysis.show.stresses import ACTING, spans
from analysis.show.style import ArmStyle, Floats
from analysis.show.text import number
from analysis.show.thinning import envelope
from analysis.summary import tail
from record.finished import Run

from .happened import name_of
from .material import Material, runs_of_arms

SHOWN = 12
"""Groups that are drawn at first; the others can be switched on."""
_NAMED_COLOURS = 16
"""Groups whose colours can be told apart."""
_POINTS = 300_000
"""Points of all curves of a page: some four megabytes."""
_MOST, _FEWEST = 2400, 150
"""Points of a curve."""
_MARKS = 60
"""Most spikes marked in a panel, and most values that are not finite."""
_ROOM = 0.2
"""Share of a panel's width that the value of a mark beyond the axis takes."""
_BANDS = 12
"""Most stretches of planted disturbances that are shaded."""

Kind = Literal["run", "strong", "evaluated"]
"""A run's values; a smoothed curve, or the median over seeds; values that are measured now and then."""


@dataclass(frozen=True)
class Quantity:
    """A panel: its title, what is drawn, its unit, and whether its axis is logarithmic where values spread."""

    key: str
    title: str
    unit: str
    log: bool = False


QUANTITIES = (
    Quantity(TRAINING, "Training loss", "nats per token"),
    Quantity(VALIDATION, "Validation loss", "nats per token"),
    Quantity("grad_norm/total", "Gradient norm, before clipping", "L2 norm", log=True),
    Quantity("hidden_norm/pre_final/mean", "Hidden state before the last normalisation", "L2 norm, mean over tokens"),
    Quantity("hidden_norm/final/mean", "Hidden state after the last normalisation", "L2 norm, mean over tokens"),
    Quantity("embedding_norm/mean", "Output embeddings", "L2 norm, mean over rows"),
    Quantity("logit/std", "Scale of the logits", "standard deviation"),
    Quantity("lr", "Learning rate", "as logged"),
)
_UNDER_STRESS = 3
"""Of these, how many are drawn in scenarios with a planted disturbance."""


@dataclass(frozen=True)
class Group:
    """Curves of one colour: an arm with its seeds, or one run."""

    name: str
    look: ArmStyle
    runs: tuple[str, ...]
    hidden: bool = False
    """Whether it is switched off at first."""


@dataclass(frozen=True)
class Line:
    """One curve, thinned."""

    group: int
    kind: Kind
    x: Floats
    y: Floats
    name: str
    """Of the run, or what the curve is."""


@dataclass(frozen=True)
class Mark:
    """A point with a remark."""

    group: int
    x: float
    y: float
    text: str
    broken: bool = False
    """Whether it stands for values that are not finite."""
    beyond: bool = False
    """Whether it lies above the axis, at whose edge it is marked."""
    label: str = ""
    """What stands beside it: the value of a high one beyond the axis."""


@dataclass(frozen=True)
class Chart:
    """One panel."""

    quantity: Quantity
    log: bool
    lines: list[Line]
    marks: list[Mark]
    bands: list[tuple[int, int]]
    """Where a planted disturbance acted."""
    limits: tuple[float, float] | None = None
    """Of the vertical axis at first."""


@dataclass(frozen=True)
class Section:
    """Panels that belong together: a scenario of a suite, or all there is."""

    title: str
    charts: list[Chart]
    groups: list[Group] = field(default_factory=list)


def sections(material: Material) -> list[Section]:
    """All panels: for arms a section for each scenario, otherwise one."""
    found = material.study
    if found is None:
        return [one for one in [_section("", material.runs, _alone(material), QUANTITIES)] if one.charts]
    scenarios = found.comparison.scenarios
    looks = _looks(material)
    made = []
    for place, scenario in enumerate(scenarios):
        groups = [
            Group(arm, looks[arm][0], tuple(runs), looks[arm][1])
            for arm, runs in runs_of_arms(material, scenario).items()
        ]
        chosen = QUANTITIES[:-1] if place == 0 else QUANTITIES[:_UNDER_STRESS]
        made.append(_section(scenario, material.runs, groups, chosen))
    return [one for one in made if one.charts]


def _looks(material: Material) -> dict[str, tuple[ArmStyle, bool]]:
    """For each arm its colours, and whether it is switched off at first: of many arms, the baseline and those with the lowest
    and the highest loss are shown, in colours that can be told apart."""
    assert material.study is not None
    one = material.study.comparison
    looks = style.arm_styles(one.arms)
    if len(one.arms) <= SHOWN:
        return {arm: (look, False) for arm, look in looks.items()}
    final = {arm: _final(material, runs) for arm, runs in runs_of_arms(material, one.calm).items()}
    order = sorted((arm for arm in final if np.isfinite(final[arm])), key=lambda arm: final[arm])
    half = SHOWN // 2
    shown = list(dict.fromkeys([one.baseline, *order[: SHOWN - half], *order[-half:]]))[:SHOWN]
    if len(one.arms) > _NAMED_COLOURS:
        looks |= style.arm_styles(shown)
    return {arm: (look, arm not in shown) for arm, look in looks.items()}


def _final(material: Material, labels: Sequence[str]) -> float:
    """The mean final training loss of these runs."""
    values = [value for label in labels if (value := tail(material.runs[label], TRAINING)) is not None]
    return float(np.mean(values)) if values else np.nan


def _alone(material: Material) -> list[Group]:
    """Runs that form no arms: each by itself, or many as families, as in the figure of analysis.curves."""
    labels = list(material.runs)
    if len(labels) <= MOST_ALONE or material.logs:
        looks = style.arm_styles(labels)
        return [Group(label, looks[label], (label,), place >= 2 * SHOWN) for place, label in enumerate(labels)]
    palette = Palette.of(material.runs, TRAINING)
    return [
        Group(family.label, palette.styles[family.label], family.members, place >= 2 * SHOWN)
        for place, family in enumerate(palette.families)
    ]


def _section(title: str, runs: Mapping[str, Run], groups: list[Group], quantities: Sequence[Quantity]) -> Section:
    groups = sorted(groups, key=lambda group: group.hidden)
    own = {label: runs[label] for group in groups for label in group.runs}
    there = [q for q in quantities if any(len(run.series(q.key)) > 1 for run in own.values())]
    most = int(np.clip(_POINTS / max(1, len(QUANTITIES) * len(own)) / 1.5, _FEWEST, _MOST))
    return Section(title, [_chart(quantity, own, groups, most) for quantity in there], groups)


def _chart(quantity: Quantity, runs: Mapping[str, Run], groups: Sequence[Group], most: int) -> Chart:
    every = np.concatenate([run.series(quantity.key).to_numpy() for run in runs.values()])
    positive = every[np.isfinite(every) & (every > 0)]
    log = quantity.log and bool(positive.size) and bool(positive.max() > style.SPREAD * positive.min())
    lines = [line for place, group in enumerate(groups) for line in _lines(quantity, group, place, runs, log, most)]
    losses = {label: run for label, run in runs.items() if not run.series(quantity.key).empty}
    limits = nll_limits(losses) if quantity.key == TRAINING and _has_losses(losses) else None
    edge = np.inf if limits is None else limits[1]
    marks = [mark for place, group in enumerate(groups) for mark in _marks(quantity, group, place, runs, edge)]
    bands = {
        span
        for run in runs.values()
        for series in [run.series(ACTING)]
        for span in spans(series.index.to_numpy(), series.to_numpy())
    }
    width = max((line.x[-1] for line in lines), default=0.0) - min((line.x[0] for line in lines), default=0.0)
    return Chart(quantity, log, lines, _labelled(_gravest(marks), _ROOM * width), sorted(bands)[:_BANDS], limits)


def _has_losses(runs: Mapping[str, Run]) -> bool:
    """Whether each run has finite training losses, and finite validation losses if it has any."""
    columns = [run.series(key).to_numpy() for run in runs.values() for key in (TRAINING, VALIDATION)]
    return all(not len(values) or np.isfinite(values).any() for values in columns)


def _gravest(marks: Sequence[Mark]) -> list[Mark]:
    """Of each kind as many as a panel can show, and of those beyond the axis the highest."""
    broken, spikes = [m for m in marks if m.broken], [m for m in marks if not m.broken and not m.beyond]
    beyond = sorted((m for m in marks if m.beyond and not m.broken), key=lambda m: -m.y)
    return [*broken[:_MARKS], *spikes[:_MARKS], *beyond[:_MARKS]]


def _labelled(marks: Sequence[Mark], room: float) -> list[Mark]:
    """The marks, with the values of those beyond the axis that are ``room`` apart: of closer ones the highest has it."""
    taken: list[float] = []
    told = []
    for mark in marks:
        fits = mark.beyond and not mark.broken and all(abs(mark.x - x) >= room for x in taken)
        taken += [mark.x] if fits else []
        told.append(replace(mark, label=number(mark.y)) if fits else mark)
    return told


def _lines(
    quantity: Quantity, group: Group, place: int, runs: Mapping[str, Run], log: bool, most: int
) -> Iterator[Line]:
    """The curves of a group: each run's, and the median over several, or the smoothed curve of one with many values."""
    curves = [(label, *_values(runs[label], quantity.key, log)) for label in group.runs]
    curves = [(label, x, y) for label, x, y in curves if len(x)]
    evaluated = quantity.key == VALIDATION
    for label, x, y in curves:
        kept = envelope(y, most)
        yield Line(place, "evaluated" if evaluated and len(curves) == 1 else "run", x[kept], y[kept], label)
    if len(curves) > 1:
        x, y = median_curve([(x, y) for _, x, y in curves])
        kept = envelope(y, most)
        yield Line(place, "strong", x[kept], y[kept], f"median of {len(curves)} runs")
    elif curves and not evaluated and quantity.key != "lr":
        _, x, y = curves[0]
        span = max(5, len(x) // 60)
        places, strong = style.smoothed(y, span, log=True)  # the median, which does not lag behind as the average does
        kept = envelope(strong, most // 2)
        yield Line(place, "strong", x[places[kept]], strong[kept], f"smoothed over {span} values")


def _values(run: Run, key: str, log: bool) -> tuple[Floats, Floats]:
    """Steps and values as they can be drawn: NaN where a value is not finite, or not positive on a logarithmic axis."""
    series = run.series(key)
    values = style.finite_or_nan(series.to_numpy())
    return series.index.to_numpy(dtype=np.float64), np.where(values > 0, values, np.nan) if log else values


def _marks(quantity: Quantity, group: Group, place: int, runs: Mapping[str, Run], edge: float) -> Iterator[Mark]:
    """Of each run: where its values are not finite, its spikes, and where else it is above the ``edge`` of the axis."""
    for label in group.runs:
        series = runs[label].series(quantity.key)
        steps, values = series.index.to_numpy(), series.to_numpy()
        finite = np.isfinite(values)
        for at in np.flatnonzero(~finite & np.concatenate([[True], finite[:-1]]))[:_MARKS]:
            before = np.flatnonzero(finite[:at])
            if before.size:
                text = f"{label}: {name_of(quantity.key)} is NaN or infinite from step {steps[at]}"
                last = float(values[before[-1]])
                yield Mark(place, float(steps[at]), last, text, broken=True, beyond=last > edge)
        peaks = []
        for spike in runs[label].spikes(quantity.key):
            value = runs[label].value(quantity.key, spike["peak_step"])
            if "abandoned" not in spike and value is not None and np.isfinite(value):
                text = f"{label}: spike, step {spike['peak_step']}, {_sigmas(spike)}"
                peaks.append(spike["peak_step"])
                yield Mark(place, float(spike["peak_step"]), value, text + _beyond(value, edge), beyond=value > edge)
        for stretch in stretches_above(values, edge):
            at = stretch[np.argmax(values[stretch])]
            if steps[stretch[-1]] > OPENING * steps[-1] and not np.isin(steps[stretch], peaks).any():
                text = f"{label}: step {steps[at]}{_beyond(values[at], edge)}"
                yield Mark(place, float(steps[at]), float(values[at]), text, beyond=True)


def _beyond(value: float, edge: float) -> str:
    return f": {number(value)}, above the axis" if value > edge else ""


def _sigmas(spike: Mapping[str, Any]) -> str:
    value = spike.get("sigmas")
    return f"{number(float(value), 3)} sigma" if isinstance(value, int | float) else "height not measured"
