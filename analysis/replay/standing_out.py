"""What stands out in a replayed step, and how its texts and numbers are shown: visible, harmless, coloured by NLL."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from analysis.show.text import number, percent, token_text, visible

from .explanation import Explanation, Sequence, Token

STANDS_OUT = 2.0
"""A sequence stands out when its gradient norm exceeds the median of its batch by this factor."""
_FEWEST, _SIGMAS, _FLOOR = 8, 6.0, 0.25
"""Its NLL stands out in a batch of at least so many, by so many sigmas (1.4826 x MAD) and by this part of the median."""

# ------------------------------------------------------------------------------------------------------ what stands out


def by_gradient(e: Explanation) -> list[Sequence]:
    """All sequences: those whose gradient norm is not finite, then the others from the largest down."""
    return sorted(e.sequences, key=lambda s: (math.isfinite(s.grad_norm), -s.grad_norm))


def gradient_shares(e: Explanation) -> dict[int, float]:
    """By row, the part of the whole gradient that lies in the sequence's own term, as a projection: they add up to 1.

    A share is below 0 where the sequence pulls against the sum, and others may then exceed 1. Empty if a term is not
    finite or all of them cancel.
    """
    along = {s.row: s.grad_norm * s.alignment for s in e.sequences}
    total = math.fsum(along.values()) if all(map(math.isfinite, along.values())) else 0.0
    return {row: value / total for row, value in along.items()} if total > 0 else {}


def standing_out(e: Explanation) -> list[Sequence]:
    """The sequences, largest gradient first, whose gradient is not finite or above ``STANDS_OUT`` medians of the batch.

    The median is the lower one, so that one sequence of two can stand out.
    """
    ordered = by_gradient(e)
    finite = [s.grad_norm for s in ordered if math.isfinite(s.grad_norm)]
    median = finite[len(finite) // 2] if finite else 0.0
    return [s for s in ordered if not s.grad_norm <= STANDS_OUT * median]


def unlikely(e: Explanation) -> list[Sequence]:
    """The sequences, highest first, whose NLL is far above the others of a batch large enough to tell, or not finite."""
    finite = np.array([s.nll for s in e.sequences if math.isfinite(s.nll)])
    limit = math.inf
    if finite.size >= _FEWEST:
        median = float(np.median(finite))
        sigma = 1.4826 * float(np.median(np.abs(finite - median)))
        limit = median + max(_SIGMAS * sigma, _FLOOR * median)
    found = [s for s in e.sequences if not (math.isfinite(s.nll) and s.nll <= limit)]
    return sorted(found, key=lambda s: (math.isfinite(s.nll), -s.nll))


def worst_tokens(e: Explanation, count: int) -> list[tuple[Sequence, Token]]:
    """The ``count`` tokens of highest NLL (not finite: first) among the sequences whose tokens are recorded."""
    pairs = [(sequence, token) for sequence in e.sequences for token in sequence.tokens]
    return sorted(pairs, key=lambda pair: (math.isfinite(pair[1].nll), -pair[1].nll))[:count]


def level(e: Explanation) -> float:
    """The NLL that was usual before the step, else that of its batch; 0 if neither is finite. Colours are scaled by it."""
    check = e.metrics.get("loss/nll")
    known = [e.nll_before] if check is None or check.usual is None else [check.usual, e.nll_before]
    return next(filter(math.isfinite, known), 0.0)


# ---------------------------------------------------------------------------------------------------------------- texts


def context(sequence: Sequence, token: Token, characters: int) -> tuple[str, str]:
    """The visible text before and after the token, so many characters each side, "…" where more is cut off."""
    texts = [t.text for t in sequence.tokens]
    place = next(i for i, t in enumerate(sequence.tokens) if t.position == token.position)
    before, after = visible("".join(texts[:place])), visible("".join(texts[place + 1 :]))
    if len(before) > characters:
        before = "…" + before[-characters:]
    return before, after if len(after) <= characters else after[:characters] + "…"


# ----------------------------------------------------------------------------------------------------- tokens as colours

LEVELS = 6
"""Colours of the ramp; the style sheet of the page has one class for each, n0 to n5."""


@dataclass(frozen=True)
class Ramp:
    """Colours by NLL: each of the ``LEVELS`` is ``width`` nats wide, the last is open above."""

    width: float
    highest: float
    """The highest finite NLL that is coloured."""

    def css_class(self, nll: float) -> str:
        """n0 to n5, or "bad" for an NLL that is not finite."""
        return f"n{max(0, min(int(nll / self.width), LEVELS - 1))}" if math.isfinite(nll) else "bad"

    def legend(self) -> list[str]:
        """The NLL that each colour stands for."""
        edges = [f"{level * self.width:g}" for level in range(LEVELS)]
        names = [f"{low} to {high}" for low, high in pairwise(edges)]
        return [*names, f"{edges[-1]} and more (highest: {number(self.highest)})"]


def ramp_for(tokens: Iterable[Token], usual: float) -> Ramp:
    """A ramp whose last colour begins near the 98th percentile, or at twice the ``usual`` NLL if that is higher.

    So one extreme token does not make all others pale, and where all are as usual none looks extreme.
    """
    values = np.array([token.nll for token in tokens if math.isfinite(token.nll)])
    if not values.size or values.max() <= 0:
        return Ramp(1.0, float(values.max()) if values.size else math.nan)
    last = max(float(np.quantile(values, 0.98)), 2 * usual, float(values.max()) / 100)
    width = last / LEVELS
    unit = 10.0 ** math.floor(math.log10(width))
    nice = next(n for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if n * unit >= width * (1 - 1e-9))
    return Ramp(float(f"{nice * unit:.3g}"), float(values.max()))


def predictions(token: Token) -> str:
    """What the model held most probable there, best first, as visible text."""
    return ", ".join(f"{token_text(text)} {percent(p)}" for text, p in token.top) or "-"
