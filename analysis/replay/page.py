"""One HTML page of a replayed step that needs nothing else.

Texts of the corpus are anybody's: every string goes through ``highlight.visible`` and ``html.escape``.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from analysis.show.text import change, clip, number, percent, token_text, visible

from .explanation import Explanation, Group, MetricCheck, Token
from .explanation import Sequence as Example
from .standing_out import by_gradient, context, gradient_shares, level, predictions, ramp_for, tokens_html, worst_tokens
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


def page(e: Explanation, figure: bytes, commands: Sequence[str]) -> str:
    """One HTML document that needs no other file and no script; in light or dark as the reader's system asks.

    Args:
        e: what the replay found.
        figure: a .png or .svg file of ``replay_figure.draw_explanation``, which is embedded.
        commands: how the page was made and how to go on, a command line each.
    """
    sections = [
        f"<h1>{_escape(' '.join(headline(e)))}</h1>\n{_facts(e)}{_reproduction_box(e)}",
        _figure(e, figure),
        _worst_sequences(e),
        _sequence_table(e),
        _group_table(e),
        _embedding_table(e),
        _layer_table(e),
        _metric_table(e),
        "<h2>How this page was made</h2>\n<pre>" + "\n".join(map(_escape, commands)) + "</pre>\n",
    ]
    title = _escape(f"{e.run}, step {e.step}")
    return _HEAD.format(title=title, style=_STYLE) + "".join(sections) + "</main>\n</body>\n</html>\n"


class _Html(str):
    """A piece of HTML; every other string is text and is escaped."""

    __slots__ = ()


def _escape(text: str) -> str:
    return text if isinstance(text, _Html) else html.escape(visible(text))


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str] = ()) -> str:
    """An HTML table; the first column and those whose header is in ``text`` are aligned as text, the rest as numbers."""
    kinds = ["text" if i == 0 or name in text else "number" for i, name in enumerate(header)]
    head = "".join(f'<th scope="col" class="{k}">{_escape(name)}</th>' for k, name in zip(kinds, header, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{k}">{_escape(cell)}</td>' for k, cell in zip(kinds, row, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="wide"><table>\n<caption>{_escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def _folded(summary: str, content: str, *, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{_escape(summary)}</summary>\n{content}</details>\n"


def _facts(e: Explanation) -> str:
    facts = [
        f"Run {e.run} ({e.run_directory}), step {e.step}, batch {e.batch} in the order of batches; replayed on {e.device} "
        f"from the checkpoint of step {e.checkpoint}.",
        update_words(e),
        *([group_words(e)] if e.groups else []),
        *([spike_words(e)] if e.spike else []),
        *(f"Planted by the configuration: {fault}." for fault in e.stress),
    ]
    return "<ul>\n" + "".join(f"<li>{_escape(fact)}</li>\n" for fact in facts) + "</ul>\n"


def _reproduction_box(e: Explanation) -> str:
    reproduced, words = reproduction(e)
    sign, kind = {True: ("✓", "good"), False: ("✗", "wrong"), None: ("?", "unknown")}[reproduced]
    named = "".join(f"<li>{_escape(name)}</li>\n" for name in e.disagreements)
    named = f"<ul>\n{named}</ul>\n" if named else ""
    return f'<div class="box {kind}"><strong>{sign} {_escape(words)}</strong>\n{named}</div>\n'


def _figure(e: Explanation, figure: bytes) -> str:
    kind = "png" if figure.startswith(b"\x89PNG") else "svg+xml"
    source = f"data:image/{kind};base64,{base64.b64encode(figure).decode()}"
    told = _escape(f"Figure of step {e.step}: loss and gradient around it, NLL of every token, gradients, layer norms.")
    return f'<figure><img src="{source}" alt="{told}"></figure>\n'


def _worst_sequences(e: Explanation) -> str:
    """The sequences whose tokens are recorded, coloured, and their worst tokens in a table."""
    shown = [s for s in by_gradient(e) if s.tokens]
    if not shown:
        return ""
    ramp = ramp_for((token for s in shown for token in s.tokens), level(e))
    worst = worst_tokens(e, 12)
    shares = gradient_shares(e)
    parts = [f"<h2>The {len(shown)} sequences with the largest gradients</h2>\n", ramp.legend()]
    for place, s in enumerate(shown):
        outlined = {token.position for other, token in worst if other.row == s.row}
        text = f'<p class="tokens" dir="ltr">{tokens_html(s.tokens, ramp, outlined)}</p>\n'
        title = f"Row {s.row}: {own_numbers(s, shares)} (worst token {number(s.worst_nll)}); sequence {s.index}"
        parts.append(_folded(title, text, opened=place < 3))
    return "".join(parts) + _token_table(e, worst)


def _token_table(e: Explanation, worst: list[tuple[Example, Token]]) -> str:
    weighted = any(token.weight is not None for _, token in worst)
    rows = []
    for s, token in worst:
        before, after = map(html.escape, context(s, token, 30))
        seen = _Html(f"{before}<mark>{html.escape(token_text(token.text))}</mark>{after}")
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
    return _table(f"The worst tokens of these sequences.{higher}", header, rows, text=header[-1:])


def _rows(sequences: Sequence[Example]) -> str:
    return first_of([f"row {s.row} ({number(s.worst_nll)})" for s in sequences], 5)


def _sequence_table(e: Explanation) -> str:
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
    heading = f"<h2>All {len(rows)} sequences, largest gradient first</h2>\n"
    table = _table(caption, header, rows[:32], text=("excerpt", "largest group"))
    if len(rows) > 32:
        rest = _table("Smaller gradients", header, rows[32:], text=("excerpt", "largest group"))
        table += _folded(f"The other {len(rows) - 32} sequences", rest)
    return heading + table


def _group_table(e: Explanation) -> str:
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
    return "<h2>Groups of parameters</h2>\n" + _table(caption, header, [row(g) for g in e.groups])


def _embedding_table(e: Explanation) -> str:
    header = ["token", "id", "moved by", "norm before", "after", "change", "as input", "as target"]
    rows = [
        [token_text(m.text), f"{m.token_id}", number(m.distance), number(m.norm_before), number(m.norm_after)]
        + [change(m.norm_before, m.norm_after), f"{m.inputs}", f"{m.targets}"]
        for m in e.embeddings
    ]
    caption = "Rows of the input embedding that the update moved farthest (L2), and how often the batch has the token."
    return "<h2>Embeddings</h2>\n" + _table(caption, header, rows)


def _layer_table(e: Explanation) -> str:
    header = ["place", "mean before", "mean after", "change", "max before", "max after", "change"]
    rows = [
        [x.name, number(x.mean_before), number(x.mean_after), change(x.mean_before, x.mean_after)]
        + [number(x.max_before), number(x.max_after), change(x.max_before, x.max_after)]
        for x in e.layers
    ]
    caption = "L2 norm of the residual stream on this batch, over its tokens, before and after the update."
    return "<h2>Layers</h2>\n" + _table(caption, header, rows)


def _metric_table(e: Explanation) -> str:
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
    table = _table(caption, header, rows, text=("comparison",))
    return "<h2>Metrics</h2>\n" + _folded(f"All {len(rows)} metrics of the step", table)


_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
"""

# The ramp runs from the page's own background to what stands out most from it: light to dark, or dark to light.
_STYLE = """
:root { --text: #1c1c1c; --faint: #5a5a5a; --page: #ffffff; --panel: #f5f5f3; --line: #d8d8d4;
  --good: #00664a; --wrong: #a82000; --stripe: #0072b2; --stripe2: #cfe6f5;
  --n0: #fffbe8; --n1: #fee8a6; --n2: #fec44f; --n3: #fb8d24; --n4: #c44601; --n5: #7a2503;
  --t3: #1c1c1c; --t4: #ffffff; --t5: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ececea; --faint: #a9a9a5; --page: #161616; --panel: #222220; --line: #444441;
    --good: #4fd0a5; --wrong: #ff9277; --stripe: #0a4f78; --stripe2: #14324a;
    --n0: #261f17; --n1: #46290e; --n2: #6f3707; --n3: #a34a05; --n4: #f59a3c; --n5: #ffe6a8;
    --t3: #ffffff; --t4: #1c1c1c; --t5: #1c1c1c; } }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 1.3rem; line-height: 1.35; margin: 0 0 12px; } h2 { font-size: 1.15rem; margin: 36px 0 8px; }
ul { padding-left: 1.2em; margin: 8px 0; } li { overflow-wrap: anywhere; }
.box { border: 1px solid var(--line); border-left: 6px solid; background: var(--panel); padding: 10px 14px; margin: 16px 0; }
.box ul { columns: 17em; }
.box.good { border-left-color: var(--good); } .box.good strong { color: var(--good); }
.box.wrong { border-left-color: var(--wrong); } .box.wrong strong { color: var(--wrong); }
.box.unknown { border-left-color: var(--faint); }
figure { margin: 20px 0; overflow-x: auto; } figure img { max-width: 100%; min-width: 640px; background: #ffffff; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding: 2px 0 6px; }
th, td { padding: 3px 9px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top; unicode-bidi: isolate; }
th { color: var(--faint); font-weight: 600; } .number { text-align: right; white-space: nowrap; }
.text { text-align: left; } td.text { white-space: nowrap; }
.tokens, pre { font: 0.86rem/1.75 ui-monospace, Consolas, "DejaVu Sans Mono", monospace; white-space: break-spaces;
  overflow-wrap: anywhere; background: var(--panel); padding: 10px 12px; margin: 6px 0; unicode-bidi: isolate; }
.legend { font-size: 0.86rem; }
.n0 { background: var(--n0); } .n1 { background: var(--n1); } .n2 { background: var(--n2); }
.n3 { background: var(--n3); color: var(--t3); } .n4 { background: var(--n4); color: var(--t4); }
.n5 { background: var(--n5); color: var(--t5); }
.bad { background: repeating-linear-gradient(45deg, var(--stripe2) 0 4px, transparent 4px 8px);
  outline: 1px dashed var(--stripe); }
.worst { outline: 2px solid var(--text); outline-offset: -1px; }
[class^="n"][title], .bad[title] { box-shadow: inset -1px 0 var(--panel); }
mark { background: var(--n3); color: var(--t3); }
"""
