"""How much a study asks, in numbers and in words."""

from __future__ import annotations

import textwrap

import numpy as np

from analysis.tables import WIDTH

from .study import CONTROLS, Study, reasons


def counts(study: Study) -> dict[str, int]:
    """How much is asked, and of how many."""
    asked_M = ~study.shuffled_M
    return {
        "items": len(study.items),
        "items_left_out": len(study.left_out),
        "contexts": int(asked_M.sum()),
        "contexts_single_tokens": int((asked_M & study.single_M).sum()),
        "shuffled_contexts": int(study.shuffled_M.sum()),
        "places": len(np.unique(study.place_M[asked_M])),
        "documents": len(np.unique(study.document_M[asked_M])),
        "lemmas": len(np.unique(study.lemma_M[asked_M])),
        "controls_per_synonym": CONTROLS,
    }


def described(study: Study) -> list[str]:
    """The same in words, a line each, with what was left out."""
    n = counts(study)
    lines = [
        f"{study.source}: {n['items']} of {n['items'] + n['items_left_out']} items used; {n['contexts']} contexts "
        f"({n['contexts_single_tokens']} of single tokens),",
        f"{n['lemmas']} lemmas, {n['documents']} documents; {CONTROLS} control words for each synonym; "
        f"{n['shuffled_contexts']} contexts of other words",
    ]
    if study.left_out:
        lines.append(f"left out {len(study.left_out)} ({reasons(study.left_out)}); why, for each, is in summary.json")
        named = ", ".join(entry.name for entry in study.left_out)
        lines.append(textwrap.shorten(f"  not used: {named}", WIDTH, placeholder=" ..."))
    return lines
