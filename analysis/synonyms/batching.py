"""Which places are read together: those that share a passage in one sequence, sequences of similar length in one batch.

Shapes: C places, N nodes (tokens of candidates) below them, Q queries at them; the rows of a batch are its places, then its
nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compare.statistics import Bools, Ids

from .encode import Encoded

SEQUENCE_POSITIONS = 512
"""Trees are placed beside a text up to this many positions; the rest of its places go beside another copy of it."""


@dataclass(frozen=True)
class Batch:
    """Places that are read together, and the nodes of the trees below them."""

    sequences: tuple[tuple[int, int], ...]
    """The study's places in each sequence, as ranges."""
    place_C: Ids
    """All of them."""
    query_Q: Ids
    """The study's queries at these places."""
    place_N: Ids
    """The place of each node: an index into ``place_C``."""
    token_N: Ids
    parent_N: Ids
    """The row before each node: a place or a node."""
    depth_N: Ids
    place_Q: Ids
    """The place of each query: an index into ``place_C``."""
    offset_Q: Ids
    """The first node of each query's tree."""

    @property
    def places(self) -> int:
        """C: the number of places."""
        return len(self.place_C)

    def path_to(self, node: int) -> list[int]:
        """The nodes from the place down to ``node``."""
        path = [node]
        while (parent := int(self.parent_N[path[-1]])) >= self.places:
            path.append(parent - self.places)
        return path[::-1]


def batches_of(encoded: Encoded, positions: int) -> Iterator[Batch]:
    """The places of a study in batches of about ``positions`` padded positions, the longest sequences first."""
    sequences = pack_sequences(encoded)
    for group in padded_groups([length for *_, length in sequences], positions):
        yield make_batch(encoded, [sequences[i][:2] for i in group])


def padded_groups(lengths: Sequence[int], positions: int) -> Iterator[range]:
    """Consecutive items of sorted ``lengths`` that take at most so many positions when padded to one length."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * max(lengths[start], lengths[end]) > positions:
            yield range(start, end)
            start = end


def pack_sequences(encoded: Encoded) -> list[tuple[int, int, int]]:
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


def make_batch(encoded: Encoded, sequences: Sequence[tuple[int, int]]) -> Batch:
    """The batch of these sequences, each a range of places that share a passage."""
    study = encoded.study
    place_C = np.concatenate([np.arange(low, high) for low, high in sequences])
    query_Q = np.concatenate([np.arange(*np.searchsorted(study.place_M, bounds)) for bounds in sequences])
    index_C = np.zeros(len(study.position_C), dtype=np.int64)
    index_C[place_C] = np.arange(len(place_C))
    place_Q = index_C[study.place_M[query_Q]]
    trees = [encoded.trees[unit] for unit in study.unit_M[query_Q]]
    size_Q = np.array([len(tree.token_E) for tree in trees], dtype=np.int64)
    offset_Q = np.cumsum(size_Q) - size_Q
    place_N = np.repeat(place_Q, size_Q)
    parent_N = np.concatenate([tree.parent_E for tree in trees])
    return Batch(
        sequences=tuple(sequences),
        place_C=place_C,
        query_Q=query_Q,
        place_N=place_N,
        token_N=np.concatenate([tree.token_E for tree in trees]),
        parent_N=np.where(parent_N < 0, place_N, np.repeat(offset_Q, size_Q) + parent_N + len(place_C)),
        depth_N=np.concatenate([tree.depth_E for tree in trees]),
        place_Q=place_Q,
        offset_Q=offset_Q,
    )


def ancestors(parent_N: Ids) -> Bools:
    """(N, N): whether the second node is the first or stands before it; a parent below 0 is the place."""
    sees_NN = np.eye(len(parent_N), dtype=bool)
    above = parent_N.copy()
    while (known := above >= 0).any():
        sees_NN[known, above[known]] = True
        above[known] = parent_N[above[known]]
    return sees_NN
