from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from analysis.synonyms import measure_models
from analysis.synonyms.encode import Encoded, encode_study
from analysis.synonyms.hidden_states import Reader
from analysis.synonyms.measure_models import TextCalibration
from analysis.synonyms.study import Study
from tests.analysis.made import constant_model
from tests.analysis.models import make_model
from tests.analysis.text import VOCABULARY, Text

KINDS = ("linear", "metric")


@pytest.fixture(scope="module")
def encoded(study: Study, text: Text) -> Encoded:
    return encode_study(study)


@pytest.fixture(autouse=True)
def the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the sample is every token, and a test need not know how it is drawn."""
    monkeypatch.setattr(measure_models, "TOKENS", 10**9)


def calibration(model: Any, encoded: Encoded) -> TextCalibration:
    return TextCalibration(Reader(model, encoded, "test"), seed=0)


class Naive:
    """A model's predictions of all tokens that something stands before, in float64."""

    def __init__(self, model: Any, encoded: Encoded) -> None:
        x_BL = torch.from_numpy(np.stack(encoded.passages))
        with torch.no_grad():
            logits_BLV = copy.deepcopy(model).double()(input_ids=x_BL).logits[:, :-1, : len(encoded.vocabulary)]
        self._z_NV, self._y_N = logits_BLV.flatten(0, 1), x_BL[:, 1:].flatten()

    def means(self, at: float) -> tuple[float, float]:
        """Mean NLL and entropy at a temperature."""
        log_p_NV = (self._z_NV / at).log_softmax(-1)
        nll_N, entropy_N = -log_p_NV.gather(1, self._y_N[:, None]), -(log_p_NV.exp() * log_p_NV).sum(-1)
        return float(nll_N.mean()), float(entropy_N.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_nll_and_entropy_are_those_of_float64_at_every_temperature(kind: str, encoded: Encoded) -> None:
    model = make_model(kind, VOCABULARY)
    found, naive = calibration(model, encoded), Naive(model, encoded)
    for at in (0.5, 1.0, 3.0):
        assert (found.nll(at), found.entropy(at)) == pytest.approx(naive.means(at), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_temperature_is_that_of_a_search_over_a_grid(kind: str, encoded: Encoded) -> None:
    model = make_model(kind, VOCABULARY)
    best, naive = calibration(model, encoded).best(), Naive(model, encoded)
    assert 1 / 64 < best < 64
    grid = [best * factor for factor in (0.25, 0.5, 0.9, 0.99, 0.999, 1.001, 1.01, 1.1, 2.0, 4.0)]
    assert naive.means(best)[0] < min(naive.means(at)[0] for at in grid)  # the NLL is convex in 1 / temperature


def test_the_best_temperature_of_a_model_that_is_always_right_or_wrong_is_the_end_of_the_range(
    encoded: Encoded,
) -> None:
    same = replace(encoded, passages=tuple(np.full_like(ids, 7) for ids in encoded.passages))
    for logit, expected in ((1.0, 1 / 64), (-1.0, 64.0)):
        model = constant_model(np.where(np.arange(VOCABULARY) == 7, logit, 0.0))
        assert calibration(model, same).best() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_matching_temperature_has_the_entropy_that_was_asked_for(kind: str, encoded: Encoded) -> None:
    model = make_model(kind, VOCABULARY)
    found, naive = calibration(model, encoded), Naive(model, encoded)
    for entropy in (1.0, 3.0, 5.0):
        at = found.matching(entropy)
        assert naive.means(at)[1] == pytest.approx(entropy, abs=2e-5)
        assert found.entropy(at) == pytest.approx(entropy, abs=1e-5)


def test_a_model_matches_its_own_entropy_at_exactly_one(encoded: Encoded) -> None:
    found = calibration(make_model("linear", VOCABULARY), encoded)
    assert found.matching(found.entropy()) == 1.0


def test_no_temperature_has_an_entropy_beyond_its_range(encoded: Encoded) -> None:
    found = calibration(make_model("linear", VOCABULARY), encoded)
    for entropy in (math.log(VOCABULARY) + 0.01, found.entropy(1 / 64) / 2, -1.0, math.nan):
        assert math.isnan(found.matching(entropy))


def test_a_flatter_copy_of_a_model_is_that_model_at_half_the_temperature(encoded: Encoded) -> None:
    model = make_model("gpt2", VOCABULARY)
    flat = copy.deepcopy(model)
    with torch.no_grad():
        flat.lm_head.weight = torch.nn.Parameter(
            flat.lm_head.weight / 2
        )  # apart from the input embedding it is tied to
    found, flatter = calibration(model, encoded), calibration(flat, encoded)
    assert flatter.entropy() > found.entropy() + 0.1
    assert flatter.matching(found.entropy()) == pytest.approx(0.5, rel=2e-6)
    assert flatter.best() == pytest.approx(found.best() / 2, rel=2e-6)


def test_a_token_that_is_ruled_out_makes_nothing_undefined(encoded: Encoded) -> None:
    logits_V = np.random.default_rng(0).normal(size=VOCABULARY)
    used = np.unique(np.concatenate(encoded.passages))
    ruled_out = np.setdiff1d(np.arange(VOCABULARY), used)[0]
    p_V = np.exp(logits_V) * (np.arange(VOCABULARY) != ruled_out)
    p_V /= p_V.sum()
    logits_V[ruled_out] = -1e38
    found = calibration(constant_model(logits_V), encoded)
    assert found.entropy() == pytest.approx(-(p_V * np.log(np.where(p_V > 0, p_V, 1))).sum(), rel=1e-5)
    assert math.isfinite(found.best()) and math.isfinite(found.nll())


def test_the_sample_is_bounded_and_the_same_for_every_model(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibration(constant_model(np.arange(VOCABULARY) / 100), encoded).nll()
    monkeypatch.setattr(measure_models, "TOKENS", 100)
    one, other = (calibration(constant_model(np.arange(VOCABULARY) / 100 + shift), encoded).nll() for shift in (0, 5))
    assert one == pytest.approx(other, rel=1e-5)
    assert abs(one - whole) > 1e-3
