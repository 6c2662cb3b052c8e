"""The figure of a probe: a panel for each measure or group of them, over training where a run has several checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.compare.statistics import Floats, mean_over_seeds
from analysis.show.style import GREY, LINES, ArmStyle, arm_styles, legend_outside, log_if_spread, whole_ticks
from analysis.show.text import clip, visible

from .base import Measure
from .compare import last_of_each_run
from .over_training import draw_over_training, token_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel = tuple[str, list[Measure]]
"""A title, and what is drawn below it."""
Places = Callable[[str], Sequence[str]]
"""That of :meth:`.base.Probe.places`."""
_COLUMNS = 3
_MOST_PANELS = 12
"""With more, arrays have a figure of their own."""
_MANY = 6
"""Panels of one figure from which on they are small, side by side."""
_TICKS = 4
"""Most intervals between the ticks of a panel's vertical axis."""
_WIDTH = 0.7
"""Of all arms side by side, from one place to the next being 1."""
_REACH = 1.0
"""How far beyond the values the axis follows their intervals, in spans of the values."""
_MARGIN = 0.06
"""Above and below what the axis shows, as a share of it."""
_NAME, _LONG_NAME = 12, 24
"""Characters of a name on the horizontal axis, and of one that is turned."""
_ROOM, _MOST_NAMES = 40, 24
"""Characters of all names beyond which they are turned, and names beyond which some are left out."""


def probe_figures(table: pd.DataFrame, measures: Sequence[Measure], title: str, places: Places) -> dict[str, Figure]:
    """What has values, by file name without suffix: in probe, or the arrays in probe_arrays if there are many panels."""
    known = set(table["measure"][table["value"].notna()])
    panels = _panels([m for m in measures if m.key in known] or measures)
    parts = [[p for p in panels if p[1][0].along is None], [p for p in panels if p[1][0].along is not None]]
    if len(panels) <= _MOST_PANELS or not all(parts):
        return {"probe": draw_probe(table, panels, title, places)}
    return {
        name: draw_probe(table, part, title, places)
        for name, part in zip(("probe", "probe_arrays"), parts, strict=True)
    }


def _panels(measures: Sequence[Measure]) -> list[Panel]:
    panels: dict[str, list[Measure]] = {}
    for measure in measures:
        panels.setdefault(measure.key if measure.panel is None else measure.panel[0], []).append(measure)
    return list(panels.items())


def draw_probe(table: pd.DataFrame, panels: Sequence[Panel], title: str, places: Places) -> Figure:
    """``table`` is that of :mod:`.evaluate`; all panels have the same arms in the same colours."""
    from matplotlib.figure import Figure

    styles = arm_styles(list(dict.fromkeys(table["arm"])))
    small = len(panels) > _MANY and all(measures[0].along is None for _, measures in panels)
    columns = min(_COLUMNS + small, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=((3 if small else 4) * columns, 1.1 + (2.0 if small else 2.7) * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    over_training = bool((table.groupby("run")["step"].nunique() > 1).any())
    by_key = dict(iter(table.groupby("measure")))
    for place, (heading, measures) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(heading, fontsize=9)
        axes.set_ylabel("" if measures[0].unit == "1" else measures[0].unit)
        axes.locator_params(axis="y", nbins=_TICKS)
        shown = {measure: by_key[measure.key] for measure in measures}
        _draw_panel(axes, shown, styles, over_training=over_training, places=places)
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    legend_outside(figure, list(found.values()), list(found), loc="outside lower center")
    return figure


def _draw_panel(
    axes: Axes, shown: dict[Measure, pd.DataFrame], styles: dict[str, ArmStyle], *, over_training: bool, places: Places
) -> None:
    """The rows of a panel's measures, in the way that they ask for."""
    first = next(iter(shown))
    if any(measure.positive for measure in shown):
        log_if_spread(axes, np.concatenate([rows["value"].to_numpy(np.float64) for rows in shown.values()]))
    if first.chance is not None:
        axes.axhline(first.chance, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    if first.along is not None:
        axes.set_xlabel(first.along)
        _draw_arrays(axes, last_of_each_run(shown[first]), styles, places(first.along))
    elif over_training:
        _draw_curves(axes, shown, styles)
    else:
        _draw_points(axes, shown, styles)


def _draw_curves(axes: Axes, shown: dict[Measure, pd.DataFrame], styles: dict[str, ArmStyle]) -> None:
    """Against tokens, in the colours of the arms; the measures of one panel by kinds of lines."""
    counted = {measure: rows[rows["tokens"].notna()] for measure, rows in shown.items()}
    token_axis(axes, pd.concat(counted.values())["tokens"])
    for place, (measure, rows) in enumerate(counted.items()):
        line = None if measure.panel is None else LINES[place % len(LINES)]
        for arm, style in styles.items():
            own = rows[rows["arm"] == arm]
            draw_over_training(axes, own, "value", style, label=None if place else arm, line=line)
        if measure.panel is not None:
            axes.plot([], [], color=GREY, linestyle=line, label=measure.panel[1])


def _draw_points(axes: Axes, shown: dict[Measure, pd.DataFrame], styles: dict[str, ArmStyle]) -> None:
    """A point for each seed, and the mean with its interval, side by side for all arms."""
    step = _WIDTH / len(styles)
    drawn, ends = [], []
    for place, (arm, style) in enumerate(styles.items()):
        x_M = np.arange(len(shown)) + step * (place - (len(styles) - 1) / 2)
        values = [rows["value"][rows["arm"] == arm].to_numpy(np.float64) for rows in shown.values()]
        effects = [mean_over_seeds(own) for own in values]
        mean_M, low_M, high_M = np.array(
            [(e.mean, *((e.mean, e.mean) if e.low is None or e.high is None else (e.low, e.high))) for e in effects]
        ).T
        x_S = np.repeat(x_M - 0.2 * step, [len(own) for own in values])
        axes.plot(x_S, np.concatenate(values), style.marker, color=style.colour, alpha=0.45, markersize=4)
        axes.errorbar(
            x_M, mean_M, yerr=(mean_M - low_M, high_M - mean_M), color=style.colour, marker=style.marker, capsize=3,
            linestyle="", label=arm,
        )  # fmt: skip
        drawn += [mean_M, *values]
        ends += [low_M, high_M]
    axes.set_xticks(range(len(shown)), [m.panel[1] for m in shown if m.panel is not None] or [""], fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.5, len(shown) - 0.5)
    chances = [measure.chance for measure in shown if measure.chance is not None]
    _limit(axes, np.concatenate([chances, *drawn]), np.concatenate(ends))


def _limit(axes: Axes, values: Floats, ends: Floats) -> None:
    """Let the axis show all values, but of an interval far wider than their span (as two seeds may have) only a part."""
    log = axes.get_yscale() == "log"
    values, ends = (np.log(x[x > 0]) if log else x[np.isfinite(x)] for x in (values, ends))
    if not len(values) or np.ptp(values) == 0:
        return
    low, high, reach = values.min(), values.max(), _REACH * np.ptp(values)
    low, high = min(low, max(ends.min(), low - reach)), max(high, min(ends.max(), high + reach))
    margin = _MARGIN * (high - low)
    axes.set_ylim(*(np.exp(end) if log else end for end in (low - margin, high + margin)))


def _draw_arrays(axes: Axes, rows: pd.DataFrame, styles: dict[str, ArmStyle], names: Sequence[str]) -> None:
    """Against the index: the mean over seeds, and a band from the lowest seed to the highest."""
    for arm, style in styles.items():
        by_index = rows[rows["arm"] == arm].groupby("index")["value"]
        mean = by_index.mean()
        axes.fill_between(mean.index, by_index.min(), by_index.max(), color=style.colour, alpha=0.15, linewidth=0)
        axes.plot(mean.index, mean, color=style.colour, linestyle=style.line, label=arm)
    whole_ticks(axes)
    if sum(min(len(name), _NAME) + 1 for name in names) > _ROOM:
        shown = range(0, len(names), math.ceil(len(names) / _MOST_NAMES))
        axes.set_xticks(shown, [clip(visible(names[at]), _LONG_NAME) for at in shown], fontsize=6, rotation=90)
    elif names:
        axes.set_xticks(range(len(names)), [clip(visible(name), _NAME) for name in names], fontsize=8)
