"""Control words: as frequent and long as the synonym, of its part of speech where that is known, and unrelated."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

import numpy as np

from analysis.compare.statistics import Floats, Ids
from analysis.words.vocabulary import CorpusWords

from .study import CONTROLS

LETTER = 0.1
"""Distance of one letter in length, in units of ln frequency: as much as 10% more or less frequent."""

PartsOfSpeech = Callable[[str], frozenset[str]]
"""The parts of speech a word can have, among n, v, a, r; empty: not known."""


class Controls:
    """Chooses control words among the words of a corpus."""

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
