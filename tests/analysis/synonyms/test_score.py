from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from analysis.synonyms import encode, score
from analysis.synonyms import hidden_states as states
from analysis.synonyms.encode import Encoded, encode_study
from analysis.synonyms.hidden_states import Reader
from analysis.synonyms.score import WordScores, score_words
from analysis.synonyms.study import Candidate, Item, Role, Study, Unit, assemble
from analysis.words.vocabulary import Vocabulary
from common.errors import InputError
from tests.analysis.guests import other_bpe, whole_pieces, with_bos
from tests.analysis.models import FAMILIES, Naive, boundaries, make_model
from tests.analysis.text import Text

TEMPERATURES = (1.0, 0.4, 3.0)


@pytest.fixture(scope="module")
def encoded(study: Study, text: Text) -> Encoded:
    return encode_study(study)


def check(
    scores: WordScores, encoded: Encoded, naive: Naive, tokenizer: Any, *, every: int = 1, spaced_only: bool = False
) -> set[tuple[int, bool]]:
    """Compare a query of every n-th unit with the definition; the (tokens, spaced) of the words compared."""
    study, seen = encoded.study, set()
    for query in np.unique(study.unit_M, return_index=True)[1][::every]:
        unit, place = study.units[study.unit_M[query]], study.place_M[query]
        if spaced_only and not unit.spaced:
            continue
        context = encoded.passages[study.passage_C[place]][: encoded.position_C[place] + 1]
        for index, candidate in enumerate(unit.candidates, start=scores.start_M[query]):
            word = tokenizer.encode(candidate.surface, add_special_tokens=False)
            seen.add((len(word), unit.spaced))
            for x, temperature in enumerate(TEMPERATURES):
                expected = naive.log_p(context, word, temperature, spaced=unit.spaced)
                assert scores.log_p_XA[x, index] == pytest.approx(expected, abs=1e-4)
            assert scores.rank_A[index] == (naive.rank(context, word[0]) if len(word) == 1 else 0)
        entropies = [naive.entropy(context, temperature) for temperature in TEMPERATURES]
        np.testing.assert_allclose(scores.entropy_XM[:, query], entropies, atol=1e-4)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_words_probability_is_that_of_the_definition_in_float64(family: str, encoded: Encoded, text: Text) -> None:
    model = make_model(family, len(encoded.vocabulary))
    scores = score_words(Reader(model, encoded, "m"), TEMPERATURES)
    assert len(scores.start_M) == len(encoded.study.unit_M) + 1
    every = 1 if family in ("gpt2", "metric") else 3
    seen = check(scores, encoded, Naive(model, boundaries(text.tokenizer)), text.tokenizer, every=every)
    assert {(1, True), (2, True), (3, True), (2, False), (3, False)} <= seen
    assert every > 1 or (1, False) in seen


@pytest.mark.parametrize("make_tokenizer", [other_bpe, with_bos])
def test_a_guest_scores_the_same_words_in_its_own_tokens(make_tokenizer: Any, study: Study) -> None:
    tokenizer = make_tokenizer()
    encoded = encode_study(study, tokenizer)
    model = make_model("llama", len(encoded.vocabulary), positions=128)
    scores = score_words(Reader(model, encoded, "m"), TEMPERATURES)
    seen = check(scores, encoded, Naive(model, boundaries(tokenizer)), tokenizer, every=2)
    assert {(2, True), (3, True), (2, False), (3, False)} <= seen


def few_tokens() -> PreTrainedTokenizerFast:
    """Two letters that begin or go on with a word, and marks; every word is written in one way only."""
    known = {token: i for i, token in enumerate(["<|end|>", "Ġ", "a", "b", "Ġa", "Ġb", *".,;:!?-+*/=()%&"])}
    tokenizer = Tokenizer(models.BPE(known, [("Ġ", "a"), ("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")  # noqa: S106


@pytest.mark.parametrize("spaced", [True, False])
def test_all_spellings_and_no_word_make_one(spaced: bool) -> None:
    """Words have one spelling here. They have at most seven letters; a longer one has a chance of some 1e-6."""
    tokenizer = few_tokens()
    vocabulary = Vocabulary(tokenizer)
    letters = [letters for n in range(1, 8) for letters in itertools.product("ab", repeat=n)]
    surfaces = [" " * spaced + "".join(each) for each in letters]
    unit = Unit(0, "a", tuple(Candidate(each, Role.WORD) for each in surfaces), single=False)
    ids = np.array(tokenizer.encode("a ab. b, (ab) a;"))
    positions = [1, 4, 6, len(ids) - 1]
    study = assemble(
        "test",
        [Item("a", "", "")],
        [],
        [unit],
        [ids],
        np.array([(0, position, 0) for position in positions]),
        np.array([(place, 0, 0) for place in range(len(positions))]),
        vocabulary,
        end_of_text=0,
    )
    model = make_model("gpt2", len(vocabulary))
    model.transformer.wte.weight.data *= 0.1  # a nearly flat distribution, in which words are short
    scores = score_words(Reader(model, encode_study(study), "m"), (1.0, 1.5))
    ends = np.array([token not in ("a", "b") for token in tokenizer.convert_ids_to_tokens(range(len(vocabulary)))])
    no_word = np.array(
        [token not in ("a", "b", "Ġa", "Ġb") for token in tokenizer.convert_ids_to_tokens(range(len(ends)))]
    )
    naive = Naive(model, ends)
    for x, temperature in enumerate((1.0, 1.5)):
        for query, position in enumerate(positions):
            p_V = naive.log_distributions(ids[: position + 1], temperature)[-1].exp().numpy()
            p_words = np.exp(scores.log_p_XA[x, scores.start_M[query] : scores.start_M[query + 1]])
            assert (p_words > 0).all()
            nothing = p_V[no_word].sum() / p_V[ends].sum() if spaced else p_V[ends].sum()
            assert p_words.sum() + nothing == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "positions", "beside", "logits"),
    [("gpt2", 1, 1, 1), ("gpt2", 300, 60, 5 * 344), ("gpt2", 700, 512, 1 << 20), ("bloom", 600, 60, 50 * 344)],
)
def test_how_places_are_gathered_changes_nothing(
    family: str, positions: int, beside: int, logits: int, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(family, len(encoded.vocabulary))
    whole = score_words(Reader(model, encoded, "m"), (1.0, 0.4))
    monkeypatch.setattr(states, "BATCH_POSITIONS", positions)
    monkeypatch.setattr(encode, "SEQUENCE_POSITIONS", beside)
    monkeypatch.setattr(score, "LOGITS", logits)
    parts = score_words(Reader(model, encoded, "m"), (1.0, 0.4))
    np.testing.assert_allclose(parts.log_p_XA, whole.log_p_XA, atol=1e-5)
    np.testing.assert_allclose(parts.entropy_XM, whole.entropy_XM, atol=1e-5)
    np.testing.assert_array_equal(parts.rank_A, whole.rank_A)
    np.testing.assert_array_equal(parts.start_M, whole.start_M)


def test_the_order_of_units_changes_nothing(encoded: Encoded, study: Study, text: Text) -> None:
    units = len(study.units)
    turned = replace(study, units=study.units[::-1], unit_M=units - 1 - study.unit_M)
    model = make_model("metric", len(encoded.vocabulary))
    one = score_words(Reader(model, encoded, "m"), (1.0,))
    other = score_words(Reader(model, encode_study(turned), "m"), (1.0,))
    np.testing.assert_allclose(one.log_p_XA, other.log_p_XA, atol=1e-5)


def test_a_candidate_that_a_guest_cannot_encode_is_not_a_number_and_harms_no_other(study: Study) -> None:
    tokenizer = whole_pieces()
    encoded = encode_study(study, tokenizer)
    unknown = np.concatenate([encoded.trees[unit].leaf_K < 0 for unit in study.unit_M])
    model = make_model("gpt2", len(encoded.vocabulary), positions=128)
    scores = score_words(Reader(model, encoded, "m"), TEMPERATURES)
    assert 0 < unknown.sum() < len(unknown)
    np.testing.assert_array_equal(np.isnan(scores.log_p_XA), np.tile(unknown, (len(TEMPERATURES), 1)))
    assert (scores.rank_A[unknown] == 0).all()
    assert np.isfinite(scores.entropy_XM).all()
    check(scores, encoded, Naive(model, boundaries(tokenizer)), tokenizer, every=2, spaced_only=True)


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_places_at_which_no_candidate_can_be_encoded_are_passed_over(
    family: str, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = np.empty(0, dtype=np.int64)
    blank = [
        replace(tree, token_E=empty, parent_E=empty, depth_E=empty, leaf_K=-np.ones_like(tree.leaf_K))
        for tree in encoded.trees
    ]
    blank[0] = encoded.trees[0]
    model = make_model(family, len(encoded.vocabulary))
    whole = score_words(Reader(model, encoded, "m"), (1.0,))
    monkeypatch.setattr(states, "BATCH_POSITIONS", 1)  # so that there are batches without any node
    scores = score_words(Reader(model, replace(encoded, trees=tuple(blank)), "m"), (1.0,))
    known = np.repeat(encoded.study.unit_M == 0, np.diff(whole.start_M))
    np.testing.assert_array_equal(np.isnan(scores.log_p_XA[0]), ~known)
    np.testing.assert_allclose(scores.log_p_XA[0, known], whole.log_p_XA[0, known], atol=1e-5)
    np.testing.assert_allclose(scores.entropy_XM, whole.entropy_XM, atol=1e-5)


def test_a_vocabulary_padded_beyond_its_tokens_predicts_none_of_the_padding(encoded: Encoded) -> None:
    plain, padded = (make_model("metric", len(encoded.vocabulary)) for _ in range(2))
    padded.resize_token_embeddings(len(encoded.vocabulary) + 20)
    scores = [score_words(Reader(model, encoded, "m"), TEMPERATURES) for model in (plain, padded)]
    np.testing.assert_allclose(scores[0].log_p_XA, scores[1].log_p_XA, atol=1e-5)
    np.testing.assert_array_equal(scores[0].rank_A, scores[1].rank_A)
    np.testing.assert_allclose(scores[0].entropy_XM, scores[1].entropy_XM, atol=1e-5)


def sure_of_going_on(text: Text, height: float) -> GPT2LMHeadModel:
    """A model that gives every token that ends a word a logit lower by ``height``, wherever it is."""
    model = make_model("gpt2", len(text.vocabulary))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.transformer.ln_f.weight.data[0] = 0.0
    model.transformer.ln_f.bias.data[0] = 1.0
    model.lm_head.weight.data[:, 0] = torch.from_numpy(np.where(boundaries(text.tokenizer), -height, 0.0)).float()
    return model


@pytest.mark.parametrize("height", [30.0, 90.0, 400.0])
def test_a_place_where_hardly_a_word_can_begin_still_tells_words_apart(
    height: float, encoded: Encoded, text: Text
) -> None:
    """exp(-400 / 0.4) is 0 in any floating-point number."""
    model = sure_of_going_on(text, height)
    scores = score_words(Reader(model, encoded, "m"), TEMPERATURES)
    assert np.isfinite(scores.log_p_XA).all()
    study, naive = encoded.study, Naive(model, boundaries(text.tokenizer))
    for query in range(0, len(study.unit_M), 40):
        unit, place = study.units[study.unit_M[query]], study.place_M[query]
        context = encoded.passages[study.passage_C[place]][: encoded.position_C[place] + 1]
        for index, candidate in enumerate(unit.candidates, start=scores.start_M[query]):
            word = text.tokenizer.encode(candidate.surface)
            for x, temperature in enumerate(TEMPERATURES):
                expected = naive.log_p(context, word, temperature, spaced=unit.spaced)
                assert scores.log_p_XA[x, index] == pytest.approx(expected, rel=1e-6, abs=2e-4)


def test_a_temperature_that_was_not_found_has_no_scores(encoded: Encoded) -> None:
    model = make_model("gpt2", len(encoded.vocabulary))
    alone = score_words(Reader(model, encoded, "m"), (1.0,))
    scores = score_words(Reader(model, encoded, "m"), (1.0, float("nan")))
    np.testing.assert_array_equal(scores.log_p_XA[0], alone.log_p_XA[0])
    assert np.isnan(scores.log_p_XA[1]).all()
    assert np.isnan(scores.entropy_XM[1]).all()


def test_a_model_that_diverges_late_in_a_passage_is_refused(encoded: Encoded) -> None:
    model = make_model("gpt2", len(encoded.vocabulary))
    model.transformer.wpe.weight.data[15:] = float("nan")  # beyond what is looked at before
    with pytest.raises(InputError, match=r"^m: .* not finite; it has diverged"):
        score_words(Reader(model, encoded, "m"), (1.0,))
