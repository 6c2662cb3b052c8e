"""The three objections, put to real models: a flatter softmax, a liking for frequent words, and no training at all."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.compare.arms import Member
from analysis.compare.metric import VIEWS
from analysis.synonyms.compare import Comparison, compare
from analysis.synonyms.controls import Controls
from analysis.synonyms.encode import Encoded, encode_study
from analysis.synonyms.measure_models import Asked, Data, Settings, ask, encode_for, open_data, plan
from analysis.synonyms.measures import METRICS
from analysis.synonyms.plan import HeldOut, plan_pairs
from analysis.synonyms.study import Study
from analysis.synonyms.text_temperature import TextCalibration
from analysis.words.pairs import Pair, PairList
from analysis.words.vocabulary import Vocabulary, corpus_words
from common.errors import InputError
from data.tokenizer import train_bpe
from tests.analysis.corpus import write_model
from tests.analysis.made import arm, constant_model
from tests.analysis.models import make_model
from tests.analysis.text import VOCABULARY, Text, tokens_of
from tests.analysis.trained import write_pairs

WORDS = ["".join(parts) for parts in itertools.product("bdfgklmnprst", "aeiou", "bdklmnrs")]
"""480 words of three letters."""


def ask_one(model: Any, encoded: Encoded, entropy: float | None) -> Asked:
    return ask(model, encoded, label="test", entropy=entropy, seed=0, progress=False)


def two(encoded: Encoded, base: Any, other: Any) -> Comparison:
    """The comparison of two models, the second at the entropy of the first."""
    entropy = TextCalibration(base, encoded, label="base", seed=0).entropy()
    asked = {"base0": ask_one(base, encoded, None), "other0": ask_one(other, encoded, entropy)}
    arms = [arm("base", 0), arm("other", 0)]
    measured = {label: one.measures for label, one in asked.items()}
    temperatures = {label: one.temperatures for label, one in asked.items()}
    return compare(encoded.study, arms, measured, temperatures, seed=0)


@pytest.fixture(scope="module")
def encoded(study: Study, text: Text) -> Encoded:
    return encode_study(study, text.tokenizer, None)


# ------------------------------------------------------------------------------------------------------- 1. a flatter softmax


def test_a_flatter_copy_of_a_model_is_not_rewarded(encoded: Encoded) -> None:
    model = make_model("gpt2", VOCABULARY)
    flat = copy.deepcopy(model)
    with torch.no_grad():
        flat.lm_head.weight = torch.nn.Parameter(flat.lm_head.weight / 2)
    found = two(encoded, model, flat)
    raw, fitted, matched = (found.differences["other"]["all"][view] for view in VIEWS)
    assert raw["entropy"].mean > 0.5
    assert raw["log10_rank"].mean == 0 and raw["log10_rank_control"].mean == 0
    for metric in METRICS:
        for view in (fitted, matched):
            if math.isfinite(view[metric.key].mean):
                assert view[metric.key].mean == pytest.approx(0, abs=1e-5), metric.key
    one, other = (found.measured[label]["log_odds"] for label in ("base0", "other0"))
    assert np.abs(other[0] - one[0]).mean() > 0.1
    np.testing.assert_allclose(other[1:], one[1:], atol=1e-4)
    assert found.temperatures["other0"]["matched"] == pytest.approx(0.5, rel=2e-6)
    assert found.temperatures["base0"]["matched"] == 1.0


# ------------------------------------------------------------------------------------------- 2. a liking for frequent words


@pytest.fixture(scope="module")
def many_words() -> tuple[Any, Vocabulary, Any, Study]:
    """Text of 480 words with frequencies of Zipf's law, and 150 pairs of random ones; its tokenizer and training tokens."""
    rng = np.random.default_rng(0)
    words = rng.permutation(WORDS)
    p_W = 1 / (np.arange(len(words)) + 5)
    p_W /= p_W.sum()

    def documents(count: int) -> list[str]:
        return ["The " + " ".join(rng.choice(words, 60, p=p_W)) + "." for _ in range(count)]

    train, validation = documents(400), documents(60)
    tokenizer = train_bpe(iter([*train, " ".join(WORDS)]), 780, progress=False)
    vocabulary = Vocabulary(tokenizer)
    train_ids, _ = tokens_of(train, tokenizer)
    ids, starts = tokens_of(validation, tokenizer)
    common = words[:300].tolist()
    pairs = PairList("test", tuple(Pair(*rng.choice(common, 2, replace=False).tolist()) for _ in range(150)), (), ())
    controls = Controls(corpus_words(train_ids, vocabulary), lambda word: frozenset())
    study = plan_pairs(
        pairs, vocabulary, controls, HeldOut(ids, starts, 32, vocabulary),
        end_of_text=int(tokenizer.eos_token_id), min_contexts=1, contexts_per_word=3,
    )  # fmt: skip
    return tokenizer, vocabulary, train_ids, study


def test_a_model_that_knows_frequencies_alone_shows_nothing(many_words: tuple[Any, Vocabulary, Any, Study]) -> None:
    tokenizer, vocabulary, train_ids, study = many_words
    count_V = np.bincount(train_ids, minlength=len(vocabulary)) + 0.1
    asked = ask_one(constant_model(np.log(count_V)), encode_study(study, tokenizer, None), None)
    found = compare(study, [arm("base", None)], {"baseNone": asked.measures}, {}, seed=0)
    raw = found.means["base"]["raw"]
    assert len(study.items) > 100
    assert raw["auc"] == pytest.approx(0.5, abs=0.03)
    assert raw["log_odds"] == pytest.approx(0, abs=0.05)
    gain = found.gains["base"]
    assert gain.low is not None and gain.high is not None
    assert gain.mean == pytest.approx(0, abs=1e-5) and gain.high - gain.low < 1e-5
    # Frequency does make some words likelier than others by far, which is what the controls take out.
    log_p_V = np.log(count_V)
    used = {tokens[0] for word in WORDS if (tokens := vocabulary.tokens(f" {word}")) and len(tokens) == 1}
    assert np.std(log_p_V[list(used)]) > 0.5


# --------------------------------------------------------------------------------------------------------- 3. no training


def test_an_untrained_model_shows_nothing(many_words: tuple[Any, Vocabulary, Any, Study]) -> None:
    tokenizer, vocabulary, _, study = many_words
    model = make_model("linear", len(vocabulary))
    asked = ask_one(model, encode_study(study, tokenizer, None), None)
    found = compare(study, [arm("base", None)], {"baseNone": asked.measures}, {}, seed=0)
    gain = found.gains["base"]
    assert gain.low is not None and gain.high is not None
    assert gain.low < 0 < gain.high
    assert found.means["base"]["raw"]["auc"] == pytest.approx(0.5, abs=0.06)
    assert np.nanmean(asked.distance_P) == pytest.approx(1, abs=0.03)


# ------------------------------------------------------------------------------------------------------------- what is asked


def test_a_view_without_a_temperature_is_missing_and_the_others_are_as_ever(encoded: Encoded) -> None:
    model = make_model("linear", VOCABULARY)
    whole, without = ask_one(model, encoded, None), ask_one(model, encoded, math.nan)
    assert math.isnan(without.temperatures["matched"]) and math.isnan(without.nll["matched"])
    for key, value_XM in without.measures.items():
        assert value_XM.shape == whole.measures[key].shape
        assert np.isnan(value_XM[VIEWS.index("matched")]).all()
        np.testing.assert_array_equal(value_XM[:2], whole.measures[key][:2])


def test_the_baseline_is_matched_at_exactly_one_and_so_is_its_twin(encoded: Encoded) -> None:
    found = two(encoded, make_model("metric", VOCABULARY), make_model("metric", VOCABULARY))
    assert found.temperatures["base0"]["matched"] == found.temperatures["other0"]["matched"] == 1.0
    for row in found.differences["other"]["all"].values():
        assert {effect.mean for effect in row.values() if math.isfinite(effect.mean)} == {0.0}


def settings(pairs: str, **changes: Any) -> Settings:
    known: dict[str, Any] = {"min_similarity": 0.8, "match_pos": None, "contexts_per_word": 3, "min_contexts": 2}
    return Settings(pairs=pairs, seed=0, **(known | changes))


@pytest.fixture(scope="module")
def data(corpus: Path) -> Data:
    run = write_model(corpus, "asked", seed=0)
    member = Member("asked", run / "checkpoints" / "step_00000001", run, 0)
    return open_data([replace(arm("asked", 0), members=(member,))])


def test_a_model_of_the_same_tokenizer_is_asked_in_the_same_tokens(data: Data, corpus: Path, tmp_path: Path) -> None:
    study = plan(data, settings(str(write_pairs(tmp_path))))
    shared = encode_study(study, data.tokenizer, None)
    member = Member("x", corpus / "runs" / "asked" / "checkpoints" / "step_00000001", None, None)
    assert encode_for(member, data, study, shared) is shared
    assert {item.name for item in study.items} == {"big/large", "fast/quick", "house/home"}
    assert [entry.name for entry in study.left_out] == ["river/zymurgy"]


def test_data_comes_from_a_run_and_parts_of_speech_from_wordnet(data: Data, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a run as one of them"):
        open_data([replace(arm("guest", None), members=(Member("guest", tmp_path, None, None),))])
    with pytest.raises(InputError, match="--match-pos nouns: give wordnet"):
        plan(data, settings(str(write_pairs(tmp_path)), match_pos="nouns"))
