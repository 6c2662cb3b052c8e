"""Lexical substitutions: positions in real text with the substitutes that people found acceptable there, and others.

Substitutes are lemmas in the files that are known, while the target stands inflected in the text, and they are left as they
are: where :attr:`Substitution.inflected` is set, "walk" competes with "walked" for a place that wants a past tense, and such
items are better left out. Substitutes of several words keep their spaces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

ACCEPTABLE = 0.5
"""A candidate of a higher weight is accepted, one of weight 0 rejected, any between is neither: where candidates were judged,
acceptable is what more than half of the judges accept (SWORDS: Lee et al., NAACL 2021, whose evaluation sets the threshold just
above 0.5 and calls what reaches 0.1 conceivable). Where they were named, whoever names one counts as 1."""
_REST_OF_WORD = re.compile(r"\w|-\w|['\u2019]t\b")
"""What follows a target that is only part of a written word: "don" of "don't", "well" of "well-known"."""
_SHOWN = 20  # problems told one by one

FIRST = "no text before it"
GLUED = "not a whole word after a space"
MISSING = "spelled otherwise in its sentence"
PROBLEMATIC = "marked as problematic"
ONE_SIDED = "no accepted or no rejected candidate"


@dataclass(frozen=True)
class Substitution:
    """One position: a target word in a text, and candidates for its place.

    ``item`` and ``document`` are the file's own ids. ``left`` is the text before the target, white space collapsed,
    without the space before the target, which was there. ``candidates`` are (substitute, weight); see :data:`ACCEPTABLE`.
    ``pos`` is n, v, a, r or empty. ``inflected``: the target differs from its lemma, case aside, while candidates are
    lemmas. Where a file gives no lemma, the target itself in lower case stands in for it.
    """

    item: str
    document: str
    left: str
    target: str
    candidates: tuple[tuple[str, float], ...]
    lemma: str
    pos: str
    inflected: bool = False


@dataclass(frozen=True)
class SubstitutionList:
    """The items of one file."""

    source: str
    items: tuple[Substitution, ...]
    left_out: Mapping[str, int]
    """Reason to the number of targets left out for it."""


def raise_all(path: Path, problems: list[str]) -> None:
    """Raise :class:`InputError` with the first problems of a file, and how many more there are; nothing if there are none."""
    if problems:
        more = [f"{path}: {len(problems) - _SHOWN} more problems of this kind"] * (len(problems) > _SHOWN)
        raise InputError(*(f"{path} {problem}" for problem in problems[:_SHOWN]), *more)


def position_problem(text: str, offset: int, target: str) -> str | None:
    """Why a model cannot be asked for ``target`` at ``offset``, or None."""
    if not text[:offset].strip():
        return FIRST
    if not text[offset - 1].isspace() or _REST_OF_WORD.match(text, offset + len(target)):
        return GLUED
    return None


def finish(found: Iterator[Substitution | str], source: str) -> SubstitutionList:
    """The items among ``found`` with both accepted and rejected candidates, and a count of the reasons for the rest."""
    items = []
    left_out: Counter[str] = Counter()
    for entry in found:
        if isinstance(entry, str):
            left_out[entry] += 1
            continue
        weights = [weight for _, weight in entry.candidates]
        if max(weights, default=0) > ACCEPTABLE and min(weights) == 0:
            items.append(entry)
        else:
            left_out[ONE_SIDED] += 1
    return SubstitutionList(source, tuple(items), dict(left_out))


def candidates_of(weights: Mapping[str, float], *targets: str) -> tuple[tuple[str, float], ...]:
    """Heaviest first, then by spelling; without the target's own forms."""
    own = {target.casefold() for target in targets}
    kept = [(word, float(weight)) for word, weight in weights.items() if word.casefold() not in own]
    return tuple(sorted(kept, key=lambda entry: (-entry[1], entry[0])))


def collapse(text: str) -> str:
    """The text with every stretch of white space as one space, and none around it."""
    return " ".join(text.split())
