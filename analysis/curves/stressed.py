"""Bars above the panels of the curves that show where stresses acted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.show import style
from analysis.show.stresses import ACTING, spans
from analysis.show.style import ArmStyle, Floats
from record.finished import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

LANE = 4.5
"""Height of a lane in points."""
_BAR = 3.0
"""Height of a bar in points."""
_MOST = 9
"""Lanes; with more, all bars are in one."""


@dataclass(frozen=True)
class Lane:
    """Bars of one colour: the first and last step of each, with the run whose steps they are."""

    colour: str
    bars: Sequence[tuple[Run, int, int]]


def lanes(runs: Iterable[tuple[Run, ArmStyle]]) -> list[Lane]:
    """A lane for each colour of runs that were stressed: those of a family share one, where each stretch is one bar."""
    found: dict[str, dict[tuple[int, int], tuple[Run, int, int]]] = {}
    for run, arm in runs:
        series = run.series(ACTING)
        for first, last in spans(series.index.to_numpy(), series.to_numpy()):
            found.setdefault(arm.colour, {}).setdefault((first, last), (run, first, last))
    if len(found) > _MOST:
        every = {span: bar for bars in found.values() for span, bar in bars.items()}
        found = {style.GREY: every}
    return [Lane(colour, list(bars.values())) for colour, bars in found.items()]


def draw_bar(axes: Axes, first: float, last: float, lane: int, colour: str, ends: Floats) -> None:
    """A bar above a panel from ``first`` to ``last`` on its horizontal axis, wide enough to be seen. ``ends``: of all curves."""
    from matplotlib.transforms import ScaledTranslation

    narrowest, middle = (ends[1] - ends[0]) / 300, (first + last) / 2
    half = max(last - first, narrowest) / 2
    up = ScaledTranslation(0, (2 + LANE * (lane + 0.5)) / 72, axes.figure.dpi_scale_trans)
    axes.plot(
        [middle - half, middle + half], [1, 1], transform=axes.get_xaxis_transform() + up, color=colour, linewidth=_BAR,
        solid_capstyle="butt", clip_on=False, scalex=False, scaley=False,
    )  # fmt: skip


def legend_handle() -> Line2D:
    """The legend's entry."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=style.GREY, linewidth=_BAR, solid_capstyle="butt", label="stress acts (bar above)")


def ends_of(positions: Iterable[Floats]) -> Floats:
    """The lowest and highest of all horizontal positions."""
    every = [each for each in positions if len(each)]
    return np.array([min(each[0] for each in every), max(each[-1] for each in every)])
