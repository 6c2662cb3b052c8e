"""The synonym grammar: its distributions are exact, its sets split as declared, its text is what they describe."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from analysis.words.vocabulary import Vocabulary
from common.errors import InputError
from configs.load import load_config
from data.corpora import DataConfig
from data.grammar import Grammar
from data.grammar.lexicon import NAMES_FEMALE, NAMES_MALE, concepts
from data.grammar.vocabulary import grammar_tokenizer
from data.store import open_store
from tests.conftest import ROOT, rows_of
from train_lm import train

from .corpus import documents_of
from .unigram import unigram_of

MICRO = ROOT / "configs" / "grammar_micro.yaml"
SPLITS = {"equal": None, "unequal": (0.8, 0.2), "rare": (0.97, 0.03), "near": None, "antonym": None}
TRUE = ("equal", "unequal", "rare", "contextual")


@pytest.fixture(scope="module")
def grammar():
    return Grammar(3)


@pytest.fixture(scope="module")
def tokenizer():
    return grammar_tokenizer()


@pytest.fixture(scope="module")
def rows(grammar):
    """240 rows of 128 tokens that begin with an end of text and run over documents, and the truth about them."""
    documents = list(grammar.sample(1200, seed=5))
    x = np.array([np.concatenate([[0], *documents[5 * i : 5 * i + 5]])[:128] for i in range(240)])
    return x, grammar.next_distribution(x)


def encoded(tokenizer, text):
    return np.array([[0, *tokenizer.encode(text)]])


def following(grammar, tokenizer, text):
    return grammar.next_distribution(encoded(tokenizer, text))[0, -1]


def token(grammar, word):
    return grammar.words.index(f" {word}")


# ---------------------------------------------------------------------------------------- the truth


def test_every_distribution_sums_to_one(rows):
    _, p = rows
    np.testing.assert_allclose(p.sum(axis=2), 1, rtol=0, atol=1e-12)
    assert (p >= 0).all()


def test_the_truth_is_the_sum_over_all_that_is_hidden(grammar):
    tables = grammar.automaton
    for document in itertools.islice(grammar.sample(6, seed=1), 6):
        prefix = [0, *document[:14].tolist()]
        joint, state = grammar.prior_Z.tolist(), 0
        for word in prefix[1:]:
            row = tables.probability_RZV[tables.row_A[state]]
            joint = [p * float(row[z, word]) for z, p in enumerate(joint)]
            state = int(tables.next_AV[state, word])
        row = tables.probability_RZV[tables.row_A[state]]
        expected = [
            math.fsum(p * row[z, w] for z, p in enumerate(joint)) / math.fsum(joint) for w in range(row.shape[1])
        ]
        np.testing.assert_allclose(
            grammar.next_distribution(np.array([prefix]))[0, -1], expected, rtol=1e-9, atol=1e-15
        )


def test_a_fresh_document_forgets_the_one_before(grammar):
    first, second = (document.tolist() for document in grammar.sample(2, seed=2))
    alone = grammar.next_distribution(np.array([[0, *second]]))
    after = grammar.next_distribution(np.array([[0, *first, *second]]))
    np.testing.assert_allclose(after[:, len(first) :], alone, rtol=1e-12, atol=0)


def test_samples_follow_the_distributions(grammar, rows):
    """The surprise is the entropy on average, and words come as often as they should, at 4 standard errors."""
    x, p = rows
    p, y = p[:, :-1].reshape(-1, p.shape[2]), x[:, 1:].ravel()
    log_p = np.log(np.where(p > 0, p, 1))
    excess = log_p[np.arange(len(y)), y] - (p * log_p).sum(axis=1)
    assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(len(y))
    came = np.zeros(p.shape, bool)
    came[np.arange(len(y)), y] = True
    edges = [0, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 0.6, 0.999]
    for low, high in itertools.pairwise(edges):
        chosen = (p > low) & (p <= high)
        assert chosen.sum() > 1000
        error = math.sqrt((p[chosen] * (1 - p[chosen])).sum())
        assert abs(came[chosen].sum() - p[chosen].sum()) < 4 * error


def test_shares_in_the_long_run_are_those_of_a_sample(grammar):
    assert unigram_of(grammar).sum() == pytest.approx(1)
    counts = np.array([np.bincount(d, minlength=len(grammar.words)) for d in grammar.sample(4000, seed=8)])
    lengths = counts.sum(axis=1, keepdims=True)
    for word in np.argsort(-unigram_of(grammar))[:60]:
        excess = counts[:, word] - unigram_of(grammar)[word] * lengths[:, 0]  # of mean zero in every document
        assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(len(excess)), grammar.words[word]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([5, 6], r"row 1, position 0: token 5 .* does not begin"),
        ([0, 2], r"row 1, position 1: token 2 \('\.'\) cannot come here"),
        ([0, 4, 4], r"row 1, position 2: token 4 \('Peter'\) cannot come here"),
        ([0, 4, 1], r"row 1, position 2: token 1 .* cannot come here"),
        ([0, 4, 9999], r"row 1, position 2: token 9999 \(no word\) is no token"),
        ([0, -1], r"row 1, position 1: token -1 \(no word\) is no token"),
    ],
)
def test_what_the_grammar_cannot_have_written_is_an_error_with_its_place(grammar, row, problem):
    good = next(grammar.sample(1, seed=0))[: len(row) - 1].tolist()
    with pytest.raises(ValueError, match=problem):
        grammar.next_distribution(np.array([[0, *good], row]))


# ---------------------------------------------------------------------------------------- the sets


def test_there_are_sets_of_every_kind_over_parts_of_speech_and_frequencies(grammar):
    least = {"equal": 12, "unequal": 10, "rare": 8, "contextual": 10, "near": 8, "antonym": 8}
    for kind, count in least.items():
        found = [concept for concept in concepts() if concept.kind == kind]
        assert len(found) >= count
        assert {concept.part for concept in found} == {"noun", "verb", "adjective"}
        sets = [one for one in grammar.sets if one.kind == kind]
        assert {one.lemma for one in sets} == {concept.name for concept in found}
        shares = [unigram_of(grammar)[list(one.tokens)].sum() for one in sets]
        assert max(shares) > 10 * min(shares)
    assert any(len(one.tokens) == 3 for one in grammar.sets)
    assert len(grammar.words) < 1000
    assert 300 <= sum(len(concept.words) for concept in concepts()) <= 450


def test_splits_are_as_declared(grammar, rows):
    _, p = rows
    for one in grammar.sets:
        if one.kind in ("equal", "unequal", "rare", "antonym"):
            among = p[..., list(one.tokens)]
            among = among[among.sum(axis=-1) > 0]
            expected = SPLITS[one.kind] or (1 / len(one.tokens),) * len(one.tokens)
            assert len(among) > 100
            np.testing.assert_allclose(among / among.sum(axis=1, keepdims=True), [expected] * len(among), rtol=1e-9)


def test_contextual_splits_depend_on_what_is_declared(grammar):
    """By row of the tables: given the register, the form and the place the split is 0.9 to 0.1 one way or the other."""
    conditions = {concept.name: concept.condition for concept in concepts() if concept.kind == "contextual"}
    assert set(conditions.values()) == {"register", "number", "place"}
    tables = grammar.automaton
    for one in grammar.sets:
        if one.kind != "contextual":
            continue
        seen = set()
        for row, first in zip(*np.unique(tables.row_A, return_index=True), strict=True):
            p_ZK, state = tables.probability_RZV[row][:, list(one.tokens)], tables.states[first]
            if not p_ZK.any():
                continue
            place = state.place == "predicate" or (state.place == "noun" and state.modified)
            formal = np.arange(len(p_ZK)) % 2 == 1
            plural = one.name.endswith((":plural", ":3sg"))
            turned = {"register": formal, "number": plural, "place": place}[conditions[one.lemma]]
            expected = np.where(turned, 0.1, np.full(len(p_ZK), 0.9))
            np.testing.assert_allclose(p_ZK[:, 0] / p_ZK.sum(axis=1), expected, rtol=1e-9)
            seen |= set(expected.tolist())
        assert len(seen) == (1 if conditions[one.lemma] == "number" else 2), one.name


def substituted(grammar, kinds, documents=3000):
    """(set, document with the end token before it, position, the document with another word of the set there)."""
    places = {index: one for one in grammar.sets if one.kind in kinds for index in one.tokens}
    found = set()
    for document in grammar.sample(documents, seed=11):
        x = np.array([0, *document])
        for position in np.flatnonzero(np.isin(x, list(places))).tolist():
            one = places[int(x[position])]
            if one.name not in found:
                found.add(one.name)
                other = x.copy()
                other[position] = next(index for index in one.tokens if index != x[position])
                yield one, x, position, other


def test_what_follows_a_true_synonym_does_not_depend_on_the_choice(grammar):
    """Except that a set which depends on the register is evidence of it; the state after it is the same there too."""
    conditions = {concept.name: concept.condition for concept in concepts()}
    seen, telling = set(), 0.0
    for one, x, position, other in substituted(grammar, TRUE):
        seen.add(one.name)
        states, _ = grammar.filter(np.array([x, other]))
        np.testing.assert_array_equal(states[0], states[1])
        p = grammar.next_distribution(np.array([x, other]))[:, position:]
        if conditions[one.lemma] == "register":
            telling = max(telling, float(np.abs(p[0] - p[1]).max()))
        else:
            np.testing.assert_allclose(p[0], p[1], rtol=1e-9, atol=1e-15)
    assert len(seen) > 80
    assert telling > 0.01


def two_words(grammar, prefix):
    """p(next two words | prefix), shape (V, V)."""
    first = grammar.next_distribution(prefix[None])[0, -1]
    possible = np.flatnonzero(first)
    rows = np.concatenate([np.tile(prefix, (len(possible), 1)), possible[:, None]], axis=1)
    joint = np.zeros((len(first), len(first)))
    joint[possible] = first[possible, None] * grammar.next_distribution(rows)[:, -1]
    return joint


def test_what_follows_an_antonym_or_a_near_synonym_depends_on_the_choice(grammar):
    seen = set()
    for one, x, position, other in substituted(grammar, ("antonym", "near"), documents=400):
        pair = [two_words(grammar, row[: position + 1]) for row in (x, other)]
        assert np.abs(pair[0] - pair[1]).sum() / 2 > 0.02, (one.name, x[: position + 1])
        seen.add(one.name)
    assert len(seen) > 25


def test_the_share_of_near_synonyms_depends_on_the_topic(grammar, rows):
    _, p = rows
    for one in grammar.sets:
        if one.kind == "near":
            a, b = (p[..., index] for index in one.tokens)
            ratio = np.log(a[(a > 0) & (b > 0)] / b[(a > 0) & (b > 0)])
            assert ratio.max() - ratio.min() > 0.5, one.name


# ---------------------------------------------------------------------------------------- the language


@pytest.mark.parametrize(
    "between", ["", " that {verb} the children", " near the cities", " that {verb} the child of Anna"]
)
@pytest.mark.parametrize(("noun", "plural"), [("doctor", False), ("doctors", True)])
def test_verbs_agree_with_their_subject_whatever_stands_between(grammar, tokenizer, between, noun, plural):
    verb = "see" if plural else "sees"
    p = following(grammar, tokenizer, f"Peter waits. The {noun}{between.format(verb=verb)}")
    forms = [word.forms for concept in concepts() if concept.part == "verb" for word in concept.words]
    base, third = (p[[token(grammar, form[i]) for form in forms]].sum() for i in range(2))
    right, wrong = (base, third) if plural else (third, base)
    assert right > 0.1
    assert wrong == 0
    be = {True: "are", False: "is"}
    assert p[token(grammar, be[plural])] > 0
    assert p[token(grammar, be[not plural])] == 0


def test_pronouns_agree_with_the_person_of_the_first_word(grammar):
    names = {True: NAMES_MALE.split(), False: NAMES_FEMALE.split()}
    wrong = {True: r"\b(?:[Ss]he|[Hh]er)\b", False: r"\b(?:[Hh]e|[Hh]is)\b"}
    found = {True: 0, False: 0}
    for text in grammar.texts(500, seed=4):
        male = text.split()[0] in names[True]
        assert male or text.split()[0] in names[False]
        assert not re.search(wrong[male], text)
        found[male] += bool(re.search(wrong[not male], text))
    assert min(found.values()) > 200


def test_both_pronouns_are_never_possible(rows, grammar):
    _, p = rows
    for he, she in (("he", "she"), ("He", "She"), ("his", "her"), ("His", "Her")):
        one, other = p[..., token(grammar, he)], p[..., token(grammar, she)]
        assert one.any()
        assert not ((one > 0) & (other > 0)).any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frequencies_are_zipfian(seed):
    share = np.sort(unigram_of(Grammar(seed)))[::-1][9:300]
    slope = np.polyfit(np.log(np.arange(10, 301)), np.log(share), 1)[0]
    assert -1.2 < slope < -0.85


def test_documents_have_some_sentences_and_fit_a_short_window(grammar):
    documents = list(grammar.sample(4000, seed=6))
    sentences = np.array([(d == grammar.words.index(".")).sum() for d in documents])
    assert sentences.min() >= 4
    assert ((sentences >= 5) & (sentences <= 12)).mean() > 0.8
    assert np.mean([len(d) < 120 for d in documents]) > 0.85


def test_a_document_shows_its_register(grammar):
    """After 60 tokens the register is known to 90% in most documents, from no knowledge at the start."""
    x = np.array([[0, *d[:60]] for d in grammar.sample(600, seed=9) if len(d) > 60])
    _, belief = grammar.filter(x)
    formal = belief[..., 1::2].sum(axis=2)
    np.testing.assert_allclose(formal[:, 0], 0.5, rtol=1e-12)
    assert (np.maximum(formal, 1 - formal)[:, -1] > 0.9).mean() > 0.6


# ---------------------------------------------------------------------------------------- text and store


def test_every_word_is_one_token_and_text_survives(grammar, tokenizer):
    assert [tokenizer.encode(word) for word in grammar.words] == [[i] for i in range(len(grammar.words))]
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, len(tokenizer)) == (0, 0, len(grammar.words))
    texts = list(grammar.texts(200, seed=7))
    for text, ids in zip(texts, grammar.sample(200, seed=7), strict=True):
        assert [*tokenizer.encode(text), 0] == ids.tolist()
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(" zebra") == [grammar.words.index("<|unknown|>")]
    assert unigram_of(grammar)[grammar.words.index("<|unknown|>")] == 0


def test_the_analysis_sees_its_words(grammar, tokenizer):
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.text == list(grammar.words)
    for one in grammar.sets:
        assert vocabulary.opens[list(one.tokens)].all()
        assert [vocabulary.tokens(vocabulary.text[i]) for i in one.tokens] == [(i,) for i in one.tokens]


def grammar_data(cache: Path, **fields) -> DataConfig:
    return DataConfig(**{"kind": "grammar", "documents": 60, "sequence_length": 32, "cache_dir": str(cache), **fields})


def test_a_store_holds_the_grammars_text(tmp_path):
    store = open_store(grammar_data(tmp_path, seed=3), progress=False)
    assert (store.vocab_size, store.eos_id) == (len(Grammar(3).words), 0)
    texts = [text for split in ("train", "validation") for text in documents_of(store, split)]
    assert sorted(texts) == sorted(Grammar(3).texts(60, seed=3))
    assert not list(store.path.glob("*.jsonl"))
    assert store.manifest["source"]["sets"]["equal"] >= 12


def test_a_seed_is_a_text_and_a_store(tmp_path):
    stores = [
        open_store(grammar_data(tmp_path / where, seed=seed), progress=False)
        for where, seed in (("a", 0), ("b", 0), ("b", 1))
    ]
    hashes = [store.manifest["text_sha256"] for store in stores]
    assert hashes[0] == hashes[1] != hashes[2]
    assert stores[0].path.name == stores[1].path.name != stores[2].path.name
    assert stores[1].path != open_store(grammar_data(tmp_path / "b", documents=61), progress=False).path


def test_two_seeds_are_two_grammars_and_more_documents_begin_with_the_fewer(grammar):
    assert grammar.digest() == Grammar(3).digest() != Grammar(4).digest()
    assert list(grammar.texts(5, seed=0)) == list(itertools.islice(grammar.texts(9000, seed=0), 5))
    assert list(grammar.texts(5, seed=0)) != list(grammar.texts(5, seed=1))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.vocab_size=500", "data.vocab_size: has no effect with data.kind=grammar"),
        ("data.tokenizer=gpt2", "data.tokenizer: has no effect with data.kind=grammar"),
        ("data.sed=1", "data.sed: unknown key"),
        ("data.documents=3", "data.documents: input should be greater than or equal to 10"),
        ("data.seed=-1", "data.seed: input should be greater than or equal to 0"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, problem):
    with pytest.raises(InputError) as caught:
        load_config(MICRO, [override])
    assert any(problem in line for line in caught.value.problems), caught.value.problems


def test_a_model_learns_from_it(tmp_path):
    """The recipe, with few steps: better than even odds over the vocabulary, and no better than the truth can be."""
    small = [f"output_dir={tmp_path}", f"data.cache_dir={tmp_path / 'cache'}", "data.documents=400"]
    small += ["body.n_embd=32", "body.n_head=2", "train.eval_sequences=16", "checkpoint.every=30"]
    small += ["train.steps=30", "train.batch_size=8", "train.eval_every=30", "optimizer.warmup_steps=5"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(load_config(MICRO, small)) == 0
    rows = rows_of(tmp_path / "grammar_micro")
    losses = [row["validation/nll"] for row in rows if "validation/nll" in row]
    assert 2 < losses[-1] < math.log(len(Grammar(0).words))
