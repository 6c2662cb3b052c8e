"""CoInCo (Kremer et al., EACL 2014): XML with sentences, their tokens, and the substitutes that annotators named.

The weight is the number of annotators who named the substitute. The file rejects nothing; by the usual protocol (Thater et
al. 2010) a word is rejected if it was named for the same lemma and part of speech anywhere in the file, but not here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from common.errors import InputError

from .substitutions import MISSING, PROBLEMATIC, Substitution, SubstitutionList, as_list, collapse, item_at, raise_all

_DECLARATIONS = re.compile(r"<!\s*(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_PENN = {"N": "n", "V": "v", "M": "v", "J": "a", "R": "r"}  # by first letter: NN*, VB*, MD, JJ*, RB*
_NOT_PENN = ("RP",)  # a particle: "R" otherwise means an adverb
_NO_TARGET = "XXX"  # CoInCo's id of a token that annotators were not shown
_NO_LEMMA = ("", "<unknown>")  # what CoInCo's tagger writes for a word it does not know
_LENGTHENED = 3
"""A token that the text spells otherwise (an ellipsis for three dots) is at most so many times as long there."""

_Target = dict[str, Any]
"""The arguments of :func:`item_at`, with an offset of None for a token that was not found, and ``problematic``."""


def load_coinco(path: Path, text: str) -> SubstitutionList:
    """The items of ``text``, read from ``path``. Raises :class:`InputError` naming the file and the line or the item."""
    if _DECLARATIONS.search(text):
        raise InputError(f"{path} declares a DOCTYPE or entities, which CoInCo does not; remove the declarations")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - nothing is declared that could be expanded or fetched
    except ElementTree.ParseError as error:
        raise InputError(f"{path} line {error.position[0]}: is not XML ({error}); download the file again") from error
    problems: list[str] = []
    targets = [target for sentence in root.iter("sent") for target in _targets(sentence, problems)]
    raise_all(path, problems)
    if not targets:
        raise InputError(f"{path} has no sent with a token that annotators were shown; give CoInCo XML")
    named: dict[tuple[str, str], set[str]] = defaultdict(set)
    for target in targets:
        if not target["problematic"]:
            named[target["lemma"].casefold(), target["pos"]] |= target["weights"].keys()
    return as_list(f"CoInCo ({path})", (_item(target, named) for target in targets))


def _item(target: _Target, named: dict[tuple[str, str], set[str]]) -> Substitution | str:
    if target.pop("problematic"):
        return PROBLEMATIC
    if target["offset"] is None:
        return MISSING
    here = {word.casefold() for word in target["weights"]}
    elsewhere = named[target["lemma"].casefold(), target["pos"]]
    target["weights"] |= {word: 0.0 for word in elsewhere if word.casefold() not in here}
    return item_at(**target)


def _targets(sentence: ElementTree.Element, problems: list[str]) -> Iterator[_Target]:
    before, target = (collapse(sentence.findtext(name) or "") for name in ("precontext", "targetsentence"))
    text = f"{before} {target}".lstrip()
    tokens = list(sentence.iter("token"))
    forms = [token.get("wordform", "").strip() for token in tokens]
    for token, form, offset in zip(tokens, forms, _offsets(text, len(text) - len(target), forms), strict=True):
        item, lemma, tag = token.get("id", _NO_TARGET), token.get("lemma", "").strip(), token.get("posMASC", "")
        if item == _NO_TARGET:
            continue
        weights, problem = _weights(token)
        if not form:
            problem = "has no wordform"
        if problem is not None:
            problems.append(f"token {item}: {problem}")
            continue
        yield {
            "text": text,
            "offset": offset,
            "weights": weights,
            "item": item,
            "document": sentence.get("MASCfile", ""),
            "target": form,
            "lemma": form.casefold() if lemma in _NO_LEMMA else lemma,
            "pos": "" if tag in _NOT_PENN else _PENN.get(tag[:1], ""),
            "problematic": token.get("problematic", "no").strip().lower() == "yes",
        }


def _weights(token: ElementTree.Element) -> tuple[dict[str, float], str | None]:
    """How many annotators named each substitute, summed if it is listed twice; and what is wrong with the list."""
    weights: dict[str, float] = defaultdict(float)
    for entry in token.iter("subst"):
        word, count = collapse(entry.get("lemma", "")), entry.get("freq", "")
        if not word:
            return {}, "has a subst without a lemma"
        if not (count.isascii() and count.isdigit()) or int(count) < 1:
            return {}, f"freq {count!r} of {word!r} is not a whole number from 1"
        weights[word] += int(count)
    return weights, None


def _offsets(text: str, start: int, forms: list[str]) -> list[int | None]:
    """Where each token stands in ``text`` from ``start`` on; None for a token that the text spells otherwise.

    Only white space stands between tokens. After a token that was not found, the next one may be as far away as that
    token can be long, so that a quotation mark is not mistaken for the one at the sentence's end.
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
