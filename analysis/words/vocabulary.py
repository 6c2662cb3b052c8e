"""A tokenizer's tokens as parts of words, and the words of a tokenised corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data.tokens.spans import TokenIds

MAX_WORD_TOKENS = 4
"""Words of more tokens are left out: this many positions at the end of a window stay free for a word."""
CORPUS_TOKENS = 1 << 24
"""Tokens at the beginning of the training split in which words are counted."""
_ANCHORS = {True: "a", False: '"'}
"""What a word is encoded after, with and without a space between: some tokenizers drop a space at the start of a text, and
a word without a space stands after a mark, not after a letter."""


class Vocabulary:
    """The tokens of a transformers tokenizer, decoded once.

    ``text``: each token decoded, leading space included. Boolean, one value a token: ``opens`` a space, then letters only
    or nothing; ``letters`` letters only; ``continues`` starts with a letter, a digit or an underscore, and so continues the
    word before it. A word can end before any other token: Pimentel & Meister (2406.14561), section 4.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Decode every token."""
        self._tokenizer = tokenizer
        self._encoded = {
            spaced: tokenizer.encode(anchor, add_special_tokens=False) for spaced, anchor in _ANCHORS.items()
        }
        size = max(tokenizer.get_vocab().values()) + 1
        self._before = 0
        self._before = len(self.decode([]))
        self.text = [self.decode([index]) for index in range(size)]
        self.opens = np.array(
            [text == " " or (text[:1] == " " and text[1:].isalpha()) for text in self.text], dtype=bool
        )
        self.letters = np.array([text.isalpha() for text in self.text], dtype=bool)
        self.continues = np.array([text[:1].isalnum() or text[:1] == "_" for text in self.text], dtype=bool)

    def __len__(self) -> int:
        return len(self.text)

    def tokens(self, surface: str) -> tuple[int, ...] | None:
        """The tokens of a word as written, with or without a leading space.

        None if a token of the word would include part of what stands before it, or if the tokenizer does not know the word.
        """
        spaced = surface.startswith(" ")
        before = self._encoded[spaced]
        ids = self._tokenizer.encode(_ANCHORS[spaced] + surface, add_special_tokens=False)
        word = ids[len(before) :]
        if ids[: len(before)] != before or not word or self._tokenizer.unk_token_id in word:
            return None
        return tuple(word)

    def single_token(self, word: str) -> int | None:
        """The token of a word after a space, if it is one."""
        tokens = self.tokens(f" {word}")
        return tokens[0] if tokens is not None and len(tokens) == 1 else None

    def decode(self, ids: list[int]) -> str:
        """The text of tokens in the middle of a text."""
        ids = self._encoded[True] + ids
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))[self._before :]


@dataclass(frozen=True)
class CorpusWords:
    """The lower-case words of a corpus: letters only, after a space, complete, of at most MAX_WORD_TOKENS tokens."""

    count: dict[str, int]
    """How often each occurs in the training split."""
    tokens: dict[str, int]
    """How many tokens each takes there."""


def corpus_words(ids: TokenIds, vocabulary: Vocabulary) -> CorpusWords:
    """Count the words in the first CORPUS_TOKENS tokens of ``ids`` (one dimension, may be memory-mapped)."""
    text = np.asarray(ids[:CORPUS_TOKENS], dtype=np.int64)
    starts = np.flatnonzero(vocabulary.opens[text])
    breaks = np.append(np.flatnonzero(~vocabulary.letters[text]), len(text))
    ends = breaks[np.searchsorted(breaks, starts + 1)]  # the first token after the word
    space = np.array([piece == " " for piece in vocabulary.text], dtype=bool)
    named = ends - starts > space[text[starts]]  # a space alone is no word
    starts, ends = starts[named], ends[named]
    whole = (ends < len(text)) & (ends - starts <= MAX_WORD_TOKENS)
    whole[whole] &= ~vocabulary.continues[text[ends[whole]]]
    starts, ends = starts[whole], ends[whole]
    columns = [  # the tokens of each word, then -1
        np.where(starts + i < ends, text[np.minimum(starts + i, len(text) - 1)], -1) for i in range(MAX_WORD_TOKENS)
    ]
    occurrences = pd.DataFrame(dict(enumerate(columns))).groupby(list(range(MAX_WORD_TOKENS))).size()
    count: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for row, number in occurrences.items():
        kept = [index for index in row if index >= 0]
        word = "".join(vocabulary.text[index] for index in kept)[1:]
        if word.islower():
            count[word] = count.get(word, 0) + int(number)
            tokens[word] = len(kept)
    return CorpusWords(count, tokens)
