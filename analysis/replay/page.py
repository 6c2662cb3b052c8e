"""One HTML page of a replayed step that needs nothing else.

Texts of the corpus are anybody's: whatever the template is given goes through ``visible`` and is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from analysis.show.text import change, clip, number, on_a_base, percent, token_text, visible

from .explanation import Explanation, Group, MetricCheck, Token
from .explanation import Sequence as Example
from .standing_out import by_gradient, context, gradient_shares, level, predictions, ramp_for, worst_tokens
from .words import (
    first_of,
    group_words,
    headline,
    own_numbers,
    ratio,
    reproduction,
    spike_words,
    update_words,
    window_words,
)

SEQUENCES_SHOWN = 32
"""Rows of the table of sequences that are not folded away."""


@dataclass(frozen=True)
class Table:
    """A table; the first column and those whose header is in ``text`` are aligned as text, the rest as numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[str] = ()

    @property
    def kinds(self) -> list[str]:
        """Of each column."""
        return ["text" if i == 0 or name in self.text else "number" for i, name in enumerate(self.header)]


def page(e: Explanation, figure: bytes, commands: Sequence[str]) -> str:
    """One HTML document that needs no other file and no script; in light or dark as the reader's system asks.

    Args:
        e: what the replay found.
        figure: a .png or .svg file of ``replay_figure.draw_explanation``, which is embedded.
        commands: how the page was made and how to go on, a command line each.
    """
    reproduced, words = reproduction(e)
    sign, box = {True: ("✓", "good"), False: ("✗", "wrong"), None: ("?", "unknown")}[reproduced]
    kind = "png" if figure.startswith(b"\x89PNG") else "svg+xml"
    worst = worst_tokens(e, 12)
    sequences, others = _sequence_tables(e)
    template = _templates().get_template("page.html.j2")
    return template.render(
        e=e,
        headline=" ".join(headline(e)),
        facts=_facts(e),
        sign=sign,
        box=box,
        reproduction=words,
        figure=f"data:image/{kind};base64,{base64.b64encode(figure).decode()}",
        ramp=ramp_for((token for s in e.sequences for token in s.tokens), level(e)),
        shown=_shown(e, worst),
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
        line_end=Markup("\n"),  # as a text it would be made visible
    )


def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals |= {"number": number, "predictions": predictions, "token_text": token_text}
    templates.globals["running_text"] = lambda text: on_a_base(visible(text)) or "∅"
    return templates


def _visible(value: Any) -> Any:
    """What the template writes for a value: of a text, whatever is in it; HTML, of this page, as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _facts(e: Explanation) -> list[str]:
    return [
        f"Run {e.run} ({e.run_directory}), step {e.step}, batch {e.batch} in the order of batches; replayed on {e.device} "
        f"from the checkpoint of step {e.checkpoint}.",
        update_words(e),
        *([group_words(e)] if e.groups else []),
        *([spike_words(e)] if e.spike else []),
        *(f"Planted by the configuration: {fault}." for fault in e.stress),
    ]


def _shown(e: Explanation, worst: Sequence[tuple[Example, Token]]) -> list[tuple[str, Example, set[int]]]:
    """Title, sequence and the positions that are outlined, for each whose tokens are recorded."""
    shares = gradient_shares(e)
    return [
        (
            f"Row {s.row}: {own_numbers(s, shares)} (worst token {number(s.worst_nll)}); sequence {s.index}",
            s,
            {token.position for other, token in worst if other.row == s.row},
        )
        for s in by_gradient(e)
        if s.tokens
    ]


def _token_table(e: Explanation, worst: Sequence[tuple[Example, Token]]) -> Table:
    weighted = any(token.weight is not None for _, token in worst)
    rows = []
    for s, token in worst:
        before, after = context(s, token, 30)
        seen = Markup("{}<mark>{}</mark>{}").format(before, token_text(token.text), after)
        weight = [number(token.weight)] if weighted else []
        place = [f"{s.row}", f"{token.position}", f"{token.token_id}"]
        rows.append([seen, number(token.nll), *weight, *place, predictions(token)])
    unseen = [s for s in e.sequences if not s.tokens and worst and s.worst_nll > worst[0][1].nll]
    higher = f" Higher still, in sequences not shown: {_rows(unseen)}." if unseen else ""
    header = [
        "token in its context",
        "NLL",
        *(["c"] if weighted else []),
        "row",
        "position",
        "id",
        "what the model expected",
    ]
    return Table(f"The worst tokens of these sequences.{higher}", header, rows, text=header[-1:])


def _rows(sequences: Sequence[Example]) -> str:
    return first_of([f"row {s.row} ({number(s.worst_nll)})" for s in sequences], 5)


def _sequence_tables(e: Explanation) -> tuple[Table, Table | None]:
    """The sequences with the largest gradients, and the others if there are any."""
    shares = gradient_shares(e)
    weighted = any(s.weight_mean is not None for s in e.sequences)
    header = ["row", "excerpt", "gradient", "share", "alignment", "NLL", "worst NLL", *(["mean c"] if weighted else [])]
    header += ["largest group", "sequence"]
    rows = []
    for s in by_gradient(e):
        group = max(s.group_grad_norms.items(), key=lambda pair: pair[1], default=("-", None))
        rows.append(
            [f"{s.row}", clip(visible(s.text[:120]), 46), number(s.grad_norm), percent(shares.get(s.row))]
            + [
                number(s.alignment, 2),
                number(s.nll),
                number(s.worst_nll),
                *([number(s.weight_mean)] if weighted else []),
            ]
            + [f"{group[0]} {number(group[1], 3)}", f"{s.index}"]
        )
    caption = (
        "Gradient: L2 norm of the sequence's own term. Share: its projection on the whole gradient; shares add up to 100%, "
        "below 0 it pulls against the rest. Alignment: cosine to the whole."
    )
    first, others = rows[:SEQUENCES_SHOWN], rows[SEQUENCES_SHOWN:]
    text = ("excerpt", "largest group")
    return Table(caption, header, first, text), Table("Smaller gradients", header, others, text) if others else None


def _group_table(e: Explanation) -> Table:
    def row(g: Group) -> list[str]:
        gradient, update = ratio(g.grad_norm, g.usual_grad_norm), ratio(g.update_rms, g.usual_update_rms)
        values = [number(g.grad_norm), number(g.usual_grad_norm), number(gradient, 3)]
        return [
            g.name,
            *values,
            number(g.update_rms),
            number(g.usual_update_rms),
            number(update, 3),
            number(g.param_norm),
        ]

    header = ["group", "gradient", "usual", "x usual", "update RMS", "usual", "x usual", "parameters"]
    caption = f"L2 norms before clipping. {window_words(e)}."
    return Table(caption, header, [row(g) for g in e.groups])


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
    header = ["place", "mean before", "mean after", "change", "max before", "max after", "change"]
    rows = [
        [x.name, number(x.mean_before), number(x.mean_after), change(x.mean_before, x.mean_after)]
        + [number(x.max_before), number(x.max_after), change(x.max_before, x.max_after)]
        for x in e.layers
    ]
    caption = "L2 norm of the residual stream on this batch, over its tokens, before and after the update."
    return Table(caption, header, rows)


def _metric_table(e: Explanation) -> Table:
    def verdict(m: MetricCheck) -> str:
        return "not logged" if m.logged is None else "agrees" if m.agrees else "DIFFERS"

    header = ["metric", "logged", "replayed", "comparison", "usual", "sigmas"]
    rows = [
        [name, number(m.logged, 7), number(m.replayed, 7), verdict(m), number(m.usual), number(m.sigmas, 3)]
        for name, m in sorted(e.metrics.items(), key=lambda item: (item[1].agrees, item[0]))
    ]
    caption = (
        f"{window_words(e)}; sigmas: distance from it in 1.4826 x their median absolute deviation, none where they do "
        "not vary."
    )
    return Table(caption, header, rows, text=("comparison",))
