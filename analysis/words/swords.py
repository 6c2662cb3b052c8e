"""SWORDS (Lee et al., NAACL 2021): JSON with contexts, targets, substitutes and substitute_labels.

Annotators judged each candidate: its weight is the share of TRUE among its labels TRUE, FALSE and UNSURE. Older benchmarks in
the same JSON have substitutes that were named and not judged: there the weight is the number of TRUE_IMPLICIT labels, one for
each annotator who named the word, and FALSE_IMPLICIT candidates are rejected.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import InputError

from .substitutions import Substitution, SubstitutionList, as_list, collapse, item_at, raise_all

KEYS = ("contexts", "targets", "substitutes", "substitute_labels")
"""The top-level keys that every file has."""
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
    raise_all(path, list(_target_problems(data)))
    raise_all(path, list(_substitute_problems(data)))
    weights: dict[str, dict[str, float]] = defaultdict(dict)
    for key, entry in data["substitutes"].items():
        labels = data["substitute_labels"][key]
        weight = labels.count("TRUE_IMPLICIT") if labels[0] in _NAMED else labels.count("TRUE") / len(labels)
        weights[entry["target_id"]][collapse(entry["substitute"])] = weight
    items = (_item(key, entry, data["contexts"], weights[key]) for key, entry in data["targets"].items())
    return as_list(f"SWORDS ({path})", items)


def _item(key: str, entry: Any, contexts: Any, weights: Mapping[str, float]) -> Substitution | str:
    context, target = contexts[entry["context_id"]], entry["target"]
    return item_at(
        context["context"],
        entry["offset"],
        weights,
        item=key,
        document=_document(context) or entry["context_id"],
        target=target,
        lemma=_lemma(entry) or target.casefold(),
        pos=_UNIVERSAL.get(entry.get("pos") or "", ""),
    )


def _target_problems(data: Any) -> Iterator[str]:
    for key, entry in data["contexts"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("context"), str):
            yield f"context {key}: has no text; give it a string context"
    for key, entry in data["targets"].items():
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("target"), str)
            or not isinstance(entry.get("offset"), int)
            or not isinstance(entry.get("pos") or "", str)
        ):
            yield f"target {key}: needs a string target, an integer offset and a pos that is a string or null"
            continue
        context = data["contexts"].get(str(entry.get("context_id")))
        if context is None:
            yield f"target {key}: context_id {entry.get('context_id')!r} is not among the contexts"
        elif isinstance(context, dict) and isinstance(context.get("context"), str):
            start, target = entry["offset"], entry["target"]
            there = context["context"][start : start + len(target)] if start >= 0 else ""
            if not target.strip() or there.casefold() != target.casefold():
                yield f"target {key}: {target!r} does not stand at offset {start} of its context"


def _substitute_problems(data: Any) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    for key, entry in data["substitutes"].items():
        word = entry.get("substitute") if isinstance(entry, dict) else None
        if not isinstance(word, str) or not word.strip():
            yield f"substitute {key}: has no text; give it a string substitute"
            continue
        target = entry.get("target_id")
        if not isinstance(target, str) or target not in data["targets"]:
            yield f"substitute {key}: target_id {target!r} is not among the targets"
        elif (target, collapse(word)) in seen:
            yield f"substitute {key}: {word!r} is given twice for target {target}; remove one"
        else:
            seen.add((target, collapse(word)))
        if problem := _label_problem(data["substitute_labels"].get(key)):
            yield f"substitute {key}: {problem}"


def _label_problem(labels: Any) -> str | None:
    if not isinstance(labels, list) or not labels:
        return "has no labels; give a list under substitute_labels"
    unknown = [label for label in labels if label not in _JUDGED + _NAMED]
    if unknown:
        return f"label {unknown[0]!r} is not known; known are {', '.join(_JUDGED + _NAMED)}"
    if {label in _NAMED for label in labels} == {True, False}:
        return "mixes judged and implicit labels; their weights have different scales"
    return None


def _extras(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a benchmark adds to the format: an object, or one for each time that the entry occurred in it."""
    extra = entry.get("extra")
    listed = extra if isinstance(extra, list) else [extra]
    return [given for given in listed if isinstance(given, dict)]


def _lemma(target: Mapping[str, Any]) -> str:
    """The lemma as SWORDS names it (coinco_lemma), or as the CoInCo conversion does (attributes of the XML)."""
    for extra in _extras(target):
        coinco = extra.get("coinco")
        attributes = coinco.get("xml_attrs") if isinstance(coinco, dict) else None
        for lemma in (extra.get("coinco_lemma"), attributes.get("lemma") if isinstance(attributes, dict) else None):
            if isinstance(lemma, str) and lemma:
                return lemma
    return ""


def _document(context: Mapping[str, Any]) -> str:
    """The MASC document that the context comes from: "NYTnewswire9.txt" in the id "NYTnewswire9.txt:s-r0"."""
    for extra in _extras(context):
        ids = extra.get("coinco_ids")
        first = ids[0] if isinstance(ids, list) and ids else extra.get("legacy_id")
        if isinstance(first, str) and ":" in first:
            return first.rpartition(":")[0]
    return ""
