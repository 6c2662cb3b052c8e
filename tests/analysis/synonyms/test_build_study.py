from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pytest

from analysis.synonyms.build_study import (
    MOST_CONTRASTS,
    Controls,
    HeldOut,
    study_of_pairs,
    study_of_substitutions,
    write,
)
from analysis.synonyms.study import CONTROLS, SHUFFLED, Role, Study, Unit, reasons
from analysis.words.pairs import Pair, PairList
from analysis.words.substitutions import Substitution, SubstitutionList
from analysis.words.vocabulary import MAX_WORD_TOKENS
from common.errors import InputError
from tests.analysis.text import COMMON, PAIRS, SEQUENCE_LENGTH, Text, documents, small_text, tokens_of

WRITTEN = [(spaced, capital) for spaced in (True, False) for capital in (False, True)]


def build(text: Text, pairs: PairList = PAIRS, **options: Any) -> Study:
    options = {"min_contexts": 4, "end_of_text": text.end_of_text, **options}
    held_out = HeldOut(text.ids, text.starts, SEQUENCE_LENGTH, text.vocabulary)
    return study_of_pairs(pairs, text.vocabulary, Controls(text.words, lambda word: frozenset()), held_out, **options)


def named(unit: Unit, role: Role) -> list[str]:
    return [candidate.surface for candidate in unit.candidates if candidate.role == role]


@cache
def decoded() -> list[str]:
    """The text of each token of the validation split."""
    text = small_text()
    return [text.tokenizer.decode([index]) for index in text.ids]


def in_the_text(text: Text, surface: str) -> list[int]:
    """Where a word stands in the text read as characters, as indices of its first token; with room in its window."""
    written = decoded()
    starts = np.cumsum([0, *map(len, written)])
    pattern = ("" if surface.startswith(" ") else "(?<![A-Za-z0-9_])") + re.escape(surface) + "(?![A-Za-z0-9_])"
    found = []
    for match in re.finditer(pattern, "".join(written)):
        index = int(np.searchsorted(starts, match.start()))
        if starts[index] != match.start():
            continue  # the word of " big" itself, which is no token without its space
        window, position = divmod(index - 1, SEQUENCE_LENGTH)
        room = SEQUENCE_LENGTH - 1 - position
        if index >= 1 and (window + 1) * SEQUENCE_LENGTH < len(text.ids) and room >= MAX_WORD_TOKENS:
            found.append(index)
    return found


# ------------------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("word", ["big", "house", "kimu", "lomuba", "end", "zyx"])
@pytest.mark.parametrize("written", WRITTEN)
def test_places_are_the_complete_words_of_the_text(
    text: Text, held_out: HeldOut, word: str, written: tuple[bool, bool]
) -> None:
    surface = write(word, *written)
    tokens = text.vocabulary.tokens(surface)
    assert tokens is not None
    assert held_out.find(tokens, spaced=written[0]).tolist() == in_the_text(text, surface)


def test_the_text_has_words_of_every_kind(text: Text, held_out: HeldOut) -> None:
    """So that the comparison above is not one of nothing with nothing."""
    for word, written in [("big", w) for w in WRITTEN] + [(w, (True, False)) for w in ("kimu", "lomuba", "zyx")]:
        tokens = text.vocabulary.tokens(write(word, *written))
        assert tokens is not None
        assert len(held_out.find(tokens, spaced=written[0])) > 0
    whole = text.tokenizer.decode(text.ids.tolist())
    assert " homeer" in whole or " biger" in whole  # which is no place of " home"


def test_a_place_is_in_the_window_and_document_that_predict_it(text: Text, held_out: HeldOut) -> None:
    (big,) = text.vocabulary.tokens(" big") or ()
    index_C = held_out.find([big], spaced=True)
    passages = held_out.passages()
    for index, (window, position, document) in zip(index_C, held_out.places(index_C), strict=True):
        assert window * SEQUENCE_LENGTH + position + 1 == index
        seen = [*passages[window][: position + 1], big]
        assert seen == text.ids[window * SEQUENCE_LENGTH : index + 1].tolist()
        assert text.starts[document] <= index < [*text.starts, len(text.ids)][document + 1]


def test_a_split_shorter_than_a_window_and_a_window_shorter_than_a_word_are_refused(text: Text) -> None:
    with pytest.raises(InputError, match=r"has 24 tokens, fewer than .* 25; .*validation_fraction"):
        HeldOut(text.ids[:24], text.starts[:1], 24, text.vocabulary)
    assert HeldOut(text.ids[:25], text.starts[:1], 24, text.vocabulary).windows == 1
    with pytest.raises(InputError, match=f"at least {MAX_WORD_TOKENS + 1}"):
        HeldOut(text.ids, text.starts, MAX_WORD_TOKENS, text.vocabulary)


# ----------------------------------------------------------------------------------------------------- units and roles


def test_every_word_is_predicted_at_each_of_its_places_beside_its_partner(text: Text) -> None:
    study = build(text)
    assert [item.name for item in study.items] == [str(pair) for pair in PAIRS.synonyms]
    own = study.own_M
    predicted: Counter[tuple[str, str]] = Counter()
    for unit in study.units:
        assert [candidate.role for candidate in unit.candidates[:2]] == [Role.WORD, Role.SYNONYM]
        assert unit.candidates[0].surface.strip().lower() == unit.lemma
        sizes = [len(text.vocabulary.tokens(candidate.surface) or ()) for candidate in unit.candidates]
        assert unit.single == (sizes[:2] == [1, 1])
        assert max(sizes) <= MAX_WORD_TOKENS
    for query in np.flatnonzero(own):
        unit, place = study.units[study.unit_M[query]], study.place_M[query]
        index = study.passage_C[place] * SEQUENCE_LENGTH + study.position_C[place] + 1
        surface = unit.candidates[0].surface
        tokens = text.tokenizer.encode(surface)
        assert text.ids[index : index + len(tokens)].tolist() == tokens
        predicted[study.items[unit.item].name, surface] += 1
    for pair in PAIRS.synonyms:
        for word, partner in ((pair.word_a, pair.word_b), (pair.word_b, pair.word_a)):
            for written in WRITTEN:
                surface = write(word, *written)
                fits = len(text.tokenizer.encode(write(partner, *written))) <= MAX_WORD_TOKENS
                expected = len(in_the_text(text, surface)) if fits else 0
                assert predicted[str(pair), surface] == expected
    assert {(unit.spaced, unit.candidates[0].surface.strip()[0].isupper()) for unit in study.units} == set(WRITTEN)
    np.testing.assert_array_equal(study.item_M, [study.units[u].item for u in study.unit_M])
    np.testing.assert_array_equal(study.single_M, [study.units[u].single for u in study.unit_M])
    np.testing.assert_array_equal(study.document_M, [study.document_C[c] for c in study.place_M])
    same = study.lemma_M[:, None] == study.lemma_M
    lemmas = np.array([study.units[u].lemma for u in study.unit_M])
    np.testing.assert_array_equal(same, lemmas[:, None] == lemmas)


def test_places_are_in_order_and_none_is_there_twice(text: Text) -> None:
    study = build(text, PairList("test", (*PAIRS.synonyms, Pair("big", "house"))))  # a word in two pairs
    keys = list(zip(study.passage_C.tolist(), study.position_C.tolist(), strict=True))
    assert keys == sorted(set(keys))
    assert (np.diff(study.place_M) >= 0).all()
    queries = list(zip(study.place_M, study.unit_M, strict=True))
    assert len(queries) == len(set(queries))


def test_candidates_are_written_like_the_word(text: Text) -> None:
    for unit in build(text).units:
        first = unit.candidates[0].surface
        for candidate in unit.candidates:
            assert candidate.surface.startswith(" ") == first.startswith(" ")
            assert candidate.surface.strip()[0].isupper() == first.strip()[0].isupper()


def test_antonyms_and_dissimilar_words_are_those_listed_with_the_word(text: Text) -> None:
    units = {unit.candidates[0].surface: unit for unit in build(text).units}
    assert named(units[" big"], Role.ANTONYM) == [" silver"]
    assert named(units[" big"], Role.REJECTED) == [" mumu"]
    assert named(units[" large"], Role.ANTONYM) == []
    assert named(units["Large"], Role.REJECTED) == ["Winter"]
    many = tuple(Pair("big", word) for word in COMMON[4 : 4 + MOST_CONTRASTS + 2])
    pairs = PairList("test", PAIRS.synonyms[:1], antonyms=many)
    units = {unit.candidates[0].surface: unit for unit in build(text, pairs).units}
    assert named(units[" big"], Role.ANTONYM) == [f" {word}" for word in COMMON[4 : 4 + MOST_CONTRASTS]]


def test_controls_are_the_synonyms_and_related_to_neither_word(text: Text) -> None:
    """What may stand for one of the two words is no control of the other."""
    pairs = PairList("test", (*PAIRS.synonyms, *(Pair("big", word) for word in ("stone", "paper", "river"))))
    controls = Controls(text.words, lambda word: frozenset())
    partners = {"large": {"big"}, "big": {"large", "stone", "paper", "river"}, "fast": {"quick"}, "quick": {"fast"}}
    seen = 0
    for unit in build(text, pairs).units:
        word, synonym = (candidate.surface.strip() for candidate in unit.candidates[:2])
        if word in partners and synonym in partners and unit.spaced:
            related = {word, synonym} | partners[word] | partners[synonym]
            expected = controls.choose(synonym, text.words.tokens[synonym], related)
            assert named(unit, Role.CONTROL) == [f" {name}" for name in expected]
            assert len(expected) == CONTROLS
            seen += 1
    assert seen == 4


# ---------------------------------------------------------------------------------------------------- shuffled queries


def test_shuffled_queries_are_at_places_of_unrelated_words_written_alike(text: Text) -> None:
    pairs = PairList("test", (*PAIRS.synonyms, Pair("large", "quick")))
    related = {
        "big": {"large"},
        "large": {"big", "quick"},
        "fast": {"quick"},
        "quick": {"fast", "large"},
    }
    study = build(text, pairs)
    at_place = {place: study.units[unit] for place, unit, s in zip(*queries(study), strict=True) if not s}
    seen: Counter[int] = Counter()
    for place, unit, shuffled in zip(*queries(study), strict=True):
        if shuffled:
            predicted, there = study.units[unit], at_place[place]
            word, synonym = (candidate.surface.strip().lower() for candidate in predicted.candidates[:2])
            assert there.lemma not in {word, synonym} | related.get(word, set()) | related.get(synonym, set())
            assert there.spaced == predicted.spaced
            assert (
                there.candidates[0].surface.strip()[0].isupper() == predicted.candidates[0].surface.strip()[0].isupper()
            )
            seen[unit] += 1
    own = Counter(study.unit_M[~study.shuffled_M].tolist())
    for unit, number in own.items():
        if study.units[unit].spaced and study.units[unit].candidates[0].surface.islower():
            assert seen[unit] == min(SHUFFLED, number)
    assert max(seen.values()) == SHUFFLED


def queries(study: Study) -> tuple[list[int], list[int], list[bool]]:
    return study.place_M.tolist(), study.unit_M.tolist(), study.shuffled_M.tolist()


def test_a_word_that_owns_most_places_is_shuffled_to_the_others(text: Text) -> None:
    ids, starts = tokens_of(["the" + " big" * 200 + " fast river" * 10 + "."] * 2, text.tokenizer)
    held_out = HeldOut(ids, starts, SEQUENCE_LENGTH, text.vocabulary)
    controls = Controls(text.words, lambda word: frozenset())
    study = study_of_pairs(PAIRS, text.vocabulary, controls, held_out, end_of_text=text.end_of_text, min_contexts=4)
    big = next(i for i, unit in enumerate(study.units) if unit.candidates[0].surface == " big")
    shuffled = study.shuffled_M & (study.unit_M == big)
    fast = sum(study.units[u].lemma == "fast" for u in study.unit_M[~study.shuffled_M])
    assert shuffled.sum() == min(SHUFFLED, fast)


# ------------------------------------------------------------------------------------------------------ seeds and limits


def test_a_study_depends_on_nothing_but_data_and_seed(text: Text) -> None:
    first, again, other = (build(text, contexts_per_word=7, seed=seed) for seed in (3, 3, 4))
    for field in fields(Study):
        one, two = getattr(first, field.name), getattr(again, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, two)
        elif field.name == "passages":
            assert all((a == b).all() for a, b in zip(one, two, strict=True))
        else:
            assert one == two
    assert first.position_C.tolist() != other.position_C.tolist()


def places_of(study: Study, word: str) -> set[tuple[int, int]]:
    own = [not s and study.units[u].lemma == word for u, s in zip(study.unit_M, study.shuffled_M, strict=True)]
    places = study.place_M[np.array(own)]
    return set(zip(study.passage_C[places].tolist(), study.position_C[places].tolist(), strict=True))


def test_the_places_of_a_word_are_drawn_from_all_ways_of_writing_it_and_are_its_own(text: Text) -> None:
    everything, some = build(text), build(text, contexts_per_word=7, seed=3)
    alone = build(text, PairList("test", PAIRS.synonyms[:1]), contexts_per_word=7, seed=3)
    for word in ("big", "large", "kimu"):
        assert len(places_of(some, word)) == 7
        assert places_of(some, word) <= places_of(everything, word)
    for word in ("big", "large"):
        assert places_of(alone, word) == places_of(some, word)


def test_pairs_without_support_are_named_with_the_reason(text: Text) -> None:
    few = int((~build(text, PairList("test", (Pair("kiki", "bigki"),)), min_contexts=1).shuffled_M).sum())
    assert few > 0
    pairs = PairList("test", (*PAIRS.synonyms[:1], Pair("river", "zymurgy"), Pair("kiki", "bigki"), Pair("zyx", "big")))
    study = build(text, pairs, min_contexts=few + 1)
    assert [item.name for item in study.items] == ["big/large"]
    size = len(text.tokenizer.encode(" zymurgy"))
    assert [(entry.name, entry.kind, entry.reason) for entry in study.left_out] == [
        ("river/zymurgy", "tokens", f"'zymurgy' takes {size} tokens"),
        ("kiki/bigki", "contexts", f"fewer than {few + 1} validation contexts: 'kiki' {few} and 'bigki' 0"),
        ("zyx/big", "controls", f"the corpus has fewer than {CONTROLS} control words for it"),
    ]
    counted = "1: a word takes too many tokens, 1: too few contexts, 1: too few controls"
    assert reasons(study.left_out) == counted
    with pytest.raises(
        InputError, match=rf"none of the 3 pairs can be used \({counted}\); use a larger validation split"
    ):
        build(text, PairList("test", pairs.synonyms[1:]), min_contexts=few + 1)


def test_a_word_that_stands_only_where_its_synonym_has_no_room_is_left_out(text: Text) -> None:
    """Capitalised it takes more tokens than any candidate may."""
    ids, starts = tokens_of(["The end.\nHome river" * 40] * 2, text.tokenizer)
    held_out = HeldOut(ids, starts, SEQUENCE_LENGTH, text.vocabulary)
    controls = Controls(text.words, lambda word: frozenset())
    assert len(text.tokenizer.encode("Bigkikiki")) > MAX_WORD_TOKENS >= len(text.tokenizer.encode(" bigkikiki"))
    with pytest.raises(InputError, match="1: too few contexts"):
        study_of_pairs(
            PairList("test", (Pair("home", "bigkikiki"),)), text.vocabulary, controls, held_out, end_of_text=0
        )


# --------------------------------------------------------------------------------------------------------- substitutions


def substitutions(*items: Substitution) -> SubstitutionList:
    return SubstitutionList("test", items, {"no text before it": 2})


def item(name: str = "1", left: str = "The", **changes: Any) -> Substitution:
    given: dict[str, Any] = {"document": "d", "target": "big", "lemma": "big", "pos": "a", **changes}
    given.setdefault("candidates", (("large", 3.0), ("huge river", 0.0), ("kimu", 1.0), ("silver", 0.0)))
    return Substitution(item=name, left=left, **given)


def build_substitutions(text: Text, *items: Substitution, sequence_length: int = SEQUENCE_LENGTH) -> Study:
    return study_of_substitutions(
        substitutions(*items),
        text.vocabulary,
        Controls(text.words, lambda word: frozenset()),
        lambda left: text.tokenizer.encode(left, add_special_tokens=False),
        sequence_length=sequence_length,
        end_of_text=text.end_of_text,
    )


def test_a_substitution_is_predicted_once_at_the_end_of_its_left_context(text: Text) -> None:
    study = build_substitutions(
        text, item("1", "The stone"), item("2", "A river, a", document="e"), item("3", "The", lemma="Bigs")
    )
    assert not study.shuffled_M.any()
    assert study.place_M.tolist() == study.unit_M.tolist() == [0, 1, 2]
    for ids, position, left in zip(study.passages, study.position_C, ("The stone", "A river, a", "The"), strict=True):
        assert ids[0] == text.end_of_text
        assert text.tokenizer.decode(ids[1:].tolist()) == left
        assert position == len(ids) - 1
    assert study.document_C.tolist() == [0, 1, 0]
    assert [unit.item for unit in study.units] == [0, 0, 1]
    assert [(each.name, each.domain, each.pos) for each in study.items] == [
        ("big", "substitution", "a"),
        ("Bigs", "substitution", "a"),
    ]
    assert [unit.lemma for unit in study.units] == ["big", "big", "bigs"]


def test_substitutes_have_their_judges_weights_and_the_target_its_spelling(text: Text) -> None:
    study = build_substitutions(text, item(), item("2", target="Big"), item("3", candidates=(("large", 1.0),)))
    for unit, make in zip(study.units[:2], (str, lambda word: word[0].upper() + word[1:]), strict=True):
        assert [(c.surface, c.role, c.weight) for c in unit.candidates[:5]] == [
            (f" {make('big')}", Role.WORD, 1.0),
            (f" {make('large')}", Role.SYNONYM, 3.0),
            (f" {make('kimu')}", Role.SYNONYM, 1.0),
            (f" {make('huge river')}", Role.REJECTED, 0.0),
            (f" {make('silver')}", Role.REJECTED, 0.0),
        ]
        known = {"big", "large", "kimu", "silver", "huge river"}
        nearest = Controls(text.words, lambda word: frozenset()).choose("large", 1, known)
        assert named(unit, Role.CONTROL) == [f" {make(word)}" for word in nearest]
        assert not unit.single  # " kimu" takes two tokens
    assert study.units[2].single


def test_a_substitute_that_no_more_than_half_of_the_judges_accept_is_neither_accepted_nor_rejected(text: Text) -> None:
    shares = (("large", 0.6), ("kimu", 0.5), ("quick", 0.1), ("silver", 0.0))
    (unit,) = build_substitutions(text, item(candidates=shares)).units
    assert [(c.role, c.weight) for c in unit.candidates[1:5]] == [
        (Role.SYNONYM, 0.6),
        (Role.UNDECIDED, 0.5),
        (Role.UNDECIDED, 0.1),
        (Role.REJECTED, 0.0),
    ]
    assert unit.single  # " kimu" takes two tokens, but is no synonym


def test_a_long_left_context_is_cut_from_the_left(text: Text) -> None:
    left = documents(1, seed=9)[0]
    ids = text.tokenizer.encode(left)
    study = build_substitutions(text, item(left=left))
    room = max(len(text.tokenizer.encode(c.surface)) for c in study.units[0].candidates)
    assert room > 2
    (passage,) = study.passages
    assert passage.tolist() == ids[-(SEQUENCE_LENGTH - room) :]
    assert study.position_C[0] + 1 + room == SEQUENCE_LENGTH


def test_substitution_items_that_cannot_be_used_are_named_with_the_reason(text: Text) -> None:
    rejected = item("2", candidates=(("silver", 0.0),))
    long = item("3", candidates=(("large", 1.0), ("zymurgical zymurgy", 1.0)))
    study = build_substitutions(text, item(), rejected, long, sequence_length=12)
    assert len(study.units) == 1
    assert study.source == "test; targets left out: 2 (no text before it)"
    found = {entry.name: (entry.kind, entry.reason) for entry in study.left_out}
    size = len(text.tokenizer.encode(" zymurgical zymurgy"))
    assert found["3"] == ("positions", f"a candidate of {size} tokens leaves no room in a window")
    assert found["2"][0] == "tokens"
    with pytest.raises(InputError, match="none of the 2 substitution items"):
        build_substitutions(text, rejected, long, sequence_length=12)


def test_an_item_at_the_beginning_of_a_text_is_predicted_from_an_end_of_text(text: Text) -> None:
    study = build_substitutions(text, item(left=""))
    assert study.passages[0].tolist() == [text.end_of_text]
    assert study.position_C.tolist() == [0]
