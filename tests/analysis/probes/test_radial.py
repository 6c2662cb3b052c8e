"""Radial growth: norms and directions against naive definitions, stable ranks, and growth over training."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.probes.growth import exponent, growth
from analysis.probes.radial import Radial, directions_of, stable_rank
from model import final_norm
from tests.analysis.models import make_model


@settings(max_examples=15)
@given(count=st.integers(2, 9), width=st.integers(1, 6), seed=st.integers(0, 1000))
def test_directions_are_those_of_all_pairs(count, width, seed):
    h = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
    norms = [float(one.norm()) for one in h]
    cosines = [float(h[i] @ h[j]) / norms[i] / norms[j] for i in range(count) for j in range(count) if i != j]
    found = directions_of(h)
    assert found["anisotropy"] == pytest.approx(np.mean(cosines), abs=1e-9)
    assert found["hidden"] == pytest.approx(np.mean(norms))
    assert found["direction_share"] == pytest.approx(float(h.mean(0).norm()) / np.mean(norms))
    turned = directions_of(3 * h @ torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0])
    assert turned["anisotropy"] == pytest.approx(found["anisotropy"], abs=1e-9)


@settings(max_examples=15)
@given(rows=st.integers(2, 9), columns=st.integers(2, 9), seed=st.integers(0, 1000))
def test_the_stable_rank_is_that_of_the_singular_values(rows, columns, seed):
    matrix = np.random.default_rng(seed).normal(size=(rows, columns))
    s = np.linalg.svd(matrix, compute_uv=False)
    assert stable_rank(torch.from_numpy(matrix)) == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "gemma2", "linear", "metric"])
def test_the_four_places_of_a_model_are_those_of_its_parts(family):
    model = make_model(family, 40)
    x_BT = np.random.default_rng(0).integers(0, 40, (2, 8))
    with torch.no_grad():
        found = Radial(Radial.Options()).measure(model, (x_BT, 40), seed=0)
        out = model(input_ids=torch.from_numpy(x_BT), output_hidden_states=True)
        weight, gains = model.get_output_embeddings().weight, list(final_norm(model.base_model).parameters())
        embedding = float(weight.norm(dim=1).mean())
    before, *_, last = out.hidden_states
    assert found["hidden"] == pytest.approx(float(last.norm(dim=-1).mean()), rel=1e-5)
    assert found["residual_by_layer"][0] == pytest.approx(float(before.norm(dim=-1).mean()), rel=1e-5)
    assert len(found["residual_by_layer"]) == 3
    assert found["residual"] == found["residual_by_layer"][-1]
    assert found["logits"] == pytest.approx(float(out.logits.double().std(-1, correction=0).mean()), rel=1e-5)
    assert found["embedding"] == pytest.approx(embedding, rel=1e-5)
    assert found["gain"] == pytest.approx(sum(p.detach().square().sum().item() for p in gains) ** 0.5)
    assert found["stable_rank"] == pytest.approx(np.mean(found["stable_rank_by_matrix"]))


@given(b=st.floats(-2, 2), factor=st.floats(0.1, 10))
def test_a_power_law_grows_by_its_exponent(b, factor):
    tokens = np.array([0.0, 10.0, 40.0, 90.0, np.nan])
    values = factor * np.array([5.0, 10.0**b, 40.0**b, 90.0**b, 1.0])
    assert exponent(tokens, values) == pytest.approx(b, abs=1e-9)


def test_growth_is_averaged_over_runs_and_none_from_single_checkpoints():
    rows = pd.DataFrame({"run": ["a", "a", "b", "b"], "tokens": [1, 10, 1, 10], "value": [1.0, 10.0, 1.0, 1000.0]})
    found = growth(rows.astype({"tokens": "Int64"}))
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(2), 2)
    assert growth(rows[rows["tokens"] == 1].astype({"tokens": "Int64"})) is None
