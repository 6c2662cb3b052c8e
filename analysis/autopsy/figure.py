"""The spike as logged, taken again, and under each change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.show.style import GREY, Floats, arm_styles, finite_or_nan, legend_outside

from .conclude import REMOVED
from .window import Found

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_autopsy(found: Found, name: str, cause: str) -> Figure:
    """Left: the changes that removed the spike; right: those that did not."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    figure.suptitle(f"{name}: {found.signal} around step {found.window.start}. Cause: {cause}", fontsize=10)
    styles = arm_styles(list(found.changed))
    gone = {n for n, (_, share) in found.evidence.removed.items() if share >= REMOVED}
    steps = np.arange(found.window.first, found.window.last + 1)
    past = np.arange(found.window.last - len(found.logged) + 1, found.window.last + 1)
    logged = _finite(found.logged)
    unit = "log of the norm" if not found.signal.startswith("loss/") else "nats/token"
    axes = figure.subplots(1, 2, sharey=True)
    handles = {}
    for panel, title, names in (
        (axes[0], "with these changes it is gone", [n for n in found.changed if n in gone]),
        (axes[1], "with these it is not", [n for n in found.changed if n not in gone]),
    ):
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("step")
        handles["as logged"] = panel.plot(past, logged, color="black", linewidth=2.2)[0]
        if panel is axes[1]:
            again = panel.plot(steps, _finite(found.again), color=GREY, linewidth=1, linestyle=":")
            handles["the same again"] = again[0]
        for n in names:
            style = styles[n]
            handles[n] = panel.plot(
                steps, _finite(found.changed[n]), color=style.colour, linestyle=style.line, linewidth=1.5
            )[0]
        panel.axvline(found.window.start, color=GREY, linewidth=0.8)
    axes[0].set_ylabel(unit)
    top, values = float(np.nanmax(logged)), np.concatenate([logged, *map(_finite, found.changed.values())])
    low = float(np.nanmin(values))
    axes[0].set_ylim(low - 0.1 * (top - low), top + 0.15 * (top - low))
    legend_outside(figure, list(handles.values()), list(handles), loc="outside lower center")
    return figure


def _finite(values: Sequence[float | None]) -> Floats:
    return finite_or_nan(np.array([math.nan if v is None else v for v in values]))
