"""Synonym and antonym pairs, and parts of speech, from WordNet (Miller 1995) through nltk, an optional extra.

WordNet lists every sense of a word, the rarest included, and contexts are found by spelling alone. Three rules keep the pairs
whose shared sense is what their spellings usually mean; see docs/synonyms.md.
"""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.errors import InputError

from .pairs import PARTS_OF_SPEECH, Pair, PairList

SENSES = 2
"""The shared synset is the first sense of one word and among this many first senses of the other."""
MIN_SHARE = 1 / 3
"""Least share of the tagged occurrences of either spelling that must have the shared sense."""
CLOSED_CLASSES = frozenset(Path(__file__).with_name("closed_classes.txt").read_text(encoding="utf-8").split())
"""Determiners, pronouns, auxiliaries, conjunctions, prepositions, related adverbs: WordNet knows "in" as an inch only."""
_SATELLITE = "s"  # WordNet's adjectives that are similar to a head adjective; adjectives like any other here
_LEXICOGRAPHER_FILES = 45
_NEEDED = tuple(f"{kind}.{pos}" for kind in ("index", "data") for pos in ("noun", "verb", "adj", "adv"))
_COUNTS = "cntlist.rev"
_MISSING = (
    "--pairs wordnet needs nltk and its data: pip install nltk, then python -m nltk.downloader wordnet; "
    "or give wordnet:FOLDER with WordNet's dict files"
)


class WordNet:
    """A WordNet on disk; ``source`` names it with its version. Opening takes seconds: nltk reads all index files."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open nltk's own WordNet, or the dict files (data.noun, index.noun, ...) of ``folder``.

        Raises :class:`InputError` if nltk, its data or a file of ``folder`` is missing or is not WordNet's.
        """
        folder = None if folder is None else Path(os.path.expanduser(folder))  # noqa: PTH111  (nobody's: it is not found)
        self._reader = _open_installed() if folder is None else _open_folder(folder)
        version = self._reader.get_version()
        if version is None:
            raise InputError(
                f"--pairs wordnet:{folder} does not name its version in data.adj; give WordNet's dict files"
            )
        self._counts = _read_counts(self._reader)
        self._tagged: dict[str, int] = {}  # occurrences of all senses of a spelling
        self.source = f"WordNet {version} (nltk)" if folder is None else f"WordNet {version} (nltk, {folder})"

    def pairs(self, words: Iterable[str]) -> PairList:
        """The synonyms and antonyms among ``words`` (base forms in lower case), sorted.

        Two words that match in several parts of speech form one pair, with the first of :data:`PARTS_OF_SPEECH`. Two words
        that are synonyms in one sense and antonyms in another form none.
        """
        ranks = {word: self._ranks(word) for word in sorted(set(words)) if _open_class(word)}
        ranks = {word: found for word, found in ranks.items() if found}
        synonyms = self._collect(ranks, self._shared(ranks))
        antonyms = self._collect(ranks, self._opposed(ranks))
        both = synonyms.keys() & antonyms.keys()
        return PairList(
            self.source,
            tuple(pair for key, pair in sorted(synonyms.items()) if key not in both),
            tuple(pair for key, pair in sorted(antonyms.items()) if key not in both),
        )

    def parts_of_speech(self, word: str) -> frozenset[str]:
        """The parts of speech of ``word`` or its base form; empty if it is unknown or one of :data:`CLOSED_CLASSES`."""
        if not _open_class(word):
            return frozenset()
        return frozenset(pos for pos in PARTS_OF_SPEECH if self._reader.morphy(word, pos) is not None)

    def _ranks(self, word: str) -> dict[Any, int]:
        """Each synset among the word's first senses in a part of speech, and its rank there, from 0."""
        ranks = {}
        for pos in PARTS_OF_SPEECH:
            # nltk also gives the senses of the base form; only those of the word itself, in any case, have a rank:
            # the senses of "March" and "march" are in one order.
            senses = (
                synset
                for synset in self._reader.synsets(word, pos)
                if any(name.lower() == word for name in synset.lemma_names())
            )
            first = enumerate(itertools.islice(senses, SENSES))
            ranks.update({synset: rank for rank, synset in first if _lemmas(synset, word)})
        return ranks

    def _shared(self, ranks: dict[str, dict[Any, int]]) -> Iterator[tuple[str, str, Any, Any]]:
        members: dict[Any, list[str]] = {}
        for word, found in ranks.items():
            for synset in found:
                members.setdefault(synset, []).append(word)
        for synset, words in members.items():
            for a, b in itertools.combinations(words, 2):
                yield a, b, synset, synset

    def _opposed(self, ranks: dict[str, dict[Any, int]]) -> Iterator[tuple[str, str, Any, Any]]:
        for a, found in ranks.items():
            for synset in found:
                for lemma in _lemmas(synset, a):
                    for opposite in lemma.antonyms():
                        b = opposite.name()
                        if a < b and opposite.synset() in ranks.get(b, {}):
                            yield a, b, synset, opposite.synset()

    def _collect(
        self, ranks: dict[str, dict[Any, int]], candidates: Iterable[tuple[str, str, Any, Any]]
    ) -> dict[tuple[str, str], Pair]:
        """The candidates (two words and the synset of each) that keep the rules, as one pair for two words."""
        kept: dict[tuple[str, str], Pair] = {}
        for a, b, synset_a, synset_b in candidates:
            if min(ranks[a][synset_a], ranks[b][synset_b]) > 0:
                continue
            if not (self._is_usual(a, synset_a) and self._is_usual(b, synset_b)):
                continue
            pos = "a" if synset_a.pos() == _SATELLITE else synset_a.pos()
            before = kept.get((a, b))
            if before is None or PARTS_OF_SPEECH.index(pos) < PARTS_OF_SPEECH.index(before.pos):
                kept[a, b] = Pair(a, b, "", pos)
        return kept

    def _is_usual(self, word: str, synset: Any) -> bool:
        if word not in self._tagged:
            senses = (sense for pos in PARTS_OF_SPEECH for sense in self._reader.synsets(word, pos))
            self._tagged[word] = sum(self._occurrences(sense, word) for sense in senses)
        shared = self._occurrences(synset, word)
        return shared >= MIN_SHARE * self._tagged[word]

    def _occurrences(self, synset: Any, word: str) -> int:
        """How often the spelling ``word`` is tagged with this sense.

        Where it is a form of another lemma, nltk does not say of which: the one tagged most errs towards leaving it out.
        """
        count = {lemma: self._counts.get(lemma.key(), 0) for lemma in synset.lemmas()}
        own = _lemmas(synset, word)
        return sum(count[lemma] for lemma in own) if own else max(count.values())


def _open_class(word: str) -> bool:
    return word.isalpha() and word not in CLOSED_CLASSES


def _lemmas(synset: Any, word: str) -> list[Any]:
    return [lemma for lemma in synset.lemmas() if lemma.name() == word]


def _read_counts(reader: Any) -> dict[str, int]:
    """Tagged occurrences of each sense key (nltk's ``Lemma.count`` searches the file for every lemma)."""
    counts = {}
    with reader.open(_COUNTS) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                key, _, count = line.split()
                counts[key] = int(count)
            except ValueError as error:
                raise InputError(
                    f"--pairs wordnet: {_COUNTS} line {number} is not a sense key, a sense and a count; "
                    "give WordNet's dict files"
                ) from error
    return counts


def _open_installed() -> Any:
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError, OSError) as error:
        raise InputError(_MISSING) from error
    return wordnet


def _open_folder(folder: Path) -> Any:
    missing = [name for name in (*_NEEDED, _COUNTS) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"--pairs wordnet:{folder} has no {missing[0]}; give the folder of WordNet's dict files (Debian's wordnet-base "
            "installs /usr/share/wordnet)"
        )
    try:
        import nltk
        from nltk.corpus.reader.wordnet import WordNetCorpusReader, WordNetError
    except ImportError as error:
        raise InputError("--pairs wordnet:FOLDER needs nltk: pip install nltk") from error

    class FolderReader(WordNetCorpusReader):
        """nltk's reader, without the files of nltk's own package."""

        def open(self, file: str) -> Any:
            # The names of the lexicographers' files, which nothing here uses.
            if file == "lexnames" and not (folder / file).is_file():
                return io.StringIO("".join(f"{index:02d} unnamed 0\n" for index in range(_LEXICOGRAPHER_FILES)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Nothing: only other languages need nltk's own WordNet."""

    root = str(folder.resolve())
    if root not in nltk.data.path:
        nltk.data.path.append(root)  # nltk reads only below folders that are registered here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "multilingual functions are not available": none is used
            return FolderReader(root, None)
    except (OSError, ValueError, WordNetError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--pairs wordnet:{folder} is not WordNet's dictionary ({reason}); give a complete folder of dict files"
        ) from error
