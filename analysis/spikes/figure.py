"""The figure of analysis.spikes: each curve as it was logged, with the spans of the events that detectors found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.show import style
from analysis.show.style import ArmStyle, Floats
from analysis.show.text import clip
from stability.detect.events import Event, Spike

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
CURVE = ArmStyle("#555555", "-", "o")

Curves = dict[tuple[str, str], tuple[Floats, Floats]]
"""Steps and values by (run, signal)."""


def draw_spikes(curves: Curves, events: Sequence[tuple[str, Event]], detectors: Sequence[str]) -> Figure:
    """A panel per curve, and above it a lane for each detector with the spans of its events.

    ``events``: with the label of their run. Spikes have a triangle at their peak. If there are more than ``MOST_PANELS``
    curves, those with the most events are drawn, and the figure says so.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    counts = Counter((run, event.signal) for run, event in events)
    kept = set(sorted(curves, key=lambda curve: -counts[curve])[:MOST_PANELS])
    drawn = {curve: values for curve, values in curves.items() if curve in kept}
    with_events = {event.detector for _, event in events}
    styles = {name: arm for name, arm in style.arm_styles(detectors).items() if name in with_events}
    lanes = LANE * len(styles)
    figure = Figure(figsize=(10.5, 0.7 + (0.65 + PANEL * (1 + lanes)) * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axes, ((run, signal), (steps, values)) in zip(panels, drawn.items(), strict=True):
        axes.set_title(clip(f"{run}: {signal}", TITLE), pad=6 + 72 * PANEL * lanes)
        found = [event for label, event in events if label == run and event.signal == signal]
        _draw_panel(axes, steps, values, found, styles)
    panels[-1].set_xlabel("step")
    title = f"{len(drawn)} of {len(curves)} curves: those with the most events" if len(curves) > len(drawn) else None
    handles = [Line2D([], [], color=arm.colour, linewidth=5, label=name) for name, arm in styles.items()]
    handles += style.mark_handles(
        peaks="peak of a spike" if any(isinstance(event, Spike) for _, event in events) else None,
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
    narrowest = max(float(steps[-1] - steps[0]), 1.0) / 400  # so that a span of one step is visible
    for event in events:
        lane = 1.02 + LANE * list(styles).index(event.detector)
        colour = styles[event.detector].colour
        middle, width = (event.start_step + event.end_step) / 2, event.end_step - event.start_step + 1
        left, right = middle - max(width, narrowest) / 2, middle + max(width, narrowest) / 2
        axes.axvspan(left, right, lane, lane + 0.7 * LANE, facecolor=colour, edgecolor="none", clip_on=False)
        axes.axvspan(left, right, facecolor=colour, edgecolor="none", alpha=0.12, zorder=1)
        if isinstance(event, Spike):
            style.mark_peaks(axes, event.peak_step, values[np.searchsorted(steps, event.peak_step)], colour)
    axes.set_xlim(steps[0] - narrowest, steps[-1] + narrowest)
