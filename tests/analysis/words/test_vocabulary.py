from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analysis.words import vocabulary as module
from analysis.words.vocabulary import MAX_WORD_TOKENS, Vocabulary, corpus_words
from data.grammar.vocabulary import grammar_tokenizer
from tests.analysis.models import boundaries
from tests.analysis.text import COMMON, THREE, TWO, Text


def pieces_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of SentencePiece: a space is part of the next piece, and put before every text."""
    pieces = ["<s>", "</s>", "<unk>", "▁", *'abcdefghijklmnopqrstuvwxyz".', "▁big", "big", "ger"]
    merges = [("▁", "b"), ("▁b", "i"), ("▁bi", "g"), ("b", "i"), ("bi", "g"), ("g", "e"), ("ge", "r")]
    pieces += [piece for one, other in merges if (piece := one + other) not in pieces]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # noqa: S106


def test_tokens_are_told_by_their_first_letter(text: Text) -> None:
    vocabulary = text.vocabulary
    np.testing.assert_array_equal(~vocabulary.continues, boundaries(text.tokenizer))
    for index, written in enumerate(text.tokenizer.convert_ids_to_tokens(list(range(len(vocabulary))))):
        assert vocabulary.opens[index] == bool(re.fullmatch("Ġ[A-Za-z]*", written))
        assert vocabulary.letters[index] == bool(re.fullmatch("[A-Za-z]+", written))


@pytest.mark.parametrize("word", [*COMMON[:4], *TWO[:4], *THREE[:4], "zyx"])
@pytest.mark.parametrize("spaced", [True, False])
def test_a_word_has_the_tokens_it_has_within_a_text(text: Text, word: str, spaced: bool) -> None:
    written = f" {word}" if spaced else word
    tokens = text.vocabulary.tokens(written)
    assert tokens is not None
    assert text.vocabulary.decode(list(tokens)) == written
    before, after = ("the", ",") if spaced else ("\n", ".")
    whole = text.tokenizer.encode(before + written + after)
    start = len(text.tokenizer.encode(before))
    assert tuple(whole[start : start + len(tokens)]) == tokens


def test_the_lengths_that_the_tests_rest_on(text: Text) -> None:
    lengths = {len(text.vocabulary.tokens(f" {word}") or ()) for word in (*COMMON, *TWO, *THREE, "zyx")}
    assert lengths == {1, 2, 3, 4}


def test_a_space_that_a_tokenizer_puts_before_every_text_belongs_to_no_word() -> None:
    tokenizer = pieces_tokenizer()
    vocabulary = Vocabulary(tokenizer)
    known = tokenizer.get_vocab()
    assert vocabulary.text[known["▁big"]] == " big"
    assert vocabulary.text[known["big"]] == "big"
    assert vocabulary.tokens(" big") == (known["▁big"],)
    assert vocabulary.tokens("big") == (known["big"],)
    assert vocabulary.tokens("bigger") == (known["big"], known["ger"])
    assert vocabulary.decode([known["big"], known["ger"]]) == "bigger"
    assert vocabulary.continues[known["ger"]]
    assert not vocabulary.continues[known["▁big"]]


def test_a_word_that_the_tokenizer_does_not_know_has_no_tokens() -> None:
    vocabulary = Vocabulary(pieces_tokenizer())
    assert vocabulary.tokens(" Big") is None  # it has no capitals
    words = Vocabulary(grammar_tokenizer())
    assert words.tokens(" zymurgy") is None
    for index in np.flatnonzero(words.opens)[:50]:
        assert words.tokens(words.text[index]) == (index,)


def test_a_word_that_grows_together_with_the_mark_before_it_has_no_tokens_without_a_space() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, '"': 1, "b": 2, "Ġ": 3, '"b': 4, "Ġb": 5}, [('"', "b"), ("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert vocabulary.tokens("b") is None
    assert vocabulary.tokens(" b") == (5,)


def test_words_are_counted_as_in_the_text_itself(text: Text) -> None:
    found = text.words
    whole = text.tokenizer.decode(text.train_ids.tolist())
    expected = Counter(re.findall(r" ([a-z]+)(?![A-Za-z0-9_])", whole))
    expected = Counter({w: n for w, n in expected.items() if len(text.tokenizer.encode(f" {w}")) <= MAX_WORD_TOKENS})
    assert found.count == dict(expected)
    assert {"zyx", "kimu", "quicker"} <= set(found.count)
    for word, size in found.tokens.items():
        assert size == len(text.tokenizer.encode(f" {word}"))


def test_a_word_cut_off_by_the_end_of_the_tokens_is_not_counted(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.array(text.tokenizer.encode(" big river kimu"))
    assert corpus_words(ids, text.vocabulary).count == {"big": 1, "river": 1}
    monkeypatch.setattr(module, "CORPUS_TOKENS", 2)
    assert corpus_words(ids, text.vocabulary).count == {"big": 1}
    assert corpus_words(ids[:0], text.vocabulary).count == {}
