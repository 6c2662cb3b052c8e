"""A study in the tokens of one tokenizer: the store's own, or that of a guest, a model with another tokenizer.

Shapes: C places, U units, K candidates of a unit, E nodes of a unit's tree.

The candidates of a unit form a tree below the place: a node for each token, shared by candidates that begin alike, so that no
token is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.compare.statistics import Ids
from analysis.words.vocabulary import Vocabulary
from common.errors import InputError

from .study import Study, Unit


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
