"""Training curves of one or more runs in one figure.

    python -m analysis.curves RUN... --out FILE.png|.svg [--smooth N] [--x tokens|steps]

Panels that no run has data for are left out. All arms share each panel's axes. Smoothing is for the eye only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from configs.errors import ArgumentParser, InputError, exit_status

from . import style
from .runs import Run, load_runs
from .style import ArmStyle, Floats
from .thinning import envelope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING, VALIDATION, GRADIENT = "loss/nll", "validation/nll", "grad_norm/total"
_COLUMNS = 3
_OPENING = 0.1
"""The first part of training, in which the loss falls steeply; it does not decide the loss axis."""


@dataclass(frozen=True)
class Panel:
    """One quantity over training; ``faint`` is a second one, drawn thin; ``log``: a log axis if the values spread."""

    title: str
    unit: str
    key: str
    faint: str | None = None
    log: bool = False
    share: bool = False
    """Values between 0 and 1, of which a linear axis shows the whole range."""


PANELS = (
    Panel("Gradient norm, before clipping", "L2 norm", GRADIENT, log=True),
    Panel("Residual before the last norm", "L2 norm, mean over tokens", "hidden_norm/pre_final/mean"),
    Panel("Hidden state after the last norm", "L2 norm, mean over tokens", "hidden_norm/final/mean"),
    Panel("Output embeddings (thin: max)", "L2 norm, mean over rows", "embedding_norm/mean", "embedding_norm/max"),
    Panel("Scale of the logits", "standard deviation", "logit/std"),
    Panel("Entropy of P", "nats", "entropy/p"),
    Panel("TFSD weight c (thin: p10)", "mean over tokens", "tfsd/weight_mean", "tfsd/weight_p10", log=True, share=True),
)


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
    print(f"{path}: {', '.join(runs)}")


@dataclass(frozen=True)
class _Drawing:
    """What every panel of one figure shares."""

    runs: dict[str, Run]
    styles: dict[str, ArmStyle]
    span: int
    axis: str
    """Unit of the horizontal axis: "tokens" or "steps"."""

    def x(self, run: Run, steps: npt.NDArray[Any]) -> Floats:
        """Positions of ``steps`` on the horizontal axis; a step without a row lies between its neighbours."""
        if self.axis == "steps":
            return steps.astype(np.float64)
        known = run.metrics.index.to_numpy(dtype=np.float64)
        return np.interp(steps.astype(np.float64), known, run.metrics["tokens"].to_numpy())

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
    drawing = _Drawing(runs, style.arm_styles(list(runs)), span, _choose_axis(runs, axis))
    panels = [panel for panel in PANELS if any(not run.series(panel.key).empty for run in runs.values())]
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
    figure.legend(handles=_legend(drawing), loc="outside upper center", ncols=min(5, len(runs) + 2), fontsize=9)
    figure.supxlabel(_footnote(span), fontsize=7.5, color="#444444", x=0.01, ha="left")
    return figure


def _choose_axis(runs: dict[str, Run], axis: str | None) -> str:
    lacking = [label for label, run in runs.items() if len(run.series("tokens")) < len(run.metrics)]
    if axis == "tokens" and lacking:
        raise InputError(f"--x tokens: {', '.join(lacking)} has no token count at every step; use --x steps")
    return axis or ("steps" if lacking else "tokens")


# ----------------------------------------------------------------------------------------------------------- the panels


def _draw_nll(axes: Axes, drawing: _Drawing) -> None:
    axes.set_title("Training NLL (lines) and validation NLL (markers)")
    axes.set_ylabel("nats per token")
    low, high = nll_limits(drawing.runs)
    axes.set_ylim(low, high)
    above: list[float] = []
    for index, (label, run) in enumerate(drawing.runs.items()):
        arm = drawing.styles[label]
        x, y = drawing.values(run, TRAINING)
        style.draw_series(axes, x, y, arm, drawing.span)
        _mark_spikes(axes, run, TRAINING, arm, drawing)
        above += _mark_excursions(axes, x, y, high, arm)
        x, y = drawing.values(run, VALIDATION)
        shown = np.where(np.isfinite(y), y, np.nan)
        kept = envelope(shown)
        axes.plot(
            x[kept], shown[kept], color=arm.colour, linestyle="", marker=arm.marker,
            markersize=max(8.5 - 1.8 * index, 4.0),  # a later arm on the same value does not hide an earlier one
            markeredgecolor="white", markeredgewidth=0.7, zorder=4,
        )  # fmt: skip
        style.mark_non_finite(axes, x[~np.isfinite(y)], arm)
        above += _mark_excursions(axes, x, y, high, arm)
    if above:
        style.note(axes, f"axis cropped: values reach {max(above):.4g} (in the first steps, and where ▲ marks it)")


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
            drawing.x(run, peaks), y, linestyle="", marker="v", markersize=7, markerfacecolor="none",
            markeredgecolor=arm.colour, markeredgewidth=1.5, zorder=5,
        )  # fmt: skip


def _mark_excursions(axes: Axes, x: Floats, y: Floats, high: float, arm: ArmStyle) -> list[float]:
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
                x[peak], 0.985, transform=axes.get_xaxis_transform(), marker="^", markersize=7, color=arm.colour,
                clip_on=False, zorder=5,
            )  # fmt: skip
    return [float(y[stretch].max()) for stretch in stretches]


def _draw_panel(axes: Axes, panel: Panel, drawing: _Drawing) -> None:
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    log = _needs_log(panel, drawing.runs)
    if log:
        axes.set_yscale("log")
    elif panel.share:
        axes.set_ylim(0, 1.05)
    hidden = 0
    for label, run in drawing.runs.items():
        for key, width in ((panel.key, 1.7), (panel.faint, 0.7)):
            if key:
                x, y = drawing.values(run, key)
                style.draw_series(axes, x, y, drawing.styles[label], drawing.span, width=width)
                hidden += int((y <= 0).sum()) if log else 0
        _mark_spikes(axes, run, panel.key, drawing.styles[label], drawing)
    if hidden:
        style.note(axes, f"{hidden} values of 0 have no place on a log axis")


def _needs_log(panel: Panel, runs: dict[str, Run]) -> bool:
    """Whether the values spread too far for a linear axis.

    A log axis without a decade to show has unreadable ticks, so that even a panel meant for one needs a spread of 5. A
    norm gets one when it has grown so much in one arm that the other arms would be drawn as zero.
    """
    keys = [key for key in (panel.key, panel.faint) if key]
    values = np.concatenate([run.series(key).to_numpy() for run in runs.values() for key in keys])
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return False
    if panel.log:
        return bool(positive.max() > 5 * positive.min())
    return "norm" in panel.key and bool(positive.max() > 30 * np.median(positive))


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

    handles = [
        Line2D(
            [], [], color=arm.colour, linestyle=arm.line, linewidth=1.8, marker=arm.marker, markersize=5, label=label
        )
        for label, arm in drawing.styles.items()
    ]
    grey: dict[str, Any] = {"color": "#444444", "linestyle": ""}
    signals = (TRAINING, *(panel.key for panel in PANELS))
    if any(run.spikes(signal) for run in drawing.runs.values() for signal in signals):
        handles.append(Line2D([], [], marker="v", markerfacecolor="none", markersize=7, label="spike (event)", **grey))
    if any(run.non_finite for run in drawing.runs.values()):
        handles.append(Line2D([], [], marker="x", markersize=6, label="NaN or infinite", **grey))
    return handles


def _footnote(span: int) -> str:
    return (
        f"Faint: every step. Strong: debiased exponential average, span {span} steps "
        f"(log axes: running median of {span}). Events were found on unsmoothed values."
    )


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
