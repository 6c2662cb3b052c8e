"""Reading a list of word pairs: its rows, and which column is which, recognised by the content and never by the file's name."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

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


def recognise(path: Path, first: list[str], delimiter: str) -> Layout:
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
    if len(first) == 3 and number_of(first[2]) is not None:
        return Layout("scored pairs without a header", {"word_a": 0, "word_b": 1, "score": 2}, 3, False)
    if len(first) == 4 and len(first[0]) == 1 and number_of(first[3]) is not None:
        # The list WordSim-353 was split from: a letter for the relation, two words, the score.
        return Layout("WordSim-353 with relations", {"word_a": 1, "word_b": 2, "score": 3}, 4, False, JUDGES_SCALE)
    if 2 <= len(first) <= len(OWN_COLUMNS):
        return Layout("word pairs", {name: i for i, name in enumerate(OWN_COLUMNS)}, len(OWN_COLUMNS), False)
    separated = "tabs" if delimiter == "\t" else "commas"
    raise InputError(
        f"--pairs {path} is in no known format (its first row has {len(first)} columns by {separated}); {_KNOWN}"
    )


def number_of(text: str) -> float | None:
    """The number in a cell, None if it holds none."""
    try:
        return float(text)
    except ValueError:
        return None


def read_all(path: Path, rows: Rows, read: Callable[[int, list[str]], str | None]) -> None:
    """Pass every row to ``read``, which returns what is wrong with it, and raise all that is, a line each."""
    found = [(number, read(number, cells)) for number, cells in rows]
    problems = [f"--pairs {path} line {number}: {problem}" for number, problem in found if problem is not None]
    if problems:
        raise InputError(*problems)


def words_problem(*words: str) -> str | None:
    """Why these are not single words, or None."""
    for word in words:
        if not word or any(letter.isspace() for letter in word):
            return f"{word!r} is not a single word; give one word in each of the two word columns"
    return None
