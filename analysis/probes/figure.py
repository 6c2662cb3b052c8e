"""The figure of a probe: a panel for each measure, over training where there are several checkpoints of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.compare.statistics import mean_over_seeds
from analysis.show.style import ArmStyle, arm_styles, legend_outside, log_if_spread, whole_ticks

from .base import Measure
from .compare import last_of_each_run
from .over_training import draw_over_training, token_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_MOST_PANELS = 12
"""With more, arrays have a figure of their own."""
_MANY = 6
"""Panels of one figure from which on they are small, side by side."""


def probe_figures(table: pd.DataFrame, measures: Sequence[Measure], title: str) -> dict[str, Figure]:
    """All measures by file name without suffix: in probe, or the arrays in probe_arrays if they are many."""
    parts = [[m for m in measures if m.along is None], [m for m in measures if m.along is not None]]
    if len(measures) <= _MOST_PANELS or not all(parts):
        return {"probe": draw_probe(table, measures, title)}
    return {name: draw_probe(table, part, title) for name, part in zip(("probe", "probe_arrays"), parts, strict=True)}


def draw_probe(table: pd.DataFrame, measures: Sequence[Measure], title: str) -> Figure:
    """``table`` is that of :mod:`.evaluate`; all panels have the same arms in the same colours."""
    from matplotlib.figure import Figure

    styles = arm_styles(list(dict.fromkeys(table["arm"])))
    small = len(measures) > _MANY and all(measure.along is None for measure in measures)
    columns = min(_COLUMNS + small, len(measures))
    rows = math.ceil(len(measures) / columns)
    figure = Figure(figsize=((3 if small else 4) * columns, 1.1 + (2.0 if small else 2.7) * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    over_training = bool((table.groupby("run")["step"].nunique() > 1).any())
    for place, measure in enumerate(measures, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(measure.key, fontsize=9)
        axes.set_ylabel("" if measure.unit == "1" else measure.unit)
        shown = table[table["measure"] == measure.key]
        if measure.positive:
            log_if_spread(axes, shown["value"].to_numpy(np.float64))
        if measure.along is not None:
            axes.set_xlabel(measure.along)
            _draw_arrays(axes, last_of_each_run(shown), styles)
        elif over_training:
            shown = shown[shown["tokens"].notna()]
            token_axis(axes, shown["tokens"])
            for arm, style in styles.items():
                draw_over_training(axes, shown[shown["arm"] == arm], "value", style, label=arm)
        else:
            _draw_points(axes, shown, styles)
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    legend_outside(figure, list(found.values()), list(found), loc="outside lower center")
    return figure


def _draw_points(axes: Axes, rows: pd.DataFrame, styles: dict[str, ArmStyle]) -> None:
    """A point for each seed, and the mean with its interval, side by side for all arms."""
    for place, (arm, style) in enumerate(styles.items()):
        values = rows["value"][rows["arm"] == arm].to_numpy()
        axes.plot(
            np.full(len(values), place - 0.15), values, style.marker, color=style.colour, alpha=0.45, markersize=4
        )
        effect = mean_over_seeds(values)
        below, above = (
            (abs(effect.mean - (end if end is not None else effect.mean)),) for end in (effect.low, effect.high)
        )
        axes.errorbar(
            [place], [effect.mean], yerr=[below, above], color=style.colour, marker=style.marker, capsize=3, label=arm
        )
    axes.set_xticks([])
    axes.set_xlim(-0.6, len(styles) - 0.4)


def _draw_arrays(axes: Axes, rows: pd.DataFrame, styles: dict[str, ArmStyle]) -> None:
    """Against the index: the mean over seeds, and a band from the lowest seed to the highest."""
    for arm, style in styles.items():
        by_index = rows[rows["arm"] == arm].groupby("index")["value"]
        mean = by_index.mean()
        axes.fill_between(mean.index, by_index.min(), by_index.max(), color=style.colour, alpha=0.15, linewidth=0)
        axes.plot(mean.index, mean, color=style.colour, linestyle=style.line, label=arm)
    whole_ticks(axes)
