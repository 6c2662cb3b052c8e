"""CoInCo (Kremer et al., EACL 2014): XML with sentences, their tokens, and the substitutes that annotators named.

The weight is the number of annotators who named the substitute. Nothing is rejected in the file; the usual protocol (Thater et
al. 2010) takes as rejected what was named for the same lemma and part of speech anywhere in the file, but not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from common.errors import InputError

from .substitutions import (
    MISSING,
    PROBLEMATIC,
    Substitution,
    SubstitutionList,
    candidates_of,
    collapse,
    finish,
    position_problem,
    raise_all,
)

_DECLARATIONS = re.compile(r"<!\s*(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_PENN = {"N": "n", "V": "v", "M": "v", "J": "a", "R": "r"}  # by first letter: NN*, VB*, MD, JJ*, RB*
_NOT_PENN = ("RP",)  # a particle: "R" otherwise means an adverb
_NO_TARGET = "XXX"  # CoInCo's id of a token nobody was asked about
_NO_LEMMA = ("", "<unknown>")  # what CoInCo's tagger writes for a word it does not know
_LENGTHENED = 3
"""A token that the text spells otherwise (an ellipsis for three dots) is at most so many times as long there."""


@dataclass(frozen=True)
class _Named:
    """A CoInCo target with what its annotators named."""

    item: str
    document: str
    text: str
    offset: int | None
    target: str
    lemma: str
    pos: str
    problematic: bool
    weights: dict[str, float]

    @property
    def key(self) -> tuple[str, str]:
        return self.lemma.casefold(), self.pos


def load_coinco(path: Path, text: str) -> SubstitutionList:
    """The items of ``text``, read from ``path``. Raises :class:`InputError` naming the file and the line or the item."""
    if _DECLARATIONS.search(text):
        raise InputError(f"{path} declares a DOCTYPE or entities, which CoInCo does not; remove the declarations")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - nothing is declared that could be expanded or fetched
    except ElementTree.ParseError as error:
        raise InputError(f"{path} line {error.position[0]}: is not XML ({error}); download the file again") from error
    problems: list[str] = []
    named = [entry for sentence in root.iter("sent") for entry in _coinco_sentence(sentence, problems)]
    raise_all(path, problems)
    if not named:
        raise InputError(f"{path} has no sent with a token that was asked about; give CoInCo XML")
    pool: dict[tuple[str, str], set[str]] = {}
    for entry in named:
        if not entry.problematic:
            pool.setdefault(entry.key, set()).update(entry.weights)
    return finish((_coinco_item(entry, pool.get(entry.key, set())) for entry in named), f"CoInCo ({path})")


def _coinco_item(entry: _Named, pool: set[str]) -> Substitution | str:
    if entry.problematic:
        return PROBLEMATIC
    if entry.offset is None:
        return MISSING
    problem = position_problem(entry.text, entry.offset, entry.target)
    if problem is not None:
        return problem
    here = {word.casefold() for word in entry.weights}
    rejected = {word: 0.0 for word in pool if word.casefold() not in here}
    return Substitution(
        item=entry.item,
        document=entry.document,
        left=collapse(entry.text[: entry.offset]),
        target=entry.target,
        candidates=candidates_of(entry.weights | rejected, entry.target, entry.lemma),
        lemma=entry.lemma,
        pos=entry.pos,
        inflected=entry.lemma.casefold() != entry.target.casefold(),
    )


def _coinco_sentence(sentence: ElementTree.Element, problems: list[str]) -> Iterator[_Named]:
    before, target = (collapse(sentence.findtext(name) or "") for name in ("precontext", "targetsentence"))
    text = f"{before} {target}".lstrip()
    tokens = list(sentence.iter("token"))
    offsets = _token_offsets(text, len(text) - len(target), [token.get("wordform", "").strip() for token in tokens])
    for token, offset in zip(tokens, offsets, strict=True):
        item = token.get("id", _NO_TARGET)
        if item == _NO_TARGET:
            continue
        form, lemma = token.get("wordform", "").strip(), token.get("lemma", "").strip()
        weights, problem = _coinco_weights(token)
        if not form:
            problem = "has no wordform"
        if problem is not None:
            problems.append(f"token {item}: {problem}")
            continue
        yield _Named(
            item=item,
            document=sentence.get("MASCfile", ""),
            text=text,
            offset=offset,
            target=form,
            lemma=form.casefold() if lemma in _NO_LEMMA else lemma,
            pos=_penn(token.get("posMASC", "")),
            problematic=token.get("problematic", "no").strip().lower() == "yes",
            weights=weights,
        )


def _penn(tag: str) -> str:
    return "" if tag in _NOT_PENN else _PENN.get(tag[:1], "")


def _coinco_weights(token: ElementTree.Element) -> tuple[dict[str, float], str | None]:
    """How many annotators named each substitute; one that is listed twice is named by both numbers together."""
    weights: dict[str, float] = {}
    for entry in token.iter("subst"):
        word, count = collapse(entry.get("lemma", "")), entry.get("freq", "")
        if not word:
            return {}, "has a subst without a lemma"
        if not (count.isascii() and count.isdigit()) or int(count) < 1:
            return {}, f"freq {count!r} of {word!r} is not a whole number from 1"
        weights[word] = weights.get(word, 0.0) + int(count)
    return weights, None


def _token_offsets(text: str, start: int, forms: list[str]) -> list[int | None]:
    """Where each token stands in ``text`` from ``start`` on; None for a token that the text spells otherwise.

    Tokens follow each other with nothing but white space between them. Beyond a token that was not found, the next may
    be as far away as that one can be long, so that a quotation mark is not mistaken for the one at the sentence's end.
    """
    offsets: list[int | None] = []
    end, slack = start, 0
    for form in forms:
        at = text.find(form, end) if form else -1
        if at >= 0 and len("".join(text[end:at].split())) <= slack:
            offsets.append(at)
            end, slack = at + len(form), 0
        else:
            offsets.append(None)
            slack += _LENGTHENED * max(len(form), 1)
    return offsets
