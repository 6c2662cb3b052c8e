"""A self-contained HTML page about a replayed step.

The corpus may contain any text: everything that the template gets goes through ``visible`` and is escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from analysis.show.html import templates
from analysis.show.text import change, clip, first_of, number, on_a_base, percent, token_text, visible

from . import words
from .explanation import BatchSequence, Explanation, MetricCheck, Token

SEQUENCES_SHOWN = 32
"""Rows of the table of sequences that are not folded away."""
LEVELS = 6
"""Colours by NLL; page.css has a class for each, n0 to n5."""


@dataclass(frozen=True)
class Table:
    """A table; the first column and those whose header is in ``text`` are aligned as text, the others as numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[str] = ()

    @property
    def kinds(self) -> list[str]:
        """The alignment of each column."""
        return ["text" if i == 0 or name in self.text else "number" for i, name in enumerate(self.header)]


def page(e: Explanation, figure: bytes, commands: Sequence[str]) -> str:
    """One HTML document without scripts or other files.

    ``figure``: the bytes of a .png or .svg file, which is embedded. ``commands``: the command lines that made the page.
    """
    reproduced, verdict = words.reproduction(e)
    sign, box = {True: ("✓", "good"), False: ("✗", "wrong"), None: ("?", "unknown")}[reproduced]
    kind = "png" if figure.startswith(b"\x89PNG") else "svg+xml"
    worst, shares = e.worst_tokens(12), e.gradient_shares
    sequences, others = _sequence_tables(e)
    template = _templates().get_template("page.html.j2")
    return template.render(
        e=e,
        headline=" ".join(words.headline(e)),
        facts=_facts(e),
        sign=sign,
        box=box,
        reproduction=verdict,
        figure=f"data:image/{kind};base64,{base64.b64encode(figure).decode()}",
        ramp=ramp_for((t for s in e.sequences for t in s.tokens), e.usual_nll),
        shown=[
            (
                f"Row {s.row}: {words.own_numbers(s, shares)} (worst token {number(s.worst_nll)}); sequence {s.index}",
                s,
                {token.position for other, token in worst if other.row == s.row},
            )
            for s in e.by_gradient
            if s.tokens
        ],
        tokens=_token_table(e, worst),
        sequences=sequences,
        others=others,
        tables={
            "Groups of parameters": _group_table(e),
            "Embeddings": _embedding_table(e),
            "Layers": _layer_table(e),
        },
        metrics=_metric_table(e),
        commands=commands,
    )


def _templates() -> jinja2.Environment:
    found = templates(Path(__file__).parent)
    found.globals |= {"number": number, "predictions": predictions, "token_text": token_text}
    found.globals["running_text"] = lambda text: on_a_base(visible(text)) or "∅"
    return found


def predictions(token: Token) -> str:
    """The most probable tokens in place of ``token``, as visible text."""
    return ", ".join(f"{token_text(text)} {percent(p)}" for text, p in token.top) or "-"


@dataclass(frozen=True)
class Ramp:
    """Colours by NLL: each of the ``LEVELS`` is ``width`` nats wide, the last has no upper end."""

    width: float
    highest: float
    """The highest finite NLL that is coloured."""

    def css_class(self, nll: float) -> str:
        """n0 to n5, or "bad" for an NLL that is not finite."""
        return f"n{max(0, min(int(nll / self.width), LEVELS - 1))}" if math.isfinite(nll) else "bad"

    def legend(self) -> list[str]:
        """The range of each colour."""
        edges = [f"{level * self.width:g}" for level in range(LEVELS)]
        names = [f"{low} to {high}" for low, high in pairwise(edges)]
        return [*names, f"{edges[-1]} and more (highest: {number(self.highest)})"]


def ramp_for(tokens: Iterable[Token], usual: float) -> Ramp:
    """A ramp whose last colour begins near the 98th percentile, or at twice the ``usual`` NLL if that is higher.

    So one extreme token does not make all others pale, and in a normal batch none looks extreme.
    """
    values = np.array([token.nll for token in tokens if math.isfinite(token.nll)])
    if not values.size or values.max() <= 0:
        return Ramp(1.0, float(values.max()) if values.size else math.nan)
    width = max(float(np.quantile(values, 0.98)), 2 * usual, float(values.max()) / 100) / LEVELS
    unit = 10.0 ** math.floor(math.log10(width))
    nice = next(n for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if n * unit >= width * (1 - 1e-9))
    return Ramp(float(f"{nice * unit:.3g}"), float(values.max()))


# ---------------------------------------------------------------------------------------------------------- its contents


def _facts(e: Explanation) -> list[str]:
    return [
        f"Run {e.run} ({e.run_directory}), step {e.step}, batch {e.batch} in the order of batches; replayed on {e.device} "
        f"from the checkpoint of step {e.checkpoint}.",
        words.update_words(e),
        *([words.group_words(e)] if e.groups else []),
        *([words.spike_words(e)] if e.spike else []),
        *(f"Planted by the configuration: {fault}." for fault in e.stress),
    ]


def _token_table(e: Explanation, worst: Sequence[tuple[BatchSequence, Token]]) -> Table:
    weighted = any(token.weight is not None for _, token in worst)
    rows = []
    for s, token in worst:
        before, after = words.context(s, token, 30)
        seen = Markup("{}<mark>{}</mark>{}").format(before, token_text(token.text), after)
        weight = [number(token.weight)] if weighted else []
        place = [f"{s.row}", f"{token.position}", f"{token.token_id}"]
        rows.append([seen, number(token.nll), *weight, *place, predictions(token)])
    unseen = [s for s in e.sequences if not s.tokens and worst and s.worst_nll > worst[0][1].nll]
    named = first_of([f"row {s.row} ({number(s.worst_nll)})" for s in unseen], 5)
    higher = f" Higher still, in sequences not shown: {named}." if unseen else ""
    header = ["token in its context", "NLL", *(["c"] if weighted else []), "row", "position", "id"]
    header += ["what the model expected"]
    return Table(f"The worst tokens of these sequences.{higher}", header, rows, text=header[-1:])


def _sequence_tables(e: Explanation) -> tuple[Table, Table | None]:
    """The sequences with the largest gradients, and the others if there are any."""
    shares = e.gradient_shares
    weighted = any(s.weight_mean is not None for s in e.sequences)
    header = ["row", "excerpt", "gradient", "share", "alignment", "NLL", "worst NLL", *(["mean c"] if weighted else [])]
    header += ["largest group", "sequence"]
    rows = []
    for s in e.by_gradient:
        group, norm = max(s.group_grad_norms.items(), key=lambda pair: pair[1], default=("-", None))
        gradient = [number(s.grad_norm), percent(shares.get(s.row)), number(s.alignment, 2)]
        losses = [number(s.nll), number(s.worst_nll), *([number(s.weight_mean)] if weighted else [])]
        excerpt = clip(visible(s.text[:120]), 46)
        rows.append([f"{s.row}", excerpt, *gradient, *losses, f"{group} {number(norm, 3)}", f"{s.index}"])
    caption = (
        "Gradient: L2 norm of the sequence's own term. Share: its projection on the whole gradient; shares add up to 100%, "
        "below 0 it pulls against the rest. Alignment: cosine to the whole."
    )
    text = ("excerpt", "largest group")
    shown, others = (
        Table(title, header, part, text)
        for title, part in ((caption, rows[:SEQUENCES_SHOWN]), ("Smaller gradients", rows[SEQUENCES_SHOWN:]))
    )
    return shown, others if others.rows else None


def _group_table(e: Explanation) -> Table:
    header = ["group", "gradient", "usual", "x usual", "update RMS", "usual", "x usual", "parameters"]
    rows = []
    for g in e.groups:
        cells = [g.name]
        for value, usual in ((g.grad_norm, g.usual_grad_norm), (g.update_rms, g.usual_update_rms)):
            cells += [number(value), number(usual), number(words.ratio(value, usual), 3)]
        rows.append([*cells, number(g.param_norm)])
    return Table(f"L2 norms before clipping. {words.window_words(e)}.", header, rows)


def _embedding_table(e: Explanation) -> Table:
    header = ["token", "id", "moved by", "norm before", "after", "change", "as input", "as target"]
    rows = [
        [token_text(m.text), f"{m.token_id}", number(m.distance), number(m.norm_before), number(m.norm_after)]
        + [change(m.norm_before, m.norm_after), f"{m.inputs}", f"{m.targets}"]
        for m in e.embeddings
    ]
    caption = "Rows of the input embedding that the update moved farthest (L2), and how often the batch has the token."
    return Table(caption, header, rows)


def _layer_table(e: Explanation) -> Table:
    header = ["layer", "mean before", "mean after", "change", "max before", "max after", "change"]
    rows = [
        [x.name, number(x.mean_before), number(x.mean_after), change(x.mean_before, x.mean_after)]
        + [number(x.max_before), number(x.max_after), change(x.max_before, x.max_after)]
        for x in e.layers
    ]
    return Table(
        "L2 norm of the residual stream on this batch, over its tokens, before and after the update.", header, rows
    )


def _metric_table(e: Explanation) -> Table:
    def verdict(m: MetricCheck) -> str:
        return "not logged" if m.logged is None else "agrees" if m.agrees else "DIFFERS"

    header = ["metric", "logged", "replayed", "comparison", "usual", "sigmas"]
    rows = [
        [name, number(m.logged, 7), number(m.replayed, 7), verdict(m), number(m.usual), number(m.sigmas, 3)]
        for name, m in sorted(e.metrics.items(), key=lambda item: (item[1].agrees, item[0]))
    ]
    caption = (
        f"{words.window_words(e)}; sigmas: distance from it in 1.4826 x their median absolute deviation, none where they do "
        "not vary."
    )
    return Table(caption, header, rows, text=("comparison",))
