"""The curves of a page as a picture, for paper and for readers without scripts."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np

from analysis.show import style
from analysis.show.style import ArmStyle

from .charts import Chart, Mark, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 2
_DPI = 110
"""Enough for paper at this size; a page has several pictures."""


def picture(section: Section) -> bytes:
    """A PNG with all panels of a section."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    charts = section.charts
    columns = min(_COLUMNS, len(charts))
    rows = math.ceil(len(charts) / columns)
    with style.look():
        figure = Figure(figsize=(8.6, 0.6 + (2.7 if columns > 1 else 3.4) * rows), layout="constrained")
        for place, chart in enumerate(charts):
            _draw(figure.add_subplot(rows, columns, place + 1), chart, section)
        shown = [group for group in section.groups if not group.hidden]
        handles = [Line2D([], [], color=g.look.colour, linestyle=g.look.line, label=g.name) for g in shown]
        handles += style.mark_handles(
            peaks="peak of a spike" if any(not (m.broken or m.beyond) for c in charts for m in c.marks) else None,
            non_finite=any(m.broken for c in charts for m in c.marks),
            beyond=any(m.beyond and not m.broken for c in charts for m in c.marks),
        )
        if len(handles) > 1:
            style.legend_outside(figure, handles, most=4, fontsize=8)
        file = io.BytesIO()
        style.write_png(figure, file, _DPI)
    return file.getvalue()


def _draw(axes: Axes, chart: Chart, section: Section) -> None:
    axes.set_title(chart.quantity.title, fontsize=8.5)
    axes.set_ylabel(chart.quantity.unit)
    axes.set_xlabel("step")
    if chart.log:
        axes.set_yscale("log")
        values = np.concatenate([line.y[np.isfinite(line.y)] for line in chart.lines])
        style.plain_log_ticks(axes.yaxis, (float(values.min()), float(values.max())))
    for first, last in chart.bands:
        axes.axvspan(first - 0.5, last + 0.5, color="#dddddd", linewidth=0, zorder=0)
    alone = {line.group for line in chart.lines if line.kind == "strong"}
    for line in chart.lines:
        group = section.groups[line.group]
        if not group.hidden:
            faint = line.kind == "run" and line.group in alone
            _curve(axes, line.x, line.y, group.look, faint=faint, dots=line.kind == "evaluated")
    if chart.limits is not None:
        axes.set_ylim(*chart.limits)
    for mark in chart.marks:
        group = section.groups[mark.group]
        if not group.hidden:
            _mark(axes, mark, group.look)


def _mark(axes: Axes, mark: Mark, look: ArmStyle) -> None:
    if mark.broken and mark.beyond:
        style.mark_non_finite(axes, np.array([mark.x]), look)
    elif mark.beyond:
        style.mark_beyond(axes, mark.x, look.colour, 6, mark.label)
    else:
        axes.plot([mark.x], [mark.y], "x" if mark.broken else "v", color=look.colour, markersize=6, mfc="none")


def _curve(axes: Axes, x: style.Floats, y: style.Floats, look: ArmStyle, *, faint: bool, dots: bool) -> None:
    width, alpha = (0.5, 0.35) if faint else (1.4, 1.0)
    marker = look.marker if dots and len(x) <= 40 else ""
    axes.plot(x, y, color=look.colour, linestyle="-" if faint else look.line, linewidth=width, alpha=alpha,
              marker=marker, markersize=3)  # fmt: skip
