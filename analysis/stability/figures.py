"""Figures: final NLL over the rates, loss curves, survival under stress, and differences from the baseline."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.show import style
from analysis.show.style import ArmStyle, Floats
from analysis.show.text import clip, visible

from .compare import COMMON, OWN_BEST, PRIMARY, Row, Study
from .curve import survival

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
"""Panels in a row."""
_ASIDE = 0.12
"""Distance of the first arm from the last on a logarithmic axis, in decades: their bands would hide each other."""
_MANY = 6
"""Arms from which bands are fainter and marks smaller."""
_BESIDE = 0.006
"""Distance of neighbouring arms' curves of shares, which are often equal."""
_NOTE_WIDTH = 15
"""Characters of a note below the panels, per inch."""
_LABEL = 26
"""Characters of an arm's name on an axis."""


def write_figures(found: Study, out: Path) -> list[str]:
    """Draw every figure that there are data for; returns their names."""
    made: list[str] = []
    drawings: dict[str, Callable[[Study], Figure | None]] = {
        "rates.png": draw_rates,
        "curves.png": draw_curves,
        "survival.png": draw_survival,
        "differences.png": draw_differences,
    }
    with style.look():
        for name, draw in drawings.items():
            if (figure := draw(found)) is not None:
                style.save_figure(figure, out / name)
                made.append(name)
    return made


def draw_rates(found: Study) -> Figure | None:
    """Final NLL against the learning rate, a panel for each scenario: means over seeds, bands from the lowest seed to the
    highest, crosses at rates where a run diverged or ended above its initial NLL. None unless an arm has two rates."""
    one = found.comparison
    scenarios = [s for s in one.scenarios if any(len(found.sweeps[arm, s].rates) > 1 for arm in one.arms)]
    if not scenarios:
        return None
    styles = _styles(found)
    figure, panels = _panels(len(scenarios), 4.6 if len(scenarios) == 1 else 3.8, columns=2, least=7.5)
    _share(panels, panels[0], "xy")
    for axes, scenario in zip(panels, scenarios, strict=True):
        axes.set_title(visible(scenario))
        axes.set_xscale("log")
        for place, (arm, look) in enumerate(styles.items()):
            aside = _ASIDE * (place / max(1, len(styles) - 1) - 0.5)
            _draw_sweep(axes, found, arm, scenario, look, 10**aside, _faint(styles))
        axes.set_xlabel("peak learning rate")
        axes.set_ylabel("final validation NLL, nats per token")
    rates = sorted({rate for arm in one.arms for scenario in scenarios for rate in found.sweeps[arm, scenario].rates})
    for axes in panels:
        style.plain_log_ticks(axes.xaxis, (rates[0], rates[-1]))
        axes.xaxis.set_major_locator(_fixed(rates))
        axes.xaxis.set_minor_locator(_fixed([]))
    note = (
        "lines: mean over seeds; bands: lowest to highest seed; crosses: a run diverged or ended above its initial NLL, "
        "with which it counts"
    )
    _legend(figure, styles, note)
    return figure


def _draw_sweep(axes: Axes, found: Study, arm: str, scenario: str, look: ArmStyle, aside: float, faint: float) -> None:
    rates, low, mean, high = [], [], [], []
    for rate in found.comparison.rates(arm, scenario):
        values = list(found.values(PRIMARY, arm, scenario, rate).values())
        if rate is None or not values:
            continue
        rates.append(rate * aside)
        low.append(min(values))
        high.append(max(values))
        mean.append(sum(values) / len(values))
        if any(found.values("capped", arm, scenario, rate).values()):
            axes.plot(
                [rate * aside], [high[-1]], marker="x", markersize=8, markeredgewidth=1.8, color=look.colour, zorder=5
            )
    axes.fill_between(rates, low, high, color=look.colour, alpha=faint, linewidth=0)
    axes.plot(rates, mean, color=look.colour, linestyle=look.line, marker=look.marker, markersize=5, linewidth=1.5)


def draw_curves(found: Study) -> Figure | None:
    """Training NLL of each arm at its best rate, or the only one, a panel for each scenario: median over seeds, band from the
    lowest to the highest. Panels that begin at the same step share their axes. None without a training NLL."""
    one = found.comparison
    styles = _styles(found)
    figure, panels = _panels(len(one.scenarios), 3.4)
    drawn = False
    begun: dict[int, Axes] = {}
    for axes, scenario in zip(panels, one.scenarios, strict=True):
        axes.set_title(f"{visible(scenario)}, {_rate_title(found, scenario)}")
        first = [int(m.steps[0]) for arm in one.arms for m in found.of(arm, scenario).values() if len(m.steps)]
        _share([axes], begun.setdefault(min(first, default=0), axes), "xy")
        for arm, look in styles.items():
            rate = found.rate_of(arm, scenario, None)
            curves = [(m.steps, m.nll) for m in found.of(arm, scenario, rate).values() if len(m.steps)]
            if curves:
                drawn = True
                _draw_family(axes, curves, look, _faint(styles))
        _stress_bar(axes, found, scenario)
        axes.set_xlabel("steps")
        style.whole_ticks(axes)
        axes.set_ylabel("training NLL, nats per token")
    _legend(figure, styles, "lines: median over seeds, smoothed; bands: lowest to highest seed; grey: a stress acts")
    return figure if drawn else None


def _rate_title(found: Study, scenario: str) -> str:
    """At which rate each arm is drawn."""
    rates = {
        found.comparison.rates(arm, scenario)[0]
        for arm in found.comparison.arms
        if found.comparison.rates(arm, scenario)
    }
    several = any(len(found.comparison.rates(arm, scenario)) > 1 for arm in found.comparison.arms)
    if several or len(rates) != 1 or None in rates:
        return "each at its best rate" if several else "each at its own rate"
    return f"rate {rates.pop():g}"


def _draw_family(axes: Axes, curves: Sequence[tuple[Any, Floats]], look: ArmStyle, faint: float) -> None:
    """Median and range of smoothed curves; a curve that has ended or is not finite is left out from there on."""
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    values = np.full((len(curves), len(steps)), np.nan)
    span = max(5, len(steps) // 60)
    for row, (own, nll) in zip(values, curves, strict=True):
        row[np.searchsorted(steps, own)] = style.smooth_median(nll, span)
        style.mark_non_finite(axes, own[~np.isfinite(nll)].astype(np.float64), look)
    there = np.isfinite(values).any(axis=0)
    steps, values = steps[there], values[:, there]
    axes.fill_between(
        steps, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=look.colour, alpha=faint, linewidth=0
    )
    axes.plot(steps, np.nanmedian(values, axis=0), color=look.colour, linestyle=look.line, linewidth=1.4)


def _stress_bar(axes: Axes, found: Study, scenario: str) -> None:
    """Grey stretches at the steps at which stresses acted in any run of the scenario."""
    from analysis.show.stresses import ACTING, spans

    spanned = set()
    for cell, run in found.comparison.runs.items():
        if cell.scenario == scenario:
            series = run.series(ACTING)
            spanned |= set(spans(series.index.to_numpy(), series.to_numpy()))
    for first, last in spanned:
        axes.axvspan(first - 0.5, last + 0.5, color=style.GREY, alpha=0.15, linewidth=0, zorder=0)


def draw_survival(found: Study) -> Figure | None:
    """For each stress the share of runs that are not yet back at their calm partner, over the steps since it began; and for
    every scenario the share of runs that survived, with its interval. None without a stress or a run that failed."""
    one = found.comparison
    stressed = [s for s in one.scenarios if any(found.time_back(arm, s)[0] for arm in one.arms)]
    failed = any(not m.values["survived"] for m in found.measured.values())
    if not stressed and not failed:
        return None
    styles = _styles(found)
    figure, panels = _panels(len(stressed) + 1, max(3.4, 0.075 * len(styles) * len(one.scenarios)))
    for axes, scenario in zip(panels, stressed, strict=False):
        axes.set_title(f"{visible(scenario)}: not yet back")
        longest = 0.0
        for place, (arm, look) in enumerate(styles.items()):
            durations, seen = found.time_back(arm, scenario)
            if durations:
                longest = max(longest, *durations)
                _draw_survival(axes, durations, seen, look, _BESIDE * (place - (len(styles) - 1) / 2))
        axes.set_xlim(-0.03 * max(longest, 10), 1.03 * max(longest, 10))
        style.whole_ticks(axes)
        axes.set_xlabel("steps since the stress began")
        axes.set_ylabel("share of runs")
        axes.set_ylim(-0.06, 1.06)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
    _draw_shares(panels[-1], found, styles)
    note = (
        "curves: Kaplan-Meier over all rates and seeds; points: share of runs that survived, with 95% intervals "
        "over seeds"
    )
    _legend(figure, styles, note if stressed else note.partition("; ")[2])
    return figure


def _draw_survival(axes: Axes, durations: Sequence[float], seen: Sequence[bool], look: ArmStyle, beside: float) -> None:
    times, share = survival(durations, seen)
    x = np.concatenate([[0.0], times, [max(durations)]])
    y = np.concatenate([[1.0], share, share[-1:] if len(share) else [1.0]])
    axes.step(x, y + beside, where="post", color=look.colour, linestyle=look.line, linewidth=1.6)


def _draw_shares(axes: Axes, found: Study, styles: dict[str, ArmStyle]) -> None:
    """The share of runs of each arm that survived, with its interval, scenario by scenario."""
    one = found.comparison
    axes.set_title("survived")
    step = 0.7 / len(styles)
    for place, (arm, look) in enumerate(styles.items()):
        for row, scenario in enumerate(one.scenarios):
            share = found.share("survived", arm, scenario)
            if share is not None:
                y = row + step * (place - (len(styles) - 1) / 2)
                axes.plot([share.low, share.high], [y, y], color=look.colour, linewidth=1.5, solid_capstyle="butt")
                axes.plot(
                    [share.share],
                    [y],
                    marker=look.marker,
                    color=look.colour,
                    markersize=5 if len(styles) < _MANY else 3.5,
                )
    axes.set_yticks(range(len(one.scenarios)), [clip(visible(name), _LABEL) for name in one.scenarios])
    axes.set_ylim(len(one.scenarios) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
    axes.grid(axis="y", visible=False)


def draw_differences(found: Study) -> Figure | None:
    """A forest plot: differences in the final NLL from the baseline, a panel for each scenario; the A/A control first, its
    interval as a band behind the others. None with one arm."""
    one = found.comparison
    panels_of = [(s, b) for s in one.scenarios for b in (OWN_BEST, COMMON) if b in found.bases(s)]
    rows_of = {place: found.rows(*place, PRIMARY) for place in panels_of}
    rows_of = {place: [row for row in rows if row.difference.n] for place, rows in rows_of.items()}
    rows_of = {place: rows for place, rows in rows_of.items() if rows}
    if not rows_of:
        return None
    styles = _styles(found)
    arms = len(one.compared)
    figure, panels = _panels(len(rows_of), 1.2 + 0.35 * arms, columns=2)
    _share(panels, panels[0], "x")
    span = _span([row for rows in rows_of.values() for row in rows])
    panels[0].set_xlim(-span, span)
    for axes, ((scenario, basis), rows) in zip(panels, rows_of.items(), strict=True):
        axes.set_title(f"{visible(scenario)}, {found.basis_text(scenario, basis)}")
        axes.axvline(0, color=style.GREY, linewidth=0.9)
        for place, row in enumerate(rows):
            _draw_difference(axes, row, place, styles[row.arm])
        names = [clip(visible(row.arm), _LABEL) + (" (A/A)" if row.control else "") for row in rows]
        axes.set_yticks(
            range(len(rows)), [f"{name}, n={row.difference.n}" for name, row in zip(names, rows, strict=True)]
        )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(
            f"final NLL minus {clip(visible(one.baseline), _LABEL)}, nats/token (left is better)", fontsize=9
        )
    note = "mean of the paired differences, 95% interval; n: pairs of seeds; grey, perhaps cut off: probably not shown inside"
    _note(figure, note)
    return figure


def _span(rows: Sequence[Row]) -> float:
    """How far the axis of differences goes: to all means and intervals, but of two seeds' intervals, which are twelve times as
    wide as their spread, no farther than three times the largest mean. What would show may be cut off."""
    effects = [(row.difference.effect, row.difference.n) for row in rows if not math.isnan(row.difference.effect.mean)]
    most = max((abs(effect.mean) for effect, _ in effects), default=0.0)
    ends = [(abs(end), n) for effect, n in effects for end in (effect.low, effect.high) if end is not None]
    return 1.08 * max([most, *(end if n > 2 else min(end, 3 * most) for end, n in ends)]) or 1.0


def _draw_difference(axes: Axes, row: Row, place: int, look: ArmStyle) -> None:
    effect = row.difference.effect
    if math.isnan(effect.mean):
        return
    if row.smallest is not None:
        axes.plot(
            [-row.smallest, row.smallest], [place + 0.22] * 2, color="#bbbbbb", linewidth=3, solid_capstyle="butt"
        )
    if effect.low is not None and effect.high is not None:
        axes.plot([effect.low, effect.high], [place] * 2, color=look.colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot([effect.mean], [place], marker=look.marker, color=look.colour, markersize=6)


def _styles(found: Study) -> dict[str, ArmStyle]:
    return style.arm_styles(list(found.comparison.arms))


def _faint(styles: dict[str, ArmStyle]) -> float:
    """How opaque a band is."""
    return 0.12 if len(styles) < _MANY else 0.06


def _share(panels: Sequence[Axes], first: Axes, sides: str) -> None:
    """Give panels the limits of ``first``; ``sides``: x, y or both."""
    for axes in panels:
        if axes is not first:
            for side in sides:
                (axes.sharex if side == "x" else axes.sharey)(first)


def _panels(count: int, height: float, columns: int = _COLUMNS, least: float = 5.6) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels, at most ``columns`` in a row; ``least``: its least width."""
    from matplotlib.figure import Figure

    across = min(count, columns)
    down = math.ceil(count / across)
    figure = Figure(
        figsize=(max(least, (5.2 if columns == 2 else 4.2) * across), height * down + 0.9), layout="constrained"
    )
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(count)]


def _legend(figure: Figure, styles: dict[str, ArmStyle], note: str) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, markersize=5, label=arm)
        for arm, look in styles.items()
    ]
    style.legend_outside(figure, handles)
    _note(figure, note)


def _note(figure: Figure, text: str) -> None:
    """A line below all panels, or as many as fit into the figure's width."""
    width = int(_NOTE_WIDTH * figure.get_size_inches()[0])
    figure.supxlabel(textwrap.fill(text, width), fontsize=8, color=style.GREY)


def _fixed(places: Sequence[float]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(list(places))
