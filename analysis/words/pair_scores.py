"""Lists of word pairs that judges scored: which are synonyms, which are dissimilar.

Lists scored for relatedness (WordSim-353) put "coast" and "forest" beside true synonyms: a high score there says that two
words belong together, not that one may stand for the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .pair_layout import Layout, Rows, number_of, take_all, words_problem
from .pairs import PARTS_OF_SPEECH, Pair, PairList

MIN_SIMILARITY = 0.6
"""Of the largest score: from here on a pair is one of synonyms."""
SCALES = (1.0, 5.0, 10.0)
_ROUNDING = 1e-9  # 1 - 0.8 is below 0.2 in binary: a score of exactly 2 of 10 must still count as dissimilar


@dataclass(frozen=True)
class _Score:
    line: int
    word_a: str
    word_b: str
    pos: str
    value: float


def scored_pairs(path: Path, layout: Layout, rows: Rows, min_similarity: float) -> PairList:
    """The groups of a scored list; see :func:`load_pairs`. Raises :class:`InputError` for every row that cannot be used."""
    scores: list[_Score] = []

    def take(number: int, cells: list[str]) -> str | None:
        """Add the row to ``scores``, or say what is wrong with it."""
        if len(cells) <= max(layout.column.values()):
            return f"has {len(cells)} columns; the list has {layout.width}"
        a, b, pos = (layout.cell(cells, name) for name in ("word_a", "word_b", "pos"))
        if problem := words_problem(a, b):
            return problem
        if pos.lower() not in ("", *PARTS_OF_SPEECH):
            return f"pos {pos!r} is not known; give one of {', '.join(PARTS_OF_SPEECH).upper()}"
        value = number_of(layout.cell(cells, "score"))
        if value is None or not math.isfinite(value):
            return f"score {layout.cell(cells, 'score')!r} is not a number; give a number from 0"
        if not 0 <= value <= (layout.scale or SCALES[-1]):
            return f"score {value:g} is outside 0 to {layout.scale or SCALES[-1]:g}; give the scores on that scale"
        scores.append(_Score(number, a, b, pos.lower(), value))
        return None

    take_all(path, rows, take)
    scale = layout.scale or next(size for size in SCALES if max(score.value for score in scores) <= size)
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
