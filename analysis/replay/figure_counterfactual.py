"""The figure of counterfactuals: how the steps went, and how they would have gone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.show import style
from analysis.show.text import visible

from .explanation import Counterfactual
from .words import difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = "#444444"
_CROSS = "crosses: NaN or infinite"
_NLL, _GRADIENT = "loss/nll", "grad_norm/total"


def draw_counterfactual(cases: Counterfactual | Sequence[Counterfactual]) -> Figure:
    """NLL and gradient norm as logged and with each change, the first changed step marked, the difference in words.

    A skipped batch is a gap in its curve; other values that are not finite are marked.

    Raises:
        ValueError: no case, or cases of different runs or checkpoints, which share no factual curve.
    """
    from matplotlib.figure import Figure

    cases = [cases] if isinstance(cases, Counterfactual) else list(cases)
    if len({(c.run, c.checkpoint) for c in cases}) != 1:
        raise ValueError("draw counterfactuals of one run from one checkpoint")
    styles = style.arm_styles([_LOGGED, *(c.change for c in cases)])
    figure = Figure(figsize=(10.5, 3.7 + 0.36 * len(cases)), layout="constrained")
    title = f"{visible(cases[0].run)}: what if, from the checkpoint of step {cases[0].checkpoint}"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    loss, gradient = figure.subplots(1, 2, sharex=True)
    _draw_cases(loss, cases, _NLL, styles)
    loss.set(title="NLL of the batch", ylabel="nats per token")
    _draw_cases(gradient, cases, _GRADIENT, styles)
    gradient.set(title="Gradient norm", ylabel="L2 norm, before clipping")
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=8.5, handlelength=3.5)
    return figure


_LOGGED = "as logged"


def _draw_cases(axes: Axes, cases: list[Counterfactual], key: str, styles: dict[str, style.ArmStyle]) -> None:
    longest = max(cases, key=lambda c: len(c.steps))
    curves = [(longest.steps, *style.presence(longest.factual[key]), styles[_LOGGED], _LOGGED)]
    curves += [(c.steps, *style.presence(c.changed[key]), styles[c.change], _label(c)) for c in cases]
    if key == _GRADIENT:
        style.log_if_spread(axes, np.concatenate([values for _, values, *_ in curves]))
    crosses = False
    for steps, values, there, arm, label in curves:
        x, finite = np.array(steps, dtype=np.float64), np.isfinite(values)
        axes.plot(
            x, np.where(finite, values, np.nan), color=arm.colour, linestyle=arm.line,
            linewidth=2.4 if label == _LOGGED else 1.5, label=label,
        )  # fmt: skip
        style.mark_non_finite(axes, x[there & ~finite], arm)
        crosses |= bool((there & ~finite).any())
    starts = sorted({c.first_step for c in cases})
    for step in starts:
        axes.axvline(step, color=_SIDE, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    words = f"steps; dotted: change from {', '.join(map(str, starts))} on"
    axes.set_xlabel(f"{words}; {_CROSS}" if crosses else words)
    style.whole_ticks(axes)


def _label(c: Counterfactual) -> str:
    return textwrap.fill(difference(c), 155)
