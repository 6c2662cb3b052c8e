"""What sets the objectives of the family of c apart: the weight c that each gives a token, against p_y, the target's probability.

    python -m analysis.weights --out DIR [--plugins FILE]...

Every registered objective with dL/dz_k = c (P_k - [k = y]) (docs/mathematics.md, section 2), those of plug-ins too, with its
default options or those of VARIANTS. c is what the objective's own code returns for logits of V classes. Some depend on p_y
alone; others also on S, the sum of exp(z_k) over the wrong tokens, or on how many of these compete, and get a curve for each of
several values.

Prints a table, and writes summary.json (the table), weights.csv (all curves) and weights.png.

Shapes: N values of p_y, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.show import style
from analysis.show.tables import terminal_table
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json, write_text
from common.imports import importing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from model.objectives import TokenLogits

Floats = npt.NDArray[np.float64]

V = 8192
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "focal": ({"gamma": 1.0}, {"gamma": 2.0}),
    "gce": ({"q": 0.3}, {"q": 1.0}),
    "tfsd_anchored": ({"margin": 0.0}, {"margin": 2.0}, {"anchor": "largest"}),
    "tfsd_quantile": ({},),
}
"""Options of objectives that are not drawn with all defaults."""
LEVELS = {"tfsd_quantile": -3.0}
"""What the state of an objective is set to; that of others is what it begins with."""
SUMS = (0.01, 1.0, 100.0, V - 1.0)
"""S; the last is that of embeddings which all equal the hidden state."""
RIVALS = (1, 10, V - 1)
"""Wrong tokens that share S equally, the others having nothing of it."""
ABSENT = 60.0
"""Nats by which the logits of those others are below."""
TABLE = (1e-4, 1e-2, 0.1, 0.5, 0.9, 0.99)
"""Values of p_y in the table."""
ENDS = 1e-6
"""The curves' first p_y, and what their last leaves to 1."""
POINTS = 301
P_ALONE = "c depends on p_y alone"
ON_SUM = "... and on S, the sum of exp(z) of wrong tokens"
ON_RIVALS = "... and on how many wrong tokens share S"
GROUPS = (P_ALONE, ON_SUM, ON_RIVALS)


@dataclass(frozen=True)
class Curve:
    """c of one objective, among tokens with one S and so many rivals."""

    name: str
    group: str
    objective: Any
    S: float
    rivals: int

    @property
    def label(self) -> str:
        """The name and what of the token, beside p_y, matters to c."""
        if self.group == P_ALONE:
            return self.name
        return f"{self.name}, " + (f"S = {self.S:g}" if self.group == ON_SUM else rivals_text(self.rivals))

    def weights(self, p_N: Floats) -> Floats:
        """c at these p_y; NaN where they need a logit above 0 and a constant added to all logits matters: objectives like that
        are made for logits that are at most 0."""
        t = token_logits(tuple(p_N), self.S, self.rivals)
        c_N = np.asarray(self.objective.weight(t), dtype=np.float64) + 0.0  # no -0
        return np.where(np.asarray(t.true) > 0, np.nan, c_N) if self.group == ON_SUM else c_N


def rivals_text(rivals: int) -> str:
    """A number of rivals in words."""
    return f"{rivals} wrong token{'s' * (rivals > 1)}"


@functools.cache
def token_logits(p_N: tuple[float, ...], S: float, rivals: int) -> TokenLogits:
    """Tokens whose target has the probabilities p_N, while ``rivals`` of the V - 1 others share S."""
    import torch

    from model.objectives import of_rows

    p = torch.tensor(p_N, dtype=torch.float64)
    z_NV = torch.full((len(p), V), math.log(S / rivals), dtype=torch.float64)
    z_NV[:, rivals + 1 :] -= ABSENT
    z_NV[:, 0] = p.log() - torch.log1p(-p) + math.log(S)
    return of_rows(z_NV, torch.zeros(len(p), dtype=torch.int64), torch.zeros_like(p))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.weights", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file with objectives of your own; may be repeated",
    )
    options = parser.parse_args(arguments)
    with importing():
        from configs.load import import_plugins
    import_plugins(options.plugins)
    curves = list(all_curves())
    write_json(options.out / "summary.json", summary(curves))
    write_text(
        options.out / "weights.csv", table_of(curves).to_csv(index=False, float_format="%.9g", lineterminator="\n")
    )
    with style.look():
        style.save_figure(draw_weights(curves), options.out / "weights.png")
    print(printed(curves))
    print(f"written to {options.out}: summary.json, weights.csv, weights.png")


def all_curves() -> Iterator[Curve]:
    """Every registered objective of the family, in its variants; those that depend on the same thing stand together, and
    those with the same c are one."""
    found: dict[bytes, tuple[str, list[str], Any]] = {}
    for kind in _family():
        for name, objective in _variants(kind):
            group, seen = _dependence(objective)
            found.setdefault(seen.tobytes(), (group, [], objective))[1].append(name)
    for group, names, objective in sorted(found.values(), key=lambda one: GROUPS.index(one[0])):
        for S in SUMS if group == ON_SUM else (1.0,):
            for rivals in RIVALS if group == ON_RIVALS else (V - 1,):
                yield Curve(" = ".join(names), group, objective, S, rivals)


def _family() -> list[str]:
    from model import OBJECTIVES
    from model.objective_weighted import Weighted

    return [kind for kind, cls in OBJECTIVES.items() if issubclass(cls, Weighted)]


def _variants(kind: str) -> Iterator[tuple[str, Any]]:
    """Names of an objective's variants, and the objectives. Raises :class:`InputError` for one without defaults."""
    import pydantic
    import torch

    from common.registry import checked_options
    from model import OBJECTIVES

    for chosen in VARIANTS.get(kind, ({},)):
        try:
            options = checked_options(OBJECTIVES[kind], chosen)
        except pydantic.ValidationError as error:
            keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
            raise InputError(f"{kind}: give its options a default to have it drawn: {keys}") from None
        objective = OBJECTIVES[kind](options)
        told = chosen if kind in VARIANTS else vars(options)
        words = [f"{key} {value}" if isinstance(value, str) else f"{key} {value:g}" for key, value in told.items()]
        if objective.state is not None:
            if kind in LEVELS:
                objective.state.move_to(torch.tensor([LEVELS[kind]]))
            words.append(f"level {float(objective.state.value):.3g}")
        yield ", ".join([kind, *words]), objective


def _dependence(objective: Any) -> tuple[str, Floats]:
    """What its c depends on, and c among tokens that show it."""
    c_3N = np.array(
        [
            np.asarray(objective.weight(token_logits(TABLE, S, rivals)), dtype=np.float64)
            for S, rivals in ((1.0, V - 1), (0.5, V - 1), (1.0, 1))
        ]
    )
    same = [np.allclose(c_3N[0], other_N, rtol=1e-6, atol=1e-9) for other_N in c_3N[1:]]
    return (ON_SUM if not same[0] else P_ALONE if same[1] else ON_RIVALS), c_3N


# ---------------------------------------------------------------------------------------------------------------- numbers


def grid() -> Floats:
    """p_y of the curves, evenly spaced in log odds."""
    end = math.log1p(-ENDS) - math.log(ENDS)
    return 1 / (1 + np.exp(-np.linspace(-end, end, POINTS)))


def table_of(curves: Sequence[Curve]) -> pd.DataFrame:
    """A row for each curve and p_y."""
    p_N = grid()
    parts = [
        pd.DataFrame({"objective": curve.name, "S": curve.S, "rivals": curve.rivals, "p": p_N, "c": curve.weights(p_N)})
        for curve in curves
    ]
    return pd.concat(parts, ignore_index=True)


def summary(curves: Sequence[Curve]) -> dict[str, Any]:
    """The contents of summary.json."""
    rows = [
        {
            "objective": curve.name,
            "options": vars(curve.objective.options),
            "depends_on": {P_ALONE: ["p"], ON_SUM: ["p", "S"], ON_RIVALS: ["p", "rivals"]}[curve.group],
            "S": curve.S,
            "rivals": curve.rivals,
            "c": [None if math.isnan(c) else c for c in curve.weights(np.array(TABLE)).tolist()],
        }
        for curve in curves
    ]
    return {"vocabulary": V, "p": TABLE, "objectives": rows}


def printed(curves: Sequence[Curve]) -> str:
    """The table, and how to read it."""
    rows = [["ce", *["1"] * len(TABLE)]]
    for curve in curves:
        cells = ["-" if math.isnan(c) else f"{c:.3g}" for c in curve.weights(np.array(TABLE))]
        rows.append([curve.label, *cells])
    lines = [terminal_table(["c at p_y =", *(f"{p:g}" for p in TABLE)], rows)]
    lines.append(f"-: no logits at most 0 make such a p_y, which is at most 1/(1 + S). Vocabulary: {V}.")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------- figure


def draw_weights(curves: Sequence[Curve]) -> Figure:
    """A panel for each thing that c may depend on besides p_y."""
    from matplotlib.figure import Figure

    groups = [group for group in GROUPS if any(curve.group == group for curve in curves)]
    figure = Figure(figsize=(4.7 * len(groups), 5.8), layout="constrained")
    figure.suptitle("The weight c by which a token's cross-entropy gradient is multiplied", fontsize=11)
    for axes, group in zip(np.atleast_1d(figure.subplots(1, len(groups))), groups, strict=True):
        _draw_group(axes, group, [curve for curve in curves if curve.group == group])
    return figure


def _draw_group(axes: Axes, group: str, curves: Sequence[Curve]) -> None:
    p_N = grid()
    axes.set_title(group, fontsize=9.5)
    axes.axhline(1.0, color="black", linewidth=2.5, alpha=0.4, label="ce")
    for curve, look in zip(curves, _looks(group, curves), strict=True):
        axes.plot(p_N, curve.weights(p_N), label=curve.label, linewidth=1.6, **look)
    _probability_axis(axes)
    axes.set_ylabel("c")
    if group == ON_SUM:
        axes.set_yscale("log")
        axes.set_ylim(1e-5, 2)
        style.plain_log_ticks(axes.yaxis, (1e-5, 1.0))
        axes.set_xlabel("p_y: with all logits at most 0, no more than 1/(1 + S)")
    else:
        axes.set_ylim(bottom=-0.03)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        fontsize=7.5,
        ncols=2 if len(curves) > 4 else 1,
        columnspacing=1.2,
    )


def _looks(group: str, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Colour and line of each curve: those of its objective; where one has several curves, its line, and a shade for each."""
    styles = style.arm_styles(list(dict.fromkeys(curve.name for curve in curves)))
    if group == P_ALONE:
        return [{"color": styles[c.name].colour, "linestyle": styles[c.name].line} for c in curves]
    values = [curve.S if group == ON_SUM else curve.rivals for curve in curves]
    order = sorted(set(values))
    shades = {value: style.shade(place / max(1, len(order) - 1)) for place, value in enumerate(order)}
    return [
        {"color": shades[value], "linestyle": styles[curve.name].line}
        for curve, value in zip(curves, values, strict=True)
    ]


def _probability_axis(axes: Axes) -> None:
    """Even in log odds, with ticks at round numbers."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    ticks = {1e-6: "1e-6", 1e-4: "1e-4", 1e-2: "0.01", 0.1: "0.1", 0.5: "0.5", 0.9: "0.9", 0.99: "0.99"}
    ticks |= {1 - 1e-4: "1-1e-4", 1 - 1e-6: "1-1e-6"}
    axes.set_xscale("logit")
    axes.set_xlim(ENDS, 1 - ENDS)
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FixedFormatter(list(ticks.values())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set_xlabel("p_y, the target's probability (log odds)")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
