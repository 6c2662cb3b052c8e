"""A small seeded text whose words take one to four tokens, and a byte-level BPE trained on it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.words.pairs import Pair, PairList
from analysis.words.vocabulary import CorpusWords, Vocabulary, corpus_words
from data.tokenizer import train_bpe

SEQUENCE_LENGTH = 24
VOCABULARY = 344

COMMON = ["big", "large", "fast", "quick", "house", "home", "river", "stone", "window", "garden", "letter", "paper"]
COMMON += ["bridge", "winter", "silver", "market"]
"""Single tokens after a space."""
_SYLLABLES = ["ba", "lo", "ki", "mu"]
TWO = ["".join(parts) for parts in itertools.product(_SYLLABLES, repeat=2)]
THREE = ["".join(parts) for parts in itertools.product(_SYLLABLES, repeat=3)]

PAIRS = PairList(
    source="test",
    synonyms=(
        Pair("big", "large", "size", "a"),
        Pair("fast", "quick", "speed", "a"),
        Pair("house", "home", "place", "n"),
        Pair("bridge", "kimu"),  # one token and two
        Pair("muki", "lomuba"),  # two and three
    ),
    antonyms=(Pair("big", "silver", "size", "a"),),
    dissimilar=(Pair("large", "winter"), Pair("mumu", "big")),
)


@dataclass(frozen=True)
class Text:
    """Two splits in tokens. ``tokenizer``: of transformers; ``starts``: where each document of ``ids`` begins."""

    tokenizer: Any
    vocabulary: Vocabulary
    train_ids: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    words: CorpusWords

    @property
    def end_of_text(self) -> int:
        """The token after every document."""
        return int(self.tokenizer.eos_token_id)


def documents(count: int, seed: int) -> list[str]:
    """Documents of four lines; words stand after a space, a quote and a line end, capitalised or not, and inside others."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        lines = []
        for _ in range(4):
            words = [str(rng.choice(choice)) for choice in (COMMON, COMMON, COMMON, TWO, COMMON, THREE, COMMON, TWO)]
            words[0] = words[0].capitalize()
            words[2] = f'"{words[2]}"' if rng.random() < 0.5 else f"{words[2]}. {str(rng.choice(COMMON)).capitalize()}"
            words[4] += str(rng.choice(["", "", "er", "2", "_x", ",", "-like"]))
            lines.append(" ".join(words))
        found.append("\n".join(lines) + f"\nThe {'zyx ' * bool(rng.random() < 0.2)}end.")
    return found


def tokens_of(texts: list[str], tokenizer: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Documents in tokens, each followed by an end of text, and where each begins."""
    parts = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
    return np.concatenate(parts), np.cumsum([0, *(len(part) for part in parts[:-1])])


@cache
def small_text() -> Text:
    """The text of these tests."""
    tokenizer = train_bpe(iter(documents(150, seed=1)), VOCABULARY, progress=False)
    vocabulary = Vocabulary(tokenizer)
    train_ids, _ = tokens_of(documents(150, seed=1), tokenizer)
    ids, starts = tokens_of(documents(30, seed=2), tokenizer)
    return Text(tokenizer, vocabulary, train_ids, ids, starts, corpus_words(train_ids, vocabulary))
