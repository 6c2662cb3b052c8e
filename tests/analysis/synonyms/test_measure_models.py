"""The three objections on real models: a flatter softmax, a preference for frequent words, and no training at all."""

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
from analysis.compare.temperature import VIEWS
from analysis.synonyms.build_study import Controls, HeldOut, build_study, study_of_pairs
from analysis.synonyms.compare import Comparison, compare
from analysis.synonyms.encode import Encoded, encode_study
from analysis.synonyms.hidden_states import Reader
from analysis.synonyms.measure_models import Data, ModelResult, TextCalibration, encode_for, evaluate, open_data
from analysis.synonyms.metrics import METRICS
from analysis.synonyms.options import Settings
from analysis.synonyms.study import Study
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


def result_of(model: Any, encoded: Encoded, entropy: float | None) -> ModelResult:
    return evaluate(model, encoded, label="test", entropy=entropy, seed=0)


def two(encoded: Encoded, base: Any, other: Any) -> Comparison:
    """The comparison of two models, the second at the entropy of the first."""
    entropy = TextCalibration(Reader(base, encoded, "base"), seed=0).entropy()
    results = {"base0": result_of(base, encoded, None), "other0": result_of(other, encoded, entropy)}
    return compare(encoded.study, [arm("base", 0), arm("other", 0)], results, seed=0)


@pytest.fixture(scope="module")
def encoded(study: Study, text: Text) -> Encoded:
    return encode_study(study)


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
    one, other = (found.results[label].metrics["log_odds"] for label in ("base0", "other0"))
    assert np.abs(other[0] - one[0]).mean() > 0.1
    np.testing.assert_allclose(other[1:], one[1:], atol=1e-4)
    assert found.results["other0"].temperatures["matched"] == pytest.approx(0.5, rel=2e-6)
    assert found.results["base0"].temperatures["matched"] == 1.0


# ------------------------------------------------------------------------------------------- 2. a preference for frequent words


@pytest.fixture(scope="module")
def many_words() -> tuple[Vocabulary, Any, Study]:
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
    study = study_of_pairs(
        pairs, vocabulary, controls, HeldOut(ids, starts, 32, vocabulary),
        end_of_text=int(tokenizer.eos_token_id), min_contexts=1, contexts_per_word=3,
    )  # fmt: skip
    return vocabulary, train_ids, study


def test_a_model_that_knows_frequencies_alone_shows_nothing(many_words: tuple[Vocabulary, Any, Study]) -> None:
    vocabulary, train_ids, study = many_words
    count_V = np.bincount(train_ids, minlength=len(vocabulary)) + 0.1
    result = result_of(constant_model(np.log(count_V)), encode_study(study), None)
    found = compare(study, [arm("base", None)], {"baseNone": result}, seed=0)
    raw = found.means["base"]["raw"]
    assert len(study.items) > 100
    assert raw["auc"]["mean"] == pytest.approx(0.5, abs=0.03)
    assert raw["log_odds"]["mean"] == pytest.approx(0, abs=0.05)
    gain = found.gains["base"]
    assert gain.low is not None and gain.high is not None
    assert gain.mean == pytest.approx(0, abs=1e-5) and gain.high - gain.low < 1e-5
    # Frequency does make some words likelier than others by far, which is what the controls take out.
    log_p_V = np.log(count_V)
    used = {tokens[0] for word in WORDS if (tokens := vocabulary.tokens(f" {word}")) and len(tokens) == 1}
    assert np.std(log_p_V[list(used)]) > 0.5


# --------------------------------------------------------------------------------------------------------- 3. no training


def test_an_untrained_model_shows_nothing(many_words: tuple[Vocabulary, Any, Study]) -> None:
    vocabulary, _, study = many_words
    model = make_model("linear", len(vocabulary))
    result = result_of(model, encode_study(study), None)
    found = compare(study, [arm("base", None)], {"baseNone": result}, seed=0)
    gain = found.gains["base"]
    assert gain.low is not None and gain.high is not None
    assert gain.low < 0 < gain.high
    assert found.means["base"]["raw"]["auc"]["mean"] == pytest.approx(0.5, abs=0.06)
    assert np.nanmean(result.distance_P) == pytest.approx(1, abs=0.03)


# ------------------------------------------------------------------------------------------------------------- settings and data


def test_a_view_without_a_temperature_is_missing_and_the_others_are_unchanged(encoded: Encoded) -> None:
    model = make_model("linear", VOCABULARY)
    whole, without = result_of(model, encoded, None), result_of(model, encoded, math.nan)
    assert math.isnan(without.temperatures["matched"]) and math.isnan(without.nll["matched"])
    for key, value_XM in without.metrics.items():
        assert value_XM.shape == whole.metrics[key].shape
        assert np.isnan(value_XM[VIEWS.index("matched")]).all()
        np.testing.assert_array_equal(value_XM[:2], whole.metrics[key][:2])


def test_the_baseline_is_matched_at_exactly_one_and_so_is_its_twin(encoded: Encoded) -> None:
    found = two(encoded, make_model("metric", VOCABULARY), make_model("metric", VOCABULARY))
    assert found.results["base0"].temperatures["matched"] == found.results["other0"].temperatures["matched"] == 1.0
    for row in found.differences["other"]["all"].values():
        assert {effect.mean for effect in row.values() if math.isfinite(effect.mean)} == {0.0}


def settings(pairs: str, **changes: Any) -> Settings:
    known: dict[str, Any] = {"min_similarity": 0.8, "match_pos": None, "contexts_per_word": 3, "min_contexts": 2}
    return Settings(pairs=pairs, seed=0, **(known | changes))


@pytest.fixture(scope="module")
def data(corpus: Path) -> Data:
    run = write_model(corpus, "evaluated", seed=0)
    member = Member("evaluated", run / "checkpoints" / "step_00000001", run, 0)
    return open_data([replace(arm("evaluated", 0), members=(member,))])


def test_a_model_of_the_same_tokenizer_gets_the_same_tokens(data: Data, corpus: Path, tmp_path: Path) -> None:
    study = build_study(data, settings(str(write_pairs(tmp_path))))
    shared = encode_study(study)
    member = Member("x", corpus / "runs" / "evaluated" / "checkpoints" / "step_00000001", None, None)
    assert encode_for(member, data, shared) is shared
    assert {item.name for item in study.items} == {"big/large", "fast/quick", "house/home"}
    assert [entry.name for entry in study.left_out] == ["river/zymurgy"]


def test_data_comes_from_a_run_and_parts_of_speech_from_wordnet(data: Data, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a run as one of them"):
        open_data([replace(arm("guest", None), members=(Member("guest", tmp_path, None, None),))])
    with pytest.raises(InputError, match="--match-pos nouns: give wordnet"):
        build_study(data, settings(str(write_pairs(tmp_path)), match_pos="nouns"))
