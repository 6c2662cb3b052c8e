"""The figure of analysis.tolerance: curves against tokens, a thin line for each run, a thick one for an arm's mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.probes.over_training import draw_over_training, token_axis
from analysis.show.style import ArmStyle, arm_styles, legend_outside, log_if_spread
from analysis.synonyms.report import counts
from analysis.synonyms.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_GREY = "#444444"


@dataclass(frozen=True)
class _Panel:
    """One quantity; ``beside`` is a second one in the same unit, drawn dotted; ``at`` is the height of a reference line."""

    key: str
    title: str
    unit: str
    beside: str | None = None
    at: float | None = None
    share: bool = False
    """Values between 0 and 1: the axis shows the whole range."""


_PANELS = (
    _Panel("auc", "Rank AUC against controls", "0.5: no preference", at=0.5),
    _Panel("log_odds", "Log-odds against controls, raw", "nats", at=0.0),
    _Panel("log_odds_fitted", "Log-odds, at the best temperature", "nats", at=0.0),
    _Panel(
        "share_synonym_fitted",
        "Share of what the word leaves,\nat the best temperature (dotted: controls)",
        "p / (1 - p(word))",
        beside="share_control_fitted",
    ),
    _Panel("distance_ratio", "Distance of synonyms' embeddings\nover that of controls", "1: no nearer", at=1.0),
    _Panel("nll_word", "NLL of the word, raw", "nats"),
    _Panel("nll", "NLL of held-out text, raw", "nats per token"),
    _Panel("entropy", "Entropy at the word's place, raw", "nats"),
    _Panel("tfsd_weight", "TFSD weight c in training", "mean over tokens", share=True),
)


def draw_tolerance(table: pd.DataFrame, study: Study) -> Figure:
    """The panels that ``table``, a row for each run and checkpoint, has values for; all arms share each panel's axes."""
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(table["arm"]))
    styles = arm_styles(labels)
    panels = [panel for panel in _PANELS if table[panel.key].notna().any()]
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(12, 1.1 + 2.7 * rows), layout="constrained")
    n = counts(study)
    figure.suptitle(
        f"Synonym tolerance against tokens: mean over {n['items']} items ({n['contexts']:,} contexts, {n['lemmas']:,} lemmas, "
        f"{n['documents']:,} documents); thin: each run, thick: mean over an arm's runs",
        fontsize=10,
    )
    cells = [figure.add_subplot(rows, _COLUMNS, place) for place in range(1, len(panels) + 1)]
    for axes, panel in zip(cells, panels, strict=True):
        _draw_panel(axes, panel, table, styles)
        token_axis(axes, table["tokens"])  # the same in all panels, though c begins only after the first step
    handles, names = cells[0].get_legend_handles_labels()
    legend_outside(figure, handles, names, loc="outside lower center")
    return figure


def _draw_panel(axes: Axes, panel: _Panel, table: pd.DataFrame, styles: dict[str, ArmStyle]) -> None:
    axes.set_title(panel.title, fontsize=9)
    axes.set_ylabel(panel.unit)
    if panel.at is not None:
        axes.axhline(panel.at, color=_GREY, linewidth=0.9)
    for label, style in styles.items():
        rows = table[table["arm"] == label]
        seeds = rows["run"].nunique()
        draw_over_training(axes, rows, panel.key, style, label=f"{label} ({seeds} seed{'s' if seeds > 1 else ''})")
        if panel.beside:
            draw_over_training(axes, rows, panel.beside, style, label=None, line=":")
    if panel.share:
        axes.set_ylim(0, 1.05)
    if panel.beside:
        log_if_spread(axes, table[[panel.key, panel.beside]].to_numpy().ravel())
