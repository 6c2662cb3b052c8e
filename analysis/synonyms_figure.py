"""The figure of analysis.synonyms: paired differences with intervals, and every pair, baseline against candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .bootstrap import CONFIDENCE, Estimate
from .style import ArmStyle, arm_styles, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DIFFERENCES = {
    "log_odds": "Log-odds against\ncontrols, nats",
    "rank_auc": "Rank AUC against\ncontrols",
    "log10_rank_synonym": "log10 rank of\nthe synonym",
    "share_synonym": "Synonym's share of\nwhat the word leaves",
    "entropy": "Entropy,\nnats",
    "nll_word": "NLL of the word,\nnats",
}
_SCATTERS = {
    "log_odds": "Log-odds against controls, nats",
    "share_synonym": "Synonym's share of what the word leaves",
    "nll_word": "NLL of the true word, nats",
}
_LOGARITHMIC = {"share_synonym"}


def draw_synonyms(
    per_pair: dict[str, pd.DataFrame], differences: dict[str, dict[str, Estimate]], contexts: int
) -> Figure:
    """Above: mean paired differences to the first model. Below: one point for each pair and candidate."""
    from matplotlib.figure import Figure

    baseline, *candidates = per_pair
    pairs = len(per_pair[baseline])
    styles = arm_styles(list(per_pair))
    height = 0.9 + 0.32 * len(candidates)
    figure = Figure(figsize=(10.5, height + 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[height, 3.9])
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    above.suptitle(
        f"Difference to {baseline}: mean and {CONFIDENCE:.0%} bootstrap interval over {pairs} pairs ({contexts} contexts)",
        fontsize=10,
    )
    for axes, (key, title) in zip(above.subplots(1, len(_DIFFERENCES), sharey=True), _DIFFERENCES.items(), strict=True):
        _draw_differences(axes, {label: differences[label][key] for label in candidates}, styles)
        axes.set_title(title, fontsize=8.5, fontweight="normal", loc="center")
    below.suptitle(f"Each point is a pair (n = {pairs})", fontsize=10)
    for axes, (key, title) in zip(below.subplots(1, len(_SCATTERS)), _SCATTERS.items(), strict=True):
        _draw_scatter(axes, {label: table[key] for label, table in per_pair.items()}, styles, log=key in _LOGARITHMIC)
        axes.set_title(title, fontsize=9, fontweight="normal", loc="center")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def _draw_differences(axes: Axes, estimates: dict[str, Estimate], styles: dict[str, ArmStyle]) -> None:
    axes.axvline(0, color="#444444", linewidth=0.9)
    for row, (label, estimate) in enumerate(estimates.items()):
        arm = styles[label]
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [row, row], color=arm.colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(estimate.mean, row, marker=arm.marker, markersize=6, color=arm.colour)
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="x", labelsize=8)
    axes.locator_params(axis="x", nbins=3)
    axes.margins(x=0.15)


def _draw_scatter(axes: Axes, values: dict[str, Any], styles: dict[str, ArmStyle], *, log: bool) -> None:
    baseline, *candidates = values
    everything = np.concatenate([np.asarray(column) for column in values.values()])
    if log:
        hidden = int((everything <= 0).sum())
        if hidden:
            note(axes, f"{hidden} values of 0 have no place on a log axis")
        everything = everything[everything > 0]
        axes.set_xscale("log")
        axes.set_yscale("log")
    if everything.size:
        low, high = float(everything.min()), float(everything.max())
        axes.plot([low, high], [low, high], color="#444444", linewidth=0.9)
    for label in candidates:
        arm = styles[label]
        axes.plot(
            values[baseline], values[label], linestyle="", marker=arm.marker, markersize=3.5, alpha=0.55,
            color=arm.colour, markeredgewidth=0, label=label,
        )  # fmt: skip
    axes.set_xlabel(f"{baseline} (baseline)")
    axes.set_ylabel("candidate")
    axes.set_aspect("equal", adjustable="datalim")
