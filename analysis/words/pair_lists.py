"""Where pairs of words come from: the built-in list, a CSV or TSV of the user's, lists scored by human judges, WordNet.

Of the scored lists SimLex-999 (Hill, Reichart and Korhonen 2015) and WordSim-353 (Finkelstein et al. 2002, and its split by
Agirre et al. 2009) are recognised by their headers. WordSim-353 scores relatedness: "coast" and "forest" score high there
because they belong together, not because one may replace the other.
"""

from __future__ import annotations

import math
from pathlib import Path

from common.errors import InputError

from .pair_layout import OWN_COLUMNS, Layout, Rows, number_of, read_all, read_rows, recognise, words_problem
from .pairs import PARTS_OF_SPEECH, Pair, PairList

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
    if source == "wordnet" or source.startswith("wordnet:"):
        return _from_wordnet(source, words)
    path = BUILTIN if source == "builtin" else Path(source)
    rows, delimiter = read_rows(path)
    layout = recognise(path, rows[0][1], delimiter)
    body = rows[1:] if layout.header else rows
    if not body:
        raise InputError(f"--pairs {path} has a header and no pairs; give rows of two words")
    if "score" in layout.column:
        return _scored_pairs(path, layout, body, min_similarity)
    return _own_pairs("builtin" if source == "builtin" else f"word pairs ({path})", path, layout, body)


def _from_wordnet(source: str, words: frozenset[str] | None) -> PairList:
    from .wordnet import WordNet

    if words is None:
        raise ValueError("WordNet is searched among given words")
    folder = source.partition(":")[2]
    if source != "wordnet" and not folder:
        raise InputError("--pairs wordnet: names no folder; give wordnet:FOLDER, or wordnet for nltk's own data")
    return WordNet(Path(folder) if folder else None).pairs(words)


def _own_pairs(source: str, path: Path, layout: Layout, rows: Rows) -> PairList:
    groups: dict[str, list[Pair]] = {relation: [] for relation in RELATIONS}
    lines: dict[frozenset[str], int] = {}

    def read(number: int, cells: list[str]) -> str | None:
        """Add the row to ``groups``, or say what is wrong with it."""
        if not 2 <= len(cells) <= layout.width:
            return f"has {len(cells)} columns; give {','.join(layout.column)}"
        a, b, domain, relation, pos = (layout.cell(cells, name) for name in OWN_COLUMNS)
        if problem := words_problem(a, b):
            return problem
        if a == b:
            return f"{a!r} is paired with itself; give two different words"
        if frozenset((a, b)) in lines:
            return f"{a},{b} is on line {lines[frozenset((a, b))]} already; remove one of the two"
        if number_of(domain) is not None:
            return f"domain {domain!r} is a number; for a score name the columns in a header: word1,word2,score"
        if relation not in ("", *RELATIONS):
            return f"relation {relation!r} is not known; give {' or '.join(RELATIONS)}, or leave it empty"
        if pos not in ("", *PARTS_OF_SPEECH):
            return f"pos {pos!r} is not known; give one of {', '.join(PARTS_OF_SPEECH)}, or leave it empty"
        lines[frozenset((a, b))] = number
        groups[relation or RELATIONS[0]].append(Pair(a, b, domain, pos))
        return None

    read_all(path, rows, read)
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
        if problem := words_problem(a, b):
            return problem
        if pos.lower() not in ("", *PARTS_OF_SPEECH):
            return f"pos {pos!r} is not known; give one of {', '.join(PARTS_OF_SPEECH).upper()}"
        value = number_of(score)
        if value is None or not math.isfinite(value):
            return f"score {score!r} is not a number; give a number from 0"
        if not 0 <= value <= highest:
            return f"score {value:g} is outside 0 to {highest:g}; give the scores on that scale"
        given.setdefault(frozenset((a, b)), []).append((a, b, pos.lower(), value))
        return None

    read_all(path, rows, read)
    largest = max(value for group in given.values() for *_, value in group)
    scale = layout.scale or next(size for size in SCALES if largest <= size)
    notes = [] if layout.scale else [f"scores taken as 0 to {scale:g}, the largest being {largest:g}"]
    if itself := sum(len(group) for words, group in given.items() if len(words) == 1):
        notes.append(f"{itself} scored with itself left out")
    if twice := sum(len(words) == 2 and len(group) > 1 for words, group in given.items()):
        notes.append(f"{twice} scored twice averaged")
    similar, dissimilar, undecided = [], [], 0
    for words, group in given.items():
        if len(words) == 1:
            continue
        a, b, first, _ = group[0]
        similarity = math.fsum(value for *_, value in group) / len(group) / scale
        pair = Pair(a, b, "", first if all(pos == first for _, _, pos, _ in group) else "", similarity)
        if similarity >= min_similarity - _ROUNDING:
            similar.append(pair)
        elif similarity <= 1 - min_similarity + _ROUNDING:
            dissimilar.append(pair)
        else:
            undecided += 1
    source = f"{layout.name} ({'; '.join([str(path), *notes])})"
    return PairList(source, tuple(similar), (), tuple(dissimilar), undecided)
