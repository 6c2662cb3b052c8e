"""One look for all figures: colours, lines, smoothing, marks for what a line cannot show, and saving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from configs.errors import InputError
from stability.spikes import median

from .files import write_atomically
from .thinning import MAX_POINTS, crosses, envelope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/, without yellow, which is too faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (3, 1.5, 1, 1.5)), (0, (1.5, 1.2)), (0, (8, 2, 1, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
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
    """A style for each arm, by its place in ``labels``: the same list gives the same look in every figure."""
    return {
        label: ArmStyle(_COLOURS[i % len(_COLOURS)], _LINES[i % len(_LINES)], _MARKERS[i % len(_MARKERS)])
        for i, label in enumerate(labels)
    }


@contextmanager
def look() -> Iterator[None]:
    """Draw inside this context; it also selects a backend that needs no display."""
    import matplotlib as mpl

    mpl.use("agg")
    with mpl.rc_context(_RC):
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


# ------------------------------------------------------------------------------------------------------------ smoothing


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
    shown = np.where(np.isfinite(y), y, np.nan)
    places = np.arange(len(y))
    if axes.get_yscale() == "log":
        shown = np.where(shown > 0, shown, np.nan)
        places = places[:: max(1, min(len(y) // MAX_POINTS, span // _MEDIAN_SHARE))]
        strong = smooth_median(shown, span) if len(places) == len(y) else smooth_median_at(shown, span, places)
    else:
        strong = smooth_mean(shown, span)
    raw, thin = envelope(shown), envelope(strong)
    axes.plot(x[raw], shown[raw], color=style.colour, linewidth=0.5, alpha=0.3, zorder=2)
    axes.plot(x[places[thin]], strong[thin], color=style.colour, linestyle=style.line, linewidth=width, zorder=3)
    mark_non_finite(axes, x[~np.isfinite(y)], style)


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
