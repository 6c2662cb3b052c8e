"""SWORDS (Lee et al., NAACL 2021): JSON with contexts, targets, substitutes and substitute_labels.

Annotators judged each candidate: its weight is the share of TRUE among its labels TRUE, FALSE and UNSURE. The same JSON carries
older benchmarks whose substitutes were thought up and not judged: there the weight is the number of TRUE_IMPLICIT labels, one
for each annotator who named the word, and FALSE_IMPLICIT candidates are rejected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import InputError

from .substitutions import Substitution, SubstitutionList, candidates_of, collapse, finish, position_problem, raise_all

KEYS = ("contexts", "targets", "substitutes", "substitute_labels")
"""What every file has at its top level."""
_JUDGED = ("TRUE", "FALSE", "UNSURE")
_NAMED = ("TRUE_IMPLICIT", "FALSE_IMPLICIT")
_UNIVERSAL = {"NOUN": "n", "PROPN": "n", "VERB": "v", "AUX": "v", "ADJ": "a", "ADV": "r"}


def load_swords(path: Path, text: str) -> SubstitutionList:
    """The items of ``text``, read from ``path``. Raises :class:`InputError` naming the file and the line or the item."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno}: is not JSON ({error.msg}); download the file again") from error
    except (RecursionError, ValueError) as error:  # brackets 5000 deep; an integer of 5000 digits
        raise InputError(f"{path} is not a SWORDS file: its JSON nests too deeply or has too long a number") from error
    missing = [key for key in KEYS if not isinstance(data.get(key), dict)]
    if missing:
        raise InputError(f"{path} is not a SWORDS file: the key {missing[0]} is missing or no object")
    raise_all(path, _check_targets(data))
    raise_all(path, _check_substitutes(data))
    weights: dict[str, dict[str, float]] = {}
    for key, entry in data["substitutes"].items():
        mine = weights.setdefault(entry["target_id"], {})
        mine[collapse(entry["substitute"])] = _label_weight(data["substitute_labels"][key])
    lemmas = bool(data.get("substitutes_lemmatized", True))
    return finish(_swords_items(data, weights, lemmas), f"SWORDS ({path})")


def _swords_items(data: Any, weights: Mapping[str, Mapping[str, float]], lemmas: bool) -> Iterator[Substitution | str]:
    for key, entry in data["targets"].items():
        context = data["contexts"][entry["context_id"]]
        text, target, offset = context["context"], entry["target"], entry["offset"]
        problem = position_problem(text, offset, target)
        if problem is not None:
            yield problem
            continue
        lemma = _swords_lemma(entry) or target.casefold()
        yield Substitution(
            item=key,
            document=_swords_document(context) or entry["context_id"],
            left=collapse(text[:offset]),
            target=target,
            candidates=candidates_of(weights.get(key, {}), target, lemma),
            lemma=lemma,
            pos=_UNIVERSAL.get(entry.get("pos") or "", ""),
            inflected=lemmas and lemma.casefold() != target.casefold(),
        )


def _check_targets(data: Any) -> list[str]:
    problems = []
    for key, entry in data["contexts"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("context"), str):
            problems.append(f"context {key}: has no text; give it a string context")
    for key, entry in data["targets"].items():
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("target"), str)
            or not isinstance(entry.get("offset"), int)
            or not isinstance(entry.get("pos") or "", str)
        ):
            problems.append(
                f"target {key}: needs a string target, an integer offset and a pos that is a string or null"
            )
            continue
        context = data["contexts"].get(str(entry.get("context_id")))
        if context is None:
            problems.append(f"target {key}: context_id {entry.get('context_id')!r} is not among the contexts")
        elif isinstance(context, dict) and isinstance(context.get("context"), str):
            start, target = entry["offset"], entry["target"]
            there = context["context"][start : start + len(target)] if start >= 0 else ""
            if not target.strip() or there.casefold() != target.casefold():
                problems.append(f"target {key}: {target!r} does not stand at offset {start} of its context")
    return problems


def _check_substitutes(data: Any) -> list[str]:
    problems = []
    seen: set[tuple[str, str]] = set()
    for key, entry in data["substitutes"].items():
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("substitute"), str)
            or not entry["substitute"].strip()
        ):
            problems.append(f"substitute {key}: has no text; give it a string substitute")
            continue
        target = entry.get("target_id")
        if not isinstance(target, str) or target not in data["targets"]:
            problems.append(f"substitute {key}: target_id {target!r} is not among the targets")
        elif (target, collapse(entry["substitute"])) in seen:
            problems.append(f"substitute {key}: {entry['substitute']!r} is given twice for target {target}; remove one")
        else:
            seen.add((target, collapse(entry["substitute"])))
        if problem := _label_problem(data["substitute_labels"].get(key)):
            problems.append(f"substitute {key}: {problem}")
    return problems


def _label_problem(labels: Any) -> str | None:
    if not isinstance(labels, list) or not labels:
        return "has no labels; give a list under substitute_labels"
    unknown = [label for label in labels if label not in _JUDGED + _NAMED]
    if unknown:
        return f"label {unknown[0]!r} is not known; known are {', '.join(_JUDGED + _NAMED)}"
    if {label in _NAMED for label in labels} == {True, False}:
        return "mixes judged and implicit labels; their weights have different scales"
    return None


def _label_weight(labels: list[str]) -> float:
    if labels[0] in _NAMED:
        return float(labels.count("TRUE_IMPLICIT"))
    return labels.count("TRUE") / len(labels)


def _extras(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a benchmark says beyond the format: an object, or one for each time that the entry occurred in it."""
    extra = entry.get("extra")
    listed = extra if isinstance(extra, list) else [extra]
    return [given for given in listed if isinstance(given, dict)]


def _swords_lemma(target: Mapping[str, Any]) -> str:
    """The lemma as SWORDS names it (coinco_lemma), or as the CoInCo conversion does (attributes of the XML)."""
    for extra in _extras(target):
        coinco = extra.get("coinco")
        attributes = coinco.get("xml_attrs") if isinstance(coinco, dict) else None
        for lemma in (extra.get("coinco_lemma"), attributes.get("lemma") if isinstance(attributes, dict) else None):
            if isinstance(lemma, str) and lemma:
                return lemma
    return ""


def _swords_document(context: Mapping[str, Any]) -> str:
    """The MASC document the context is from: "NYTnewswire9.txt" of the id "NYTnewswire9.txt:s-r0"."""
    for extra in _extras(context):
        ids = extra.get("coinco_ids")
        first = ids[0] if isinstance(ids, list) and ids else extra.get("legacy_id")
        if isinstance(first, str) and ":" in first:
            return first.rpartition(":")[0]
    return ""
