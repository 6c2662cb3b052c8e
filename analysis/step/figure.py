"""The line search along a step, with what each signal predicted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis.show.style import GREY, arm_styles, legend_outside

from .measure import MULTIPLES, StepMeasured

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_step(found: StepMeasured, title: str) -> Figure:
    """The change of the batch's loss over multiples of the step; a vertical line where each signal expected it to be back."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6.4), layout="constrained")
    axes = figure.add_subplot()
    start, points = found.line[0], found.line[1:]
    x = np.array([p.multiple for p in points])
    y = np.array([p.objective - start.objective for p in points])
    shown = np.where(np.isfinite(y), y, np.nan)
    handles = axes.plot(x, shown, "o-", color="black", label="the batch's objective", zorder=3)
    handles += [axes.axhline(0, color=GREY, linewidth=0.9, label="its value before the step")]
    handles += [axes.axvline(1, color=GREY, linewidth=0.9, linestyle=":", label="the step that was taken")]
    said = {name: m for name, m in found.predicted.items() if m is not None}
    for name, style in arm_styles(list(said)).items():
        multiple, text = said[name], f"{name}: {_times(said[name])}"
        within = MULTIPLES[0] <= multiple <= MULTIPLES[-1]
        place = multiple if within else np.nan  # in the legend only
        handles.append(axes.axvline(place, color=style.colour, linestyle=style.line, linewidth=1.6, label=text))
    fall = max(-np.nanmin(shown), 1e-9) if np.isfinite(shown).any() else 1.0
    axes.set_yscale("symlog", linthresh=float(fall))
    axes.set_ylim(-1.6 * fall, max(2 * float(np.nanmax(shown, initial=0.0)), fall))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    axes.set_xscale("log", base=2)
    axes.set_xlim(MULTIPLES[0] / 1.1, MULTIPLES[-1] * 1.1)
    axes.set_xticks(MULTIPLES, [f"{m:g}" for m in MULTIPLES])
    axes.set_xlabel("multiple of the step")
    axes.set_ylabel("change of the objective, nats/token")
    axes.set_title(title)
    legend_outside(figure, handles, [str(h.get_label()) for h in handles], loc="outside lower center")
    return figure


def _times(multiple: float) -> str:
    return "no edge" if math.isinf(multiple) else f"{multiple:.2g}x"
