"""Studies from pairs of words in held-out text, and from lexical-substitution files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.words.pairs import PairList
from analysis.words.substitutions import ACCEPTABLE, Substitution, SubstitutionList
from analysis.words.vocabulary import MAX_WORD_TOKENS, Ids, Vocabulary
from common.errors import InputError

from .controls import Controls
from .study import CONTROLS, Candidate, Item, LeftOut, Role, Study, Unit, assemble, reasons, shuffled_questions

MOST_CONTRASTS = 5
"""Antonyms, and rejected words, of a unit: at most so many."""
_WRITTEN = [(spaced, capital) for spaced in (True, False) for capital in (False, True)]


class HeldOut:
    """A validation split in consecutive windows of the training length, and where words stand in it."""

    def __init__(self, ids: npt.NDArray[Any], starts: Ids, sequence_length: int, vocabulary: Vocabulary) -> None:
        """Sort the tokens once. Raises :class:`InputError` for a split shorter than a window or a window too short."""
        self.windows = (len(ids) - 1) // sequence_length
        if self.windows < 1:
            raise InputError(
                f"the validation split has {len(ids)} tokens, fewer than data.sequence_length + 1 = "
                f"{sequence_length + 1}; hold out more (data.validation_fraction)"
            )
        if sequence_length <= MAX_WORD_TOKENS:
            raise InputError(f"data.sequence_length is {sequence_length}; at least {MAX_WORD_TOKENS + 1} is needed")
        self.ids = np.asarray(ids, dtype=np.int64)
        self.length = sequence_length
        self._starts = starts
        self._order = np.argsort(self.ids, kind="stable")
        self._sorted = self.ids[self._order]
        self._ends_word = np.append(~vocabulary.continues[self.ids], True)  # of the token at this index, or no token
        last = np.array([text[-1:].isalnum() or text[-1:] == "_" for text in vocabulary.text], dtype=bool)
        self._in_word = last[self.ids]

    def find(self, tokens: Sequence[int], *, spaced: bool) -> Ids:
        """The indices of the split at which these tokens stand as a complete word with room after it, ascending.

        Complete: the next token does not go on with it (" delete" in " deleted" is no occurrence), and without a space
        no letter or digit stands before it. Room: MAX_WORD_TOKENS positions of the window are left for any candidate.
        """
        low, high = np.searchsorted(self._sorted, [tokens[0], tokens[0] + 1])
        places = self._order[low:high]
        places = places[(places >= 1) & (places + len(tokens) <= len(self.ids))]
        for offset, token in enumerate(tokens[1:], start=1):
            places = places[self.ids[places + offset] == token]
        places = places[self._ends_word[places + len(tokens)]]
        if not spaced:
            places = places[~self._in_word[places - 1]]
        window, position = np.divmod(places - 1, self.length)
        return np.asarray(places[(window < self.windows) & (position + MAX_WORD_TOKENS < self.length)])

    def places(self, index_C: Ids) -> npt.NDArray[np.int64]:
        """Rows (window, position, document) of the words that begin at these indices."""
        window, position = np.divmod(index_C - 1, self.length)
        return np.stack([window, position, np.searchsorted(self._starts, index_C, side="right") - 1], axis=1)

    def passages(self) -> list[npt.NDArray[Any]]:
        """The windows."""
        return [self.ids[w * self.length : (w + 1) * self.length] for w in range(self.windows)]


def plan_pairs(
    pairs: PairList,
    vocabulary: Vocabulary,
    controls: Controls,
    held_out: HeldOut,
    *,
    end_of_text: int,
    min_contexts: int = 5,
    contexts_per_word: int | None = None,
    seed: int = 0,
) -> Study:
    """Each word of each synonym pair once in the role of the true word, at every place (or at most ``contexts_per_word``).

    A pair is kept if both words are at most MAX_WORD_TOKENS tokens after a space, one of them stands ``min_contexts``
    times in the held-out text, and both have :data:`CONTROLS` control words.
    Raises :class:`InputError` if no pair is left.
    """
    related, antonyms, rejected = _relations(pairs)
    found: dict[str, dict[tuple[bool, bool], Ids]] = {}
    items: list[Item] = []
    left_out: list[LeftOut] = []
    units: list[Unit] = []
    relatives: list[frozenset[str]] = []
    place_number: dict[int, int] = {}
    rows: list[npt.NDArray[np.int64]] = []
    for pair in pairs.synonyms:
        words = (pair.word_a, pair.word_b)
        for word in words:
            if word not in found:
                found[word] = _occurrences(word, vocabulary, held_out, contexts_per_word, seed)
        relative = related[pair.word_a] | related[pair.word_b]  # what may stand for either is no control of the other
        names = {word: _controls_of(word, relative, vocabulary, controls) for word in words}
        asked: dict[str, list[tuple[Unit, Ids]]] = {}
        for word, synonym in (words, words[::-1]):
            roles = [
                (word, Role.WORD),
                (synonym, Role.SYNONYM),
                *((name, Role.CONTROL) for name in names[synonym]),
                *((name, Role.ANTONYM) for name in antonyms[word]),
                *((name, Role.REJECTED) for name in rejected[word]),
            ]
            asked[word] = list(_units_of(len(items), roles, found[word], vocabulary))
        counts = {word: sum(len(index_C) for _, index_C in asked[word]) for word in words}
        problem = _unsupported(vocabulary, counts, names, min_contexts)
        if problem:
            left_out.append(LeftOut(str(pair), *problem))
            continue
        items.append(Item(str(pair), pair.domain, pair.pos))
        for unit, index_C in (*asked[pair.word_a], *asked[pair.word_b]):
            numbers = [place_number.setdefault(i, len(place_number)) for i in index_C.tolist()]
            rows.append(np.array([(number, len(units), 0) for number in numbers]))
            units.append(unit)
            relatives.append(frozenset(name.lower() for name in relative))
    if not items:
        raise InputError(
            f"none of the {len(pairs.synonyms)} pairs can be used ({reasons(left_out)}); use a larger validation split, "
            "a larger vocabulary, other --pairs or a lower --min-contexts"
        )
    questions = np.concatenate(rows)
    shuffled = shuffled_questions(questions[:, 1], questions[:, 0], units, relatives, seed)
    if shuffled:
        questions = np.concatenate([questions, np.array(shuffled)])
    places = held_out.places(np.array(list(place_number), dtype=np.int64))
    return assemble(
        pairs.source, items, left_out, units, held_out.passages(), places, questions, vocabulary, end_of_text
    )


def plan_substitutions(
    substitutions: SubstitutionList,
    vocabulary: Vocabulary,
    controls: Controls,
    encode: Any,
    *,
    sequence_length: int,
    end_of_text: int,
) -> Study:
    """Each target of a lexical-substitution file at its own place, after as much of its left context as a window holds.

    A causal model sees nothing of what follows the target. Left out are items without an accepted substitute and those whose
    target or accepted substitutes leave no room in a window. Raises :class:`InputError` if no item is left.
    """
    items: dict[tuple[str, str], int] = {}
    left_out: list[LeftOut] = []
    units: list[Unit] = []
    passages: list[npt.NDArray[Any]] = []
    places: list[tuple[int, int, int]] = []
    documents: dict[str, int] = {}
    for item in substitutions.items:
        candidates = _substitutes(item, controls, vocabulary)
        tokens = [vocabulary.tokens(candidate.surface) for candidate in candidates]
        room = max((len(ids) for ids in tokens if ids), default=0)
        known = [candidate for candidate, ids in zip(candidates, tokens, strict=True) if ids]
        accepted = [candidate for candidate in known if candidate.role == Role.SYNONYM]
        if tokens[0] is None or not accepted:
            left_out.append(LeftOut(item.item, "tokens", "no accepted substitute that the tokenizer can encode"))
            continue
        if room >= sequence_length - 1:
            left_out.append(LeftOut(item.item, "positions", f"a candidate of {room} tokens leaves no room in a window"))
            continue
        ids = np.array([end_of_text, *encode(item.left)], dtype=np.int64)[-(sequence_length - room) :]
        number = items.setdefault((item.lemma, item.pos), len(items))
        single = all(len(vocabulary.tokens(c.surface) or ()) == 1 for c in (known[0], *accepted))
        places.append((len(passages), len(ids) - 1, documents.setdefault(item.document, len(documents))))
        passages.append(ids)
        units.append(Unit(number, item.lemma.lower(), tuple(known), single))
    if not units:
        raise InputError(f"none of the {len(substitutions.items)} substitution items can be used ({reasons(left_out)})")
    questions = np.array([(index, index, 0) for index in range(len(units))])
    everything = [Item(lemma, "substitution", pos) for lemma, pos in items]
    return assemble(
        substitutions.source,
        everything,
        left_out,
        units,
        passages,
        np.array(places),
        questions,
        vocabulary,
        end_of_text,
    )


def write(word: str, spaced: bool, capital: bool) -> str:
    """A word as it stands in text: after a space or not, capitalised or not."""
    return (" " if spaced else "") + (word[:1].upper() + word[1:] if capital else word)


def _relations(pairs: PairList) -> tuple[dict[str, set[str]], dict[str, list[str]], dict[str, list[str]]]:
    """For each word all words it is listed with, and of those its antonyms and the ones judged dissimilar."""
    related: dict[str, set[str]] = defaultdict(set)
    for pair in (*pairs.synonyms, *pairs.antonyms, *pairs.dissimilar):
        related[pair.word_a] |= {pair.word_a, pair.word_b}
        related[pair.word_b] |= {pair.word_a, pair.word_b}
    contrasts: list[dict[str, list[str]]] = []
    for several in (pairs.antonyms, pairs.dissimilar):
        table: dict[str, list[str]] = defaultdict(list)
        for pair in several:
            for word, other in ((pair.word_a, pair.word_b), (pair.word_b, pair.word_a)):
                if len(table[word]) < MOST_CONTRASTS:
                    table[word].append(other)
        contrasts.append(table)
    return related, contrasts[0], contrasts[1]


def _occurrences(
    word: str, vocabulary: Vocabulary, held_out: HeldOut, limit: int | None, seed: int
) -> dict[tuple[bool, bool], Ids]:
    """Where ``word`` stands, for each way of writing it; at most ``limit`` places, drawn with the word's own generator."""
    found: dict[tuple[bool, bool], Ids] = {}
    for spaced, capital in _WRITTEN:
        surface = write(word, spaced, capital)
        if capital and surface == write(word, spaced, False):
            continue
        tokens = vocabulary.tokens(surface)
        if tokens and len(tokens) <= MAX_WORD_TOKENS:
            found[spaced, capital] = held_out.find(tokens, spaced=spaced)
    everything = np.concatenate([*found.values(), np.empty(0, dtype=np.int64)])
    if limit is None or len(everything) <= limit:
        return found
    chosen = np.random.default_rng([seed, *word.encode()]).choice(everything, limit, replace=False)
    return {written: index_C[np.isin(index_C, chosen)] for written, index_C in found.items()}


def _units_of(
    item: int, roles: Sequence[tuple[str, Role]], found: dict[tuple[bool, bool], Ids], vocabulary: Vocabulary
) -> Iterator[tuple[Unit, Ids]]:
    """The first word as a unit for each way in which it is written, and where it stands so.

    Without the ways in which the second, its synonym, takes more tokens than there is room for.
    """
    for written, index_C in found.items():
        sizes = [len(vocabulary.tokens(write(name, *written)) or ()) for name, _ in roles]
        if len(index_C) and 1 <= sizes[1] <= MAX_WORD_TOKENS:
            candidates = tuple(
                Candidate(write(name, *written), role)
                for (name, role), size in zip(roles, sizes, strict=True)
                if 1 <= size <= MAX_WORD_TOKENS
            )
            yield Unit(item, roles[0][0].lower(), candidates, single=sizes[:2] == [1, 1]), index_C


def _controls_of(word: str, related: set[str], vocabulary: Vocabulary, controls: Controls) -> list[str]:
    tokens = vocabulary.tokens(write(word, True, False))
    return controls.choose(word, len(tokens), related) if tokens else []


def _unsupported(
    vocabulary: Vocabulary, counts: dict[str, int], controls: dict[str, list[str]], min_contexts: int
) -> tuple[str, str] | None:
    """Why the tokenizer or the corpus does not support the words of a pair: (kind, reason), or None if they do."""
    sizes = {word: len(vocabulary.tokens(write(word, True, False)) or ()) for word in counts}
    long = [f"{word!r} takes {size} tokens" for word, size in sizes.items() if not 1 <= size <= MAX_WORD_TOKENS]
    if long:
        return "tokens", " and ".join(long)
    if max(counts.values()) < min_contexts:
        named = " and ".join(f"{word!r} {count}" for word, count in counts.items())
        return "contexts", f"fewer than {min_contexts} validation contexts: {named}"
    if min(map(len, controls.values())) < CONTROLS:
        return "controls", f"the corpus has fewer than {CONTROLS} control words for it"
    return None


def _role_of(weight: float) -> Role:
    if weight > ACCEPTABLE:
        return Role.SYNONYM
    return Role.UNDECIDED if weight > 0 else Role.REJECTED


def _substitutes(item: Substitution, controls: Controls, vocabulary: Vocabulary) -> list[Candidate]:
    """The target, its accepted and rejected substitutes, and controls of the most accepted one, written like the target."""
    capital = item.target[:1].isupper()
    ranked = sorted(item.candidates, key=lambda candidate: -candidate[1])
    taken = {item.target.lower(), item.lemma.lower(), *(word.lower() for word, _ in ranked)}
    best = ranked[0][0] if ranked else item.lemma
    names = controls.choose(best, len(vocabulary.tokens(write(best, True, False)) or ()), taken)
    return [
        Candidate(f" {item.target}", Role.WORD),
        *(Candidate(write(word, True, capital), _role_of(weight), weight) for word, weight in ranked),
        *(Candidate(write(name, True, capital), Role.CONTROL) for name in names),
    ]
