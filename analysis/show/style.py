"""One look for all figures: colours, lines, smoothing, marks for what a line cannot show, and saving."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.errors import InputError
from common.files import write_atomically
from stability.detect.baseline import median

from .text import clip, visible
from .thinning import MAX_POINTS, crosses, envelope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.legend import Legend

Floats = npt.NDArray[np.float64]

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/, without yellow, which is too faint on white; then two more.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#6A3D9A", "#8A5A2B")
_LINES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (3, 1.5, 1, 1.5)), (0, (1.5, 1.2)), (0, (8, 2, 1, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # names are anybody's: a run may be called a$b$c
    "svg.fonttype": "none",  # text stays text: it can be searched, and a test can read it
    "svg.hashsalt": "stability-testbed",  # the same input gives the same file
}
DPI = 180
PALEST = 0.9
"""The part of viridis that is drawn with: its last colours are too pale on white."""
LINE_STYLES = len(_LINES)
_CHARACTER = 0.62
"""Width of a character on the average, of the size of the font; most are narrower."""
_HANDLE = 6
"""Characters that would have the place of a legend's line and the gaps about it."""
_MEDIAN_SHARE = 20
"""Of a long series the running median is taken so many times in its span: between two such places it hardly moves."""

_NEAR = 300
"""Ends of a log axis whose quotient is below this have ticks at 2 and 5, too: else there would be one or two in all."""


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is drawn; ``line`` and ``marker`` tell arms apart without colour."""

    colour: str
    line: Any
    marker: str


def arm_styles(labels: Sequence[str]) -> dict[str, ArmStyle]:
    """A style for each arm, by its place in ``labels``: the same list gives the same look in every figure.

    No two have the same colour. Of many, neighbours in the list have similar ones.
    """
    places = range(len(labels))
    colours = _COLOURS if len(labels) <= len(_COLOURS) else [spectrum(i / (len(labels) - 1)) for i in places]
    return {
        label: ArmStyle(colours[i], _LINES[i % len(_LINES)], _MARKERS[i % len(_MARKERS)])
        for i, label in zip(places, labels, strict=True)
    }


def spectrum(share: float) -> str:
    """The colour at a place from 0 to 1 of many kinds, which differ in hue."""
    return _from_map("turbo", 0.04 + 0.92 * share)


def shade(share: float) -> str:
    """The colour at a place from 0 to 1 on a scale: the darker, the lower, and never too pale for a line."""
    return _from_map("viridis", PALEST * share)


def _from_map(name: str, place: float) -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return str(to_hex(colormaps[name](place)))


@contextmanager
def look() -> Iterator[None]:
    """Draw inside this context: on matplotlib's own defaults, not on those of the user, who may have LaTeX set all text.

    It also selects a backend that needs no display.
    """
    os.environ["MPLBACKEND"] = "agg"  # matplotlib cannot be imported with one that it does not know
    import matplotlib as mpl
    import matplotlib.style

    mpl.use("agg")
    with mpl.style.context(["default", _RC]):
        yield


def check_figure_path(path: str | Path) -> Path:
    """The path of a figure. Raises :class:`InputError` unless it ends in .png or .svg; call before the work starts."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{path} has the suffix {path.suffix!r}; a figure is written as .png or .svg")
    return path


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure as .png or .svg by suffix, complete or not at all; parent folders are made."""
    path = check_figure_path(path)
    kind = path.suffix.lower()[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=DPI, metadata=metadata))


def legend_outside(
    figure: Figure | SubFigure,
    handles: Sequence[Any],
    labels: Sequence[str],
    *,
    loc: Any = "outside upper center",
    most: int = 5,
    fontsize: float = 9,
    **more: Any,
) -> Legend:
    """A legend beside the panels of a figure with constrained layout: in as many columns as there is room for, ``most`` at most.

    Labels that are longer than the figure is wide are cut, and the figure grows by what more than three rows take.
    """
    room = int(72 * figure.bbox.width / figure.dpi / (_CHARACTER * fontsize))
    shown = [clip(visible(label), room - 2 * _HANDLE) for label in labels]
    taken = np.array([len(label) + _HANDLE for label in shown])
    fitting = [n for n in range(1, most + 1) if sum(max(part, default=0) for part in np.array_split(taken, n)) <= room]
    columns = max(fitting, default=1)
    whole = figure.get_figure(root=True)
    whole.set_figheight(whole.get_figheight() + max(0, math.ceil(len(shown) / columns) - 3) * 1.5 * fontsize / 72)
    return figure.legend(handles, shown, loc=loc, ncols=columns, fontsize=fontsize, **more)


# ------------------------------------------------------------------------------------------------------------ smoothing


def smoothed(values: Floats, span: int, *, log: bool) -> tuple[npt.NDArray[np.int64], Floats]:
    """Where a series is drawn smoothed, and the values there: a running median for a log axis, else the mean.

    Of a long series the median is taken at some places.
    """
    places = np.arange(len(values))
    if not log:
        return places, smooth_mean(values, span)
    places = places[:: max(1, min(len(values) // MAX_POINTS, span // _MEDIAN_SHARE))]
    return places, smooth_median(values, span) if len(places) == len(values) else smooth_median_at(values, span, places)


def smooth_mean(values: Floats, span: int) -> Floats:
    """Debiased exponential moving average with decay d = 1 - 2/(span + 1): sum_i d^i x_{t-i} / sum_i d^i over finite x.

    The weights are those of TensorBoard's smoothing. NaN where the value itself is not finite. For drawing only.
    """
    finite = pd.Series(np.where(np.isfinite(values), values, np.nan))
    mean = finite.ewm(span=span, adjust=True, ignore_na=True).mean()
    return mean.where(finite.notna()).to_numpy()


def smooth_median(values: Floats, span: int) -> Floats:
    """Centred running median over ``span`` values, finite ones only; for quantities on a log axis. For drawing only."""
    finite = pd.Series(np.where(np.isfinite(values), values, np.nan))
    return finite.rolling(span, center=True, min_periods=1).median().where(finite.notna()).to_numpy()


def smooth_median_at(values: Floats, span: int, places: npt.NDArray[np.int64]) -> Floats:
    """What :func:`smooth_median` is at ``places``, for few of them in a long series: each costs a sort of ``span`` values."""
    found = np.full(len(places), np.nan)
    for index, place in enumerate(places):
        # pandas puts the middle of an even window after its centre.
        window = values[max(0, place - span // 2) : place + (span + 1) // 2]
        if np.isfinite(values[place]):
            found[index] = median(window[np.isfinite(window)])
    return found


# -------------------------------------------------------------------------------------------------------------- drawing


def draw_series(axes: Axes, x: Floats, y: Floats, style: ArmStyle, span: int, *, width: float = 1.7) -> None:
    """The raw values thin and faint, and over them, in the same colour, the smoothed ones (a median on a log axis)."""
    shown = showable(axes, y)
    places, strong = smoothed(shown, span, log=axes.get_yscale() == "log")
    raw, thin = envelope(shown), envelope(strong)
    axes.plot(x[raw], shown[raw], color=style.colour, linewidth=0.5, alpha=0.3, zorder=2)
    axes.plot(x[places[thin]], strong[thin], color=style.colour, linestyle=style.line, linewidth=width, zorder=3)
    mark_non_finite(axes, x[~np.isfinite(y)], style)


def showable(axes: Axes, y: Floats) -> Floats:
    """The values, NaN for those that have no place on the axis."""
    on_axis = np.isfinite(y) & (y > 0) if axes.get_yscale() == "log" else np.isfinite(y)
    return np.where(on_axis, y, np.nan)


def mark_non_finite(axes: Axes, x: Floats, style: ArmStyle) -> None:
    """A cross on the upper edge where a value is NaN or infinite: a line would only show a gap there."""
    if x.size:
        x = crosses(x)
        axes.plot(
            x, np.full(len(x), 0.975), transform=axes.get_xaxis_transform(), linestyle="", marker="x", markersize=6,
            markeredgewidth=1.6, color=style.colour, clip_on=False, zorder=5,
        )  # fmt: skip


def note(axes: Axes, text: str) -> None:
    """A small remark in the upper right of a panel, below the edge on which marks may sit."""
    axes.text(
        0.99, 0.92, text, transform=axes.transAxes, ha="right", va="top", fontsize=7.5, color="#444444",
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}, zorder=6,
    )  # fmt: skip


def presence(values: Sequence[float | None]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The values, NaN for None, and which of them are there at all."""
    there = np.array([value is not None for value in values], dtype=bool)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64), there


def log_if_spread(axes: Axes, values: Floats) -> None:
    """A log axis with ticks in plain numbers, if the positive values spread by more than a factor of 5."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size or positive.max() <= 5 * positive.min():
        return
    axes.set_yscale("log")
    plain_log_ticks(axes.yaxis, (positive.min(), positive.max()))


def plain_log_ticks(axis: Axis, ends: tuple[float, float]) -> None:
    """Ticks of a log axis in plain numbers, 0.5 and not 5 x 10^-1; between the powers of ten only if the ends of what is
    shown are near."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    near = ends[1] < _NEAR * ends[0]
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if near else (1.0,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def whole_ticks(axes: Axes) -> None:
    """At most seven ticks on the horizontal axis, at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
