"""Curves of many runs: a colour for each family, on a scale where a number sets the families apart, and what says so."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.show import style
from analysis.show.style import ArmStyle, Floats
from analysis.show.text import number
from analysis.show.thinning import envelope
from analysis.summary import tail
from record.finished import Run

from .families import Family, Scale, beside, find_families, find_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED = 20
"""Families that get a colour and an entry in the legend each; of more, no one can tell the colours apart."""
_ENDS_NAMED = 3
"""Of more families than that, so many of the lowest and of the highest are named."""
_POINTS = 1000
"""Points of a line: more than one for each pixel that a panel is wide."""
_KEYS_TOLD = 6
_SPREAD = 5.0
"""Numbers above 0 whose largest is so many times the smallest are on a log scale."""
_TICK_GAP = 0.04
"""Of a colour bar: labels nearer than this part of it would overlap."""
_WIDTH = 150
"""Characters of a line above the panels."""


@dataclass(frozen=True)
class Bar:
    """A colour scale: what it shows, its ends, and where it has labels."""

    label: str
    low: float
    high: float
    log: bool
    ticks: tuple[float, ...] = ()
    """None: as matplotlib has them."""

    def place(self, value: float) -> float:
        """From 0 to 1; what lies beyond an end is on it, and NaN on the upper one."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, max(value, self.low)))
        return min((value - low) / (high - low), 1.0) if high > low and not math.isnan(value) else float(high > low)


@dataclass(frozen=True)
class Crowd:
    """How many runs are drawn in one figure."""

    families: list[Family]
    styles: dict[str, ArmStyle]
    """Of each family, by its label."""
    title: str
    """What the families are."""
    entries: list[tuple[ArmStyle, str]]
    """Of the legend."""
    bar: Bar | None

    @classmethod
    def of(cls, runs: Mapping[str, Run], key: str) -> Crowd:
        """The families of the labelled runs; ``key``: the metric whose value at the end colours what nothing else does."""
        families = find_families(runs)
        scale = find_scale(families)
        if scale is not None:
            return cls(families, *_by_scale(families, scale, len(runs)))
        if len(families) <= MOST_NAMED:
            styles = style.arm_styles([family.label for family in families])
            entries = [(styles[family.label], _named(family)) for family in families]
            return cls(families, styles, _title(families, len(runs)), entries, None)
        return cls(families, *_by_end(families, runs, key))

    def style_of(self, run: str) -> ArmStyle:
        """The style of a run: that of its family."""
        return next(self.styles[family.label] for family in self.families if run in family.members)

    def draw_bar(self, figure: Figure) -> None:
        """The colour scale beside all panels, if there is one."""
        if self.bar is None:
            return
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, LogNorm, Normalize
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        shades = ListedColormap([style.shade(place) for place in np.linspace(0, 1, 256)])
        norm = (LogNorm if self.bar.log else Normalize)(self.bar.low, self.bar.high)
        bar = figure.colorbar(
            ScalarMappable(norm, shades), ax=figure.axes, location="right", pad=0.01, aspect=60, fraction=0.03
        )  # fmt: skip
        bar.set_label(self.bar.label)
        if self.bar.ticks:
            bar.ax.yaxis.set_major_locator(FixedLocator(self.bar.ticks))
            bar.ax.yaxis.set_minor_locator(NullLocator())
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        elif self.bar.log:
            style.plain_log_ticks(bar.ax.yaxis, (self.bar.low, self.bar.high))


def draw_family(axes: Axes, curves: Sequence[tuple[Floats, Floats]], arm: ArmStyle, span: int) -> None:
    """Each run's curve, smoothed; of several thin and faint, and strong their median, where half of them have a value."""
    log = axes.get_yscale() == "log"
    alone = len(curves) == 1
    drawn = []
    for x, y in curves:
        places, strong = style.smoothed(style.showable(axes, y), span, log=log)
        kept = envelope(strong, _POINTS)
        drawn.append((x[places], strong))
        axes.plot(
            x[places[kept]], strong[kept], color=arm.colour, linestyle=arm.line if alone else "-",
            linewidth=1.0 if alone else 0.5, alpha=0.85 if alone else 0.35, zorder=3 if alone else 2,
        )  # fmt: skip
        style.mark_non_finite(axes, x[~np.isfinite(y)], arm)
    if not alone:
        x, y = middle(drawn)
        axes.plot(x, y, color=arm.colour, linestyle=arm.line, linewidth=1.7, zorder=3)


def middle(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The median of curves at the places of the longest one, each a line between its points; NaN where fewer than half are."""
    longest = max((x for x, _ in curves), key=len)
    grid = longest[:: -(-len(longest) // _POINTS) or 1]
    values = np.full((len(curves), len(grid)), np.nan)
    for row, (x, y) in zip(values, curves, strict=True):
        if (finite := np.isfinite(y)).any():
            row[:] = np.interp(grid, x[finite], y[finite], left=np.nan, right=np.nan)
    enough = 2 * np.isfinite(values).sum(axis=0) >= len(curves)
    found = np.full(len(grid), np.nan)
    found[enough] = np.nanmedian(values[:, enough], axis=0)
    return grid, found


# -------------------------------------------------------------------------------------------------------------- colours


def _by_scale(
    families: list[Family], scale: Scale, runs: int
) -> tuple[dict[str, ArmStyle], str, list[tuple[ArmStyle, str]], Bar]:
    """Colours by the number, lines by what else the families differ in, if there are lines enough."""
    numbers = sorted(set(scale.values))
    log = numbers[0] > 0 and numbers[-1] >= _SPREAD * numbers[0]
    bar = Bar(scale.key, numbers[0], numbers[-1], log)
    bar = Bar(scale.key, numbers[0], numbers[-1], log, _ticks(bar, numbers))
    others = beside(families, scale)
    kinds = list(dict.fromkeys(others))
    told_apart = 1 < len(kinds) <= style.LINE_STYLES
    arms = style.arm_styles(kinds if told_apart else [""])
    styles = {
        family.label: ArmStyle(style.shade(bar.place(value)), arms[kind if told_apart else ""].line, "o")
        for family, value, kind in zip(families, scale.values, others, strict=True)
    }
    title = _title(families, runs)
    if len(kinds) > style.LINE_STYLES:
        title += f"; all but {scale.key} is not told apart"
    entries = [(ArmStyle("#444444", arm.line, ""), kind or "none of these") for kind, arm in arms.items()]
    return styles, title, entries if told_apart else [], bar


def _ticks(bar: Bar, numbers: Sequence[float]) -> tuple[float, ...]:
    """Those of the numbers that have room for a label, if they are few enough to be looked up."""
    if len(numbers) > MOST_NAMED:
        return ()
    kept: list[float] = []
    for tick in numbers:
        if not kept or bar.place(tick) - bar.place(kept[-1]) >= _TICK_GAP:
            kept.append(tick)
    return tuple(kept)


def _by_end(
    families: list[Family], runs: Mapping[str, Run], key: str
) -> tuple[dict[str, ArmStyle], str, list[tuple[ArmStyle, str]], Bar]:
    """Colours by how the families ended, which links a curve to itself in the other panels; the ends of the order are named."""
    ends = {}
    for family in families:
        known = [value for label in family.members if (value := tail(runs[label], key)) is not None]
        ends[family.label] = float(np.median(known)) if known else math.nan
    finite = sorted(value for value in ends.values() if math.isfinite(value))
    low, high = (finite[0], float(np.quantile(finite, 0.95))) if finite else (0.0, 1.0)
    bar = Bar(f"{key} at the end", low, high, log=False)
    styles = {label: ArmStyle(style.shade(bar.place(value)), "-", "o") for label, value in ends.items()}
    order = sorted(ends, key=lambda label: (not math.isfinite(ends[label]), ends[label]))
    named = [*order[:_ENDS_NAMED], *order[-_ENDS_NAMED:]]
    title = f"{_title(families, len(runs))}; the lowest and the highest {_ENDS_NAMED} of {len(families)} at the end are named"
    return styles, title, [(styles[label], f"{label} ({number(ends[label])})") for label in named], bar


def _named(family: Family) -> str:
    return f"{family.label} ({len(family.members)} runs)" if len(family.members) > 1 else family.label


def _title(families: Sequence[Family], runs: int) -> str:
    sizes = sorted({len(family.members) for family in families})
    several = f" of {' to '.join(map(str, dict.fromkeys([sizes[0], sizes[-1]])))} runs" if sizes[-1] > 1 else ""
    seeds = "; thin: each run, thick: median of runs that differ in the seed alone" if sizes[-1] > 1 else ""
    if len(families) == 1:
        return f"{runs} runs{seeds}"
    keys = list(families[0].values)
    more = f" and {len(keys) - _KEYS_TOLD} more keys" if len(keys) > _KEYS_TOLD else ""
    kinds = f" in {len(families)} families{several}" if several else ""
    return f"{runs} runs{kinds} that differ in {', '.join(keys[:_KEYS_TOLD])}{more}{seeds}"


def wrapped(title: str) -> str:
    """The title in lines that a figure is wide enough for."""
    return textwrap.fill(title, _WIDTH)
