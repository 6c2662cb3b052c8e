"""Colours for many runs in one figure: one per family, or a colour scale where a number distinguishes the families."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.show import style
from analysis.show.style import ArmStyle, Floats
from analysis.show.text import number
from analysis.show.thinning import envelope
from analysis.summary import tail
from record.finished import Run

from .families import Family, Scale, find_families, find_scale, other_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED = 20
"""Families that get a colour and a legend entry each; with more, the colours could not be distinguished."""
_NAMED_AT_ENDS = 3
"""Of more families, this many of the lowest and of the highest are named."""
_POINTS = 1000
"""Points of a line: more than one per pixel of a panel's width."""
_KEYS_NAMED = 6
_TICK_GAP = 0.04
"""Least distance between the labels of a colour bar, relative to its length."""


@dataclass(frozen=True)
class Bar:
    """A colour scale."""

    label: str
    low: float
    high: float
    log: bool
    ticks: Sequence[float] = ()
    """Where it has labels; by default where matplotlib puts them."""

    def place(self, value: float) -> float:
        """The place of ``value`` on the scale, from 0 to 1; values beyond an end are on it, NaN on the upper one."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, max(value, self.low)))
        return min((value - low) / (high - low), 1.0) if high > low and not math.isnan(value) else float(high > low)

    def draw(self, figure: Figure) -> None:
        """Draw the scale beside all panels."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, LogNorm, Normalize

        shades = ListedColormap([style.shade(place) for place in np.linspace(0, 1, 256)])
        colours = ScalarMappable((LogNorm if self.log else Normalize)(self.low, self.high), shades)
        bar = figure.colorbar(colours, ax=figure.axes, location="right", pad=0.01, aspect=60, fraction=0.03)
        bar.set_label(self.label)
        if self.ticks:
            bar.ax.minorticks_off()
            bar.set_ticks(list(self.ticks), labels=[f"{tick:.3g}" for tick in self.ticks])
        elif self.log:
            style.plain_log_ticks(bar.ax.yaxis, (self.low, self.high))


@dataclass(frozen=True)
class Palette:
    """How many runs are drawn in one figure."""

    families: list[Family]
    styles: dict[str, ArmStyle]
    """By the label of the family."""
    title: str
    """Of the legend: what the families are."""
    entries: list[tuple[ArmStyle, str]]
    """Of the legend."""
    bar: Bar | None = None

    @classmethod
    def of(cls, runs: Mapping[str, Run], key: str) -> Palette:
        """The palette for the labelled runs; ``key``: the metric whose final value colours what nothing else distinguishes."""
        families = find_families(runs)
        title = _title(families, len(runs))
        if scale := find_scale(families):
            return _by_scale(families, scale, title)
        if len(families) > MOST_NAMED:
            return _by_final_value(families, runs, key, title)
        styles = style.arm_styles([family.label for family in families])
        sizes = {f.label: f" ({len(f.members)} runs)" if len(f.members) > 1 else "" for f in families}
        return cls(families, styles, title, [(arm, label + sizes[label]) for label, arm in styles.items()])


def draw_family(axes: Axes, curves: Sequence[tuple[Floats, Floats]], arm: ArmStyle, span: int) -> None:
    """The smoothed curves of a family: of several, each thin and faint, and their median strong."""
    alone = len(curves) == 1
    look: dict[str, Any] = (
        {"linestyle": arm.line, "linewidth": 1.0, "alpha": 0.85} if alone else {"linewidth": 0.5, "alpha": 0.35}
    )
    drawn = []
    for x, y in curves:
        places, strong = style.smoothed(style.showable(axes, y), span, log=axes.get_yscale() == "log")
        drawn.append((x[places], strong))
        kept = envelope(strong, _POINTS)
        axes.plot(x[places[kept]], strong[kept], color=arm.colour, zorder=3 if alone else 2, **look)
        style.mark_non_finite(axes, x[~np.isfinite(y)], arm)
    if not alone:
        axes.plot(*median_curve(drawn), color=arm.colour, linestyle=arm.line, linewidth=1.7, zorder=3)


def median_curve(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The median of linearly interpolated curves at the positions of the longest; NaN where fewer than half have a value."""
    longest = max((x for x, _ in curves), key=len)
    grid = longest[:: -(-len(longest) // _POINTS) or 1]
    values = np.full((len(curves), len(grid)), np.nan)
    for row, (x, y) in zip(values, curves, strict=True):
        if (finite := np.isfinite(y)).any():
            row[:] = np.interp(grid, x[finite], y[finite], left=np.nan, right=np.nan)
    enough = 2 * np.isfinite(values).sum(axis=0) >= len(curves)
    median = np.full(len(grid), np.nan)
    median[enough] = np.nanmedian(values[:, enough], axis=0)
    return grid, median


def _by_scale(families: list[Family], scale: Scale, title: str) -> Palette:
    """Colours by a number; line styles by the other settings in which the families differ, if there are enough styles."""
    values = sorted(set(scale.values))
    bar = Bar(scale.key, values[0], values[-1], values[0] > 0 and values[-1] >= style.SPREAD * values[0])
    ticks: list[float] = []
    for value in values if len(values) <= MOST_NAMED else ():
        if not ticks or bar.place(value) - bar.place(ticks[-1]) >= _TICK_GAP:
            ticks.append(value)
    others = other_settings(families, scale)
    kinds = list(dict.fromkeys(others))
    if len(kinds) > style.LINE_STYLES:
        title += f"; settings other than {scale.key} are not distinguished"
    if not 1 < len(kinds) <= style.LINE_STYLES:
        kinds, others = [], [""] * len(families)
    lines = {kind: arm.line for kind, arm in style.arm_styles(kinds or [""]).items()}
    styles = {
        family.label: ArmStyle(style.shade(bar.place(value)), lines[kind], "o")
        for family, value, kind in zip(families, scale.values, others, strict=True)
    }
    entries = [(ArmStyle(style.GREY, lines[kind], ""), kind or "none of these") for kind in kinds]
    return Palette(families, styles, title, entries, Bar(bar.label, bar.low, bar.high, bar.log, ticks))


def _by_final_value(families: list[Family], runs: Mapping[str, Run], key: str, title: str) -> Palette:
    """Colours by the final value of a metric, by which a curve is recognised in all panels; the extremes are named."""
    final = {}
    for family in families:
        known = [value for label in family.members if (value := tail(runs[label], key)) is not None]
        final[family.label] = float(np.median(known)) if known else math.nan
    finite = sorted(value for value in final.values() if math.isfinite(value))
    low, high = (finite[0], float(np.quantile(finite, 0.95))) if finite else (0.0, 1.0)
    bar = Bar(f"{key} at the end", low, high, log=False)
    styles = {label: ArmStyle(style.shade(bar.place(value)), "-", "o") for label, value in final.items()}
    order = sorted(final, key=lambda label: (not math.isfinite(final[label]), final[label]))
    named = [*order[:_NAMED_AT_ENDS], *order[-_NAMED_AT_ENDS:]]
    title += f"; the lowest and the highest {_NAMED_AT_ENDS} of {len(families)} at the end are named"
    return Palette(
        families, styles, title, [(styles[label], f"{label} ({number(final[label])})") for label in named], bar
    )


def _title(families: Sequence[Family], runs: int) -> str:
    sizes = sorted({len(family.members) for family in families})
    several = f" of {' to '.join(map(str, dict.fromkeys([sizes[0], sizes[-1]])))} runs" if sizes[-1] > 1 else ""
    seeds = "; thin: each run, thick: median of runs that differ in the seed alone" if several else ""
    if len(families) == 1:
        return f"{runs} runs{seeds}"
    keys = list(families[0].values)
    more = f" and {len(keys) - _KEYS_NAMED} more keys" if len(keys) > _KEYS_NAMED else ""
    kinds = f" in {len(families)} families{several}" if several else ""
    return f"{runs} runs{kinds} that differ in {', '.join(keys[:_KEYS_NAMED])}{more}{seeds}"
