"""Training curves of one or more runs in one figure.

    python -m analysis.curves RUN|LOG... --out FILE.png|.svg [--smooth N] [--x tokens|steps] [--columns ROLE=COLUMN ...]

RUN is a run directory, LOG a log of any kind that docs/running.md lists; rows that a log left when it went back are thin.
Bars above the panels show where a stress acted, in the colour of the run.
Panels for which no run has data are left out. All runs share each panel's axes. Smoothing is for display only.
More than nine runs are drawn as families: runs that differ only in the seed share one colour, with their median drawn strong; a
number in which the families differ, such as the learning rate, becomes a colour scale. Logs, whose settings are not known, are
always drawn individually.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.logs import RUN_OR_LOG, LogRun, add_columns_option, load_runs_and_logs
from analysis.show import style
from analysis.show.stresses import ACTING
from analysis.show.style import ArmStyle, Floats
from analysis.show.text import first_of, skipped_lines, skips
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from record.finished import Run
from record.logs.columns import ROLES

from .palette import Palette, draw_family
from .stressed import LANE, Lane, draw_bar, ends_of, lanes, legend_handle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING, VALIDATION = "loss/nll", "validation/nll"
MOST_ALONE = 9
"""Runs that are drawn individually."""
_COLUMNS = 3
OPENING = 0.1
"""The first part of training, in which the loss falls steeply; it does not determine the loss axis."""


@dataclass(frozen=True)
class Panel:
    """One quantity over training."""

    title: str
    unit: str
    key: str
    thin: tuple[str, str] | None = None
    """A second metric, drawn thin, and its name in the title; left out of families."""
    log: bool = False
    """A log axis if the values spread."""
    share: bool = False
    """Values between 0 and 1: a linear axis shows the whole range."""


PANELS = (
    Panel("Gradient norm, before clipping", "L2 norm", "grad_norm/total", log=True),
    Panel("Residual before the last norm", "L2 norm, mean over tokens", "hidden_norm/pre_final/mean"),
    Panel("Hidden state after the last norm", "L2 norm, mean over tokens", "hidden_norm/final/mean"),
    Panel("Output embeddings", "L2 norm, mean over rows", "embedding_norm/mean", ("embedding_norm/max", "max")),
    Panel("Scale of the logits", "standard deviation", "logit/std"),
    Panel("Entropy of P", "nats", "entropy/p"),
    Panel("TFSD weight c", "mean over tokens", "tfsd/weight_mean", ("tfsd/weight_p10", "p10"), log=True, share=True),
)
LEARNING_RATE = Panel("Learning rate", "as logged", "lr")
"""For logs, whose schedule no configuration tells."""
_VALIDATION_PANEL = Panel("Validation NLL", "nats per token", VALIDATION)
"""For families: markers of many runs would hide the training curves."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.curves", description="Training curves in one figure.")
    parser.add_argument("runs", nargs="+", metavar="RUN|LOG", help=RUN_OR_LOG)
    add_columns_option(parser)
    parser.add_argument("--out", required=True, help="figure to write, .png or .svg")
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="span of the smoothing (default: 1/60 of the longest run, at least 5)"
    )
    parser.add_argument("--x", choices=("tokens", "steps"), help="horizontal axis (default: tokens if all have them)")
    options = parser.parse_args(arguments)
    if options.smooth is not None and options.smooth < 1:
        raise InputError(f"--smooth is {options.smooth}; give a whole number of steps from 1")
    path = style.check_figure_path(options.out)
    runs = load_runs_and_logs(options.runs, options.columns, _drawn)
    with style.look():
        style.save_figure(draw_curves(runs, span=options.smooth, axis=options.x), path)
    print(f"{path}: {', '.join(runs) if len(runs) <= MOST_ALONE else f'{len(runs)} runs'}")
    if missing := missing_panels(runs):
        print(f"no panel or no curve, since not logged: {missing}")
    for label, run in runs.items():
        for line in skipped_lines(run.metrics, run.metrics.index):
            print(f"{label}: {line}")


def _drawn(metric: str) -> bool:
    """Whether the figure or what is printed beside it needs a metric."""
    of_panels = {key for panel in PANELS for key in (panel.key, *(panel.thin or ())[:1])}
    return metric in {TRAINING, VALIDATION, "tokens", ACTING, *of_panels} or bool(skips({metric: None}))


@dataclass(frozen=True)
class _Drawing:
    """What all panels of a figure share."""

    runs: dict[str, Run]
    styles: dict[str, ArmStyle]
    """By the label of the run."""
    palette: Palette | None
    """Of families; None if the runs are drawn individually."""
    span: int
    limits: tuple[float, float]
    """Of the loss axes."""
    axis: str
    """Unit of the horizontal axis: "tokens" or "steps"."""
    stressed: Sequence[Lane]
    """Where stresses acted."""

    @property
    def logs(self) -> bool:
        """Whether some come from other tools."""
        return any(isinstance(run, LogRun) for run in self.runs.values())

    @property
    def mark(self) -> float:
        """Size of the triangles in points."""
        return 4 if self.palette else 7

    @property
    def title_pad(self) -> float:
        """Points between a panel and its title, where the bars of stresses are."""
        return 6 + LANE * len(self.stressed)

    def x(self, run: Run, steps: npt.NDArray[Any]) -> Floats:
        """Positions of ``steps`` on the horizontal axis, interpolated for a step without a row."""
        if self.axis == "steps":
            return steps.astype(np.float64)
        known, tokens = run.metrics.index.to_numpy(), run.metrics["tokens"].to_numpy()
        if np.array_equal(steps, known):
            return tokens
        return np.interp(steps.astype(np.float64), known.astype(np.float64), tokens)

    def values(self, run: Run, key: str) -> tuple[Floats, Floats]:
        """Horizontal positions and values of everything that ``run`` has logged for ``key``."""
        series = run.series(key)
        return self.x(run, series.index.to_numpy()), series.to_numpy()


def draw_curves(runs: dict[str, Run], span: int | None = None, axis: str | None = None) -> Figure:
    """The figure for the labelled ``runs``; ``span`` in steps, ``axis`` "tokens" or "steps" (None: chosen from the data).

    Raises :class:`InputError` if no run has a training NLL, or if tokens are requested and not logged.
    """
    from matplotlib.figure import Figure

    logs = any(isinstance(run, LogRun) for run in runs.values())
    _check_there_is_a_curve(runs, logs)
    span = span or max(5, max(len(run.metrics) for run in runs.values()) // 60)
    palette = Palette.of(runs, TRAINING) if len(runs) > MOST_ALONE and not logs else None
    if palette:
        styles = {label: palette.styles[family.label] for family in palette.families for label in family.members}
    else:
        styles = style.arm_styles(list(runs))
    stressed = lanes((run, styles[label]) for label, run in runs.items())
    drawing = _Drawing(runs, styles, palette, span, nll_limits(runs), _choose_axis(runs, axis), stressed)
    panels = [*([_VALIDATION_PANEL] if palette else []), *PANELS[:1], *([LEARNING_RATE] if logs else []), *PANELS[1:]]
    panels = [panel for panel in panels if any(not run.series(panel.key).empty for run in runs.values())]
    rows = math.ceil((len(panels) + 2) / _COLUMNS)  # the training loss takes two cells
    figure = Figure(figsize=(10.5, 1.5 + 2.6 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, _COLUMNS, height_ratios=[1.35] + [1.0] * (rows - 1))
    top = figure.add_subplot(grid[0, :2])
    _draw_nll(top, drawing)
    for cell, panel in enumerate(panels, start=2):
        _draw_panel(figure.add_subplot(grid[cell // _COLUMNS, cell % _COLUMNS], sharex=top), panel, drawing)
    for axes in figure.axes:
        _draw_stresses(axes, drawing)
        _finish(axes, drawing.axis)
    if palette and palette.bar:
        palette.bar.draw(figure)
    style.legend_outside(figure, _legend(drawing), title=textwrap.fill(palette.title, 150) if palette else None)
    raw, strong = ("", "Lines") if palette else ("Faint: every step. ", "Strong")
    footnote = (
        f"{raw}{strong}: debiased exponential average, span {span} steps "
        f"(log axes: running median of {span}). Events were found on unsmoothed values."
    )
    figure.supxlabel(footnote, fontsize=7.5, color=style.GREY, x=0.01, ha="left")
    return figure


def _check_there_is_a_curve(runs: dict[str, Run], logs: bool) -> None:
    keys = (TRAINING, VALIDATION, PANELS[0].key) if logs else (TRAINING,)
    if all(run.series(key).empty for run in runs.values() for key in keys):
        if logs:
            raise InputError(
                f"no loss or gradient norm is known in {', '.join(runs)}; name it with --columns loss=COLUMN"
            )
        raise InputError(f"none of the runs has {TRAINING} in its metrics; name runs that train_lm.py has written")


def missing_panels(runs: dict[str, Run]) -> str:
    """Which of the loss, the gradient norm, the learning rate and the validation loss some logs lack, and which logs."""
    logs = {label: run for label, run in runs.items() if isinstance(run, LogRun)}
    lacking = {
        role.title: [label for label, run in logs.items() if run.series(role.metric).empty]
        for role in ROLES
        if role.key != "step"
    }
    return "; ".join(
        title if len(labels) == len(logs) else f"{title} in {first_of(labels, 3)}"
        for title, labels in lacking.items()
        if labels
    )


def _choose_axis(runs: dict[str, Run], axis: str | None) -> str:
    lacking = [label for label, run in runs.items() if len(run.series("tokens")) < len(run.metrics)]
    if axis == "tokens" and lacking:
        raise InputError(f"--x tokens: {', '.join(lacking)} has no token count at every step; use --x steps")
    abandoned = any(isinstance(run, LogRun) and run.log.abandoned for run in runs.values())  # whose tokens are not kept
    return axis or ("steps" if lacking or abandoned else "tokens")


# ----------------------------------------------------------------------------------------------------------- the panels


def _draw_nll(axes: Axes, drawing: _Drawing) -> None:
    loss, unit = ("loss", "as logged") if drawing.logs else ("NLL", "nats per token")
    axes.set_title(
        f"Training {loss}" if drawing.palette else f"Training {loss} (lines) and validation {loss} (markers)",
        pad=drawing.title_pad,
    )
    axes.set_ylabel(unit)
    axes.set_ylim(drawing.limits)
    above: list[float] = []
    _draw_lines(axes, TRAINING, drawing)
    for index, (label, run) in enumerate(drawing.runs.items()):
        arm = drawing.styles[label]
        _mark_spikes(axes, run, TRAINING, arm, drawing)
        above += _mark_excursions(axes, *drawing.values(run, TRAINING), arm, drawing)
        above += _draw_abandoned(axes, run, TRAINING, arm, drawing)
        if not drawing.palette:
            x, y = drawing.values(run, VALIDATION)
            size = max(8.5 - 1.8 * index, 4.0)  # a later run hides no earlier one
            look = {"marker": arm.marker, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.7}
            style.draw_values(axes, x, y, arm, linestyle="", zorder=4, **look)
            above += _mark_excursions(axes, x, y, arm, drawing)
    if above:
        style.note(axes, f"axis cropped: values reach {max(above):.4g} (in the first steps, and where ▲ marks it)")


def _draw_lines(axes: Axes, key: str, drawing: _Drawing, width: float = 1.7) -> None:
    """The curves of all runs for one metric."""
    if not drawing.palette:
        span = 1 if key == LEARNING_RATE.key else drawing.span  # a schedule has corners and no noise
        for label, run in drawing.runs.items():
            style.draw_series(axes, *drawing.values(run, key), drawing.styles[label], span, width=width)
        return
    span = 1 if key == VALIDATION else drawing.span  # a validation NLL is an average already
    for family in drawing.palette.families:
        curves = [drawing.values(drawing.runs[label], key) for label in family.members]
        if curves := [curve for curve in curves if len(curve[0])]:
            draw_family(axes, curves, drawing.palette.styles[family.label], span)


def _draw_abandoned(axes: Axes, run: Run, key: str, arm: ArmStyle, drawing: _Drawing) -> list[float]:
    """The rows that a log has left, thin, with their spikes; returns the highest value of each stretch above a loss axis."""
    above: list[float] = []
    if not isinstance(run, LogRun):
        return above
    for left in run.log.abandoned:
        column = run.column(key)
        if column not in left.table.columns:
            continue
        written = left.table.written(column)
        steps, values = left.table.steps[written], left.table.columns[column][written]
        style.draw_values(axes, drawing.x(run, steps), values, arm, linewidth=0.6, linestyle=(0, (1, 1)), zorder=2)
        gone = {"from_step": left.from_step, "to_step": left.to_step}
        peaks = [spike["peak_step"] for spike in run.spikes(key) if spike.get("abandoned") == gone]
        at = np.flatnonzero(np.isin(steps, peaks))
        style.mark_peaks(axes, drawing.x(run, steps[at]), values[at], arm.colour, drawing.mark)
        if key == TRAINING:
            late = steps > OPENING * run.metrics.index[-1]
            above += _mark_excursions(axes, drawing.x(run, steps[late]), values[late], arm, drawing)
    return above


def nll_limits(runs: dict[str, Run]) -> tuple[float, float]:
    """Limits of the loss axis: from the lowest value to the highest one after the first tenth of training.

    The upper limit is at most three times as far above the lower one as the 95th percentile, so that a divergence or a high
    spike does not flatten everything else.
    """
    late, lowest = [], []
    for run in runs.values():
        for key in (TRAINING, VALIDATION):
            series = run.series(key)
            series = series[np.isfinite(series)]
            lowest.append(series.min())
            late.append(series[series.index > OPENING * run.metrics.index[-1]].to_numpy())
    values = np.concatenate(late)
    if not values.size:
        return 0.0, 1.0
    low = float(np.nanmin(lowest))
    high = min(float(values.max()), low + 3.0 * max(float(np.quantile(values, 0.95)) - low, 0.05))
    margin = 0.06 * max(high - low, 0.05)
    return low - margin, high + margin


def _mark_spikes(axes: Axes, run: Run, signal: str, arm: ArmStyle, drawing: _Drawing) -> None:
    kept = [spike for spike in run.spikes(signal) if "abandoned" not in spike]
    peaks = [spike["peak_step"] for spike in kept if spike.get("peak_step") in run.metrics.index]
    if peaks and signal in run.metrics:
        x, y = drawing.x(run, np.array(peaks)), run.metrics.loc[peaks, signal].to_numpy()
        style.mark_peaks(axes, x, y, arm.colour, drawing.mark, edge=1.5 * drawing.mark / 7)


def _mark_excursions(axes: Axes, x: Floats, y: Floats, arm: ArmStyle, drawing: _Drawing) -> list[float]:
    """Mark each stretch above the axis with a filled triangle on the edge; returns the highest value of each.

    The initial descent gets no triangle. Stretches that are close count as one, so that a diverged run gets a row of triangles
    instead of a bar.
    """
    stretches = stretches_above(y, drawing.limits[1])
    for stretch in stretches:
        if x[stretch[-1]] > OPENING * x[-1]:
            style.mark_beyond(axes, x[stretch[np.argmax(y[stretch])]], arm.colour, drawing.mark)
    return [float(y[stretch].max()) for stretch in stretches]


def stretches_above(y: Floats, limit: float) -> list[npt.NDArray[np.int64]]:
    """Places of the finite values above a limit, in stretches; those closer than 1% of all values count as one."""
    above = np.flatnonzero(np.isfinite(y) & (y > limit))
    return np.split(above, np.flatnonzero(np.diff(above) > len(y) // 100 + 1) + 1) if above.size else []


def _draw_panel(axes: Axes, panel: Panel, drawing: _Drawing) -> None:
    keys, title = [panel.key], panel.title
    if panel.thin and not drawing.palette:
        keys, title = [panel.key, panel.thin[0]], f"{title} (thin: {panel.thin[1]})"
    axes.set_title(title, pad=drawing.title_pad)
    axes.set_ylabel(panel.unit)
    values = np.concatenate([run.series(key).to_numpy() for run in drawing.runs.values() for key in keys])
    log = _needs_log(panel, values)
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
        _draw_abandoned(axes, run, panel.key, drawing.styles[label], drawing)
    if log and (hidden := int((values <= 0).sum())):
        style.note(axes, f"{hidden} values of 0 have no place on a log axis")


def _draw_stresses(axes: Axes, drawing: _Drawing) -> None:
    ends = ends_of(drawing.x(run, run.metrics.index.to_numpy()) for run in drawing.runs.values())
    for number, lane in enumerate(drawing.stressed):
        for run, first, last in lane.bars:
            begins, stops = drawing.x(run, np.array([first - 0.5, last + 0.5]))
            draw_bar(axes, begins, stops, number, lane.colour, ends)


def _needs_log(panel: Panel, values: Floats) -> bool:
    """Whether the values spread too far for a linear axis.

    A log axis that spans little has unreadable ticks, so even a panel meant for one needs a spread. A norm gets one if it has
    grown so much in one run that the other runs would be drawn as zero.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size or not (panel.log or "norm" in panel.key):
        return False
    return bool(positive.max() > (style.SPREAD * positive.min() if panel.log else 30 * np.median(positive)))


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

    palette = drawing.palette
    entries = palette.entries if palette else [(arm, label) for label, arm in drawing.styles.items()]
    look: dict[str, Any] = {"linewidth": 1.8, "markersize": 5}
    handles = [
        Line2D([], [], color=arm.colour, linestyle=arm.line, marker="" if palette else arm.marker, label=label, **look)
        for arm, label in entries
    ]
    signals = (TRAINING, *(panel.key for panel in PANELS))
    spikes = any(run.spikes(signal) for run in drawing.runs.values() for signal in signals)
    if any(isinstance(run, LogRun) and run.log.abandoned for run in drawing.runs.values()):
        handles.append(Line2D([], [], color=style.GREY, linewidth=0.8, linestyle=(0, (1, 1)), label="abandoned rows"))
    handles += [legend_handle()] if drawing.stressed else []
    return handles + style.mark_handles(
        peaks="spike (event)" if spikes else None,
        non_finite=any(run.non_finite for run in drawing.runs.values()),
        size=drawing.mark,
    )


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
