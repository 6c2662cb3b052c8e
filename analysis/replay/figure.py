"""The figures of a replayed step and of counterfactuals."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.show import style
from analysis.show.style import CROSSES, GREY, Floats
from analysis.show.text import change, number, percent, visible
from data.batches import IGNORED

from .explanation import Counterfactual, Explanation, MetricCheck, TokenTable
from .words import difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS, _MOST_COLUMNS = 32, 256
"""Cells of the heat map that can be distinguished in print."""
_NON_FINITE = "#0072B2"
_STEP, _USUAL = style.arm_styles(["step", "usual"]).values()
_NLL, _GRADIENT = "loss/nll", "grad_norm/total"
_LOGGED = "as logged"
_AT_STEP: dict[str, Any] = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (2, 2)), "zorder": 1}


def draw_explanation(e: Explanation, tokens: TokenTable) -> Figure:
    """The step among its neighbours, NLL by sequence and position, gradients, layer norms and, for TFSD, c.

    Values that are not finite are marked or hatched, and counted.
    """
    from matplotlib.figure import Figure

    heights = [2.2, max(1.7, 0.9 + 0.145 * min(len(e.sequences), _MOST_ROWS)), 2.7]
    figure = Figure(figsize=(10.5, 0.5 + sum(heights)), layout="constrained")
    title = f"{visible(e.run)}, step {e.step}, replayed from the checkpoint of step {e.checkpoint}"
    if wrong := len(e.disagreements):
        title += f"\nNOT REPRODUCED: {wrong} {'value disagrees' if wrong == 1 else 'values disagree'} with the log"
    elif not e.steps_compared:
        title += "\nNot checked: the log has no row to compare with"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", color="#A82000" if wrong else "black")
    grid = figure.add_gridspec(3, 1, height_ratios=heights)
    top, middle, bottom = (figure.add_subfigure(grid[row]) for row in range(3))  # each aligns its own panels
    loss, gradient = top.subplots(1, 2, sharex=True)
    _draw_history(loss, e, _NLL, "NLL of the batch", "nats per token")
    _draw_history(gradient, e, _GRADIENT, "Gradient norm", "L2 norm, before clipping")
    heat, bars = middle.subplots(1, 2, sharey=True, width_ratios=[2.5, 1])
    _draw_tokens(heat, e, tokens)
    _draw_sequences(bars, e)
    panels = bottom.subplots(1, 2 if tokens.weight_BT is None else 3)
    _draw_groups(panels[0], e)
    _draw_layers(panels[1], e)
    if tokens.weight_BT is not None:
        _draw_weights(panels[2], tokens.weight_BT[tokens.token_id_BT != IGNORED])
    return figure


# ------------------------------------------------------------------------------------------------------------- the step


def _draw_history(axes: Axes, e: Explanation, key: str, title: str, unit: str) -> None:
    """The logged values around the step, the usual value, and the step itself as logged and as replayed."""
    steps = np.array(e.history.get("step", []), dtype=np.float64)
    values, there = style.presence(e.history.get(key, [None] * len(steps)))
    non_finite = there & ~np.isfinite(values)
    axes.set(title=title, ylabel=unit, xlabel=f"steps; {CROSSES}" if non_finite.any() else "steps")
    axes.axvline(e.step, **_AT_STEP)
    if e.spike and e.spike.get("signal") == key:
        first, last = e.spike["start_step"] - 0.5, e.spike["end_step"] + 0.5
        axes.axvspan(first, last, color="#000000", alpha=0.08, linewidth=0, label="spike")
    axes.plot(steps, style.finite_or_nan(values), color=_STEP.colour, linewidth=1.1)
    style.mark_non_finite(axes, steps[non_finite], _STEP)
    check = e.metrics.get(key)
    if check is not None:
        _mark_step(axes, e, check)
        values = np.append(values, [check.replayed, check.usual or math.nan])
    if key == _GRADIENT:
        style.log_if_spread(axes, values)
    style.whole_ticks(axes)
    _legend_above(axes)


def _mark_step(axes: Axes, e: Explanation, check: MetricCheck) -> None:
    if check.usual is not None and math.isfinite(check.usual):
        axes.axhline(check.usual, color=GREY, linewidth=0.8, label=f"usual {number(check.usual)}", zorder=1)
    look: dict[str, Any] = {"color": _STEP.colour, "markersize": 6}
    points = [(f"step {e.step}", check.logged, "o", look)]
    if check.logged is None or not check.agrees:
        look = {"color": _USUAL.colour, "markerfacecolor": "none", "markersize": 7}
        points.append(("replayed", check.replayed, "D", look))
        if not math.isfinite(check.replayed):
            style.mark_non_finite(axes, np.array([float(e.step)]), _USUAL)
    for name, value, marker, look in points:
        if value is not None:
            finite = math.isfinite(value)
            label = f"{name}: {number(value)}"
            axes.plot(e.step, value if finite else math.nan, marker if finite else "x", label=label, **look)


def _legend_above(axes: Axes) -> None:
    """A legend beside the title, where it covers no data; none if nothing has a label."""
    if not axes.get_legend_handles_labels()[0]:
        return
    legend = axes.legend(
        loc="lower right", bbox_to_anchor=(1.01, 0.985), ncols=4, fontsize=7.5, handlelength=1.5, columnspacing=1.2,
        borderaxespad=0.1, handletextpad=0.5,
    )  # fmt: skip
    legend.set_in_layout(False)  # the title's line is free anyway


# ------------------------------------------------------------------------------------------------------------ its tokens


def _draw_tokens(axes: Axes, e: Explanation, tokens: TokenTable) -> None:
    """NLL by sequence, largest gradient at the top, and position; a cell of several positions shows their maximum."""
    from matplotlib.patches import Rectangle

    ordered = [s.row for s in e.by_gradient]
    shown = ordered[:_MOST_ROWS]
    length = tokens.nll_BT.shape[1]
    block = math.ceil(length / _MOST_COLUMNS)
    starts = np.arange(0, length, block)
    cells = np.maximum.reduceat(tokens.nll_BT[shown], starts, axis=1)  # maximum, unlike fmax, propagates NaN
    finite = np.isfinite(cells)
    top, highest = _colour_limit(cells[finite], e.usual_nll)
    edges = np.append(starts, length) - 0.5
    axes.add_patch(
        Rectangle((-0.5, -0.5), length, len(shown), facecolor=_NON_FINITE, edgecolor="white", hatch="////", linewidth=0)
    )
    image = axes.pcolormesh(
        edges, np.arange(len(shown) + 1) - 0.5, np.where(finite, cells, np.nan), cmap="YlOrBr", vmin=0.0, vmax=top,
        rasterized=True,
    )  # fmt: skip
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=30, extend="max" if highest > top else "neither")
    bar.set_label(f"nats; highest {number(highest)}", fontsize=8)
    what = "NLL of every token" if block == 1 else f"NLL, the highest of every {block} positions"
    axes.set(title=f"{what}, by sequence", xlabel=_position_label(tokens, ordered), ylabel="row, by gradient")
    style.whole_ticks(axes)
    axes.set_yticks(range(len(shown)), [str(row) for row in shown], fontsize=7 if len(shown) > 12 else 8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(visible=False)
    # Crosses where stretches begin: in a single cell the hatching may be invisible.
    y, x = np.nonzero(np.diff(finite, axis=1, prepend=True) & ~finite)
    if y.size:
        axes.plot(edges[x] + block / 2, y, "x", color="black", markersize=6, markeredgewidth=1.6, clip_on=False)


def _colour_limit(values: Floats, usual: float) -> tuple[float, float]:
    """The NLL of the darkest colour, chosen as in :func:`analysis.replay.page.ramp_for`, and the highest NLL."""
    if not values.size:
        return 1.0, math.nan
    highest = float(values.max())
    ceiling = min(highest, 2 * float(np.quantile(values, 0.99)))
    return max(ceiling, 2 * usual, 1e-6), highest


def _position_label(tokens: TokenTable, ordered: list[int]) -> str:
    """The label of the horizontal axis, with what the heat map leaves out."""
    words, hidden = ["position"], ordered[_MOST_ROWS:]
    if hidden:
        rest = tokens.nll_BT[hidden]
        rest = rest[np.isfinite(rest)]
        highest = number(float(rest.max()) if rest.size else math.nan)
        words.append(f"{_MOST_ROWS} of {len(ordered)} sequences; highest NLL of the others: {highest}")
    if count := int((~np.isfinite(tokens.nll_BT)).sum()):
        words.append(f"{count} {'value is' if count == 1 else 'values are'} NaN or infinite (hatched or crossed)")
    return "; ".join(words)


def _draw_sequences(axes: Axes, e: Explanation) -> None:
    """Gradient norms as bars beside the rows of the heat map, with their shares."""
    ordered, shares = e.by_gradient, e.gradient_shares
    shown, rest = ordered[:_MOST_ROWS], ordered[_MOST_ROWS:]
    for place, s in enumerate(shown):
        if math.isfinite(s.grad_norm):
            axes.barh(place, s.grad_norm, height=0.72, color=_STEP.colour)
            end, words = s.grad_norm, f" {percent(shares[s.row])}" if shares else ""
        else:
            look: dict[str, Any] = {"color": _NON_FINITE, "markersize": 6, "clip_on": False}
            axes.plot(0.012, place, "x", transform=axes.get_yaxis_transform(), **look)
            end, words = 0.0, f"    {number(s.grad_norm)}"
        axes.text(end, place, words, va="center", fontsize=7, color=GREY)
    largest = f"\nthe other {len(rest)}: at most {number(rest[0].grad_norm, 3)}" if rest else ""
    title = "Its gradient norm" + (" and share" if shares else "")
    axes.set(title=title, xlabel=f"L2 norm, before clipping{largest}")
    axes.tick_params(axis="y", labelleft=False, length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.18 * max([s.grad_norm for s in ordered if math.isfinite(s.grad_norm)], default=1.0) or 1.0)


# ------------------------------------------------------------------------------------------------------------- profiles


# Two points may coincide: the one behind is larger and open.
_LARGE: dict[str, Any] = {"markerfacecolor": "none", "markersize": 7}
_SMALL: dict[str, Any] = {"markersize": 4}


def _draw_groups(axes: Axes, e: Explanation) -> None:
    usual = [math.nan if g.usual_grad_norm is None else g.usual_grad_norm for g in e.groups]
    lines = {"usual": (usual, _USUAL, _LARGE), "this step": ([g.grad_norm for g in e.groups], _STEP, _SMALL)}
    _draw_profile(axes, [g.name for g in e.groups], lines)
    axes.set(title="Gradient by group", ylabel="L2 norm, before clipping")


def _draw_layers(axes: Axes, e: Explanation) -> None:
    dotted = {"linestyle": ":", "label": None}
    lines = {
        "before": ([x.mean_before for x in e.layers], _USUAL, _LARGE),
        "after": ([x.mean_after for x in e.layers], _STEP, _SMALL),
        "max before": ([x.max_before for x in e.layers], _USUAL, _LARGE | dotted),
        "max after": ([x.max_after for x in e.layers], _STEP, _SMALL | dotted),
    }
    _draw_profile(axes, [x.name for x in e.layers], lines)
    axes.set(title="Residual norm", ylabel="L2 norm: mean; dotted: max")
    moved = [x for x in e.layers if x.mean_before > 0 and math.isfinite(x.mean_after / x.mean_before)]
    if moved:
        most = max(moved, key=lambda x: abs(x.mean_after / x.mean_before - 1))
        words = f"largest change of a mean: {_short(most.name)} {change(most.mean_before, most.mean_after)}"
        axes.set_xlabel("\n".join(filter(None, [words, axes.get_xlabel()])))


def _draw_profile(axes: Axes, names: list[str], lines: dict[str, tuple[list[float], style.ArmStyle, Any]]) -> None:
    """Lines of values by group or layer, on a log axis if they spread."""
    places = np.arange(len(names), dtype=np.float64)
    style.log_if_spread(axes, np.array([value for values, _, _ in lines.values() for value in values]))
    for label, (values, arm, options) in lines.items():
        drawn = np.array(values, dtype=np.float64)
        look = {"color": arm.colour, "linestyle": "-", "marker": arm.marker, "linewidth": 1.0, "label": label}
        axes.plot(places, style.finite_or_nan(drawn), **(look | options))
        if label != "usual" and not np.isfinite(drawn).all():  # usual values are NaN where unknown
            style.mark_non_finite(axes, places[~np.isfinite(drawn)], arm)
            axes.set_xlabel(CROSSES)
    for line in axes.lines if len(names) > 20 else ():
        line.set_markersize(0.6 * line.get_markersize())
    labels = _labels(names)
    axes.set_xticks(list(labels), list(labels.values()), rotation=90 if len(labels) > 14 else 40, fontsize=7.5)
    if len(labels) <= 14:
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", pad=2)
    _legend_above(axes)


def _labels(names: list[str]) -> dict[int, str]:
    """Which positions get a label: all of a few, but only some of many layers, leaving room for the other groups."""
    every = math.ceil(len(names) / 26)
    labels: dict[int, str] = {}
    others = [i for i, name in enumerate(names) if not name.startswith("layer_")]
    for i, name in enumerate(names):
        near = next((j for j in others if 0 < i - j < every), None)
        if i in others and near is not None:
            labels[near] += f", {name}"
        elif i in others or (int(name[6:]) % every == 0 and all(abs(i - j) >= every for j in others)):
            labels[i] = _short(name)
    return labels


def _short(name: str) -> str:
    return name.replace("layer_", "L")


def _draw_weights(axes: Axes, weight_N: Floats) -> None:
    """The distribution of c over all targets of the batch."""
    values = weight_N[np.isfinite(weight_N)]
    axes.hist(np.clip(values, 0, 1), bins=40, range=(0, 1), color=_STEP.colour)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    style.plain_log_ticks(axes.yaxis, axes.get_ylim())
    non_finite = weight_N.size - values.size
    mean = number(float(values.mean()) if values.size else math.nan, 3)
    label = f"c; mean {mean}" + (f"; {non_finite} NaN or infinite" if non_finite else "")
    axes.set(title="weight c on the gradient of CE", ylabel="tokens", xlabel=label)


# ----------------------------------------------------------------------------------------------------- counterfactuals


def draw_counterfactuals(cases: list[Counterfactual]) -> Figure:
    """NLL and gradient norm as logged and with each change, the first changed step marked, the difference in words.

    A skipped batch is a gap in its curve. Raises ValueError unless all cases are of one run and one checkpoint.
    """
    from matplotlib.figure import Figure

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


def _draw_cases(axes: Axes, cases: list[Counterfactual], key: str, styles: dict[str, style.ArmStyle]) -> None:
    longest = max(cases, key=lambda c: len(c.steps))
    curves = [(longest.steps, *style.presence(longest.factual[key]), styles[_LOGGED], _LOGGED)]
    curves += [
        (c.steps, *style.presence(c.changed[key]), styles[c.change], textwrap.fill(difference(c), 155)) for c in cases
    ]
    if key == _GRADIENT:
        style.log_if_spread(axes, np.concatenate([values for _, values, *_ in curves]))
    crosses = False
    for steps, values, there, arm, label in curves:
        x, width = np.array(steps, dtype=np.float64), 2.4 if label == _LOGGED else 1.5
        axes.plot(x, style.finite_or_nan(values), color=arm.colour, linestyle=arm.line, linewidth=width, label=label)
        non_finite = there & ~np.isfinite(values)
        style.mark_non_finite(axes, x[non_finite], arm)
        crosses |= bool(non_finite.any())
    starts = sorted({c.first_step for c in cases})
    for step in starts:
        axes.axvline(step, **_AT_STEP)
    words = f"steps; dotted: change from {', '.join(map(str, starts))} on"
    axes.set_xlabel(f"{words}; {CROSSES}" if crosses else words)
    style.whole_ticks(axes)
