"""Word pairs to ask a model about: synonyms, and the antonyms and dissimilar words that serve as their controls."""

from __future__ import annotations

from dataclasses import dataclass

PARTS_OF_SPEECH = ("n", "v", "a", "r")
"""Noun, verb, adjective, adverb, as WordNet writes them; an empty part of speech is one that is not known or another."""


@dataclass(frozen=True)
class Pair:
    """Two words; ``pos`` is one of :data:`PARTS_OF_SPEECH` or empty, ``similarity`` a judged score scaled to 0..1."""

    word_a: str
    word_b: str
    domain: str = ""
    pos: str = ""
    similarity: float | None = None

    def __str__(self) -> str:
        return f"{self.word_a}/{self.word_b}"


@dataclass(frozen=True)
class PairList:
    """The pairs of one source. No two words make a pair twice, in either order or in two of the three groups."""

    source: str
    """The format as recognised and the file, e.g. "SimLex-999 (lists/SimLex-999.txt)"."""
    synonyms: tuple[Pair, ...]
    antonyms: tuple[Pair, ...] = ()
    dissimilar: tuple[Pair, ...] = ()
    """Pairs that judges scored low."""
    undecided: int = 0
    """Pairs that judges scored between the two thresholds; they are in no group."""
