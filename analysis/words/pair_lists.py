"""Where pairs of words come from: the built-in list, the project's own CSV or TSV, lists scored by human judges, WordNet.

Of the scored lists SimLex-999 (Hill, Reichart and Korhonen 2015) and WordSim-353 (Finkelstein et al. 2002, and its split by
Agirre et al. 2009) are known by their headers.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import InputError

from .pair_layout import OWN_COLUMNS, Layout, Rows, fail, number_of, read_rows, recognise, take_all, words_problem
from .pair_scores import MIN_SIMILARITY, scored_pairs
from .pairs import PARTS_OF_SPEECH, Pair, PairList

BUILTIN = Path(__file__).with_name("pairs_builtin.csv")
RELATIONS = ("synonym", "antonym")


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
    rows, delimiter = read_rows(path)
    layout = recognise(path, rows[0][1], delimiter)
    body = rows[1:] if layout.header else rows
    if not body:
        fail(path, None, "has a header and no pairs; give rows of two words")
    if layout.scored:
        return scored_pairs(path, layout, body, min_similarity)
    return _own_pairs("builtin" if source == "builtin" else f"word pairs ({path})", path, layout, body)


def _from_wordnet(source: str, words: frozenset[str] | None) -> PairList:
    from .wordnet import WordNet

    if words is None:
        raise ValueError("WordNet is searched among given words")
    _, _, folder = source.partition(":")
    if source != "wordnet" and not folder:
        raise InputError("--pairs wordnet: names no folder; give wordnet:FOLDER, or wordnet for nltk's own data")
    return WordNet(Path(folder) if folder else None).pairs(words)


def _own_pairs(source: str, path: Path, layout: Layout, rows: Rows) -> PairList:
    groups: dict[str, list[Pair]] = {relation: [] for relation in RELATIONS}
    lines: dict[frozenset[str], int] = {}

    def take(number: int, cells: list[str]) -> str | None:
        """Add the row to ``groups``, or say what is wrong with it."""
        if not 2 <= len(cells) <= layout.width:
            columns = ",".join(layout.column)
            return f"has {len(cells)} columns; give {columns}"
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

    take_all(path, rows, take)
    return PairList(source, tuple(groups["synonym"]), tuple(groups["antonym"]))
