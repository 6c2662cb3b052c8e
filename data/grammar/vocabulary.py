"""The tokens of the synonym grammar: a token for each word form, spelt as a byte-level BPE would."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

from data.tokenizer import END_OF_TEXT

from . import lexicon

UNKNOWN = "<|unknown|>"
"""Id 1: what a word outside the grammar encodes to. It never occurs in the corpus."""
END_ID = 0


class Vocabulary:
    """Token texts, leading space included, and their ids."""

    def __init__(self, words: tuple[str, ...]) -> None:
        """Number the words; ValueError if one occurs twice."""
        self.words = words
        self._id = {word: index for index, word in enumerate(words)}
        if len(self._id) != len(words):
            raise ValueError(f"grammar: tokens more than once: {sorted({w for w in words if words.count(w) > 1})}")

    def __len__(self) -> int:
        return len(self.words)

    def ids(self, words: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the ids of words: " word" for one given without its space, "," and "." as they are."""
        return np.array([self._id[word if word in self._id else f" {word}"] for word in words])


@cache
def vocabulary() -> Vocabulary:
    """Return the vocabulary, the same for every grammar: special tokens, first names, function words, then the lexicon."""
    names = (lexicon.NAMES_MALE + " " + lexicon.NAMES_FEMALE).split()
    lower = [*lexicon.DETERMINERS, *lexicon.POSSESSIVES.values(), *lexicon.PRONOUNS.values()]
    pairs = (
        lexicon.OPENERS
        + lexicon.CONNECTIVES
        + lexicon.INTENSIFIERS
        + lexicon.CONSEQUENCES
        + lexicon.CONTRASTS
        + lexicon.MODALS
    )
    spaced = [
        *names,
        *(word.capitalize() for word in lower),
        *lower,
        *(word for pair in pairs for word in pair),
        *("that", "is", "are", "be", "and"),
        *lexicon.PREPOSITIONS,
        *lexicon.COMPLEMENT_PREPOSITIONS,
        *lexicon.marked(lexicon.ADVERBS_FINAL),
        *lexicon.marked(lexicon.ADVERBS_FREQUENCY),
        *(form for concept in lexicon.concepts() for word in concept.words for form in word.forms),
    ]
    return Vocabulary((END_OF_TEXT, UNKNOWN, ".", ",", *names, *(f" {word}" for word in spaced)))
