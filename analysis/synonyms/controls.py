"""Control words: as frequent and as long as the synonym, of its part of speech where that is known, and unrelated."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.words.vocabulary import CorpusWords

from .study import CONTROLS

LETTER = 0.1
"""What a difference of one letter in length weighs: as much as a difference in frequency of 10%."""

PartsOfSpeech = Callable[[str], frozenset[str]]
"""The parts of speech a word can be, of n, v, a, r; empty: not known."""


class Controls:
    """Chooses control words among the words of a corpus."""

    def __init__(self, words: CorpusWords, parts_of_speech: PartsOfSpeech) -> None:
        """Sort the corpus's words by their number of tokens."""
        self._words = words
        self._parts_of_speech = parts_of_speech
        self._known: dict[str, frozenset[str]] = {}
        self._by_tokens: dict[int, tuple[list[str], npt.NDArray[Any], npt.NDArray[Any]]] = {}
        for tokens in set(words.tokens.values()):
            names = sorted(word for word, number in words.tokens.items() if number == tokens)
            log_count = np.log([words.count[word] for word in names])
            self._by_tokens[tokens] = (names, log_count, np.array([len(word) for word in names]))

    def choose(self, synonym: str, tokens: int, excluded: Collection[str]) -> list[str]:
        """The :data:`CONTROLS` words nearest to ``synonym``, which takes ``tokens`` tokens; fewer if there are not enough.

        Nearest: the smallest |ln of the ratio of training frequencies| + LETTER x |difference in letters| among the words of
        as many tokens. A word whose known parts of speech share none with the synonym's known ones does not qualify.
        """
        if tokens not in self._by_tokens:
            return []
        names, log_count, letters = self._by_tokens[tokens]
        own = np.log(max(1, self._words.count.get(synonym, 0)))
        distance = np.abs(log_count - own) + LETTER * np.abs(letters - len(synonym))
        chosen: list[str] = []
        for index in np.argsort(distance, kind="stable"):
            if names[index] not in excluded and self._same_part(names[index], synonym):
                chosen.append(names[index])
                if len(chosen) == CONTROLS:
                    break
        return chosen

    def part_known(self, word: str) -> bool:
        """Whether anything is known of the part of speech of ``word``."""
        return bool(self._parts(word))

    def _parts(self, word: str) -> frozenset[str]:
        if word not in self._known:
            self._known[word] = self._parts_of_speech(word)
        return self._known[word]

    def _same_part(self, one: str, other: str) -> bool:
        first, second = self._parts(one), self._parts(other)
        return not first or not second or bool(first & second)
