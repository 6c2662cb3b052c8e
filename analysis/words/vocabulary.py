"""What a tokenizer's tokens are to a study of words, and the words of a tokenised corpus.

Shapes: V vocabulary, W words, L tokens of a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

MAX_WORD_TOKENS = 4
"""A word of more tokens is left out: so many positions at the end of a window must stay free for it."""
CORPUS_TOKENS = 1 << 24
"""Words are counted in the first so many tokens of the training split."""
_ANCHORS = {True: "a", False: '"'}
"""What stands before a word while it is encoded, with and without a space between: some tokenizers drop a space at the
start of a text, and a word without one stands after a mark, not after a letter."""


class Vocabulary:
    """The tokens of a transformers tokenizer, decoded once.

    ``text``: each token decoded, leading space included. Boolean, of shape (V,): ``opens`` a space, then letters only or
    nothing; ``letters`` letters only; ``continues`` starts with a letter, a digit or an underscore, and so goes on with the word
    before it. A token that does not is what a word can end before: Pimentel & Meister (2406.14561), section 4.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Decode every token."""
        self._tokenizer = tokenizer
        self._encoded = {
            spaced: tokenizer.encode(anchor, add_special_tokens=False) for spaced, anchor in _ANCHORS.items()
        }
        size = max(tokenizer.get_vocab().values()) + 1
        known = len(self._decode([]))
        self.text = [self._decode([index])[known:] for index in range(size)]
        self.opens = np.array(
            [text == " " or (text[:1] == " " and text[1:].isalpha()) for text in self.text], dtype=bool
        )
        self.letters = np.array([text.isalpha() for text in self.text], dtype=bool)
        self.continues = np.array([text[:1].isalnum() or text[:1] == "_" for text in self.text], dtype=bool)

    def __len__(self) -> int:
        return len(self.text)

    def tokens(self, surface: str) -> tuple[int, ...] | None:
        """The tokens of a word as written, with or without its leading space.

        None where they cannot be told apart from what stands before, or where the tokenizer does not know the word.
        """
        spaced = surface.startswith(" ")
        before = self._encoded[spaced]
        ids = self._tokenizer.encode(_ANCHORS[spaced] + surface, add_special_tokens=False)
        word = ids[len(before) :]
        if ids[: len(before)] != before or not word or self._tokenizer.unk_token_id in word:
            return None
        return tuple(word)

    def decode(self, ids: list[int]) -> str:
        """The text of tokens in the middle of a text."""
        return self._decode(ids)[len(self._decode([])) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(self._encoded[True] + ids, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class CorpusWords:
    """The lower-case words of a corpus: letters only, after a space, complete, of at most MAX_WORD_TOKENS tokens."""

    count: dict[str, int]
    """How often each occurs in the training split."""
    tokens: dict[str, int]
    """How many tokens each takes there."""
    total: int
    """Words of any kind that were counted: the corpus's own size in words."""


def corpus_words(ids: npt.NDArray[Any], vocabulary: Vocabulary) -> CorpusWords:
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
    total = len(starts)
    starts, ends = starts[whole], ends[whole]
    words_WL, count_W = _unique_rows(text, starts, ends, len(vocabulary))
    count: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for row, number in zip(words_WL, count_W, strict=True):
        kept = row[row >= 0]
        word = "".join(vocabulary.text[index] for index in kept)[1:]
        if word.islower():
            count[word] = count.get(word, 0) + int(number)
            tokens[word] = len(kept)
    return CorpusWords(count, tokens, total)


def _unique_rows(text: Ids, starts: Ids, ends: Ids, size: int) -> tuple[Ids, Ids]:
    """The distinct words text[start:end] as rows padded with -1, and how often each occurs.

    Rows are numbered column by column: a number for the tokens so far, times V + 1, plus the next token.
    """
    columns = [
        np.where(starts + i < ends, text[np.minimum(starts + i, len(text) - 1)], -1) for i in range(MAX_WORD_TOKENS)
    ]
    key = columns[0]
    for column in columns[1:]:
        _, key = np.unique(key, return_inverse=True)
        key = key * (size + 1) + column + 1
    _, first, count = np.unique(key, return_index=True, return_counts=True)
    return np.stack([column[first] for column in columns], axis=1), count
