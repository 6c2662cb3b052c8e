"""The figure of analysis.spikes: each curve as it was logged, with the spans of the events that detectors found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.show import style
from analysis.show.style import ArmStyle, Floats
from analysis.show.text import clip
from record.logs.base import Abandoned
from stability.detect.events import Event, Rise, Spike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LANE = 0.07
"""Height of a detector's lane above a panel, relative to the panel."""
PANEL = 1.5
"""Height of a panel in inches."""
MOST_PANELS = 30
"""A figure with more would have more pixels than can be written."""
TITLE = 110
"""Characters of a panel's title that fit the figure's width."""
FALL = 0.05
"""Share of the steps in which training starts; its fall does not determine the axis if it would take up most of it."""
PEAKS = (0.0005, 0.9995)
"""Quantiles of what follows between which the axis lies where a curve has a late rise."""
CURVE = ArmStyle("#555555", "-", "o")

LEFT = ArmStyle("#999999", "-", "o")
"""Of branches that a log has left."""

Curves = dict[tuple[str, str], tuple[Floats, Floats]]
"""Steps and values by (run, signal)."""


@dataclass(frozen=True)
class Left:
    """A branch of a curve that the log has left, as it was logged, with its events."""

    run: str
    signal: str
    steps: Floats
    values: Floats
    abandoned: Abandoned
    events: Sequence[Event]


def draw_spikes(
    curves: Curves, events: Sequence[tuple[str, Event]], detectors: Sequence[str], left: Sequence[Left] = ()
) -> Figure:
    """A panel per curve, and above it a lane for each detector with the spans of its events.

    ``events``: with the label of their run. ``left``: branches, drawn thinly from where they were left. Spikes have a
    triangle at their peak. If there are more than ``MOST_PANELS`` curves, those with the most events are drawn, and the
    figure says so.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    counts = Counter((run, event.signal) for run, event in events)
    counts.update((branch.run, branch.signal) for branch in left for _ in branch.events)
    kept = set(sorted(curves, key=lambda curve: -counts[curve])[:MOST_PANELS])
    drawn = {curve: values for curve, values in curves.items() if curve in kept}
    with_events = {event.detector for _, event in events} | {e.detector for branch in left for e in branch.events}
    styles = {name: arm for name, arm in style.arm_styles(detectors).items() if name in with_events}
    lanes = LANE * len(styles)
    figure = Figure(figsize=(10.5, 0.7 + (0.65 + PANEL * (1 + lanes)) * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axes, ((run, signal), (steps, values)) in zip(panels, drawn.items(), strict=True):
        axes.set_title(clip(f"{run}: {signal}", TITLE), pad=6 + 72 * PANEL * lanes)
        found = [event for label, event in events if label == run and event.signal == signal]
        _draw_panel(axes, steps, values, found, styles)
        branches = [branch for branch in left if (branch.run, branch.signal) == (run, signal)]
        _draw_left(axes, branches, styles)
        _crop_fall(axes, steps, values, _all([(run, event) for event in found], branches))
        last = max([steps[-1], *(branch.steps[-1] for branch in branches)])
        margin = _narrowest(steps[0], last)
        axes.set_xlim(steps[0] - margin, last + margin)
    panels[-1].set_xlabel("step")
    title = f"{len(drawn)} of {len(curves)} curves: those with the most events" if len(curves) > len(drawn) else None
    handles = [Line2D([], [], color=arm.colour, linewidth=5, label=name) for name, arm in styles.items()]
    if left:
        handles.append(Line2D([], [], color=LEFT.colour, linewidth=0.8, label="abandoned when the log went back"))
    handles += style.mark_handles(
        peaks="peak of a spike" if any(isinstance(event, Spike) for event in _all(events, left)) else None,
        non_finite=not all(np.isfinite(values).all() for _, values in drawn.values()),
        size=6,
    )
    if handles or title:
        style.legend_outside(figure, handles, most=6, fontsize=8.5, title=title)
    return figure


def _draw_panel(
    axes: Axes, steps: Floats, values: Floats, events: Sequence[Event], styles: dict[str, ArmStyle]
) -> None:
    style.log_if_spread(axes, values)
    style.draw_values(axes, steps, values, CURVE, linewidth=0.7, zorder=3)
    _mark_events(axes, steps, values, events, styles)


def _crop_fall(axes: Axes, steps: Floats, values: Floats, events: Sequence[Event]) -> None:
    """Leave out the fall at the start of a curve if it would make the rest a flat line: a late rise may be 0.02 of 8 nats. Where
    there is one, leave out peaks as well."""
    rises = any(isinstance(event, Rise) for event in events)
    after = steps[0] + FALL * (steps[-1] - steps[0])
    after = after if rises else min([after, *(event.start_step for event in events)])
    shown = style.showable(axes, values)
    rest = shown[(steps >= after) & ~np.isnan(shown)]
    if axes.get_yscale() == "log" or not len(rest):
        return
    low, high = np.quantile(rest, PEAKS) if rises else (rest.min(), rest.max())
    if np.nanmax(shown) <= 2 * high - low:
        return
    room = 0.08 * (high - low or abs(high))
    axes.set_ylim(low - room, high + room)
    beside = " and the highest peaks are" if rises and rest.max() > high + room else " is"
    style.note(axes, f"the fall before step {after:,.0f}{beside} above")


def _draw_left(axes: Axes, branches: Sequence[Left], styles: dict[str, ArmStyle]) -> None:
    for branch in branches:
        gone = branch.steps >= branch.abandoned.to_step
        if gone.any():
            style.draw_values(axes, branch.steps[gone], branch.values[gone], LEFT, linewidth=0.5, zorder=2)
        _mark_events(axes, branch.steps, branch.values, [e for e in branch.events if e.signal == branch.signal], styles)


def _mark_events(
    axes: Axes, steps: Floats, values: Floats, events: Sequence[Event], styles: dict[str, ArmStyle]
) -> None:
    narrowest = _narrowest(steps[0], steps[-1])
    for event in events:
        lane = 1.02 + LANE * list(styles).index(event.detector)
        colour = styles[event.detector].colour
        middle, width = (event.start_step + event.end_step) / 2, event.end_step - event.start_step + 1
        left, right = middle - max(width, narrowest) / 2, middle + max(width, narrowest) / 2
        axes.axvspan(left, right, lane, lane + 0.7 * LANE, facecolor=colour, edgecolor="none", clip_on=False)
        axes.axvspan(left, right, facecolor=colour, edgecolor="none", alpha=0.12, zorder=1)
        if isinstance(event, Spike):
            style.mark_peaks(axes, event.peak_step, values[np.searchsorted(steps, event.peak_step)], colour)


def _narrowest(first: float, last: float) -> float:
    """Width at which a span of one step is visible."""
    return max(float(last - first), 1.0) / 400


def _all(events: Sequence[tuple[str, Event]], left: Sequence[Left]) -> list[Event]:
    return [event for _, event in events] + [event for branch in left for event in branch.events]
