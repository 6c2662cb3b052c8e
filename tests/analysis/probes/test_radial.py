"""Radial growth: norms and directions against naive definitions, stable ranks, and growth over training."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.probes.__main__ import main
from analysis.probes.growth import exponent, growth
from analysis.probes.radial import Radial, _short, directions_of, stable_rank
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
    rate, checkpoints = exponent(tokens, values)
    assert (rate, checkpoints) == (pytest.approx(b, abs=1e-9), 3)


@given(values=st.lists(st.tuples(st.sampled_from([0.0, 1.0, 4.0]), st.floats(0.1, 10)), max_size=9))
def test_through_two_places_every_line_passes_so_they_have_no_rate(values):
    """Those at 0 tokens have no place."""
    tokens, value = np.reshape(values, (-1, 2)).T
    rate, checkpoints = exponent(tokens, value)
    assert checkpoints == len(set(tokens) - {0.0}) < 3
    assert np.isnan(rate)


def test_growth_is_averaged_over_runs_and_none_from_few_checkpoints():
    by_run = {"a": [1.0, 10.0, 100.0], "b": [1.0, 1e3, 1e6]}
    rows = pd.DataFrame([(run, 10**at, value) for run, own in by_run.items() for at, value in enumerate(own)])
    rows = rows.set_axis(["run", "tokens", "value"], axis=1).astype({"tokens": "Int64"})
    rate, checkpoints = growth(rows)
    assert rate is not None
    assert (rate.mean, rate.n, checkpoints) == (pytest.approx(2), 2, [3, 3])
    assert growth(rows[rows["tokens"] < 100]) == (None, [2, 2])


def test_the_table_says_from_how_many_checkpoints_and_the_figure_which_matrices(two_heads, tmp_path, capsys):
    main(["radial", *two_heads, "--over-training", "--set", "windows=1", "--out", str(tmp_path)])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[-3:] == ["growth", "[95%]", "checkpoints"]
    assert next(line.split()[-2:] for line in lines if line.startswith("  flat")) == ["-", "2"]
    assert any("-: fewer than 3, from which no rate is given" in line for line in lines)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [one["growth"] for one in summary["arms"]] == [None] * len(summary["arms"])
    names = summary["measures"]["stable_rank_by_matrix"]["places"]
    assert len(names) == len({one["index"] for one in summary["arms"] if one["measure"] == "stable_rank_by_matrix"})
    assert len(set(names)) == len(names)
    assert "0.attn.c_attn" in names


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("body.model.layers.12.self_attn.q_proj.weight", "12.self_attn.q_proj"),
        ("transformer.h.0.mlp.c_fc.weight", "0.mlp.c_fc"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("weight", "weight"),
    ],
)
def test_a_matrix_is_named_by_its_block_and_modules(name, short):
    assert _short(name) == short
