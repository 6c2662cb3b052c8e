from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import words
from analysis.pairs import Pair
from analysis.words import CONTROLS, Frequencies, Study, Vocabulary, plan_study
from configs.errors import InputError
from tests.analysis.corpus import OTHERS, PAIRS, SEQUENCE_LENGTH, open_corpus

GIVEN = [*(Pair(*pair) for pair in PAIRS), Pair("river", "zymurgy"), Pair("winter", "big")]


def plan(corpus: Path, pairs: list[Pair] = GIVEN, **options: Any) -> Study:
    store = open_corpus(corpus)
    options = {"sequence_length": SEQUENCE_LENGTH, **options}
    return plan_study(pairs, store.load_tokenizer(), store.train.ids, store.validation.ids, **options)


def test_counts_are_those_of_a_walk_through_the_tokens(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_corpus(corpus)
    ids, vocabulary = store.train.ids, Vocabulary(store.load_tokenizer())
    whole = Frequencies(ids, vocabulary)
    monkeypatch.setattr(words, "_SCAN_TOKENS", 97)
    pieces = Frequencies(ids, vocabulary)
    count, complete = np.zeros(len(vocabulary), int), np.zeros(len(vocabulary), int)
    for index, token in enumerate(ids):
        count[token] += 1
        if index + 1 < len(ids):
            following = vocabulary.text[ids[index + 1]]
            complete[token] += not (following[:1].isalnum() or following[:1] == "_")
    for frequencies in (whole, pieces):
        np.testing.assert_array_equal(frequencies.count, count)
        np.testing.assert_array_equal(frequencies.complete, complete)
    (big,) = vocabulary.tokens("big")
    assert 0 < complete[big] < count[big]  # " bigger" in every document


def test_places_are_whole_words_that_a_window_predicts(corpus: Path) -> None:
    store = open_corpus(corpus)
    ids, study = store.validation.ids, plan(corpus, contexts_per_word=10**6)
    vocabulary = study.vocabulary
    end = (len(ids) - 1) // SEQUENCE_LENGTH * SEQUENCE_LENGTH
    for word, places in study.places.items():
        expected = [
            j
            for j in range(1, end + 1)
            if ids[j] == word and not (j + 1 < len(ids) and vocabulary.continues[ids[j + 1]])
        ]
        assert places.tolist() == expected
    assert study.vocabulary.text[study.units[0].word] == " big"


def test_the_choice_of_places_is_seeded_and_each_words_own(corpus: Path) -> None:
    everything = plan(corpus, contexts_per_word=10**6).places
    first, again = plan(corpus, contexts_per_word=7, seed=3), plan(corpus, contexts_per_word=7, seed=3)
    alone = plan(corpus, GIVEN[:1], contexts_per_word=7, seed=3)
    other = plan(corpus, contexts_per_word=7, seed=4)
    for word, places in first.places.items():
        assert len(places) == 7
        assert set(places) <= set(everything[word])
        np.testing.assert_array_equal(places, again.places[word])
    for word, places in alone.places.items():
        np.testing.assert_array_equal(places, first.places[word])
    assert any((first.places[word] != other.places[word]).any() for word in first.places)


def test_words_with_as_many_places_do_not_draw_the_same_ones() -> None:
    places = np.arange(1000)
    first, second = (words._choose(places, word, 20, seed=0) for word in (1, 2))
    assert first.tolist() == sorted(first)
    assert len(set(first)) == len(set(second)) == 20
    assert (first != second).any()


def test_controls_are_the_words_of_the_nearest_frequency(corpus: Path) -> None:
    store = open_corpus(corpus)
    study = plan(corpus)
    vocabulary = study.vocabulary
    frequencies = Frequencies(store.train.ids, vocabulary)
    for unit in study.units:
        words_of_unit = {vocabulary.text[t].strip() for t in (unit.word, unit.synonym)}
        partners = {w for pair in GIVEN[:3] for w in (pair.word_a, pair.word_b) if w in words_of_unit} | words_of_unit
        partners |= {"winter", "big"} if "big" in words_of_unit else set()
        controls = [vocabulary.text[t].strip() for t in unit.controls]
        assert len(set(controls)) == CONTROLS
        assert all(word.isalpha() for word in controls)
        assert not partners & set(controls)
        gap = [abs(np.log1p(frequencies.count[t]) - np.log1p(frequencies.count[unit.synonym])) for t in unit.controls]
        others = [vocabulary.tokens(word)[0] for word in OTHERS if word not in controls and word not in partners]
        farther = [abs(np.log1p(frequencies.count[t]) - np.log1p(frequencies.count[unit.synonym])) for t in others]
        assert max(gap) <= min(farther)


def test_pairs_without_support_are_named_with_the_reason(corpus: Path) -> None:
    study = plan(corpus)
    assert [str(pair) for pair in study.pairs] == ["big/large", "fast/quick", "house/home", "winter/big"]
    (entry,) = study.left_out
    assert str(entry.pair) == "river/zymurgy"
    assert "'zymurgy' takes" in entry.reason
    counts = {word: len(places) for word, places in plan(corpus, contexts_per_word=10**6).places.items()}
    enough = max(counts.values())
    few = plan(corpus, min_contexts=enough)
    assert any("fewer than" in entry.reason and "validation contexts" in entry.reason for entry in few.left_out)
    with pytest.raises(InputError, match=r"none of the 5 pairs.*1: a word takes several tokens, 4: too few contexts"):
        plan(corpus, min_contexts=enough + 1)


def test_a_validation_split_shorter_than_a_window_is_refused(corpus: Path) -> None:
    with pytest.raises(InputError, match="validation_fraction"):
        plan(corpus, sequence_length=10**6)
