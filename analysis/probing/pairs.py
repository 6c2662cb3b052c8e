"""Word pairs to ask a model about: synonyms, and the antonyms and dissimilar words that serve as their controls.

Sources: the built-in list, the project's own CSV or TSV, lists scored by human judges (SimLex-999: Hill, Reichart and
Korhonen 2015; WordSim-353: Finkelstein et al. 2002, and its split by Agirre et al. 2009), and WordNet. The format of a
file is recognised by its header and columns, never by its name.

Lists scored for relatedness (WordSim-353) put "coast" and "forest" beside true synonyms: a high score there says that two
words belong together, not that one may stand for the other.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from configs.errors import InputError

BUILTIN = Path(__file__).with_name("pairs_builtin.csv")
RELATIONS = ("synonym", "antonym")
PARTS_OF_SPEECH = ("n", "v", "a", "r")
"""Noun, verb, adjective, adverb, as WordNet writes them; an empty part of speech is one that is not known or another."""
MIN_SIMILARITY = 0.6
FORMATS = (
    "word_a,word_b[,domain[,relation[,pos]]] as CSV or TSV, with or without a header",
    "SimLex-999 (tab-separated, header word1 word2 POS SimLex999 ...)",
    "WordSim-353 (header Word 1,Word 2,Human (mean), or rows word word score without a header)",
    "a CSV or TSV with the header columns word1, word2 and score or similarity",
)
_OWN_COLUMNS = ("word_a", "word_b", "domain", "relation", "pos")
_OWN_HEADERS = (("worda", "wordb"), ("word", "synonym"), ("word1", "word2"))
_SCORE_NAMES = ("score", "similarity")
_SCALES = (1.0, 5.0, 10.0)
_JUDGES_SCALE = 10.0  # of SimLex-999 and WordSim-353
_ROUNDING = 1e-9  # 1 - 0.8 is below 0.2 in binary: a score of exactly 2 of 10 must still count as dissimilar

Rows = list[tuple[int, list[str]]]  # line number and cells


@dataclass(frozen=True)
class Pair:
    """Two words; ``pos`` is one of :data:`PARTS_OF_SPEECH` or empty, ``similarity`` a judged score scaled to 0..1."""

    word_a: str
    word_b: str
    domain: str = ""
    pos: str = ""
    similarity: float | None = None

    def __str__(self) -> str:
        return f"{self.word_a}/{self.word_b}"


@dataclass(frozen=True)
class PairList:
    """The pairs of one source. No two words make a pair twice, in either order or in two of the three groups."""

    source: str
    """The format as recognised and the file, e.g. "SimLex-999 (lists/SimLex-999.txt)"."""
    synonyms: tuple[Pair, ...]
    antonyms: tuple[Pair, ...] = ()
    dissimilar: tuple[Pair, ...] = ()
    """Pairs that judges scored low."""
    undecided: int = 0
    """Pairs that judges scored between the two thresholds; they are in no group."""


def load_pairs(source: str, *, min_similarity: float = MIN_SIMILARITY, words: frozenset[str] | None = None) -> PairList:
    """The pairs of ``source``: "builtin", "wordnet", "wordnet:FOLDER" or a file in one of :data:`FORMATS`.

    Scored lists: the score over the largest of its scale is the similarity s. s >= ``min_similarity`` makes a synonym,
    s <= 1 - ``min_similarity`` a dissimilar pair (the mirror rule: as far from the top as the synonyms are from the
    bottom), anything between is counted in ``undecided``. A word scored against itself, which WordSim-353 has, is left
    out, and scores of a pair given twice are averaged; ``source`` says so. ``words``, lower-case, are those that WordNet
    is searched for; the other sources do not look at them.

    Raises :class:`InputError` naming file and line for every row that cannot be used, and ValueError where WordNet is
    asked for without ``words``.
    """
    if not 0.5 < min_similarity <= 1:
        raise InputError(
            f"--min-similarity {min_similarity} is outside (0.5, 1]; a synonym must not be dissimilar as well"
        )
    if source == "wordnet" or source.startswith("wordnet:"):
        return _from_wordnet(source, words)
    path = BUILTIN if source == "builtin" else Path(source)
    rows, delimiter = _read_rows(path)
    layout = _recognise(path, rows[0][1], delimiter)
    body = rows[1:] if layout.header else rows
    if not body:
        _fail(path, None, "has a header and no pairs; give rows of two words")
    if layout.scored:
        return _scored_pairs(path, layout, body, min_similarity)
    return _own_pairs("builtin" if source == "builtin" else f"word pairs ({path})", path, layout, body)


def _from_wordnet(source: str, words: frozenset[str] | None) -> PairList:
    from .wordnet import WordNet

    if words is None:
        raise ValueError("WordNet is searched among given words")
    _, _, folder = source.partition(":")
    if source != "wordnet" and not folder:
        raise InputError("--pairs wordnet: names no folder; give wordnet:FOLDER, or wordnet for nltk's own data")
    return WordNet(Path(folder) if folder else None).pairs(words)


def _fail(path: Path, line: int | None, problem: str) -> NoReturn:
    raise InputError(_problem(path, line, problem))


def _problem(path: Path, line: int | None, problem: str) -> str:
    return f"--pairs {path} {problem}" if line is None else f"--pairs {path} line {line}: {problem}"


# Reading and recognising


def _read_rows(path: Path) -> tuple[Rows, str]:
    """The rows that are neither empty nor comments (#), and the delimiter."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror or "it" if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            f"--pairs {path} cannot be read as text ({reason}); give builtin, wordnet, or a CSV or TSV file in UTF-8"
        ) from error
    if "\0" in text:
        _fail(path, None, "is a binary file; give a CSV or TSV file")
    lines = [
        (number, line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip(" \t,") and not line.startswith("#")
    ]
    if not lines:
        _fail(path, None, "is empty; give rows of two words: word_a,word_b")
    delimiter = "\t" if "\t" in lines[0][1] else ","
    rows: Rows = []
    for number, line in lines:
        try:
            cells = next(csv.reader([line], delimiter=delimiter))
        except csv.Error as error:
            _fail(path, number, f"cannot be split into columns ({error}); correct the line")
        rows.append((number, [cell.strip() for cell in cells]))
    return rows, delimiter


@dataclass(frozen=True)
class _Layout:
    """What the columns of a file are. ``scale`` is the largest possible score, None where the scores must tell."""

    name: str
    column: dict[str, int]
    width: int
    header: bool
    scale: float | None = None

    @property
    def scored(self) -> bool:
        return "score" in self.column

    def cell(self, cells: Sequence[str], name: str) -> str:
        index = self.column.get(name, len(cells))
        return cells[index] if index < len(cells) else ""


def _recognise(path: Path, first: list[str], delimiter: str) -> _Layout:
    names = [cell.casefold().replace(" ", "").replace("_", "") for cell in first]
    if {"word1", "word2", "pos", "simlex999"} <= set(names):
        column = {"word_a": "word1", "word_b": "word2", "pos": "pos", "score": "simlex999"}
        at = {ours: names.index(theirs) for ours, theirs in column.items()}
        return _Layout("SimLex-999", at, len(names), True, _JUDGES_SCALE)
    if names[:3] == ["word1", "word2", "human(mean)"]:
        return _Layout("WordSim-353", {"word_a": 0, "word_b": 1, "score": 2}, len(names), True, _JUDGES_SCALE)
    scores = [index for index, name in enumerate(names) if name in _SCORE_NAMES]
    for word_a, word_b in _OWN_HEADERS:
        if scores and word_a in names and word_b in names:
            if len(scores) > 1:
                _fail(path, 1, "names two score columns; keep one of score and similarity")
            at = {"word_a": names.index(word_a), "word_b": names.index(word_b), "score": scores[0]}
            return _Layout("scored pairs", at | _named(names, "pos"), len(names), True)
        if names[:2] == [word_a, word_b]:
            return _own_layout(path, names)
    if len(first) == 3 and _number(first[2]) is not None:
        return _Layout("scored pairs without a header", {"word_a": 0, "word_b": 1, "score": 2}, 3, False)
    if len(first) == 4 and len(first[0]) == 1 and _number(first[3]) is not None:
        # The list WordSim-353 was split from: a letter for the relation, two words, the score.
        return _Layout("WordSim-353 with relations", {"word_a": 1, "word_b": 2, "score": 3}, 4, False, _JUDGES_SCALE)
    if 2 <= len(first) <= len(_OWN_COLUMNS):
        return _Layout("word pairs", {name: i for i, name in enumerate(_OWN_COLUMNS)}, len(_OWN_COLUMNS), False)
    separated = "tabs" if delimiter == "\t" else "commas"
    _fail(path, None, f"is in no known format (its first row has {len(first)} columns by {separated}); {_known()}")


def _known() -> str:
    return "known are: " + "; ".join(FORMATS)


def _named(names: list[str], name: str) -> dict[str, int]:
    return {name: names.index(name)} if name in names else {}


def _own_layout(path: Path, names: list[str]) -> _Layout:
    column = {"word_a": 0, "word_b": 1}
    for index, name in enumerate(names[2:], start=2):
        if name not in _OWN_COLUMNS[2:] or name in column:
            _fail(path, 1, f"column {name!r} is not known or is there twice; {_known()}")
        column[name] = index
    return _Layout("word pairs", column, len(names), True)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# The project's own lists


def _own_pairs(source: str, path: Path, layout: _Layout, rows: Rows) -> PairList:
    groups: dict[str, list[Pair]] = {relation: [] for relation in RELATIONS}
    lines: dict[frozenset[str], int] = {}

    def take(number: int, cells: list[str]) -> str | None:
        if not 2 <= len(cells) <= layout.width:
            columns = ",".join(layout.column)
            return f"has {len(cells)} columns; give {columns}"
        a, b, domain, relation, pos = (layout.cell(cells, name) for name in _OWN_COLUMNS)
        if problem := _words_problem(a, b):
            return problem
        if a == b:
            return f"{a!r} is paired with itself; give two different words"
        if frozenset((a, b)) in lines:
            return f"{a},{b} is on line {lines[frozenset((a, b))]} already; remove one of the two"
        if _number(domain) is not None:
            return f"domain {domain!r} is a number; for a score name the columns in a header: word1,word2,score"
        if relation not in ("", *RELATIONS):
            return f"relation {relation!r} is not known; give {' or '.join(RELATIONS)}, or leave it empty"
        if pos not in ("", *PARTS_OF_SPEECH):
            return f"pos {pos!r} is not known; give one of {', '.join(PARTS_OF_SPEECH)}, or leave it empty"
        lines[frozenset((a, b))] = number
        groups[relation or RELATIONS[0]].append(Pair(a, b, domain, pos))
        return None

    _take_all(path, rows, take)
    return PairList(source, tuple(groups["synonym"]), tuple(groups["antonym"]))


def _take_all(path: Path, rows: Rows, take: Callable[[int, list[str]], str | None]) -> None:
    """Hand every row to ``take``, and raise what it found wrong with them, a line each."""
    found = [(number, take(number, cells)) for number, cells in rows]
    problems = [_problem(path, number, problem) for number, problem in found if problem is not None]
    if problems:
        raise InputError(*problems)


def _words_problem(*words: str) -> str | None:
    for word in words:
        if not word or any(letter.isspace() for letter in word):
            return f"{word!r} is not a single word; give one word in each of the two word columns"
    return None


# Lists scored by judges


@dataclass(frozen=True)
class _Score:
    line: int
    word_a: str
    word_b: str
    pos: str
    value: float


def _scored_pairs(path: Path, layout: _Layout, rows: Rows, min_similarity: float) -> PairList:
    scores: list[_Score] = []

    def take(number: int, cells: list[str]) -> str | None:
        if len(cells) <= max(layout.column.values()):
            return f"has {len(cells)} columns; the list has {layout.width}"
        a, b, pos = (layout.cell(cells, name) for name in ("word_a", "word_b", "pos"))
        if problem := _words_problem(a, b):
            return problem
        if pos.lower() not in ("", *PARTS_OF_SPEECH):
            return f"pos {pos!r} is not known; give one of {', '.join(PARTS_OF_SPEECH).upper()}"
        value = _number(layout.cell(cells, "score"))
        if value is None or not math.isfinite(value):
            return f"score {layout.cell(cells, 'score')!r} is not a number; give a number from 0"
        if not 0 <= value <= (layout.scale or _SCALES[-1]):
            return f"score {value:g} is outside 0 to {layout.scale or _SCALES[-1]:g}; give the scores on that scale"
        scores.append(_Score(number, a, b, pos.lower(), value))
        return None

    _take_all(path, rows, take)
    scale = layout.scale or next(size for size in _SCALES if max(score.value for score in scores) <= size)
    pairs, notes = _averaged(scores, scale)
    if layout.scale is None:
        notes.insert(0, f"scores taken as 0 to {scale:g}, the largest being {max(s.value for s in scores):g}")
    similar, dissimilar, undecided = [], [], 0
    for pair in pairs:
        assert pair.similarity is not None
        if pair.similarity >= min_similarity - _ROUNDING:
            similar.append(pair)
        elif pair.similarity <= 1 - min_similarity + _ROUNDING:
            dissimilar.append(pair)
        else:
            undecided += 1
    source = f"{layout.name} ({'; '.join([str(path), *notes])})"
    return PairList(source, tuple(similar), (), tuple(dissimilar), undecided)


def _averaged(scores: Sequence[_Score], scale: float) -> tuple[list[Pair], list[str]]:
    """One pair for every two words, in the order of the list, and what was left out or averaged to get there."""
    given: dict[frozenset[str], list[_Score]] = {}
    for score in scores:
        given.setdefault(frozenset((score.word_a, score.word_b)), []).append(score)
    itself = sum(len(group) for words, group in given.items() if len(words) == 1)
    twice = sum(1 for words, group in given.items() if len(words) == 2 and len(group) > 1)
    pairs = []
    for words, group in given.items():
        if len(words) == 2:
            first = group[0]
            pos = first.pos if all(score.pos == first.pos for score in group) else ""
            similarity = math.fsum(score.value for score in group) / len(group) / scale
            pairs.append(Pair(first.word_a, first.word_b, "", pos, similarity))
    notes = [f"{itself} scored with itself left out"] * bool(itself) + [f"{twice} scored twice averaged"] * bool(twice)
    return pairs, notes
