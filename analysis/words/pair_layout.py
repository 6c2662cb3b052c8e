"""The rows of a list of word pairs, and what its columns are; recognised by header and columns, never by the file's name."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from common.errors import InputError

FORMATS = (
    "word_a,word_b[,domain[,relation[,pos]]] as CSV or TSV, with or without a header",
    "SimLex-999 (tab-separated, header word1 word2 POS SimLex999 ...)",
    "WordSim-353 (header Word 1,Word 2,Human (mean), or rows word word score without a header)",
    "a CSV or TSV with the header columns word1, word2 and score or similarity",
)
OWN_COLUMNS = ("word_a", "word_b", "domain", "relation", "pos")
_OWN_HEADERS = (("worda", "wordb"), ("word", "synonym"), ("word1", "word2"))
_SCORE_NAMES = ("score", "similarity")
JUDGES_SCALE = 10.0
"""The largest score of SimLex-999 and WordSim-353."""

Rows = list[tuple[int, list[str]]]
"""Line number and cells."""


def fail(path: Path, line: int | None, problem: str) -> NoReturn:
    """Raise :class:`InputError` for a file, or for one line of it."""
    raise InputError(_problem(path, line, problem))


def _problem(path: Path, line: int | None, problem: str) -> str:
    return f"--pairs {path} {problem}" if line is None else f"--pairs {path} line {line}: {problem}"


def read_rows(path: Path) -> tuple[Rows, str]:
    """The rows that are neither empty nor comments (#), and the delimiter."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror or "it" if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            f"--pairs {path} cannot be read as text ({reason}); give builtin, wordnet, or a CSV or TSV file in UTF-8"
        ) from error
    if "\0" in text:
        fail(path, None, "is a binary file; give a CSV or TSV file")
    lines = [
        (number, line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip(" \t,") and not line.startswith("#")
    ]
    if not lines:
        fail(path, None, "is empty; give rows of two words: word_a,word_b")
    delimiter = "\t" if "\t" in lines[0][1] else ","
    rows: Rows = []
    for number, line in lines:
        try:
            cells = next(csv.reader([line], delimiter=delimiter))
        except csv.Error as error:
            fail(path, number, f"cannot be split into columns ({error}); correct the line")
        rows.append((number, [cell.strip() for cell in cells]))
    return rows, delimiter


@dataclass(frozen=True)
class Layout:
    """What the columns of a file are. ``scale`` is the largest possible score, None where the scores must tell."""

    name: str
    column: dict[str, int]
    width: int
    header: bool
    scale: float | None = None

    @property
    def scored(self) -> bool:
        """Whether the pairs have scores."""
        return "score" in self.column

    def cell(self, cells: Sequence[str], name: str) -> str:
        """The row's cell in the column of that name; empty if there is none."""
        index = self.column.get(name, len(cells))
        return cells[index] if index < len(cells) else ""


def recognise(path: Path, first: list[str], delimiter: str) -> Layout:
    """The layout of a file from its first row. Raises :class:`InputError` with all known ones for any other."""
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
                fail(path, 1, "names two score columns; keep one of score and similarity")
            at = {"word_a": names.index(word_a), "word_b": names.index(word_b), "score": scores[0]}
            return Layout("scored pairs", at | _named(names, "pos"), len(names), True)
        if names[:2] == [word_a, word_b]:
            return _own_layout(path, names)
    if len(first) == 3 and number_of(first[2]) is not None:
        return Layout("scored pairs without a header", {"word_a": 0, "word_b": 1, "score": 2}, 3, False)
    if len(first) == 4 and len(first[0]) == 1 and number_of(first[3]) is not None:
        # The list WordSim-353 was split from: a letter for the relation, two words, the score.
        return Layout("WordSim-353 with relations", {"word_a": 1, "word_b": 2, "score": 3}, 4, False, JUDGES_SCALE)
    if 2 <= len(first) <= len(OWN_COLUMNS):
        return Layout("word pairs", {name: i for i, name in enumerate(OWN_COLUMNS)}, len(OWN_COLUMNS), False)
    separated = "tabs" if delimiter == "\t" else "commas"
    fail(path, None, f"is in no known format (its first row has {len(first)} columns by {separated}); {_known()}")


def _known() -> str:
    return "known are: " + "; ".join(FORMATS)


def _named(names: list[str], name: str) -> dict[str, int]:
    return {name: names.index(name)} if name in names else {}


def _own_layout(path: Path, names: list[str]) -> Layout:
    column = {"word_a": 0, "word_b": 1}
    for index, name in enumerate(names[2:], start=2):
        if name not in OWN_COLUMNS[2:] or name in column:
            fail(path, 1, f"column {name!r} is not known or is there twice; {_known()}")
        column[name] = index
    return Layout("word pairs", column, len(names), True)


def number_of(text: str) -> float | None:
    """The number that a cell holds, if it does."""
    try:
        return float(text)
    except ValueError:
        return None


def take_all(path: Path, rows: Rows, take: Callable[[int, list[str]], str | None]) -> None:
    """Hand every row to ``take``, and raise what it found wrong with them, a line each."""
    found = [(number, take(number, cells)) for number, cells in rows]
    problems = [_problem(path, number, problem) for number, problem in found if problem is not None]
    if problems:
        raise InputError(*problems)


def words_problem(*words: str) -> str | None:
    """Why these are not single words, or None."""
    for word in words:
        if not word or any(letter.isspace() for letter in word):
            return f"{word!r} is not a single word; give one word in each of the two word columns"
    return None
