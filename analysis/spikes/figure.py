"""The figure of analysis.spikes: each series as it was written, with the spans in which detectors found something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.show import style
from analysis.show.style import ArmStyle, Floats
from analysis.show.text import clip
from analysis.show.thinning import envelope
from stability.detect.events import Event, Spike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LANE = 0.07
"""Height of a detector's lane above a panel, as a part of the panel's height."""
PANEL = 1.5
"""Height of a panel in inches."""
MOST_PANELS = 30
"""More make a picture of more pixels than can be written, and no one scrolls so far."""
TITLE = 110
"""Characters of a panel's title that the figure is wide enough for."""
SERIES = ArmStyle("#555555", "-", "o")


def draw_spikes(
    panels: dict[tuple[str, str], tuple[Floats, Floats]], events: Sequence[tuple[str, Event]], detectors: Sequence[str]
) -> Figure:
    """A panel for each (run, signal), steps and values; above it, for each detector with events, a lane with their spans.

    A spike has a triangle at its peak, a value that is not finite a cross on the upper edge. Of more panels than a picture can
    hold, those with the most events are drawn, and that is said.
    """
    from matplotlib.figure import Figure

    asked = len(panels)
    panels = _most_eventful(panels, events)
    at_work = {event.detector for _, event in events}
    styles = {name: arm for name, arm in style.arm_styles(detectors).items() if name in at_work}
    lanes = LANE * len(styles)
    figure = Figure(figsize=(10.5, 0.7 + (0.65 + PANEL * (1 + lanes)) * len(panels)), layout="constrained")
    cells = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, ((run, signal), (steps, values)) in zip(cells, panels.items(), strict=True):
        axes.set_title(clip(f"{run}: {signal}", TITLE), pad=6 + 72 * PANEL * lanes)
        found = [event for label, event in events if label == run and event.signal == signal]
        _draw_panel(axes, steps, values, found, styles)
    cells[-1].set_xlabel("step")
    title = f"{len(panels)} of {asked} curves: those with the most events" if asked > len(panels) else None
    handles = _legend(styles, events, panels)
    if handles or title:
        labels = [str(handle.get_label()) for handle in handles]
        style.legend_outside(figure, handles, labels, most=6, fontsize=8.5, title=title)
    return figure


def _most_eventful(
    panels: dict[tuple[str, str], tuple[Floats, Floats]], events: Sequence[tuple[str, Event]]
) -> dict[tuple[str, str], tuple[Floats, Floats]]:
    """At most ``MOST_PANELS``, in the order given."""
    counts = Counter((run, event.signal) for run, event in events)
    kept = set(sorted(panels, key=lambda panel: -counts[panel])[:MOST_PANELS])
    return {panel: values for panel, values in panels.items() if panel in kept}


def _draw_panel(
    axes: Axes, steps: Floats, values: Floats, events: Sequence[Event], styles: dict[str, ArmStyle]
) -> None:
    style.log_if_spread(axes, values)
    shown = np.where(np.isfinite(values), values, np.nan)
    if axes.get_yscale() == "log":
        shown = np.where(shown > 0, shown, np.nan)
    kept = envelope(shown)
    axes.plot(steps[kept], shown[kept], color=SERIES.colour, linewidth=0.7, zorder=3)
    style.mark_non_finite(axes, steps[~np.isfinite(values)], SERIES)
    narrowest = max(float(steps[-1] - steps[0]), 1.0) / 400  # a span of one step is still seen
    for event in events:
        lane = 1.02 + LANE * list(styles).index(event.detector)
        colour = styles[event.detector].colour
        middle, width = (event.start_step + event.end_step) / 2, event.end_step - event.start_step + 1
        left, right = middle - max(width, narrowest) / 2, middle + max(width, narrowest) / 2
        axes.axvspan(left, right, lane, lane + 0.7 * LANE, facecolor=colour, edgecolor="none", clip_on=False)
        axes.axvspan(left, right, facecolor=colour, edgecolor="none", alpha=0.12, zorder=1)
        if isinstance(event, Spike):
            peak = values[np.searchsorted(steps, event.peak_step)]
            axes.plot(event.peak_step, peak, marker="v", markersize=7, markerfacecolor="none", color=colour, zorder=5)
    axes.set_xlim(steps[0] - narrowest, steps[-1] + narrowest)


def _legend(
    styles: dict[str, ArmStyle],
    events: Sequence[tuple[str, Event]],
    panels: dict[tuple[str, str], tuple[Floats, Floats]],
) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=arm.colour, linewidth=5, label=name) for name, arm in styles.items()]
    mark: dict[str, Any] = {"color": "#444444", "linestyle": ""}
    if any(isinstance(event, Spike) for _, event in events):
        handles.append(Line2D([], [], marker="v", markerfacecolor="none", label="peak of a spike", **mark))
    if not all(np.isfinite(values).all() for _, values in panels.values()):
        handles.append(Line2D([], [], marker="x", label="NaN or infinite", **mark))
    return handles
