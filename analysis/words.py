"""Words in a tokenizer and in a corpus: which are single tokens, how often they occur, and where.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.errors import InputError

from .pairs import Pair

Ids = npt.NDArray[np.int64]

CONTROLS = 5
"""Control words for each synonym."""
_SCAN_TOKENS = 1 << 24  # tokens counted at a time
_ANCHOR = "a"  # a token is decoded after this letter: some tokenizers drop the space at the start of a text


class Vocabulary:
    """What a tokenizer's tokens are to a study of words.

    ``text`` is the list of decoded tokens, leading space included. ``word`` (V, boolean): a space, then letters only.
    ``continues`` (V, boolean): starts with a letter, a digit or an underscore, and so goes on with the word before it.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Decode every token of a transformers tokenizer once."""
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode(_ANCHOR, add_special_tokens=False)
        size = max(tokenizer.get_vocab().values()) + 1
        known = len(self._decode([]))
        self.text = [self._decode([index])[known:] for index in range(size)]
        self.word = np.array([text[:1] == " " and text[1:].isalpha() for text in self.text], dtype=bool)
        self.continues = np.array([text[:1].isalnum() or text[:1] == "_" for text in self.text], dtype=bool)

    def __len__(self) -> int:
        return len(self.text)

    def tokens(self, word: str) -> list[int]:
        """The tokens of ``word`` after a space."""
        ids = self._tokenizer.encode(f"{_ANCHOR} {word}", add_special_tokens=False)
        return list(ids[len(self._anchor) :])

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(self._anchor + ids, clean_up_tokenization_spaces=False)


class Frequencies:
    """How often each token occurs in the training split (``count``), and how often as a complete word (``complete``).

    Both are int64 of shape (V,).
    """

    def __init__(self, ids: npt.NDArray[Any], vocabulary: Vocabulary) -> None:
        """Count the tokens of ``ids`` (one dimension, may be memory-mapped) piece by piece."""
        self.count = np.zeros(len(vocabulary), np.int64)
        self.complete = np.zeros(len(vocabulary), np.int64)
        for start in range(0, len(ids), _SCAN_TOKENS):
            piece = np.asarray(ids[start : start + _SCAN_TOKENS + 1], dtype=np.int64)
            ends = ~vocabulary.continues[piece[1:]]
            self.count += np.bincount(piece[:_SCAN_TOKENS], minlength=len(vocabulary))
            self.complete += np.bincount(piece[:-1][ends], minlength=len(vocabulary))


@dataclass(frozen=True)
class Unit:
    """A word, its synonym and the synonym's control words, as tokens; evaluated at every chosen place of the word."""

    pair: int
    word: int
    synonym: int
    controls: tuple[int, ...]


@dataclass(frozen=True)
class LeftOut:
    """A pair that the tokenizer or the corpus does not support, and why."""

    pair: Pair
    kind: str
    reason: str


@dataclass(frozen=True)
class Study:
    """What every model is asked: the same pairs, controls and contexts."""

    pairs: list[Pair]
    left_out: list[LeftOut]
    units: list[Unit]
    """Two for each pair: each word once in the role of the true next word."""
    places: Mapping[int, Ids]
    """For each word's token, the chosen indices into the validation split at which it stands, ascending."""
    ids: npt.NDArray[Any]
    """The validation split."""
    sequence_length: int
    vocabulary: Vocabulary

    @property
    def all_places(self) -> Ids:
        """Every chosen place once, ascending."""
        return np.unique(np.concatenate(list(self.places.values())))


def plan_study(
    pairs: Sequence[Pair],
    tokenizer: Any,
    train_ids: npt.NDArray[Any],
    validation_ids: npt.NDArray[Any],
    *,
    sequence_length: int,
    min_contexts: int = 5,
    contexts_per_word: int = 200,
    seed: int = 0,
) -> Study:
    """Choose pairs, controls and contexts. The choice depends on the data and the seed alone, not on any model.

    A pair is kept if both words are single tokens after a space, one of them has ``min_contexts`` occurrences in the
    validation split, and both have :data:`CONTROLS` control words.

    Raises :class:`InputError` if no pair is left or the validation split is shorter than one window.
    """
    vocabulary = Vocabulary(tokenizer)
    frequencies = Frequencies(train_ids, vocabulary)
    tokens = {word: vocabulary.tokens(word) for pair in pairs for word in (pair.word_a, pair.word_b)}
    single = {word: ids[0] for word, ids in tokens.items() if len(ids) == 1 and vocabulary.text[ids[0]] == f" {word}"}
    partners = _partners(pairs, single)
    occurrences = find_occurrences(validation_ids, sorted(partners), vocabulary, sequence_length)
    kept: list[Pair] = []
    left_out: list[LeftOut] = []
    units: list[Unit] = []
    for pair in pairs:
        problem = _unsupported(pair, tokens, single, occurrences, min_contexts)
        if problem is None:
            a, b = single[pair.word_a], single[pair.word_b]
            controls = [_controls(w, partners[a] | partners[b], frequencies, vocabulary) for w in (a, b)]
            if min(map(len, controls)) == CONTROLS:
                units += [Unit(len(kept), a, b, controls[1]), Unit(len(kept), b, a, controls[0])]
                kept.append(pair)
                continue
            problem = ("controls", f"the vocabulary has fewer than {CONTROLS} control words for it")
        left_out.append(LeftOut(pair, *problem))
    if not kept:
        raise InputError(
            f"none of the {len(pairs)} pairs can be used ({reasons(left_out)}); use a larger validation split, "
            "a larger vocabulary, other --pairs or a lower --min-contexts"
        )
    places = {unit.word: _choose(occurrences[unit.word], unit.word, contexts_per_word, seed) for unit in units}
    return Study(kept, left_out, units, places, validation_ids, sequence_length, vocabulary)


def _partners(pairs: Sequence[Pair], single: dict[str, int]) -> dict[int, set[int]]:
    """For each word that is one token: itself and every word it is paired with."""
    partners: dict[int, set[int]] = {}
    for pair in pairs:
        if pair.word_a in single and pair.word_b in single:
            a, b = single[pair.word_a], single[pair.word_b]
            partners.setdefault(a, {a}).add(b)
            partners.setdefault(b, {b}).add(a)
    return partners


def reasons(left_out: Sequence[LeftOut]) -> str:
    """How many pairs were left out for each kind of reason, in words."""
    names = {"tokens": "a word takes several tokens", "contexts": "too few contexts", "controls": "too few controls"}
    counts = Counter(entry.kind for entry in left_out)
    return ", ".join(f"{counts[kind]}: {name}" for kind, name in names.items() if counts[kind])


def find_occurrences(
    ids: npt.NDArray[Any], words: Sequence[int], vocabulary: Vocabulary, sequence_length: int
) -> dict[int, Ids]:
    """For each token of ``words``, the indices into ``ids`` at which it stands as a complete word, ascending.

    Complete: the next token does not go on with it (" delete" in " deleted" is no occurrence). Counted are the places
    that are predicted inside one of the whole windows of ``sequence_length`` inputs.
    """
    windows = (len(ids) - 1) // sequence_length
    if windows < 1:
        raise InputError(
            f"the validation split has {len(ids)} tokens, fewer than data.sequence_length + 1 = {sequence_length + 1}; "
            "hold out more (data.validation_fraction)"
        )
    text = np.asarray(ids, dtype=np.int64)
    complete = np.append(~vocabulary.continues[text[1:]], True)
    complete[0] = False  # nothing predicts the first token
    complete[windows * sequence_length + 1 :] = False
    asked = np.zeros(len(vocabulary), dtype=bool)
    asked[list(words)] = True
    places = np.flatnonzero(asked[text] & complete)
    return {word: places[text[places] == word] for word in words}


def _unsupported(
    pair: Pair, tokens: dict[str, list[int]], single: dict[str, int], occurrences: dict[int, Ids], min_contexts: int
) -> tuple[str, str] | None:
    """Why the tokenizer or the corpus does not support the pair: (kind, reason), or None if they do."""
    words = (pair.word_a, pair.word_b)
    several = [f"{word!r} takes {len(tokens[word])} tokens" for word in words if word not in single]
    if several:
        return "tokens", " and ".join(several)
    counts = [len(occurrences[single[word]]) for word in words]
    if max(counts) < min_contexts:
        found = " and ".join(f"{word!r} {count}" for word, count in zip(words, counts, strict=True))
        return "contexts", f"fewer than {min_contexts} validation contexts: {found}"
    return None


def _controls(synonym: int, excluded: set[int], frequencies: Frequencies, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The words whose training frequency is nearest, in ratio, to the synonym's; fewer if there are not enough.

    A control is a space and then letters of the synonym's case, occurs in training, and is a complete word in at least
    half of its occurrences: " th" is mostly the start of a longer word and would be no fair comparison.
    """
    usable = vocabulary.word & (frequencies.count > 0) & (2 * frequencies.complete >= frequencies.count)
    usable[list(excluded)] = False
    lower = vocabulary.text[synonym].islower()
    words = np.array([i for i in np.flatnonzero(usable) if vocabulary.text[i].islower() == lower], dtype=np.int64)
    distance = np.abs(np.log1p(frequencies.count[words]) - np.log1p(frequencies.count[synonym]))
    return tuple(int(i) for i in words[np.argsort(distance, kind="stable")[:CONTROLS]])


def _choose(places: Ids, word: int, limit: int, seed: int) -> Ids:
    """At most ``limit`` of ``places``, ascending; the generator is the word's own, whatever other words are studied."""
    if len(places) <= limit:
        return places
    return np.sort(np.random.default_rng([seed, word]).choice(places, limit, replace=False))
