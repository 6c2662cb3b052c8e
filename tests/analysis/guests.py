"""Tokenizers of guests: other tokens for the same text."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from data.tokenizer import train_bpe

from .text import COMMON, documents


def other_bpe() -> PreTrainedTokenizerFast:
    """Fewer merges, learnt elsewhere."""
    return train_bpe(iter(documents(60, seed=7)), 300, progress=False)


def with_bos() -> PreTrainedTokenizerFast:
    """The same, with a token of its own before every text."""
    tokenizer = Tokenizer.from_str(other_bpe().backend_tokenizer.to_str())
    tokenizer.add_special_tokens(["<s>"])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|endoftext|>")  # noqa: S106


def whole_pieces(*, eos: bool = True) -> PreTrainedTokenizerFast:
    """Tokens hold whatever stands between spaces: a quote grows together with the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" ?[^ ]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    quoted = [f'"{word}"' for word in (*COMMON, *(word.capitalize() for word in COMMON))] * 30
    tokenizer.train_from_iterator([*documents(60, seed=7), *quoted], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>" if eos else None)
