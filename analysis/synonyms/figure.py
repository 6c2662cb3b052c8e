"""The figure of analysis.synonyms: paired differences with intervals, and every item, baseline against candidate.

Shapes: P items, S seeds, M queries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.compare.arms import Arm
from analysis.compare.statistics import CONFIDENCE, FEWEST_UNITS, POWER, Bools, Effect, Floats
from analysis.compare.temperature import MEANINGS, VIEWS
from analysis.show.style import arm_styles, note

from .compare import TESTED, Comparison, item_means, values_of
from .report import counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_DIFFERENCES = {
    "auc": "Rank AUC,\nsynonym against\ncontrols",
    "auc_antonym": "Rank AUC,\nsynonym against\nantonyms",
    "auc_rejected": "Rank AUC,\nsynonym against\nrejected words",
    "gap": "GAP of accepted\nand rejected\nsubstitutes",
    "log10_rank": "log10 of the\nsynonym's rank\n(lower is better)",
    "log_odds": "Log-odds of the\nsynonym against\ncontrols, nats",
    "share_synonym": "Synonym's share\nof what the word\nleaves",
    "entropy": "Beside them:\nentropy,\nnats",
    "nll_word": "Beside them:\nNLL of the word,\nnats",
}
_VIEW_OFFSETS = (-0.26, 0.0, 0.26)
_VIEW_MARKERS = ("o", "s", "D")
_BAND = 0.1  # half the height of a band, in rows
_LIFT = 1.5  # from an interval to the number above it, points: it ends below the next view's interval, 10 points higher
_PER_ROW = 5  # arms side by side
_WIDTH = 13.5  # of the figure, inches
_LARGEST = 3.2  # panel of one arm's items, inches
_FRAME = 0.12  # margin on both sides, as a share of the trained arms' span
_GREY = "#444444"
_FAINT = "#dddddd"


def draw_synonyms(found: Comparison) -> Figure:
    """Above: mean paired differences from the baseline, a row for each arm. Below: a point for each item, panels for each arm."""
    from matplotlib.figure import Figure

    arms = found.arms[1:]
    columns = min(_PER_ROW, len(arms))
    side = min(_WIDTH / columns - 0.8, _LARGEST)  # of a panel below, inches
    above, below = 1.9 + 0.55 * len(arms), 0.5 + 2 * math.ceil(len(arms) / columns) * (side + 0.6)
    figure = Figure(figsize=(_WIDTH, above + below), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[above, below])
    _draw_differences(figure.add_subfigure(grid[0]), found)
    _draw_items(figure.add_subfigure(grid[1]), found)
    return figure


def _draw_differences(figure: SubFigure, found: Comparison) -> None:
    (baseline, *arms), styles = found.arms, arm_styles([arm.label for arm in found.arms])
    keys = [key for key in _DIFFERENCES if math.isfinite(found.means[baseline.label]["raw"][key]["mean"])]
    n = counts(found.study)
    figure.suptitle(
        f"Difference to {baseline.label} ({_seeds(baseline)}), context by context: mean over items and {CONFIDENCE:.0%} "
        f"interval\n{n['items']} items, {n['contexts']:,} contexts, {n['lemmas']:,} lemmas, {n['documents']:,} documents",
        fontsize=10,
    )
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        axes.axvline(0, color=_GREY, linewidth=0.9)
        low, high = _limits(found, key)
        axes.set_xlim(low, high)
        for row, arm in enumerate(arms):
            effects = [found.differences[arm.label]["all"][view][key] for view in VIEWS]
            for place, (effect, offset) in enumerate(zip(effects, _VIEW_OFFSETS, strict=True)):
                _draw_effect(axes, effect, row + offset, styles[arm.label].colour, place)
            if row:
                axes.axhline(row - 0.5, color=_FAINT, linewidth=0.6)
        counted = {found.signed_ranks[arm.label]["raw"][key]["items"] for arm in arms}
        items = " to ".join(map(str, dict.fromkeys([min(counted), max(counted)])))
        axes.set_title(f"{_DIFFERENCES[key]}\nn = {items} items", fontsize=8.5, fontweight="normal", loc="center")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="x", labelsize=7.5)
        axes.locator_params(axis="x", nbins=4)
        axes.ticklabel_format(axis="x", scilimits=(-3, 3))
        axes.xaxis.get_offset_text().set_fontsize(7.5)
    panels[0].set_yticks(range(len(arms)), [f"{arm.label}\n{_seeds(arm)}" for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, fontsize=8)


def _seeds(arm: Arm) -> str:
    return f"{len(arm.members)} seed{'s' if len(arm.members) > 1 else ''}"


def _limits(found: Comparison, key: str) -> tuple[float, float]:
    """Limits that fit the trained arms and their bands; an untrained model's difference would hide all others."""
    arms = found.arms[1:]
    trained = [arm for arm in arms if not all(member.untrained for member in arm.members)] or arms
    effects = [found.differences[arm.label]["all"][view][key] for arm in trained for view in VIEWS]
    known = [end for one in effects for end in (one.mean, one.low, one.high, one.smallest) if end is not None]
    known += [-effect.smallest for effect in effects if effect.smallest is not None]
    ends = [0.0, *filter(math.isfinite, known)]
    span = max(ends) - min(ends) or 1.0
    return min(ends) - _FRAME * span, max(ends) + _FRAME * span


def _draw_effect(axes: Axes, effect: Effect, y: float, colour: str, view: int) -> None:
    """The band of effects too small to be shown, the interval, the mean; an arrow with the mean where it lies outside."""
    if not math.isfinite(effect.mean):
        return
    low, high = axes.get_xlim()
    if effect.smallest is not None:
        band = np.clip([-effect.smallest, effect.smallest], low, high)
        axes.fill_between(band, y - _BAND, y + _BAND, color=_FAINT, linewidth=0, zorder=1)
    if effect.low is not None and effect.high is not None:
        axes.plot([effect.low, effect.high], [y, y], color=colour, linewidth=1.7, solid_capstyle="butt", zorder=3)
    if low <= effect.mean <= high:
        axes.plot(effect.mean, y, zorder=4, **_view_marker(view, colour))
        return
    edge, marker, shift, side = (high, ">", -6, "right") if effect.mean > high else (low, "<", 6, "left")
    axes.plot(edge, y, linestyle="", marker=marker, color=colour, markersize=5, clip_on=False)
    axes.annotate(
        f"{effect.mean:+.3g}", (edge, y), xytext=(shift, _LIFT), textcoords="offset points", ha=side, va="baseline",
        fontsize=6.5, color=_GREY,
    )  # fmt: skip


def _view_marker(view: int, colour: str) -> dict[str, Any]:
    """Hollow in the raw view, filled in the others."""
    look = {"linestyle": "", "marker": _VIEW_MARKERS[view], "markersize": (5.5, 4.5, 4.5)[view], "color": colour}
    return look | ({"markerfacecolor": "white"} if view == 0 else {})


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], label=f"{view}: {MEANINGS[view]}", **_view_marker(place, _GREY))
        for place, view in enumerate(VIEWS)
    ]
    interval = f"{CONFIDENCE:.0%} interval over lemmas and documents, {FEWEST_UNITS} or more of each, and seeds"
    return [
        *handles,
        Line2D([], [], color=_GREY, linewidth=1.7, label=interval),
        Patch(color=_FAINT, label=f"smaller true effects could not be shown ({POWER:.0%} power)"),
        Line2D([], [], color=_GREY, linestyle="", marker=">", label="the mean lies beyond the axis"),
    ]


def _draw_items(figure: SubFigure, found: Comparison) -> None:
    arms, styles = found.arms[1:], arm_styles([arm.label for arm in found.arms])
    figure.suptitle(
        "A point for each item, mean over contexts and seeds; filled: its log-odds differ in the matched view "
        f"(Wilcoxon over contexts, Holm over items, {1 - CONFIDENCE:.0%})",
        fontsize=10,
    )  # fmt: skip
    columns = min(_PER_ROW, len(arms))
    blocks = math.ceil(len(arms) / columns)
    panels = figure.subplots(2 * blocks, columns, squeeze=False)
    odds = {arm.label: item_points(found, arm, TESTED, "matched") for arm in arms}
    both = np.concatenate([np.concatenate(points) for points in odds.values()])
    both = both[np.isfinite(both)]
    low, high = (float(both.min()), float(both.max())) if both.size else (-1.0, 1.0)
    margin = 0.05 * (high - low or 1.0)
    for axes in panels[2 * blocks - 2 :, len(arms) - columns * (blocks - 1) :].flat:
        axes.set_visible(False)
    for index, arm in enumerate(arms):
        block, column = divmod(index, columns)
        above, below = panels[2 * block, column], panels[2 * block + 1, column]
        shown_P = np.nan_to_num(found.item_tests[arm.label].holm_P, nan=1.0) <= 1 - CONFIDENCE
        colour = styles[arm.label].colour
        _draw_points(above, *odds[arm.label], shown_P, colour, (low - margin, high + margin))
        _draw_points(below, *item_points(found, arm, "auc", "raw"), shown_P, colour, (-0.04, 1.04))
        above.set_title(arm.label, fontsize=9, pad=16)
        below.set_xlabel(f"{found.arms[0].label} (baseline)")
        if column == 0:
            above.set_ylabel("log-odds, matched entropy,\nnats: candidate")
            below.set_ylabel("rank AUC against controls,\nraw: candidate")


def item_points(found: Comparison, arm: Arm, key: str, view: str) -> tuple[Floats, Floats]:
    """(P,) twice: the baseline's and the arm's mean of each item, over contexts and seeds that have a difference."""
    candidate_SM = values_of(arm, found.results, key, view)
    baseline_SM = candidate_SM - values_of(arm, found.results, key, view, found.arms[0])
    candidate_SM[np.isnan(baseline_SM)] = np.nan
    return item_means(found.study, baseline_SM), item_means(found.study, candidate_SM)


def _draw_points(
    axes: Axes, baseline_P: Floats, candidate_P: Floats, shown_P: Bools, colour: str, limits: tuple[float, float]
) -> None:
    axes.plot(limits, limits, color=_GREY, linewidth=0.9)
    hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 0.7, "alpha": 0.7}
    filled: dict[str, Any] = {"markeredgewidth": 0.4, "markeredgecolor": "white"}
    for chosen_P, style in ((~shown_P, hollow), (shown_P, filled)):
        axes.plot(
            baseline_P[chosen_P], candidate_P[chosen_P], linestyle="", marker="o", markersize=4.5, color=colour, **style
        )
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.locator_params(nbins=4)
    counted_P = np.isfinite(baseline_P) & np.isfinite(candidate_P)
    higher = int((counted_P & (candidate_P > baseline_P)).sum())
    if counted_P.any():
        axes.text(
            1.0, 1.02, f"{higher} of {counted_P.sum()} items higher", transform=axes.transAxes, ha="right", va="bottom",
            fontsize=7.5, color=_GREY,
        )  # fmt: skip
    else:
        note(axes, "no temperature gives\nthe baseline's entropy")
