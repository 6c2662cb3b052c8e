"""The figure of a probe: a panel for each measure, over training where there are several checkpoints of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.compare.statistics import mean_over_seeds
from analysis.show.style import ArmStyle, arm_styles, legend_outside, whole_ticks

from .base import Measure
from .compare import last_of_each_run
from .over_training import draw_over_training, token_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3


def draw_probe(table: pd.DataFrame, measures: Sequence[Measure], title: str) -> Figure:
    """``table`` is that of :mod:`.evaluate`; all panels have the same arms in the same colours."""
    from matplotlib.figure import Figure

    styles = arm_styles(list(dict.fromkeys(table["arm"])))
    columns = min(_COLUMNS, len(measures))
    rows = math.ceil(len(measures) / columns)
    figure = Figure(figsize=(4 * columns, 1.1 + 2.7 * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    over_training = bool((table.groupby("run")["step"].nunique() > 1).any())
    for place, measure in enumerate(measures, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(measure.key, fontsize=9)
        axes.set_ylabel("" if measure.unit == "1" else measure.unit)
        shown = table[table["measure"] == measure.key]
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
