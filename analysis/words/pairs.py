"""Word pairs: synonyms, and the antonyms and dissimilar words they are compared with."""

from __future__ import annotations

from dataclasses import dataclass

PARTS_OF_SPEECH = ("n", "v", "a", "r")
"""Noun, verb, adjective, adverb, in WordNet's letters; an empty part of speech is unknown or none of these."""


@dataclass(frozen=True)
class Pair:
    """Two words; ``pos`` is one of :data:`PARTS_OF_SPEECH` or empty."""

    word_a: str
    word_b: str
    domain: str = ""
    pos: str = ""

    def __str__(self) -> str:
        return f"{self.word_a}/{self.word_b}"


@dataclass(frozen=True)
class PairList:
    """The pairs of one source. Two words form at most one pair, whatever their order and group."""

    source: str
    """The recognised format and the file, e.g. "SimLex-999 (lists/SimLex-999.txt)"."""
    synonyms: tuple[Pair, ...]
    antonyms: tuple[Pair, ...] = ()
    dissimilar: tuple[Pair, ...] = ()
    """Pairs that judges scored low."""
