"""The tokens of the synonym grammar, one for each word form, and their tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data.tokenizer import END_OF_TEXT, wrapped

from . import lexicon

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNKNOWN = "<|unknown|>"
"""Id 1: any word outside the grammar. It never occurs in the corpus."""
END_ID = 0
_PIECE = " ?[A-Za-z]+|[.,]"
"""A word with the space before it, or a punctuation mark: the grammar's text is made of nothing else."""


@cache
def words() -> tuple[str, ...]:
    """Text of each token, leading space included, the same for every grammar. Special tokens, first names, function words,
    then the lexicon. Raises ValueError if one occurs twice."""
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
    tokens = (END_OF_TEXT, UNKNOWN, ".", ",", *names, *(f" {word}" for word in spaced))
    if repeated := sorted({token for token in tokens if tokens.count(token) > 1}):
        raise ValueError(f"grammar: tokens more than once: {repeated}")
    return tokens


@cache
def _id_of() -> dict[str, int]:
    return {word: index for index, word in enumerate(words())}


def ids(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """Ids of tokens; a word may be given without its leading space."""
    return np.array([_id_of()[text if text in _id_of() else f" {text}"] for text in texts])


def grammar_tokenizer() -> PreTrainedTokenizerFast:
    """A transformers tokenizer with one token for each word form; the grammar's text survives encoding and decoding. Any
    other word becomes UNKNOWN."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(_id_of(), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END_OF_TEXT, UNKNOWN])
    return wrapped(tokenizer, unk_token=UNKNOWN)
