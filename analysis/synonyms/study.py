"""A study: which words every model predicts, with which candidates, at which places of which text.

Shapes: C places, U units, M queries.

A *place* is a position of a passage at which a word is predicted. A *unit* is a word as it is written there (with or without a
leading space, capitalised or not), with the candidates that could stand in its place. A *query* is a unit at a place: a model
scores all of the unit's candidates there. A study depends on no model, so that all get the same queries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from analysis.compare.statistics import Bools, Ids
from analysis.words.vocabulary import Vocabulary

CONTROLS = 5
"""Control words of a unit."""
SHUFFLED = 20
"""Most queries of a unit at places of other words; there are no more than at its own places either."""
_REASONS = {
    "tokens": "a word takes too many tokens",
    "contexts": "too few contexts",
    "controls": "too few controls",
    "positions": "no room in the window",
}


class Role(IntEnum):
    """How a candidate relates to the word."""

    WORD = 0
    """The word itself, as it stands in the text."""
    SYNONYM = 1
    """Acceptable in its place."""
    CONTROL = 2
    """As frequent and long as the synonym, and of its part of speech where known."""
    ANTONYM = 3
    """Of opposite meaning."""
    REJECTED = 4
    """Judged by people not to fit: the other word of a dissimilar pair, or a substitute rejected for this very place."""
    UNDECIDED = 5
    """A substitute that some judges accept and most do not: neither accepted nor rejected, but its weight enters GAP."""


@dataclass(frozen=True)
class Candidate:
    """A word that could stand at a place, as it would be written there."""

    surface: str
    role: Role
    weight: float = 1.0
    """For synonyms and undecided candidates: the number or share of the judges who named it."""


@dataclass(frozen=True)
class Unit:
    """A word as it is written and its candidates; the first is the word itself."""

    item: int
    lemma: str
    """The word in lower case: the statistical cluster."""
    candidates: tuple[Candidate, ...]
    single: bool
    """The word and its synonyms are single tokens."""

    @property
    def spaced(self) -> bool:
        """Whether the word stands after a space."""
        return self.candidates[0].surface.startswith(" ")


@dataclass(frozen=True)
class Item:
    """What results are reported for: a pair of words, or a word of a substitution file."""

    name: str
    domain: str
    pos: str


@dataclass(frozen=True)
class LeftOut:
    """An item that the tokenizer or the corpus does not support, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Study:
    """All queries, ordered by place; the places ordered by passage and position."""

    source: str
    """Where the pairs or substitutions come from."""
    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...]
    units: tuple[Unit, ...]
    passages: tuple[Ids, ...]
    """What the model reads, from its first token on, in tokens of the store's tokenizer."""
    passage_C: Ids
    position_C: Ids
    """The word is predicted at this position: its first token would be the next one."""
    document_C: Ids
    place_M: Ids
    unit_M: Ids
    shuffled_M: Bools
    """The place is a random one of another word: what the candidates get regardless of the context."""
    vocabulary: Vocabulary
    end_of_text: int

    @property
    def own_M(self) -> Bools:
        """The place is one of the word itself."""
        return ~self.shuffled_M

    @property
    def item_M(self) -> Ids:
        """The item of each query."""
        return np.array([unit.item for unit in self.units], dtype=np.int64)[self.unit_M]

    @property
    def document_M(self) -> Ids:
        """The document of each query's place."""
        return self.document_C[self.place_M]

    @property
    def lemma_M(self) -> Ids:
        """The index of each query's lemma."""
        numbers: dict[str, int] = {}
        lemma_U = np.array([numbers.setdefault(unit.lemma, len(numbers)) for unit in self.units], dtype=np.int64)
        return lemma_U[self.unit_M]

    @property
    def single_M(self) -> Bools:
        """Whether word and synonyms are single tokens."""
        return np.array([unit.single for unit in self.units], dtype=bool)[self.unit_M]


def assemble(
    source: str,
    items: Sequence[Item],
    left_out: Sequence[LeftOut],
    units: Sequence[Unit],
    passages: Sequence[Ids],
    places: Ids,
    queries: Ids,
    vocabulary: Vocabulary,
    end_of_text: int,
) -> Study:
    """The study of ``places`` (rows: passage, position, document) and ``queries`` (rows: place, unit, shuffled)."""
    order_C = np.lexsort((places[:, 1], places[:, 0]))
    place_M = np.argsort(order_C)[queries[:, 0]]
    order_M = np.lexsort((queries[:, 1], queries[:, 2], place_M))
    return Study(
        source=source,
        items=tuple(items),
        left_out=tuple(left_out),
        units=tuple(units),
        passages=tuple(passages),
        passage_C=places[order_C, 0],
        position_C=places[order_C, 1],
        document_C=places[order_C, 2],
        place_M=place_M[order_M],
        unit_M=queries[order_M, 1],
        shuffled_M=queries[order_M, 2].astype(bool),
        vocabulary=vocabulary,
        end_of_text=end_of_text,
    )


def shuffled_queries(
    unit_M: Ids, place_M: Ids, units: Sequence[Unit], related: Sequence[frozenset[str]], seed: int
) -> list[tuple[int, int, int]]:
    """Each unit at places of unrelated words that are written alike; rows (place, unit, 1).

    ``related[u]``: the lemmas whose places unit u must not be queried at, its own among them.
    """
    kind_U = np.array([2 * unit.spaced + unit.candidates[0].surface.strip()[:1].isupper() for unit in units])
    number = {lemma: index for index, lemma in enumerate({unit.lemma: None for unit in units})}
    lemma_U = np.array([number[unit.lemma] for unit in units], dtype=np.int64)
    place_C, first_C = np.unique(place_M, return_index=True)
    owner_C = unit_M[first_C]  # one of the units of each place: all share its word
    kind_C, lemma_C = kind_U[owner_C], lemma_U[owner_C]
    rows: list[tuple[int, int, int]] = []
    counts = np.bincount(unit_M, minlength=len(units))
    for index in np.flatnonzero(counts).tolist():
        excluded = [number[lemma] for lemma in related[index] if lemma in number]
        fitting = place_C[(kind_C == kind_U[index]) & ~np.isin(lemma_C, excluded)]
        wanted = min(SHUFFLED, int(counts[index]), len(fitting))
        drawn = np.random.default_rng([seed, index]).choice(fitting, wanted, replace=False)
        rows += [(place, index, 1) for place in drawn.tolist()]
    return rows


def reasons(left_out: Sequence[LeftOut]) -> str:
    """How many items were left out for each kind of reason, in words."""
    counts = Counter(entry.kind for entry in left_out)
    return ", ".join(f"{counts[kind]}: {name}" for kind, name in _REASONS.items() if counts[kind])
