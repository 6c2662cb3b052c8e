"""The figures of analysis.grammar: model against truth, and the distance to the truth over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.compare.arms import Arm
from analysis.compare.statistics import CONFIDENCE, Floats, Ids
from analysis.compare.temperature import MEANINGS_WITH_TRUTH, VIEWS
from analysis.probes.over_training import draw_over_training, token_axis
from analysis.show.style import ArmStyle, arm_styles, legend_outside, plain_log_ticks

from .compare import SCOPES, Result
from .truth import KEPT_MASS, KINDS, Kept

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_VIEW = "fitted"
"""The view that is drawn in full: each model at its own best temperature."""
_POINTS = 250  # of each kind and panel: more would overlap
_BINS = 10
_JITTER = 0.012  # of the true share, which many sets have in common
_GREY = "#444444"
_SCORES = {
    "split_kl": "Split KL within the set, nats",
    "log_fracture": "Log fracture ln(m/M), nats",
    "joint_kl": "Joint KL per occurrence, nats",
}
_CURVES = {
    "split_kl": "Split KL within\ntrue synonyms, nats",
    "log_fracture": "Log fracture of\ntrue synonyms, nats",
    "joint_kl": "Joint KL of true synonyms,\nnats per occurrence",
    "kl": "KL to the truth (expected\nexcess NLL), nats per token",
}


def draw_truth(result: Result) -> Figure:
    """Left: shares within sets and joint masses in single contexts, a row of panels for each arm. Right: scores by kind."""
    from matplotlib.figure import Figure

    arms = result.arms
    figure = Figure(figsize=(12, max(7.0, 1.1 + 2.5 * len(arms))), layout="constrained")
    figure.suptitle(f"Truth against model, each model {MEANINGS_WITH_TRUTH[_VIEW]}", fontsize=10)
    grid = figure.add_gridspec(1, 2, width_ratios=[1.45, 1])
    _draw_contexts(figure.add_subfigure(grid[0]), result)
    _draw_scores(figure.add_subfigure(grid[1]), result)
    return figure


def _draw_contexts(figure: SubFigure, result: Result) -> None:
    styles = arm_styles(KINDS)
    view = VIEWS.index(_VIEW)
    kind_S = [one.kind for one in result.study.grammar.sets]
    kept = [result.scores[arm.members[0].label].kept for arm in result.arms]
    chosen = _points(kept[0], kind_S)
    mass = np.concatenate([one.model_mass_XR[view][np.concatenate(list(chosen.values()))] for one in kept])
    low = max(1e-5, float(mass[np.isfinite(mass)].min(initial=KEPT_MASS)) / 2)
    panels = figure.subplots(len(result.arms), 2, squeeze=False)
    for (shares, masses), arm, one in zip(panels, result.arms, kept, strict=True):
        jitter = np.random.default_rng(0).uniform(-_JITTER, _JITTER, len(one.set_R))
        for kind, index_P in chosen.items():
            style: dict[str, Any] = {"linestyle": "", "marker": styles[kind].marker, "color": styles[kind].colour}
            small = style | {"markersize": 3, "alpha": 0.5, "markeredgewidth": 0, "label": kind}
            shares.plot((one.share_R + jitter)[index_P], one.model_share_XR[view][index_P], **small)
            masses.plot(one.mass_R[index_P], one.model_mass_XR[view][index_P], **small)
        shares.plot([0, 1], [0, 1], color=_GREY, linewidth=0.9)
        most = float(one.mass_R.max(initial=KEPT_MASS))
        masses.plot([KEPT_MASS, most], [KEPT_MASS, most], color=_GREY, linewidth=0.9)
        for kind in KINDS:
            own = np.array(kind_S)[one.set_R] == kind
            x, y = _binned(one.share_R[own], one.model_share_XR[view][own], one.mass_R[own])
            style = {"linestyle": "", "marker": styles[kind].marker, "color": styles[kind].colour}
            shares.plot(x, y, **style, markeredgecolor="black", markersize=7)
        x, y = _binned(np.log(one.mass_R), np.log(np.maximum(one.model_mass_XR[view], low)), one.mass_R)
        masses.plot(np.exp(x), np.exp(y), color="black", linewidth=1.8, marker=".", markersize=4)
        masses.set(xscale="log", yscale="log", ylabel="model's mass M")
        masses.set_ylim(bottom=low)
        plain_log_ticks(masses.xaxis, masses.get_xlim())
        plain_log_ticks(masses.yaxis, masses.get_ylim())
        shares.set_ylabel("model's share")
        shares.set_title(f"{arm.label}: share of the first word", fontsize=9)
        masses.set_title(f"{arm.label}: joint mass", fontsize=9)
    shares.set_xlabel("true share within the set (spread a little)")
    masses.set_xlabel("true joint mass m")
    handles, labels = shares.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=len(KINDS), markerscale=2,
        title=f"contexts with m >= {KEPT_MASS}, seed {result.arms[0].members[0].seed}, drawn in proportion to m; "
        "large, and the black line: means over all of them", title_fontsize=8,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _points(kept: Kept, kind_S: Sequence[str]) -> dict[str, Ids]:
    """The contexts of each kind that are drawn, the same for all arms."""
    rng = np.random.default_rng(0)
    kind_R = np.array(kind_S)[kept.set_R]
    chosen = {}
    for kind in KINDS:
        own = np.flatnonzero(kind_R == kind)
        weight = kept.mass_R[own]
        count = min(_POINTS, len(own))
        chosen[kind] = rng.choice(own, count, replace=False, p=weight / weight.sum()) if count else own
    return chosen


def _binned(x_R: Floats, y_R: Floats, weight_R: Floats) -> tuple[Floats, Floats]:
    """Weighted means of x and y in the non-empty ones of bins of x of equal width."""
    edges = np.linspace(x_R.min(initial=np.inf), x_R.max(initial=-np.inf), _BINS + 1)[1:-1]
    bin_R = np.searchsorted(edges, x_R)
    weight = np.bincount(bin_R, weight_R, _BINS)
    there = weight > 0
    x, y = (np.bincount(bin_R, weight_R * value_R, _BINS)[there] / weight[there] for value_R in (x_R, y_R))
    return x, y


def _draw_scores(figure: SubFigure, result: Result) -> None:
    styles = arm_styles([arm.label for arm in result.arms])
    for axes, (key, title) in zip(figure.subplots(len(_SCORES), 1, sharey=True), _SCORES.items(), strict=True):
        axes.axvline(0, color=_GREY, linewidth=0.9)
        for index, arm in enumerate(result.arms):
            offset = 0.7 * ((index + 0.5) / len(result.arms) - 0.5)
            _draw_arm(axes, result, arm, key, offset, styles[arm.label])
        axes.set_yticks(range(len(SCOPES)), list(SCOPES))
        axes.set_ylim(len(SCOPES) - 0.45, -0.55)
        axes.grid(visible=False, axis="y")
        for border in range(1, len(SCOPES)):
            axes.axhline(border - 0.5, color="#e3e3e3", linewidth=0.6)
        axes.set_title(title, fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    legend_outside(
        figure, handles, labels, loc="outside lower center", most=3, fontsize=8, columnspacing=1.0, handletextpad=0.3,
        title=f"mean and {CONFIDENCE:.0%} interval; small and hollow: raw", title_fontsize=8,
    )  # fmt: skip


def _draw_arm(axes: Axes, result: Result, arm: Arm, key: str, offset: float, style: ArmStyle) -> None:
    effects = [result.tables[arm.label].sets[_VIEW][scope][key] for scope in SCOPES]
    raw = [result.tables[arm.label].sets["raw"][scope][key].mean for scope in SCOPES]
    rows = np.arange(len(SCOPES)) + offset
    for row, effect in zip(rows, effects, strict=True):
        if effect.low is not None and effect.high is not None:
            axes.plot([effect.low, effect.high], [row, row], color=style.colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot(raw, rows, linestyle="", marker=style.marker, markersize=3.5, color=style.colour, markerfacecolor="white")
    axes.plot(
        [effect.mean for effect in effects], rows, linestyle="", marker=style.marker, markersize=4.5, color=style.colour,
        label=f"{arm.label} (n = {len(arm.members)})",
    )  # fmt: skip


def draw_training(training: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """A column for each score and a row for each view, against tokens: a thin line for each run, a thick one for an arm's mean.

    Both have a gap where a run has diverged.
    """
    from matplotlib.figure import Figure

    styles, training = arm_styles(labels), training.rename(columns={"label": "run"})
    counts = training.groupby("arm")["run"].nunique()
    views = list(dict.fromkeys(training["view"]))
    figure = Figure(figsize=(12, 0.8 + 2.9 * len(views)), layout="constrained")
    panels = figure.subplots(len(views), len(_CURVES), sharex=True, sharey="col", squeeze=False)
    for row, view in zip(panels, views, strict=True):
        for axes, (key, title) in zip(row, _CURVES.items(), strict=True):
            axes.axhline(0, color=_GREY, linewidth=0.9)
            for label in labels:
                rows = training[(training["arm"] == label) & (training["view"] == view)]
                draw_over_training(axes, rows, key, styles[label], label=f"{label} (n = {counts[label]})")
            axes.set_title(f"{title}\n({view})", fontsize=8.5)
            token_axis(axes, training["tokens"])
            if view != views[-1]:
                axes.set_xlabel("")
    handles, names = panels[0][0].get_legend_handles_labels()
    legend_outside(figure, handles, names, loc="outside lower center", most=6)
    return figure
