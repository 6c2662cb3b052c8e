"""Synonym pairs: the built-in list and files of the user's own."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError

BUILTIN = Path(__file__).with_name("pairs_builtin.csv")
_HEADERS = (("word_a", "word_b"), ("word", "synonym"))


@dataclass(frozen=True)
class Pair:
    """Two words that stand for each other in many contexts."""

    word_a: str
    word_b: str
    domain: str = ""

    def __str__(self) -> str:
        return f"{self.word_a}/{self.word_b}"


def load_pairs(source: str) -> list[Pair]:
    """The pairs of ``source``: the word "builtin", or a CSV or TSV file with columns word_a, word_b[, domain].

    The header may be missing. Raises :class:`InputError` naming file and line for every row that is not two different
    words, and for a pair that was there before, in either order.
    """
    path = BUILTIN if source == "builtin" else Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--pairs {path} cannot be read as UTF-8 text; give a CSV or TSV file, or builtin") from error
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    pairs: list[Pair] = []
    lines: dict[frozenset[str], int] = {}
    problems = []
    for index, row in enumerate(reader):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (index == 0 and tuple(cells[:2]) in _HEADERS):
            continue
        problem = _problem(cells, lines)
        if problem:
            problems.append(f"--pairs {path} line {reader.line_num}: {problem}")
        else:
            lines[frozenset(cells[:2])] = reader.line_num
            pairs.append(Pair(*cells))
    if problems:
        raise InputError(*problems)
    if not pairs:
        raise InputError(f"--pairs {path} has no pairs; give rows of two words: word_a,word_b")
    return pairs


def _problem(cells: list[str], lines: dict[frozenset[str], int]) -> str | None:
    if len(cells) not in (2, 3):
        return f"has {len(cells)} columns; give word_a,word_b or word_a,word_b,domain"
    for word in cells[:2]:
        if not word or any(letter.isspace() for letter in word):
            return f"{word!r} is not a single word; give one word in each of the first two columns"
    if cells[0] == cells[1]:
        return f"{cells[0]!r} is paired with itself; give two different words"
    if frozenset(cells[:2]) in lines:
        return f"{cells[0]},{cells[1]} is on line {lines[frozenset(cells[:2])]} already; remove one of the two"
    return None
