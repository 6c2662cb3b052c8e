"""A study in the tokens of one tokenizer, and which of its places are read together.

Shapes: C places, U units, K candidates of a unit, E nodes of a unit's tree, N nodes of a batch, Q queries of a batch. The rows of
a batch are its places, then its nodes.

The tokenizer is the store's own, or that of a guest: a model with another tokenizer. The candidates of a unit form a tree below
the place: a node for each token, shared by candidates that begin alike, so that no token is read twice. Places that share a
passage are read in one sequence, sequences of similar length in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.compare.statistics import Bools, Ids
from analysis.words.vocabulary import Vocabulary
from common.errors import InputError

from .study import Study, Unit

SEQUENCE_POSITIONS = 512
"""Trees are placed beside a text up to this many positions; the rest of its places go beside another copy of it."""


@dataclass(frozen=True)
class Tree:
    """The tokens of a unit's candidates below a place; nodes come after their parents."""

    token_E: Ids
    parent_E: Ids
    """The node before, or -1 for the place."""
    depth_E: Ids
    """1 for the first token of a word."""
    leaf_K: Ids
    """The node of each candidate's last token; -1 if this tokenizer merges the candidate with what stands before it."""


@dataclass(frozen=True)
class Encoded:
    """Passages, places and candidates in one tokenizer's tokens."""

    study: Study
    vocabulary: Vocabulary
    passages: tuple[Ids, ...]
    position_C: Ids
    trees: tuple[Tree, ...]

    @cached_property
    def longest(self) -> int:
        """Positions that the longest passage takes, or the longest candidate at its place if that ends later."""
        deepest_M = np.array([tree.depth_E.max(initial=0) for tree in self.trees])[self.study.unit_M]
        ends_M = self.position_C[self.study.place_M] + 1 + deepest_M
        return int(max(ends_M.max(initial=1), *map(len, self.passages)))


def encode_study(study: Study, tokenizer: Any = None) -> Encoded:
    """The study in the tokens of ``tokenizer``; None for the store's own, in which it is already.

    Raises :class:`InputError` if the tokenizer has no token for the beginning of a passage.
    """
    vocabulary = study.vocabulary if tokenizer is None else Vocabulary(tokenizer)
    surfaces = {candidate.surface for unit in study.units for candidate in unit.candidates}
    known = {surface: vocabulary.tokens(surface) or () for surface in surfaces}
    trees = tuple(_tree(unit, known) for unit in study.units)
    if tokenizer is None:
        passages = tuple(np.asarray(ids, dtype=np.int64) for ids in study.passages)
        return Encoded(study, vocabulary, passages, study.position_C, trees)
    return Encoded(study, vocabulary, *_translate(study, tokenizer, vocabulary), trees)


def _tree(unit: Unit, known: dict[str, tuple[int, ...]]) -> Tree:
    number: dict[tuple[int, ...], int] = {}
    leaves = []
    for candidate in unit.candidates:
        tokens = known[candidate.surface]
        for length in range(1, len(tokens) + 1):
            number.setdefault(tokens[:length], len(number))
        leaves.append(number.get(tokens, -1))
    return Tree(
        token_E=np.array([prefix[-1] for prefix in number], dtype=np.int64),
        parent_E=np.array([number.get(prefix[:-1], -1) for prefix in number], dtype=np.int64),
        depth_E=np.array([len(prefix) for prefix in number], dtype=np.int64),
        leaf_K=np.array(leaves, dtype=np.int64),
    )


def _translate(study: Study, tokenizer: Any, vocabulary: Vocabulary) -> tuple[tuple[Ids, ...], Ids]:
    """The passages' text in other tokens, cut at every place, so that a token ends there too; and the places' positions."""
    before = np.array(tokenizer.encode("")[:1], dtype=np.int64)
    if tokenizer.bos_token_id is None or list(before) != [tokenizer.bos_token_id]:
        before = np.empty(0, dtype=np.int64)  # this tokenizer puts nothing before a text
    passages: list[Ids] = []
    position_C = np.empty(len(study.position_C), dtype=np.int64)
    bounds = np.searchsorted(study.passage_C, np.arange(len(study.passages) + 1))
    for index, ids in enumerate(study.passages):
        parts = [before]
        size = len(before)
        done = int(size > 0 and ids[0] == study.end_of_text)  # the guest has its own token for the beginning of a text
        for place in range(bounds[index], bounds[index + 1]):
            cut = int(study.position_C[place]) + 1
            parts.append(_retokenize(ids[done:cut], study, tokenizer, vocabulary))
            size, done = size + len(parts[-1]), cut
            position_C[place] = size - 1
        parts.append(_retokenize(ids[done:], study, tokenizer, vocabulary))
        passages.append(np.concatenate(parts))
    if (position_C < 0).any():
        raise InputError(
            "the guest's tokenizer has no token for the beginning of a passage; it cannot be compared here"
        )
    return tuple(passages), position_C


def _retokenize(ids: Ids, study: Study, tokenizer: Any, vocabulary: Vocabulary) -> Ids:
    """A stretch of the store's tokens in the guest's; an end of text becomes the guest's own, or nothing."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    found: list[int] = []
    for number, piece in enumerate(np.split(ids, np.flatnonzero(np.asarray(ids) == study.end_of_text))):
        found += end if number else []
        inner = piece[1:] if number else piece  # all pieces but the first begin with an end of text
        if len(inner):
            text = study.vocabulary.decode(inner.tolist())
            found += vocabulary.tokens(text) or tokenizer.encode(text, add_special_tokens=False)
    return np.array(found, dtype=np.int64)


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
