"""Lexical substitutions: targets in real text, with the substitutes that people accepted there and those they rejected.

In all known files the substitutes are lemmas while the target stands inflected in the text: "walk" competes with "walked" for
a place that needs a past tense. Substitutes of several words keep their spaces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

ACCEPTABLE = 0.5
"""A candidate of a higher weight is accepted, one of weight 0 rejected, any other is neither. Where candidates were judged, more
than half of the judges must accept one (as in the evaluation of SWORDS, Lee et al., NAACL 2021, which calls a share of 0.1
conceivable); where annotators named them, each annotator counts as 1."""
_REST_OF_WORD = re.compile(r"\w|-\w|['\u2019]t\b")
"""What follows a target that is only part of a written word: "don" of "don't", "well" of "well-known"."""
_SHOWN = 20  # problems listed one by one

FIRST = "no text before it"
GLUED = "not a whole word after a space"
MISSING = "spelled otherwise in its sentence"
PROBLEMATIC = "marked as problematic"
ONE_SIDED = "no accepted or no rejected candidate"


@dataclass(frozen=True)
class Substitution:
    """A target word in a text, and candidates for its place; ``item`` and ``document`` are the file's own ids."""

    item: str
    document: str
    left: str
    """The text before the target and the space between them, with white space collapsed."""
    target: str
    candidates: tuple[tuple[str, float], ...]
    """(substitute, weight), heaviest first, then by spelling; see :data:`ACCEPTABLE`."""
    lemma: str
    """The target itself in lower case if the file gives none."""
    pos: str
    """n, v, a, r or empty."""


@dataclass(frozen=True)
class SubstitutionList:
    """The items of one file."""

    source: str
    items: tuple[Substitution, ...]
    left_out: Mapping[str, int]
    """How many targets were left out, by reason."""


def raise_all(path: Path, problems: list[str]) -> None:
    """Raise :class:`InputError` with the first problems of a file and the number of the others, if there are any."""
    if problems:
        more = [f"{path}: {len(problems) - _SHOWN} more problems of this kind"] * (len(problems) > _SHOWN)
        raise InputError(*(f"{path} {problem}" for problem in problems[:_SHOWN]), *more)


def item_at(
    text: str, offset: int, weights: Mapping[str, float], *, item: str, document: str, target: str, lemma: str, pos: str
) -> Substitution | str:
    """The target at ``offset`` of ``text``, or the reason to leave it out. Forms of the target are no candidates."""
    if not text[:offset].strip():
        return FIRST
    if not text[offset - 1].isspace() or _REST_OF_WORD.match(text, offset + len(target)):
        return GLUED
    own = {target.casefold(), lemma.casefold()}
    candidates = [(word, float(weight)) for word, weight in weights.items() if word.casefold() not in own]
    candidates.sort(key=lambda candidate: (-candidate[1], candidate[0]))
    heaviest, lightest = (candidates[0][1], candidates[-1][1]) if candidates else (0.0, 0.0)
    if heaviest <= ACCEPTABLE or lightest > 0:
        return ONE_SIDED
    return Substitution(item, document, collapse(text[:offset]), target, tuple(candidates), lemma, pos)


def as_list(source: str, found: Iterable[Substitution | str]) -> SubstitutionList:
    """The items among ``found``, and how often each reason to leave one out occurs there."""
    found = list(found)
    items = tuple(entry for entry in found if not isinstance(entry, str))
    return SubstitutionList(source, items, Counter(entry for entry in found if isinstance(entry, str)))


def collapse(text: str) -> str:
    """The text with every run of white space as one space, and none around it."""
    return " ".join(text.split())
