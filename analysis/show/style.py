"""The style that all figures share: colours, smoothing, curves with marks for what they cannot show, and saving."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.errors import InputError
from common.files import write_atomically
from stability.detect.baseline import median

from .text import clip, visible
from .thinning import MAX_POINTS, envelope, thin_marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

Floats = npt.NDArray[np.float64]

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/, without yellow, which is too faint on white; then nine more.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#6A3D9A", "#8A5A2B", "#8DB600", "#FF1493",
    "#8C8C8C", "#7A0019", "#14346B", "#00B3B3", "#B89B00",
)  # fmt: skip
LINES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (3, 1.5, 1, 1.5)), (0, (1.5, 1.2)), (0, (8, 2, 1, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # fixed: no search for a place above all tick labels, which stand below in these figures
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
GREY = "#444444"
"""Notes, reference lines, and legend entries that belong to no arm."""
CROSSES = "crosses: NaN or infinite"
LINE_STYLES = len(LINES)
SPREAD = 5.0
"""Ratio of the largest to the smallest value above which an axis or a colour scale is logarithmic."""
_PALEST = 0.9
"""End of the part of viridis that is used: its last colours are too pale on white."""
_CHARACTER = 0.62
"""Average width of a character relative to the font size, rounded up."""
_HANDLE = 6
"""Width of a legend's line sample and its margins, in characters."""
_MEDIANS_PER_SPAN = 20
"""How often the running median of a long series is computed within its span; in between it hardly moves."""
_FEW_DECADES = 300
"""A log axis that spans a smaller ratio also has ticks at 2 and 5: otherwise it would have one or two in all."""


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is drawn; ``line`` and ``marker`` distinguish arms without colour."""

    colour: str
    line: Any
    marker: str


def arm_styles(labels: Sequence[str]) -> dict[str, ArmStyle]:
    """A style for each arm, by its position in ``labels``: the same list gives the same styles in every figure.

    All colours are distinct; with many arms, neighbours in the list have similar ones.
    """
    last = len(labels) - 1
    many = len(labels) > len(_COLOURS)
    return {
        label: ArmStyle(
            _from_map("turbo", 0.04 + 0.92 * (i / last)) if many else _COLOURS[i],
            LINES[i % len(LINES)],
            _MARKERS[i % len(_MARKERS)],
        )
        for i, label in enumerate(labels)
    }


def shade(place: float) -> str:
    """The colour at ``place`` (0 to 1) on a sequential scale, from dark to light but never too pale for a line."""
    return _from_map("viridis", _PALEST * place)


def _from_map(name: str, place: float) -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return str(to_hex(colormaps[name](place)))


@contextmanager
def look() -> Iterator[None]:
    """Draw inside this context: with matplotlib's own defaults rather than the user's, and without a display."""
    os.environ["MPLBACKEND"] = "agg"  # importing matplotlib fails if this names an unknown backend
    import matplotlib as mpl
    import matplotlib.style

    mpl.use("agg")
    with mpl.style.context(["default", _RC]):
        yield


def check_figure_path(path: str | Path) -> Path:
    """Check the path of a figure before any work is done. Raises :class:`InputError` unless it ends in .png or .svg."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{path} has the suffix {path.suffix!r}; a figure is written as .png or .svg")
    return path


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure atomically as .png or .svg, by suffix; parent folders are created."""
    path = check_figure_path(path)
    kind = path.suffix.lower()[1:]
    if kind == "svg":
        write_atomically(path, lambda file: figure.savefig(file, format=kind, metadata={"Date": None}))
    else:
        write_atomically(path, lambda file: write_png(figure, file))


def write_png(figure: Figure, file: IO[bytes], dpi: int = DPI) -> None:
    """Write the figure, laid out first: savefig would draw it as a whole for that, and then once more."""
    engine = figure.get_layout_engine()
    if engine is not None:
        figure.set_dpi(dpi)
        engine.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    figure.set_layout_engine(engine)


def legend_outside(
    figure: Figure | SubFigure,
    handles: Sequence[Any],
    labels: Sequence[str] | None = None,
    *,
    loc: Any = "outside upper center",
    most: int = 5,
    fontsize: float = 9,
    **more: Any,
) -> Legend:
    """A legend outside the panels of a figure with constrained layout, in at most ``most`` columns, as the width allows.

    ``labels``: by default those of the handles. Labels longer than the figure is wide are cut, and the figure grows in height
    where the legend has more than three rows.
    """
    room = int(72 * figure.bbox.width / figure.dpi / (_CHARACTER * fontsize))
    labels = [str(handle.get_label()) for handle in handles] if labels is None else labels
    shown = [clip(visible(label), room - 2 * _HANDLE) for label in labels]
    widths = np.array([len(label) + _HANDLE for label in shown])
    fitting = [n for n in range(1, most + 1) if sum(max(part, default=0) for part in np.array_split(widths, n)) <= room]
    columns = max(fitting, default=1)
    root = figure.get_figure(root=True)
    root.set_figheight(root.get_figheight() + max(0, math.ceil(len(shown) / columns) - 3) * 1.5 * fontsize / 72)
    return figure.legend(handles, shown, loc=loc, ncols=columns, fontsize=fontsize, **more)


def mark_handles(
    *, peaks: str | None = None, non_finite: bool = False, beyond: bool = False, size: float = 7
) -> list[Line2D]:
    """Legend entries for marks: the triangles at peaks, named ``peaks``, the crosses at values that are not finite, and the
    filled triangles where a curve is ``beyond`` the axis."""
    from matplotlib.lines import Line2D

    grey: dict[str, Any] = {"color": GREY, "markerfacecolor": "none", "linestyle": ""}
    marks = [("v", peaks, size), ("x", "NaN or infinite" if non_finite else None, 6)]
    handles = [Line2D([], [], marker=mark, label=label, markersize=s, **grey) for mark, label, s in marks if label]
    filled = grey | {
        "marker": "^",
        "markersize": size,
        "markerfacecolor": GREY,
        "label": "beyond the axis, with its value",
    }
    return [*handles, Line2D([], [], **filled)] if beyond else handles


# ------------------------------------------------------------------------------------------------------------ smoothing


def smoothed(values: Floats, span: int, *, log: bool) -> tuple[npt.NDArray[np.int64], Floats]:
    """Indices into a series and its smoothed values there: a running median for a log axis, otherwise a mean.

    The median of a long series is computed at some indices only.
    """
    if not log:
        return np.arange(len(values)), smooth_mean(values, span)
    stride = max(1, min(len(values) // MAX_POINTS, span // _MEDIANS_PER_SPAN))
    places = np.arange(0, len(values), stride)
    return places, smooth_median(values, span) if stride == 1 else smooth_median_at(values, span, places)


def smooth_mean(values: Floats, span: int) -> Floats:
    """Debiased exponential moving average with decay d = 1 - 2/(span + 1): sum_i d^i x_{t-i} / sum_i d^i over finite x.

    The weights are those of TensorBoard's smoothing. NaN where the value itself is not finite. For drawing only.
    """
    finite = pd.Series(finite_or_nan(values))
    mean = finite.ewm(span=span, adjust=True, ignore_na=True).mean()
    return mean.where(finite.notna()).to_numpy()


def smooth_median(values: Floats, span: int) -> Floats:
    """Centred running median over the finite ones of ``span`` values; for quantities on a log axis. For drawing only."""
    finite = pd.Series(finite_or_nan(values))
    return finite.rolling(span, center=True, min_periods=1).median().where(finite.notna()).to_numpy()


def smooth_median_at(values: Floats, span: int, places: npt.NDArray[np.int64]) -> Floats:
    """:func:`smooth_median` at few ``places`` of a long series: each costs a sort of ``span`` values."""

    def at(place: int) -> float:
        window = values[max(0, place - span // 2) : place + (span + 1) // 2]  # as pandas places an even window
        return median(window[np.isfinite(window)]) if np.isfinite(values[place]) else np.nan

    return np.array([at(place) for place in places], dtype=np.float64)


# -------------------------------------------------------------------------------------------------------------- drawing


def draw_series(axes: Axes, x: Floats, y: Floats, style: ArmStyle, span: int, *, width: float = 1.7) -> None:
    """A curve: its raw values thin and faint, its smoothed ones strong (a median on a log axis), crosses where not finite."""
    shown = showable(axes, y)
    places, strong = smoothed(shown, span, log=axes.get_yscale() == "log")
    raw, thin = envelope(shown), envelope(strong)
    axes.plot(x[raw], shown[raw], color=style.colour, linewidth=0.5, alpha=0.3, zorder=2)
    axes.plot(x[places[thin]], strong[thin], color=style.colour, linestyle=style.line, linewidth=width, zorder=3)
    mark_non_finite(axes, x[~np.isfinite(y)], style)


def draw_values(axes: Axes, x: Floats, y: Floats, style: ArmStyle, **look: Any) -> None:
    """Values as they are, in the colour of ``style`` and otherwise as ``look`` says, with crosses where not finite."""
    shown = showable(axes, y)
    kept = envelope(shown)
    axes.plot(x[kept], shown[kept], **{"color": style.colour, **look})
    mark_non_finite(axes, x[~np.isfinite(y)], style)


def finite_or_nan(values: Floats) -> Floats:
    """The values with NaN for infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def showable(axes: Axes, y: Floats) -> Floats:
    """The values, NaN where the axis cannot show them: not finite, or not positive on a log axis."""
    shown = finite_or_nan(y)
    return np.where(shown > 0, shown, np.nan) if axes.get_yscale() == "log" else shown


def mark_non_finite(axes: Axes, x: Floats, style: ArmStyle) -> None:
    """Crosses on the upper edge where a value is NaN or infinite: a line would only show a gap there."""
    if x.size:
        x = thin_marks(x)
        axes.plot(
            x, np.full(len(x), 0.975), transform=axes.get_xaxis_transform(), linestyle="", marker="x", markersize=6,
            markeredgewidth=1.6, color=style.colour, clip_on=False, zorder=5,
        )  # fmt: skip


def mark_peaks(axes: Axes, x: Any, y: Any, colour: str, size: float = 7, edge: float = 1.0) -> None:
    """Open triangles at the peaks of spikes."""
    axes.plot(
        x, y, linestyle="", marker="v", markersize=size, markerfacecolor="none", markeredgecolor=colour,
        markeredgewidth=edge, zorder=5,
    )  # fmt: skip


def mark_beyond(axes: Axes, x: float, colour: str, size: float = 7, label: str = "") -> None:
    """A filled triangle on the upper edge where a curve leaves the axis, with a label towards the middle of the panel."""
    edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": colour, "zorder": 5, "clip_on": False}
    axes.plot(x, 0.985, marker="^", markersize=size, **edge)
    if label:
        right = x > np.mean(axes.get_xlim())
        axes.annotate(
            label, (x, 0.985), (-size if right else size, 0), xycoords=edge["transform"], textcoords="offset points",
            ha="right" if right else "left", va="center", fontsize=7.5, color=colour, annotation_clip=False, zorder=6,
        )  # fmt: skip


def note(axes: Axes, text: str) -> None:
    """A small remark in the upper right corner of a panel, below the marks on its edge."""
    axes.text(
        0.99, 0.92, text, transform=axes.transAxes, ha="right", va="top", fontsize=7.5, color=GREY,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}, zorder=6,
    )  # fmt: skip


def presence(values: Sequence[float | None]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The values with NaN for None, and which of them are not None."""
    there = np.array([value is not None for value in values], dtype=bool)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64), there


def log_if_spread(axes: Axes, values: Floats) -> None:
    """Set a log axis with ticks in plain numbers if the positive values span more than a factor of ``SPREAD``."""
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.max() > SPREAD * positive.min():
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis, (positive.min(), positive.max()))


def plain_log_ticks(axis: Axis, ends: tuple[float, float]) -> None:
    """Label a log axis in plain numbers, 0.5 instead of 5 x 10^-1; ``ends``: the smallest and the largest value shown."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    few = ends[1] < _FEW_DECADES * ends[0]
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def whole_ticks(axes: Axes) -> None:
    """At most seven ticks on the horizontal axis, all at integers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
