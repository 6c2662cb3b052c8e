"""Training curves of one or more runs in one figure.

    python -m analysis.curves RUN... --out FILE.png|.svg [--smooth N] [--x tokens|steps]

Panels that no run has data for are left out. All arms share each panel's axes. Smoothing is for the eye only.
More than nine runs are drawn as families: runs that differ in the seed alone have one colour, and their median is drawn strong; a
number in which the families differ, say the learning rate, is a colour scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.show import style
from analysis.show.style import ArmStyle, Floats
from analysis.show.thinning import envelope
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from record.finished import Run, load_runs

from .crowd import Crowd, draw_family, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING, VALIDATION, GRADIENT = "loss/nll", "validation/nll", "grad_norm/total"
MOST_ALONE = 9
"""Runs that are drawn each for itself."""
_COLUMNS = 3
_OPENING = 0.1
"""The first part of training, in which the loss falls steeply; it does not decide the loss axis."""


@dataclass(frozen=True)
class Panel:
    """One quantity over training; ``log``: a log axis if the values spread."""

    title: str
    unit: str
    key: str
    faint: tuple[str, str] | None = None
    """A second one, drawn thin, and its name; among many runs it is left out."""
    log: bool = False
    share: bool = False
    """Values between 0 and 1, of which a linear axis shows the whole range."""


PANELS = (
    Panel("Gradient norm, before clipping", "L2 norm", GRADIENT, log=True),
    Panel("Residual before the last norm", "L2 norm, mean over tokens", "hidden_norm/pre_final/mean"),
    Panel("Hidden state after the last norm", "L2 norm, mean over tokens", "hidden_norm/final/mean"),
    Panel("Output embeddings", "L2 norm, mean over rows", "embedding_norm/mean", ("embedding_norm/max", "max")),
    Panel("Scale of the logits", "standard deviation", "logit/std"),
    Panel("Entropy of P", "nats", "entropy/p"),
    Panel("TFSD weight c", "mean over tokens", "tfsd/weight_mean", ("tfsd/weight_p10", "p10"), log=True, share=True),
)
_VALIDATION_PANEL = Panel("Validation NLL", "nats per token", VALIDATION)
"""Of many runs, whose markers would hide the lines of training."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.curves", description="Training curves in one figure.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory (or a checkpoint directory in one)")
    parser.add_argument("--out", required=True, help="figure to write, .png or .svg")
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="span of the smoothing (default: 1/60 of the longest run, at least 5)"
    )
    parser.add_argument("--x", choices=("tokens", "steps"), help="horizontal axis (default: tokens if all have them)")
    options = parser.parse_args(arguments)
    if options.smooth is not None and options.smooth < 1:
        raise InputError(f"--smooth is {options.smooth}; give a whole number of steps from 1")
    path = style.check_figure_path(options.out)
    runs = load_runs(options.runs)
    with style.look():
        style.save_figure(draw_curves(runs, span=options.smooth, axis=options.x), path)
    print(f"{path}: {', '.join(runs) if len(runs) <= MOST_ALONE else f'{len(runs)} runs'}")


@dataclass(frozen=True)
class _Drawing:
    """What every panel of one figure shares."""

    runs: dict[str, Run]
    styles: dict[str, ArmStyle]
    """Of each run."""
    crowd: Crowd | None
    """How the runs are drawn if there are many."""
    span: int
    limits: tuple[float, float]
    """Of the axes for the loss."""
    axis: str
    """Unit of the horizontal axis: "tokens" or "steps"."""

    def x(self, run: Run, steps: npt.NDArray[Any]) -> Floats:
        """Positions of ``steps`` on the horizontal axis; a step without a row lies between its neighbours."""
        if self.axis == "steps":
            return steps.astype(np.float64)
        known = run.metrics.index.to_numpy(dtype=np.float64)
        return np.interp(steps.astype(np.float64), known, run.metrics["tokens"].to_numpy())

    @property
    def mark(self) -> float:
        """Size of the triangles, points."""
        return 4 if self.crowd else 7

    def keys(self, panel: Panel) -> list[str]:
        """What is drawn in a panel."""
        return [panel.key, *([panel.faint[0]] if panel.faint and not self.crowd else [])]

    def values(self, run: Run, key: str) -> tuple[Floats, Floats]:
        """Horizontal positions and values of all that ``run`` has written for ``key``."""
        series = run.series(key)
        return self.x(run, series.index.to_numpy()), series.to_numpy()


def draw_curves(runs: dict[str, Run], span: int | None = None, axis: str | None = None) -> Figure:
    """The figure for the labelled ``runs``; ``span`` in steps, ``axis`` "tokens" or "steps" (None: chosen by the data).

    Raises :class:`InputError` if no run has a training NLL, or tokens are asked for and not recorded.
    """
    from matplotlib.figure import Figure

    if all(run.series(TRAINING).empty for run in runs.values()):
        raise InputError(f"none of the runs has {TRAINING} in its metrics; name runs that train_lm.py has written")
    span = span or max(5, max(len(run.metrics) for run in runs.values()) // 60)
    drawing = _drawing(runs, span, _choose_axis(runs, axis))
    panels = [*([_VALIDATION_PANEL] if drawing.crowd else []), *PANELS]
    panels = [panel for panel in panels if any(not run.series(panel.key).empty for run in runs.values())]
    rows = math.ceil((len(panels) + 2) / _COLUMNS)  # the loss takes two cells
    figure = Figure(figsize=(10.5, 1.5 + 2.6 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, _COLUMNS, height_ratios=[1.35] + [1.0] * (rows - 1))
    top = figure.add_subplot(grid[0, :2])
    _draw_nll(top, drawing)
    for cell, panel in enumerate(panels, start=2):
        axes = figure.add_subplot(grid[cell // _COLUMNS, cell % _COLUMNS], sharex=top)
        _draw_panel(axes, panel, drawing)
    for axes in figure.axes:
        _finish(axes, drawing.axis)
    if drawing.crowd:
        drawing.crowd.draw_bar(figure)
    title = wrapped(drawing.crowd.title) if drawing.crowd else None
    handles = _legend(drawing)
    style.legend_outside(figure, handles, [str(handle.get_label()) for handle in handles], title=title)
    figure.supxlabel(_footnote(drawing), fontsize=7.5, color="#444444", x=0.01, ha="left")
    return figure


def _drawing(runs: dict[str, Run], span: int, axis: str) -> _Drawing:
    if len(runs) <= MOST_ALONE:
        return _Drawing(runs, style.arm_styles(list(runs)), None, span, nll_limits(runs), axis)
    crowd = Crowd.of(runs, TRAINING)
    return _Drawing(runs, {label: crowd.style_of(label) for label in runs}, crowd, span, nll_limits(runs), axis)


def _choose_axis(runs: dict[str, Run], axis: str | None) -> str:
    lacking = [label for label, run in runs.items() if len(run.series("tokens")) < len(run.metrics)]
    if axis == "tokens" and lacking:
        raise InputError(f"--x tokens: {', '.join(lacking)} has no token count at every step; use --x steps")
    return axis or ("steps" if lacking else "tokens")


# ----------------------------------------------------------------------------------------------------------- the panels


def _draw_nll(axes: Axes, drawing: _Drawing) -> None:
    axes.set_title("Training NLL" if drawing.crowd else "Training NLL (lines) and validation NLL (markers)")
    axes.set_ylabel("nats per token")
    axes.set_ylim(drawing.limits)
    high = drawing.limits[1]
    above: list[float] = []
    _draw_lines(axes, TRAINING, drawing)
    for index, (label, run) in enumerate(drawing.runs.items()):
        arm = drawing.styles[label]
        _mark_spikes(axes, run, TRAINING, arm, drawing)
        above += _mark_excursions(axes, *drawing.values(run, TRAINING), high, arm, drawing.mark)
        if not drawing.crowd:
            x, y = drawing.values(run, VALIDATION)
            _draw_markers(axes, x, y, arm, size=max(8.5 - 1.8 * index, 4.0))  # a later arm hides no earlier one
            above += _mark_excursions(axes, x, y, high, arm, drawing.mark)
    if above:
        style.note(axes, f"axis cropped: values reach {max(above):.4g} (in the first steps, and where ▲ marks it)")


def _draw_lines(axes: Axes, key: str, drawing: _Drawing, width: float = 1.7) -> None:
    """The curves of all runs for one metric."""
    if drawing.crowd:
        span = 1 if key == VALIDATION else drawing.span  # a validation is an average already
        for family in drawing.crowd.families:
            curves = [drawing.values(drawing.runs[label], key) for label in family.members]
            if curves := [curve for curve in curves if len(curve[0])]:
                draw_family(axes, curves, drawing.crowd.styles[family.label], span)
        return
    for label, run in drawing.runs.items():
        style.draw_series(axes, *drawing.values(run, key), drawing.styles[label], drawing.span, width=width)


def _draw_markers(axes: Axes, x: Floats, y: Floats, arm: ArmStyle, size: float) -> None:
    shown = np.where(np.isfinite(y), y, np.nan)
    kept = envelope(shown)
    axes.plot(
        x[kept], shown[kept], color=arm.colour, linestyle="", marker=arm.marker, markersize=size,
        markeredgecolor="white", markeredgewidth=0.7, zorder=4,
    )  # fmt: skip
    style.mark_non_finite(axes, x[~np.isfinite(y)], arm)


def nll_limits(runs: dict[str, Run]) -> tuple[float, float]:
    """Limits of the loss axis: what lies between the lowest value and the highest after the first tenth of training.

    The top is at most three times as far from the bottom as the 95th percentile of those values, so that a divergence
    or a high spike does not flatten everything else; what lies above is marked on the edge.
    """
    late, lowest = [], []
    for run in runs.values():
        for key in (TRAINING, VALIDATION):
            series = run.series(key)
            series = series[np.isfinite(series)]
            lowest.append(series.min())
            late.append(series[series.index > _OPENING * run.metrics.index[-1]].to_numpy())
    values = np.concatenate(late)
    if not values.size:
        return 0.0, 1.0
    low = float(np.nanmin(lowest))
    high = min(float(values.max()), low + 3.0 * max(float(np.quantile(values, 0.95)) - low, 0.05))
    margin = 0.06 * max(high - low, 0.05)
    return low - margin, high + margin


def _mark_spikes(axes: Axes, run: Run, signal: str, arm: ArmStyle, drawing: _Drawing) -> None:
    """An open triangle at the peak of each spike event that lies inside the axes."""
    peaks = np.array(
        [spike["peak_step"] for spike in run.spikes(signal) if spike.get("peak_step") in run.metrics.index]
    )
    if peaks.size and signal in run.metrics:
        y = run.metrics.loc[peaks, signal].to_numpy()
        axes.plot(
            drawing.x(run, peaks), y, linestyle="", marker="v", markersize=drawing.mark, markerfacecolor="none",
            markeredgecolor=arm.colour, markeredgewidth=1.5 * drawing.mark / 7, zorder=5,
        )  # fmt: skip


def _mark_excursions(axes: Axes, x: Floats, y: Floats, high: float, arm: ArmStyle, size: float) -> list[float]:
    """Mark each stretch above the axis with a filled triangle on the edge; returns the highest value of each.

    The descent from the start is no surprise and gets no triangle; it is told in the panel's note. Stretches closer
    than 1% of the run are one, so that a diverged arm gets a row of triangles and not a bar.
    """
    above = np.flatnonzero(np.isfinite(y) & (y > high))
    if not above.size:
        return []
    stretches = np.split(above, np.flatnonzero(np.diff(above) > len(y) // 100 + 1) + 1)
    for stretch in stretches:
        if x[stretch[-1]] > _OPENING * x[-1]:
            peak = stretch[np.argmax(y[stretch])]
            axes.plot(
                x[peak], 0.985, transform=axes.get_xaxis_transform(), marker="^", markersize=size, color=arm.colour,
                clip_on=False, zorder=5,
            )  # fmt: skip
    return [float(y[stretch].max()) for stretch in stretches]


def _draw_panel(axes: Axes, panel: Panel, drawing: _Drawing) -> None:
    keys = drawing.keys(panel)
    axes.set_title(f"{panel.title} (thin: {panel.faint[1]})" if panel.faint and len(keys) > 1 else panel.title)
    axes.set_ylabel(panel.unit)
    log = _needs_log(panel, keys, drawing.runs)
    if log:
        axes.set_yscale("log")
    elif panel.key == VALIDATION:
        axes.set_ylim(drawing.limits)
    elif panel.share:
        axes.set_ylim(0, 1.05)
    for key, width in zip(keys, (1.7, 0.7), strict=False):
        _draw_lines(axes, key, drawing, width)
    for label, run in drawing.runs.items():
        _mark_spikes(axes, run, panel.key, drawing.styles[label], drawing)
    hidden = sum(int((run.series(key) <= 0).sum()) for run in drawing.runs.values() for key in keys) if log else 0
    if hidden:
        style.note(axes, f"{hidden} values of 0 have no place on a log axis")


def _needs_log(panel: Panel, keys: list[str], runs: dict[str, Run]) -> bool:
    """Whether the values spread too far for a linear axis.

    A log axis without a decade to show has unreadable ticks, so that even a panel meant for one needs a spread of 5. A
    norm gets one when it has grown so much in one arm that the other arms would be drawn as zero.
    """
    if not panel.log and "norm" not in panel.key:
        return False
    values = np.concatenate([run.series(key).to_numpy() for run in runs.values() for key in keys])
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return False
    if panel.log:
        return bool(positive.max() > 5 * positive.min())
    return bool(positive.max() > 30 * np.median(positive))


def _finish(axes: Axes, axis: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel(axis)
    axes.margins(x=0.015)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_yscale() == "log":
        style.plain_log_ticks(axes.yaxis, axes.get_ylim())


def _legend(drawing: _Drawing) -> list[Any]:
    from matplotlib.lines import Line2D

    entries = drawing.crowd.entries if drawing.crowd else [(arm, label) for label, arm in drawing.styles.items()]
    handles = [
        Line2D(
            [], [], color=arm.colour, linestyle=arm.line, linewidth=1.8, marker="" if drawing.crowd else arm.marker,
            markersize=5, label=label,
        )
        for arm, label in entries
    ]  # fmt: skip
    grey: dict[str, Any] = {"color": "#444444", "linestyle": ""}
    signals = (TRAINING, *(panel.key for panel in PANELS))
    if any(run.spikes(signal) for run in drawing.runs.values() for signal in signals):
        handles.append(
            Line2D([], [], marker="v", markerfacecolor="none", markersize=drawing.mark, label="spike (event)", **grey)
        )
    if any(run.non_finite for run in drawing.runs.values()):
        handles.append(Line2D([], [], marker="x", markersize=6, label="NaN or infinite", **grey))
    return handles


def _footnote(drawing: _Drawing) -> str:
    raw, strong = ("", "Lines") if drawing.crowd else ("Faint: every step. ", "Strong")
    return (
        f"{raw}{strong}: debiased exponential average, span {drawing.span} steps "
        f"(log axes: running median of {drawing.span}). Events were found on unsmoothed values."
    )


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
