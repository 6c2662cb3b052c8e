"""Which places are read together: those that share a passage in one sequence, and sequences of like length in one lot.

Shapes: C places, N nodes (tokens of candidates) below them, Q questions at them; the rows of a lot are its places, then its
nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.words.vocabulary import Ids

from .encode import Encoded

SEQUENCE_POSITIONS = 512
"""Trees are put beside a text up to this many positions; then the text is taken again for the rest of its places."""


@dataclass(frozen=True)
class Lot:
    """Places that are read together, and the nodes of the trees below them."""

    sequences: tuple[tuple[int, int], ...]
    """The places of the study in each sequence, as ranges."""
    place_C: Ids
    """All of them."""
    question_Q: Ids
    """The questions of the study at these places."""
    place_N: Ids
    """The place of each node: an index into ``place_C``."""
    token_N: Ids
    parent_N: Ids
    """The row before each node: a place or a node."""
    depth_N: Ids
    place_Q: Ids
    """The place of each question: an index into ``place_C``."""
    offset_Q: Ids
    """The number of the first node of each question's tree."""

    @property
    def places(self) -> int:
        """C: how many places."""
        return len(self.place_C)


def plan_lots(encoded: Encoded, positions: int) -> Iterator[Lot]:
    """The places of a study in lots of about ``positions`` padded positions; the longest first, with others as long."""
    sequences = plan_sequences(encoded)
    start = 0
    for end in range(1, len(sequences) + 1):
        if end == len(sequences) or (end + 1 - start) * sequences[start][2] > positions:
            yield lot_of(encoded, [(low, high) for low, high, _ in sequences[start:end]])
            start = end


def plan_sequences(encoded: Encoded) -> list[tuple[int, int, int]]:
    """Ranges of places that share a passage and fit beside it, and the positions that each takes; the longest first."""
    study = encoded.study
    size_U = np.array([len(tree.token_E) for tree in encoded.trees], dtype=np.int64)
    nodes_C = np.bincount(study.place_M, size_U[study.unit_M], len(study.position_C)).astype(np.int64)
    found: list[tuple[int, int, int]] = []
    low = nodes = 0
    for place, (passage, position) in enumerate(zip(study.passage_C, encoded.position_C, strict=True)):
        full = position + 1 + nodes + nodes_C[place] > SEQUENCE_POSITIONS
        if place > low and (full or passage != study.passage_C[low]):
            found.append((low, place, int(encoded.position_C[place - 1]) + 1 + nodes))
            low, nodes = place, 0
        nodes += int(nodes_C[place])
    found.append((low, len(nodes_C), int(encoded.position_C[-1]) + 1 + nodes))
    return sorted(found, key=lambda sequence: (-sequence[2], sequence[0]))


def lot_of(encoded: Encoded, sequences: Sequence[tuple[int, int]]) -> Lot:
    """The lot of these sequences, each a range of places that share a passage."""
    study = encoded.study
    place_C = np.concatenate([np.arange(low, high) for low, high in sequences])
    bounds = [np.searchsorted(study.place_M, [low, high]) for low, high in sequences]
    question_Q = np.concatenate([np.arange(low, high) for low, high in bounds])
    asked = np.repeat(
        np.cumsum([0, *(high - low for low, high in sequences)])[:-1], [high - low for low, high in bounds]
    )
    first = np.repeat([low for low, _ in sequences], [high - low for low, high in bounds])
    place_Q = asked + study.place_M[question_Q] - first
    units = study.unit_M[question_Q]
    trees = [encoded.trees[unit] for unit in units]
    size_Q = np.array([len(tree.token_E) for tree in trees], dtype=np.int64)
    offset_Q = np.concatenate([[0], np.cumsum(size_Q)])[:-1]
    place_N = np.repeat(place_Q, size_Q)
    parent_N = np.concatenate([tree.parent_E for tree in trees])
    below = np.repeat(offset_Q, size_Q) + parent_N + len(place_C)
    return Lot(
        sequences=tuple(sequences),
        place_C=place_C,
        question_Q=question_Q,
        place_N=place_N,
        token_N=np.concatenate([tree.token_E for tree in trees]),
        parent_N=np.where(parent_N < 0, place_N, below),
        depth_N=np.concatenate([tree.depth_E for tree in trees]),
        place_Q=place_Q,
        offset_Q=offset_Q,
    )


def ancestors(parent_N: Ids) -> npt.NDArray[np.bool_]:
    """(N, N): whether the second node is the first or stands before it; a parent below 0 is the place."""
    sees_NN = np.eye(len(parent_N), dtype=bool)
    row = np.arange(len(parent_N))
    above = parent_N.copy()
    while (above >= 0).any():
        known = above >= 0
        sees_NN[row[known], above[known]] = True
        above[known] = parent_N[above[known]]
    return sees_NN


def path_to(lot: Lot, node: int) -> list[int]:
    """The nodes from the place down to ``node``."""
    path = [node]
    while (parent := int(lot.parent_N[path[-1]])) >= lot.places:
        path.append(parent - lot.places)
    return path[::-1]
