"""The grammar's words as a tokenizer of the transformers format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.tokenizer import END_OF_TEXT, MODEL_MAX_LENGTH

from .vocabulary import UNKNOWN, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PIECE = " ?[A-Za-z]+|[.,]"
"""A word with the space before it, or a mark: what the grammar's text is made of, without remainder."""


def grammar_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer with a token for each word form; text of the grammar survives encoding and decoding unchanged.

    A word that the grammar does not have becomes UNKNOWN, whatever its spelling.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast  # two seconds

    ids = {word: index for index, word in enumerate(vocabulary().words)}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    words.decoder = decoders.Fuse()
    words.add_special_tokens([END_OF_TEXT, UNKNOWN])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
