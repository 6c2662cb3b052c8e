from __future__ import annotations

import math

import pytest

from analysis.synonyms.build_study import LETTER, Controls
from analysis.synonyms.study import CONTROLS
from analysis.words.vocabulary import CorpusWords
from tests.analysis.text import Text


def distance(word: str, synonym: str, words: CorpusWords) -> float:
    frequency = abs(math.log(words.count[word] / max(1, words.count.get(synonym, 1))))
    return frequency + LETTER * abs(len(word) - len(synonym))


@pytest.mark.parametrize(("synonym", "tokens"), [("big", 1), ("kimu", 2), ("lobaba", 3), ("unheard", 2)])
def test_controls_are_the_nearest_words_of_as_many_tokens(text: Text, synonym: str, tokens: int) -> None:
    excluded = {synonym, "river", "kiki", "mubamu"}
    chosen = Controls(text.words, lambda word: frozenset()).choose(synonym, tokens, excluded)
    assert len(set(chosen)) == CONTROLS
    assert not set(chosen) & excluded
    assert all(text.words.tokens[word] == tokens for word in chosen)
    others = [w for w, n in text.words.tokens.items() if n == tokens and w not in chosen and w not in excluded]
    found = [distance(word, synonym, text.words) for word in chosen]
    assert found == sorted(found)
    assert max(found) <= min(distance(word, synonym, text.words) for word in others)


def test_length_counts_beside_frequency() -> None:
    count = {"abc": 100, "xyz": 104, "abcdefgh": 100}
    words = CorpusWords(count, dict.fromkeys(count, 1))
    assert Controls(words, lambda word: frozenset()).choose("abc", 1, {"abc"}) == ["xyz", "abcdefgh"]


def test_a_word_of_another_part_of_speech_is_no_control_where_both_are_known(text: Text) -> None:
    parts = {"big": frozenset("a"), "large": frozenset("ar"), "river": frozenset("n"), "stone": frozenset("nv")}
    controls = Controls(text.words, lambda word: parts.get(word, frozenset()))
    everything = set(text.words.count)
    only = everything - {"large", "river", "stone", "garden"}
    assert set(controls.choose("big", 1, only)) == {"large", "garden"}  # nothing is known of a garden
    assert set(controls.choose("paper", 1, only)) == {"large", "river", "stone", "garden"}


def test_there_are_fewer_controls_where_words_are_few(text: Text) -> None:
    controls = Controls(text.words, lambda word: frozenset())
    assert controls.choose("big", 9, set()) == []
    assert controls.choose("big", 1, set(text.words.count)) == []
    assert controls.choose("zyx", 4, {"zyx"}) == [w for w, n in text.words.tokens.items() if n == 4 and w != "zyx"]


def test_a_corpus_without_words_has_no_controls() -> None:
    assert Controls(CorpusWords({}, {}), lambda word: frozenset()).choose("big", 1, set()) == []
