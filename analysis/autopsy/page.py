"""An autopsy in words, for the terminal and as a page."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from analysis.show.tables import terminal_table
from analysis.show.text import number, visible

from .conclude import REMOVED, Conclusion
from .window import Found

NEAR = 10
"""Steps before a spike from which on what moved is told."""


def summary(found: Found, conclusion: Conclusion, spike: Mapping[str, Any]) -> list[str]:
    """The conclusion, why, and the experiments."""
    w, e = found.window, found.evidence
    lines = [f"spike in {found.signal} from step {w.start}, peak at {w.peak}: {conclusion.cause}"]
    lines += [f"  {reason}" for reason in conclusion.reasons]
    if e.differs_from is not None:
        same = (
            "on the same kind of machine" if e.comparable else f"within {found.tolerance:g}, on another kind of machine"
        )
        lines.append(f"the steps taken again differ from the log, {same}: {found.disagreements[0]}")
    rows = [["the same again", "", _share(e.again)]]
    rows += [[name, cause, _share(share)] for name, (cause, share) in e.removed.items()]
    rows += [[name, "", "not possible here"] for name in found.left_out]
    lines += ["", terminal_table(["change", "speaks for", "of the spike gone"], rows)]
    near = [p for p in spike.get("precursors") or [] if p["lead_steps"] <= NEAR]
    if first := sorted(near, key=lambda p: p["first_step"])[:3]:
        told = ", ".join(f"{p['signal']} at step {p['first_step']}" for p in first)
        lines.append(f"moved first: {visible(told)}")
    lines.append(
        f"at the weights before, the loss of its batches stood {e.batch_sigmas:.1f} sigmas above that of others; the output "
        f"logits were up to {e.logit_sigmas:.1f} sigmas from their usual size; "
        f"{found.steps_taken} steps were taken; a change counts if {100 * REMOVED:.0f}% of the spike is gone"
    )
    return lines


def _share(share: float) -> str:
    if math.isinf(share):
        return "it grew without limit"
    return f"{number(1 - share, 2)} times as much" if share <= -1 else f"{number(100 * share, 3)}%"


def page(name: str, lines: Sequence[str], step: Sequence[str], figure: bytes) -> str:
    """The page: the summary, the figure, and what the step at which it began consists of."""
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            name=visible(name),
            headline=lines[0],
            summary="\n".join(lines[1:]),
            step="\n".join(step),
            figure=base64.b64encode(figure).decode(),
        )
    )
