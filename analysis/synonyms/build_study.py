"""Building a study from pairs of words in held-out text, or from a lexical-substitution file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from analysis.compare.statistics import Floats, Ids
from analysis.words.pair_lists import load_pairs
from analysis.words.pairs import PairList
from analysis.words.substitution_files import is_substitution_file, load_substitutions
from analysis.words.substitutions import ACCEPTABLE, Substitution, SubstitutionList
from analysis.words.vocabulary import MAX_WORD_TOKENS, CorpusWords, Vocabulary
from common.errors import InputError
from data.tokens.spans import TokenIds

from .measure_models import Data
from .options import Settings
from .study import CONTROLS, Candidate, Item, LeftOut, Role, Study, Unit, assemble, reasons, shuffled_queries

LETTER = 0.1
"""Distance of one letter in length, in units of ln frequency: as much as 10% more or less frequent."""
PartsOfSpeech = Callable[[str], frozenset[str]]
"""The parts of speech a word can have, among n, v, a, r; empty: not known."""
MOST_CONTRASTS = 5
"""Most antonyms, and most rejected words, of a unit."""
_SPELLINGS = [(spaced, capital) for spaced in (True, False) for capital in (False, True)]
Spelling = tuple[bool, bool]
"""After a space or not, capitalised or not."""


def build_study(data: Data, settings: Settings) -> Study:
    """The study of ``settings`` on this text. Raises :class:`InputError` for sources that cannot be used."""
    if is_substitution_file(settings.pairs):
        return study_of_substitutions(
            load_substitutions(settings.pairs),
            data.vocabulary,
            Controls(data.words, _parts_of_speech(settings.match_pos, PairList("", ()))),
            lambda text: data.tokenizer.encode(text, add_special_tokens=False),
            sequence_length=data.sequence_length,
            end_of_text=data.end_of_text,
        )
    pairs = load_pairs(settings.pairs, min_similarity=settings.min_similarity, words=frozenset(data.words.count))
    own = settings.pairs if settings.pairs.partition(":")[0] == "wordnet" else None
    return study_of_pairs(
        pairs,
        data.vocabulary,
        Controls(data.words, _parts_of_speech(settings.match_pos or own, pairs)),
        HeldOut(data.validation_ids, data.document_starts, data.sequence_length, data.vocabulary),
        end_of_text=data.end_of_text,
        min_contexts=settings.min_contexts,
        contexts_per_word=settings.contexts_per_word,
        seed=settings.seed,
    )


def _parts_of_speech(source: str | None, pairs: PairList) -> PartsOfSpeech:
    if source is not None:
        from analysis.words.wordnet import WordNet

        kind, _, folder = source.partition(":")
        if kind != "wordnet":
            raise InputError(f"--match-pos {source}: give wordnet, or wordnet:FOLDER with WordNet's dict files")
        return WordNet(Path(folder) if folder else None).parts_of_speech
    known: dict[str, set[str]] = {}
    for pair in (*pairs.synonyms, *pairs.antonyms, *pairs.dissimilar):
        for word in (pair.word_a, pair.word_b):
            known.setdefault(word, set()).update({pair.pos} - {""})
    return lambda word: frozenset(known.get(word, ()))


class Controls:
    """Chooses control words among the words of a corpus: as frequent and long as the synonym, and unrelated."""

    def __init__(self, words: CorpusWords, parts_of_speech: PartsOfSpeech) -> None:
        """Group the corpus's words by their number of tokens."""
        self._count = words.count
        self._parts = cache(parts_of_speech)
        self._by_tokens: dict[int, tuple[list[str], Floats, Ids]] = {}
        for tokens in set(words.tokens.values()):
            names = sorted(word for word, number in words.tokens.items() if number == tokens)
            log_count = np.log([words.count[word] for word in names])
            self._by_tokens[tokens] = names, log_count, np.array([len(word) for word in names])

    def choose(self, synonym: str, tokens: int, excluded: Collection[str]) -> list[str]:
        """The :data:`CONTROLS` words nearest to ``synonym``, which takes ``tokens`` tokens; fewer if there are not enough.

        Nearest: the smallest |ln of the ratio of training frequencies| + LETTER x |difference in letters| among the words of
        as many tokens. A word whose known parts of speech share none with the synonym's known ones does not qualify.
        """
        if tokens not in self._by_tokens:
            return []
        names, log_count, letters = self._by_tokens[tokens]
        own, parts = np.log(max(1, self._count.get(synonym, 0))), self._parts(synonym)
        distance = np.abs(log_count - own) + LETTER * np.abs(letters - len(synonym))
        chosen: list[str] = []
        for index in np.argsort(distance, kind="stable"):
            name = names[index]
            if name not in excluded and (not parts or not self._parts(name) or parts & self._parts(name)):
                chosen.append(name)
                if len(chosen) == CONTROLS:
                    break
        return chosen


class HeldOut:
    """A validation split in consecutive windows of the training length, and where words occur in it."""

    def __init__(self, ids: TokenIds, starts: Ids, sequence_length: int, vocabulary: Vocabulary) -> None:
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
        """The indices of the split, ascending, at which these tokens form a complete word with room in the window.

        Complete: the next token does not continue it (" delete" in " deleted" is no occurrence), and a word without a space
        follows no letter or digit. Room: MAX_WORD_TOKENS positions of the window are left for any candidate.
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

    def places(self, index_C: Ids) -> Ids:
        """Rows (window, position, document) of the words that begin at these indices."""
        window, position = np.divmod(index_C - 1, self.length)
        return np.stack([window, position, np.searchsorted(self._starts, index_C, side="right") - 1], axis=1)

    def passages(self) -> list[Ids]:
        """The windows."""
        return [self.ids[w * self.length : (w + 1) * self.length] for w in range(self.windows)]


def study_of_pairs(
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
    """Each word of each synonym pair as the true word, at every place of it or at most ``contexts_per_word``.

    A pair is kept if both words take at most MAX_WORD_TOKENS tokens after a space, one of them occurs ``min_contexts``
    times in the held-out text, and both have :data:`CONTROLS` control words. Raises :class:`InputError` if none is.
    """
    related, antonyms, rejected = relations(pairs)
    found: dict[str, dict[Spelling, Ids]] = {}
    items: list[Item] = []
    left_out: list[LeftOut] = []
    units: list[Unit] = []
    relatives: list[frozenset[str]] = []
    place_number: dict[int, int] = {}
    rows: list[tuple[int, int, int]] = []
    for pair in pairs.synonyms:
        words = (pair.word_a, pair.word_b)
        for word in words:
            if word not in found:
                found[word] = _occurrences(word, vocabulary, held_out, contexts_per_word, seed)
        relative = related[pair.word_a] | related[pair.word_b]  # what may stand for either is no control of the other
        sizes = {word: _size(word, vocabulary) for word in words}
        names = {word: controls.choose(word, sizes[word], relative) if sizes[word] else [] for word in words}
        own: dict[str, list[tuple[Unit, Ids]]] = {}
        for word, synonym in (words, words[::-1]):
            others = {Role.CONTROL: names[synonym], Role.ANTONYM: antonyms[word], Role.REJECTED: rejected[word]}
            roles = [(word, Role.WORD), (synonym, Role.SYNONYM)]
            roles += [(name, role) for role, group in others.items() for name in group]
            own[word] = list(_units_of(len(items), roles, found[word], vocabulary))
        counts = {word: sum(len(index_C) for _, index_C in own[word]) for word in words}
        if problem := _unsupported(sizes, counts, names, min_contexts):
            left_out.append(LeftOut(str(pair), *problem))
            continue
        items.append(Item(str(pair), pair.domain, pair.pos))
        for unit, index_C in (*own[pair.word_a], *own[pair.word_b]):
            rows += [(place_number.setdefault(i, len(place_number)), len(units), 0) for i in index_C.tolist()]
            units.append(unit)
            relatives.append(frozenset(name.lower() for name in relative))
    if not items:
        raise InputError(
            f"none of the {len(pairs.synonyms)} pairs can be used ({reasons(left_out)}); use a larger validation split, "
            "a larger vocabulary, other --pairs or a lower --min-contexts"
        )
    queries = np.array(rows)
    queries = np.array(rows + shuffled_queries(queries[:, 1], queries[:, 0], units, relatives, seed))
    places = held_out.places(np.array(list(place_number), dtype=np.int64))
    return assemble(pairs.source, items, left_out, units, held_out.passages(), places, queries, vocabulary, end_of_text)


def study_of_substitutions(
    substitutions: SubstitutionList,
    vocabulary: Vocabulary,
    controls: Controls,
    encode: Callable[[str], list[int]],
    *,
    sequence_length: int,
    end_of_text: int,
) -> Study:
    """Each target of a lexical-substitution file at its own place, after as much of its left context as a window holds.

    Left out are items without an accepted substitute and those whose target or accepted substitutes leave no room in a
    window. Raises :class:`InputError` if no item is left.
    """
    items: dict[tuple[str, str], int] = {}
    left_out: list[LeftOut] = []
    units: list[Unit] = []
    passages: list[Ids] = []
    places: list[tuple[int, int, int]] = []
    documents: dict[str, int] = {}
    for item in substitutions.items:
        candidates = _substitutes(item, controls, vocabulary)
        sizes = {candidate: len(vocabulary.tokens(candidate.surface) or ()) for candidate in candidates}
        known = [candidate for candidate in candidates if sizes[candidate]]
        accepted = [candidate for candidate in known if candidate.role == Role.SYNONYM]
        room = max(sizes.values())
        if not sizes[candidates[0]] or not accepted:
            left_out.append(LeftOut(item.item, "tokens", "no accepted substitute that the tokenizer can encode"))
            continue
        if room >= sequence_length - 1:
            left_out.append(LeftOut(item.item, "positions", f"a candidate of {room} tokens leaves no room in a window"))
            continue
        ids = np.array([end_of_text, *encode(item.left)], dtype=np.int64)[-(sequence_length - room) :]
        number = items.setdefault((item.lemma, item.pos), len(items))
        single = all(sizes[candidate] == 1 for candidate in (known[0], *accepted))
        places.append((len(passages), len(ids) - 1, documents.setdefault(item.document, len(documents))))
        passages.append(ids)
        units.append(Unit(number, item.lemma.lower(), tuple(known), single))
    if not units:
        raise InputError(f"none of the {len(substitutions.items)} substitution items can be used ({reasons(left_out)})")
    queries = np.array([(index, index, 0) for index in range(len(units))])
    named = [Item(lemma, "substitution", pos) for lemma, pos in items]
    unread = ", ".join(f"{count} ({reason})" for reason, count in substitutions.left_out.items())
    source = f"{substitutions.source}; targets left out: {unread}" if unread else substitutions.source
    return assemble(source, named, left_out, units, passages, np.array(places), queries, vocabulary, end_of_text)


def write(word: str, spaced: bool, capital: bool) -> str:
    """A word as it stands in text: after a space or not, capitalised or not."""
    return (" " if spaced else "") + (word[:1].upper() + word[1:] if capital else word)


def _size(word: str, vocabulary: Vocabulary) -> int:
    """How many tokens the word takes after a space; 0 if it cannot be encoded."""
    return len(vocabulary.tokens(write(word, True, False)) or ())


def relations(pairs: PairList) -> tuple[dict[str, set[str]], dict[str, list[str]], dict[str, list[str]]]:
    """For each word all words it is listed with and itself; its antonyms; the words judged dissimilar."""
    related: dict[str, set[str]] = defaultdict(set)
    contrasts: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(3)]
    for group, table in zip((pairs.synonyms, pairs.antonyms, pairs.dissimilar), contrasts, strict=True):
        for pair in group:
            for word, other in ((pair.word_a, pair.word_b), (pair.word_b, pair.word_a)):
                related[word] |= {word, other}
                if len(table[word]) < MOST_CONTRASTS:
                    table[word].append(other)
    return related, contrasts[1], contrasts[2]


def _occurrences(
    word: str, vocabulary: Vocabulary, held_out: HeldOut, limit: int | None, seed: int
) -> dict[Spelling, Ids]:
    """Where ``word`` occurs in each spelling; at most ``limit`` places, drawn with the word's own random generator."""
    found: dict[Spelling, Ids] = {}
    for spaced, capital in _SPELLINGS:
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
    return {spelling: index_C[np.isin(index_C, chosen)] for spelling, index_C in found.items()}


def _units_of(
    item: int, roles: Sequence[tuple[str, Role]], found: dict[Spelling, Ids], vocabulary: Vocabulary
) -> Iterator[tuple[Unit, Ids]]:
    """A unit of the first word for each of its spellings, and where it occurs in it.

    Without the spellings in which the second word, its synonym, takes more tokens than there is room for.
    """
    for spelling, index_C in found.items():
        sizes = [len(vocabulary.tokens(write(name, *spelling)) or ()) for name, _ in roles]
        if len(index_C) and 1 <= sizes[1] <= MAX_WORD_TOKENS:
            candidates = tuple(
                Candidate(write(name, *spelling), role)
                for (name, role), size in zip(roles, sizes, strict=True)
                if 1 <= size <= MAX_WORD_TOKENS
            )
            yield Unit(item, roles[0][0].lower(), candidates, single=sizes[:2] == [1, 1]), index_C


def _unsupported(
    sizes: dict[str, int], counts: dict[str, int], controls: dict[str, list[str]], min_contexts: int
) -> tuple[str, str] | None:
    """Why the tokenizer or the corpus does not support the words of a pair: (kind, reason), or None if they do."""
    long = [f"{word!r} takes {size} tokens" for word, size in sizes.items() if not 1 <= size <= MAX_WORD_TOKENS]
    if long:
        return "tokens", " and ".join(long)
    if max(counts.values()) < min_contexts:
        named = " and ".join(f"{word!r} {count}" for word, count in counts.items())
        return "contexts", f"fewer than {min_contexts} validation contexts: {named}"
    if min(map(len, controls.values())) < CONTROLS:
        return "controls", f"the corpus has fewer than {CONTROLS} control words for it"
    return None


def _substitutes(item: Substitution, controls: Controls, vocabulary: Vocabulary) -> list[Candidate]:
    """The target, its substitutes, and controls of the substitute most accepted, written like the target."""
    capital = item.target[:1].isupper()
    ranked = sorted(item.candidates, key=lambda candidate: -candidate[1])
    candidates = [Candidate(f" {item.target}", Role.WORD)]
    for word, weight in ranked:
        role = Role.SYNONYM if weight > ACCEPTABLE else Role.UNDECIDED if weight > 0 else Role.REJECTED
        candidates.append(Candidate(write(word, True, capital), role, weight))
    taken = {item.target.lower(), item.lemma.lower(), *(word.lower() for word, _ in ranked)}
    best = ranked[0][0] if ranked else item.lemma
    names = controls.choose(best, _size(best, vocabulary), taken)
    return candidates + [Candidate(write(name, True, capital), Role.CONTROL) for name in names]
