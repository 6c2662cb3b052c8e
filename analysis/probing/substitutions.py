"""Lexical substitutions: positions in real text with the substitutes that people found acceptable there, and others.

Two formats, recognised by content, plain or gzip:

- **SWORDS** (Lee et al., NAACL 2021), JSON with contexts, targets, substitutes and substitute_labels. Annotators judged
  each candidate: its weight is the share of TRUE among its labels TRUE, FALSE and UNSURE, so that a candidate whom nobody
  accepted is rejected. (The authors call a candidate acceptable above one half; take the weight for that.) The same JSON
  carries older benchmarks whose substitutes were thought up and not judged: there the weight is the number of
  TRUE_IMPLICIT labels, one for each annotator who named the word, and FALSE_IMPLICIT candidates are rejected.
- **CoInCo** (Kremer et al., EACL 2014), XML. The weight is the number of annotators who named the substitute. Nothing is
  rejected in the file; the usual protocol (Thater et al. 2010) takes as rejected what was named for the same lemma and
  part of speech anywhere in the file, but not here.

Substitutes are lemmas in both, while the target stands inflected in the text, and they are left as they are: where
:attr:`Substitution.inflected` is set, "walk" competes with "walked" for a place that wants a past tense, and such items
are better left out. Substitutes of several words keep their spaces.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from configs.errors import InputError

_GZIP = b"\x1f\x8b"
_HEAD = 1 << 16  # bytes that tell the format
_JSON_KEYS = ("contexts", "targets", "substitutes", "substitute_labels")
_JSON_HEAD = re.compile(rf'^\s*\{{.*?"(?:{"|".join(_JSON_KEYS)})"\s*:\s*\{{', re.DOTALL)
_XML_HEAD = re.compile(r"^\s*<.*?<(?:sent|targetsentence|tokens|token)[\s>]", re.DOTALL)
_DECLARATIONS = re.compile(r"<!\s*(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_JUDGED = ("TRUE", "FALSE", "UNSURE")
_NAMED = ("TRUE_IMPLICIT", "FALSE_IMPLICIT")
_UNIVERSAL = {"NOUN": "n", "PROPN": "n", "VERB": "v", "AUX": "v", "ADJ": "a", "ADV": "r"}
_PENN = {"N": "n", "V": "v", "M": "v", "J": "a", "R": "r"}  # by first letter: NN*, VB*, MD, JJ*, RB*
_NOT_PENN = ("RP",)  # a particle: "R" otherwise means an adverb
_NO_TARGET = "XXX"  # CoInCo's id of a token nobody was asked about
_NO_LEMMA = ("", "<unknown>")  # what CoInCo's tagger writes for a word it does not know
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
    without the space before the target, which was there. ``candidates`` are (substitute, weight): 0 is rejected.
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


def is_substitution_file(path: str | Path) -> bool:
    """Whether the first bytes of ``path`` look like SWORDS JSON or CoInCo XML; False if they cannot be read."""
    try:
        head = _head(Path(path))
    except (OSError, EOFError, zlib.error):
        return False
    return bool(_JSON_HEAD.match(head) or _XML_HEAD.match(head))


def load_substitutions(source: str) -> SubstitutionList:
    """The substitutions of the file ``source``: an item for every target that a model can be asked about.

    Left out and counted are targets with no text before them (a model reading from the left has nothing to go by), that
    are not a whole word after a space or stand otherwise in the sentence than in the list of its tokens, that CoInCo's
    annotators marked as problematic, or whose candidates are all accepted or all rejected. Candidates equal to the target
    or its lemma, case aside, are dropped.

    Raises :class:`InputError` naming the file and the line or the item.
    """
    path = Path(source)
    text = _read(path)
    if text.lstrip().startswith("{"):
        return _load_swords(path, text)
    if text.lstrip().startswith("<"):
        return _load_coinco(path, text)
    raise InputError(f"{path} is neither SWORDS JSON nor CoInCo XML; give one of the two, plain or gzip")


def _head(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(len(_GZIP))
    with gzip.open(path, "rb") if start == _GZIP else path.open("rb") as stream:
        return stream.read(_HEAD).decode("utf-8-sig", errors="replace")


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; give SWORDS JSON or CoInCo XML") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read ({reason}); give SWORDS JSON or CoInCo XML") from error


def _raise_all(path: Path, problems: list[str]) -> None:
    if problems:
        more = [f"{path}: {len(problems) - _SHOWN} more problems of this kind"] * (len(problems) > _SHOWN)
        raise InputError(*(f"{path} {problem}" for problem in problems[:_SHOWN]), *more)


def _position(text: str, offset: int, target: str) -> str | None:
    """Why a model cannot be asked for ``target`` at ``offset``, or None."""
    if not text[:offset].strip():
        return FIRST
    if not text[offset - 1].isspace() or _REST_OF_WORD.match(text, offset + len(target)):
        return GLUED
    return None


def _finish(found: Iterator[Substitution | str], source: str) -> SubstitutionList:
    """The items among ``found`` with both accepted and rejected candidates, and a count of the reasons for the rest."""
    items = []
    left_out: Counter[str] = Counter()
    for entry in found:
        if isinstance(entry, str):
            left_out[entry] += 1
        elif len({weight > 0 for _, weight in entry.candidates}) < 2:
            left_out[ONE_SIDED] += 1
        else:
            items.append(entry)
    return SubstitutionList(source, tuple(items), dict(left_out))


def _candidates(weights: Mapping[str, float], *targets: str) -> tuple[tuple[str, float], ...]:
    """Heaviest first, then by spelling; without the target's own forms."""
    own = {target.casefold() for target in targets}
    kept = [(word, float(weight)) for word, weight in weights.items() if word.casefold() not in own]
    return tuple(sorted(kept, key=lambda entry: (-entry[1], entry[0])))


def _collapse(text: str) -> str:
    return " ".join(text.split())


# SWORDS


def _load_swords(path: Path, text: str) -> SubstitutionList:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno}: is not JSON ({error.msg}); download the file again") from error
    except RecursionError as error:
        raise InputError(f"{path} is not a SWORDS file: its JSON is nested too deeply") from error
    missing = [key for key in _JSON_KEYS if not isinstance(data.get(key), dict)]
    if missing:
        raise InputError(f"{path} is not a SWORDS file: the key {missing[0]} is missing or no object")
    _raise_all(path, _check_targets(data))
    _raise_all(path, _check_substitutes(data))
    weights: dict[str, dict[str, float]] = {}
    for key, entry in data["substitutes"].items():
        mine = weights.setdefault(entry["target_id"], {})
        mine[_collapse(entry["substitute"])] = _label_weight(data["substitute_labels"][key])
    lemmas = bool(data.get("substitutes_lemmatized", True))
    return _finish(_swords_items(data, weights, lemmas), f"SWORDS ({path})")


def _swords_items(data: Any, weights: Mapping[str, Mapping[str, float]], lemmas: bool) -> Iterator[Substitution | str]:
    for key, entry in data["targets"].items():
        context = data["contexts"][entry["context_id"]]
        text, target, offset = context["context"], entry["target"], entry["offset"]
        problem = _position(text, offset, target)
        if problem is not None:
            yield problem
            continue
        lemma = _swords_lemma(entry) or target.casefold()
        yield Substitution(
            item=key,
            document=_swords_document(context) or entry["context_id"],
            left=_collapse(text[:offset]),
            target=target,
            candidates=_candidates(weights.get(key, {}), target, lemma),
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
        elif (target, _collapse(entry["substitute"])) in seen:
            problems.append(f"substitute {key}: {entry['substitute']!r} is given twice for target {target}; remove one")
        else:
            seen.add((target, _collapse(entry["substitute"])))
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


# CoInCo


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


def _load_coinco(path: Path, text: str) -> SubstitutionList:
    if _DECLARATIONS.search(text):
        raise InputError(f"{path} declares a DOCTYPE or entities, which CoInCo does not; remove the declarations")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - nothing is declared that could be expanded or fetched
    except ElementTree.ParseError as error:
        raise InputError(f"{path} line {error.position[0]}: is not XML ({error}); download the file again") from error
    problems: list[str] = []
    named = [entry for sentence in root.iter("sent") for entry in _coinco_sentence(sentence, problems)]
    _raise_all(path, problems)
    if not named:
        raise InputError(f"{path} has no sent with a token that was asked about; give CoInCo XML")
    pool: dict[tuple[str, str], set[str]] = {}
    for entry in named:
        if not entry.problematic:
            pool.setdefault(entry.key, set()).update(entry.weights)
    return _finish((_coinco_item(entry, pool.get(entry.key, set())) for entry in named), f"CoInCo ({path})")


def _coinco_item(entry: _Named, pool: set[str]) -> Substitution | str:
    if entry.problematic:
        return PROBLEMATIC
    if entry.offset is None:
        return MISSING
    problem = _position(entry.text, entry.offset, entry.target)
    if problem is not None:
        return problem
    here = {word.casefold() for word in entry.weights}
    rejected = {word: 0.0 for word in pool if word.casefold() not in here}
    return Substitution(
        item=entry.item,
        document=entry.document,
        left=_collapse(entry.text[: entry.offset]),
        target=entry.target,
        candidates=_candidates(entry.weights | rejected, entry.target, entry.lemma),
        lemma=entry.lemma,
        pos=entry.pos,
        inflected=entry.lemma.casefold() != entry.target.casefold(),
    )


def _coinco_sentence(sentence: ElementTree.Element, problems: list[str]) -> Iterator[_Named]:
    before, target = (_collapse(sentence.findtext(name) or "") for name in ("precontext", "targetsentence"))
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
        word, count = _collapse(entry.get("lemma", "")), entry.get("freq", "")
        if not word:
            return {}, "has a subst without a lemma"
        if not (count.isascii() and count.isdigit()) or int(count) < 1:
            return {}, f"freq {count!r} of {word!r} is not a whole number from 1"
        weights[word] = weights.get(word, 0.0) + int(count)
    return weights, None


_LENGTHENED = (
    3  # a token that the text spells otherwise (an ellipsis for three dots) is at most so many times as long there
)


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
