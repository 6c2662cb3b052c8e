"""Where pairs of words come from: the built-in list, a CSV or TSV of the user's, lists scored by human judges, WordNet.

Of the scored lists SimLex-999 (Hill, Reichart and Korhonen 2015) and WordSim-353 (Finkelstein et al. 2002, and its split by
Agirre et al. 2009) are recognised by their headers. WordSim-353 scores relatedness: "coast" and "forest" score high there
because they belong together, not because one may replace the other.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

from .pairs import PARTS_OF_SPEECH, Pair, PairList

FORMATS = (
    "word_a,word_b[,domain[,relation[,pos]]] as CSV or TSV, with or without a header",
    "SimLex-999 (tab-separated, header word1 word2 POS SimLex999 ...)",
    "WordSim-353 (header Word 1,Word 2,Human (mean), or rows word word score without a header)",
    "a CSV or TSV with the header columns word1, word2 and score or similarity",
)
_KNOWN = "known are: " + "; ".join(FORMATS)
OWN_COLUMNS = ("word_a", "word_b", "domain", "relation", "pos")
_OWN_HEADERS = (("worda", "wordb"), ("word", "synonym"), ("word1", "word2"))
_SCORE_NAMES = ("score", "similarity")
JUDGES_SCALE = 10.0
"""The highest possible score in SimLex-999 and WordSim-353."""

Rows = list[tuple[int, list[str]]]
"""Line number and cells."""
BUILTIN = Path(__file__).with_name("pairs_builtin.csv")
RELATIONS = ("synonym", "antonym")
MIN_SIMILARITY = 0.6
"""Share of the highest possible score from which on a pair counts as synonyms."""
SCALES = (1.0, 5.0, 10.0)
_ROUNDING = 1e-9  # 1 - 0.8 is below 0.2 in binary: a score of exactly 2 of 10 must still count as dissimilar


def load_pairs(source: str, *, min_similarity: float = MIN_SIMILARITY, words: frozenset[str] | None = None) -> PairList:
    """The pairs of ``source``: "builtin", "wordnet", "wordnet:FOLDER" or a file in one of :data:`FORMATS`.

    A scored pair of similarity s (its score over the highest possible one) counts as synonyms if s >= ``min_similarity``
    and as dissimilar if s <= 1 - ``min_similarity``. WordNet is searched for ``words``, in lower case; other sources
    ignore them.
    Raises :class:`InputError` naming file and line for every row that cannot be used, and ValueError for WordNet
    without ``words``.
    """
    if not 0.5 < min_similarity <= 1:
        raise InputError(
            f"--min-similarity {min_similarity} is outside (0.5, 1]; a synonym must not be dissimilar as well"
        )
    if source.partition(":")[0] == "wordnet":
        from .wordnet import WordNet

        if words is None:
            raise ValueError("WordNet is searched among given words")
        if source == "wordnet:":
            raise InputError("--pairs wordnet: names no folder; give wordnet:FOLDER, or wordnet for nltk's own data")
        return WordNet(Path(source[len("wordnet:") :]) if source != "wordnet" else None).pairs(words)
    path = BUILTIN if source == "builtin" else Path(source)
    rows, delimiter = _read_rows(path)
    layout = _recognise(path, rows[0][1], delimiter)
    body = rows[1:] if layout.header else rows
    if not body:
        raise InputError(f"--pairs {path} has a header and no pairs; give rows of two words")
    if "score" in layout.column:
        return _scored_pairs(path, layout, body, min_similarity)
    return _own_pairs("builtin" if source == "builtin" else f"word pairs ({path})", path, layout, body)


def _own_pairs(source: str, path: Path, layout: Layout, rows: Rows) -> PairList:
    groups: dict[str, list[Pair]] = {relation: [] for relation in RELATIONS}
    lines: dict[frozenset[str], int] = {}

    def read(number: int, cells: list[str]) -> str | None:
        """Add the row to ``groups``, or say what is wrong with it."""
        if not 2 <= len(cells) <= layout.width:
            return f"has {len(cells)} columns; give {','.join(layout.column)}"
        a, b, domain, relation, pos = (layout.cell(cells, name) for name in OWN_COLUMNS)
        if problem := _words_problem(a, b):
            return problem
        if a == b:
            return f"{a!r} is paired with itself; give two different words"
        if frozenset((a, b)) in lines:
            return f"{a},{b} is on line {lines[frozenset((a, b))]} already; remove one of the two"
        if _number_of(domain) is not None:
            return f"domain {domain!r} is a number; for a score name the columns in a header: word1,word2,score"
        if relation not in ("", *RELATIONS):
            return f"relation {relation!r} is not known; give {' or '.join(RELATIONS)}, or leave it empty"
        if pos not in ("", *PARTS_OF_SPEECH):
            return f"pos {pos!r} is not known; give one of {', '.join(PARTS_OF_SPEECH)}, or leave it empty"
        lines[frozenset((a, b))] = number
        groups[relation or RELATIONS[0]].append(Pair(a, b, domain, pos))
        return None

    _read_all(path, rows, read)
    return PairList(source, tuple(groups["synonym"]), tuple(groups["antonym"]))


def _scored_pairs(path: Path, layout: Layout, rows: Rows, min_similarity: float) -> PairList:
    """The pairs of a scored list: those given twice averaged, those of a word with itself left out; ``source`` says so."""
    given: dict[frozenset[str], list[tuple[str, str, str, float]]] = {}
    highest = layout.scale or SCALES[-1]

    def read(_: int, cells: list[str]) -> str | None:
        """Add the row to ``given``, or say what is wrong with it."""
        if len(cells) <= max(layout.column.values()):
            return f"has {len(cells)} columns; the list has {layout.width}"
        a, b, pos, score = (layout.cell(cells, name) for name in ("word_a", "word_b", "pos", "score"))
        if problem := _words_problem(a, b):
            return problem
        if pos.lower() not in ("", *PARTS_OF_SPEECH):
            return f"pos {pos!r} is not known; give one of {', '.join(PARTS_OF_SPEECH).upper()}"
        value = _number_of(score)
        if value is None or not math.isfinite(value):
            return f"score {score!r} is not a number; give a number from 0"
        if not 0 <= value <= highest:
            return f"score {value:g} is outside 0 to {highest:g}; give the scores on that scale"
        given.setdefault(frozenset((a, b)), []).append((a, b, pos.lower(), value))
        return None

    _read_all(path, rows, read)
    largest = max(value for group in given.values() for *_, value in group)
    scale = layout.scale or next(size for size in SCALES if largest <= size)
    notes = [] if layout.scale else [f"scores taken as 0 to {scale:g}, the largest being {largest:g}"]
    if itself := sum(len(group) for words, group in given.items() if len(words) == 1):
        notes.append(f"{itself} scored with itself left out")
    if twice := sum(len(words) == 2 and len(group) > 1 for words, group in given.items()):
        notes.append(f"{twice} scored twice averaged")
    similar, dissimilar = [], []
    for words, group in given.items():
        if len(words) == 1:
            continue
        a, b, first, _ = group[0]
        pair = Pair(a, b, "", first if all(pos == first for _, _, pos, _ in group) else "")
        similarity = math.fsum(value for *_, value in group) / len(group) / scale
        if similarity >= min_similarity - _ROUNDING:
            similar.append(pair)
        elif similarity <= 1 - min_similarity + _ROUNDING:
            dissimilar.append(pair)
    source = f"{layout.name} ({'; '.join([str(path), *notes])})"
    return PairList(source, tuple(similar), (), tuple(dissimilar))


def _read_rows(path: Path) -> tuple[Rows, str]:
    """The rows that are neither empty nor comments (#), and the delimiter."""
    ask = "give builtin, wordnet, or a CSV or TSV file in UTF-8"
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise InputError(f"--pairs {path} cannot be read as text (it is no regular file); {ask}")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror or "it" if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"--pairs {path} cannot be read as text ({reason}); {ask}") from error
    if "\0" in text:
        raise InputError(f"--pairs {path} is a binary file; give a CSV or TSV file")
    lines = [
        (number, line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip(" \t,") and not line.startswith("#")
    ]
    if not lines:
        raise InputError(f"--pairs {path} is empty; give rows of two words: word_a,word_b")
    delimiter = "\t" if "\t" in lines[0][1] else ","
    rows: Rows = []
    for number, line in lines:
        try:
            cells = next(csv.reader([line], delimiter=delimiter))
        except csv.Error as error:
            problem = f"cannot be split into columns ({error}); correct the line"
            raise InputError(f"--pairs {path} line {number}: {problem}") from error
        rows.append((number, [cell.strip() for cell in cells]))
    return rows, delimiter


@dataclass(frozen=True)
class Layout:
    """Which column is which. ``scale`` is the highest possible score, None if it is inferred from the scores."""

    name: str
    column: dict[str, int]
    width: int
    header: bool
    scale: float | None = None

    def cell(self, cells: Sequence[str], name: str) -> str:
        """The row's cell in the column of that name; empty if there is none."""
        index = self.column.get(name, len(cells))
        return cells[index] if index < len(cells) else ""


def _recognise(path: Path, first: list[str], delimiter: str) -> Layout:
    """The layout of a file, from its first row. Raises :class:`InputError` listing the known layouts if it has none of them."""
    names = [cell.casefold().replace(" ", "").replace("_", "") for cell in first]
    if {"word1", "word2", "pos", "simlex999"} <= set(names):
        column = {"word_a": "word1", "word_b": "word2", "pos": "pos", "score": "simlex999"}
        at = {ours: names.index(theirs) for ours, theirs in column.items()}
        return Layout("SimLex-999", at, len(names), True, JUDGES_SCALE)
    if names[:3] == ["word1", "word2", "human(mean)"]:
        return Layout("WordSim-353", {"word_a": 0, "word_b": 1, "score": 2}, len(names), True, JUDGES_SCALE)
    scores = [index for index, name in enumerate(names) if name in _SCORE_NAMES]
    for word_a, word_b in _OWN_HEADERS:
        if scores and word_a in names and word_b in names:
            if len(scores) > 1:
                raise InputError(f"--pairs {path} line 1: names two score columns; keep one of score and similarity")
            at = {"word_a": names.index(word_a), "word_b": names.index(word_b), "score": scores[0]}
            pos = {"pos": names.index("pos")} if "pos" in names else {}
            return Layout("scored pairs", at | pos, len(names), True)
        if names[:2] == [word_a, word_b]:
            for index, name in enumerate(names[2:], start=2):
                if name not in OWN_COLUMNS[2:] or name in names[:index]:
                    raise InputError(f"--pairs {path} line 1: column {name!r} is not known or is there twice; {_KNOWN}")
            own = {name: index for index, name in enumerate([*OWN_COLUMNS[:2], *names[2:]])}
            return Layout("word pairs", own, len(names), True)
    if len(first) == 3 and _number_of(first[2]) is not None:
        return Layout("scored pairs without a header", {"word_a": 0, "word_b": 1, "score": 2}, 3, False)
    if len(first) == 4 and len(first[0]) == 1 and _number_of(first[3]) is not None:
        # The list WordSim-353 was split from: a letter for the relation, two words, the score.
        return Layout("WordSim-353 with relations", {"word_a": 1, "word_b": 2, "score": 3}, 4, False, JUDGES_SCALE)
    if 2 <= len(first) <= len(OWN_COLUMNS):
        return Layout("word pairs", {name: i for i, name in enumerate(OWN_COLUMNS)}, len(OWN_COLUMNS), False)
    separated = "tabs" if delimiter == "\t" else "commas"
    raise InputError(
        f"--pairs {path} is in no known format (its first row has {len(first)} columns by {separated}); {_KNOWN}"
    )


def _number_of(text: str) -> float | None:
    """The number in a cell, None if it holds none."""
    try:
        return float(text)
    except ValueError:
        return None


def _read_all(path: Path, rows: Rows, read: Callable[[int, list[str]], str | None]) -> None:
    """Pass every row to ``read``, which returns what is wrong with it, and raise all that is, a line each."""
    found = [(number, read(number, cells)) for number, cells in rows]
    problems = [f"--pairs {path} line {number}: {problem}" for number, problem in found if problem is not None]
    if problems:
        raise InputError(*problems)


def _words_problem(*words: str) -> str | None:
    """Why these are not single words, or None."""
    for word in words:
        if not word or any(letter.isspace() for letter in word):
            return f"{word!r} is not a single word; give one word in each of the two word columns"
    return None
