"""The bottleneck's ranks: of models with known bounds, against naive float64, and of guests."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from analysis.probes.bottleneck import Bottleneck, _of_spectrum, largest_rank
from model import SwapHeadConfig, final_norm, new_model
from tests.analysis.models import make_model

V, D = 90, 6


def measured(model, contexts=60, V=V):
    x_BT = np.random.default_rng(0).integers(0, V, (4, 16))
    with torch.no_grad():
        return Bottleneck(Bottleneck.Options(contexts=contexts)).measure(model, (x_BT, V), seed=0), x_BT


def model_of(kind, body="llama", **options):
    """With a last normalisation that has learnt: at first the states of GPT-2's are orthogonal to the vector of ones."""
    shape = {
        "vocab_size": V,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "hidden_size": D,
        "initializer_range": 0.7,
    }
    config = SwapHeadConfig(AutoConfig.for_model(body, **shape), head={"kind": kind, **options})
    return moved(new_model(config, seed=0).eval())


def moved(model):
    with torch.no_grad():
        for p in final_norm(model.base_model).parameters():
            p.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize(
    ("kind", "options", "rank"),
    [
        ("linear", {}, D + 1),
        ("linear", {"bias": True}, D + 1),  # its biases are 0
        ("linear", {"soft_cap": 3.0}, 60),
        ("metric", {}, D + 2),
        ("metric", {"scale": "learned", "centroid_norm": "centred", "abstain": True}, D + 2),
        ("cosine", {}, D + 1),
        ("von_mises_fisher", {}, D + 1),
        ("harmonic", {}, 60),
        ("mixture", {}, 60),
        ("dual", {}, D + 1),
    ],
)
def test_heads_have_the_rank_that_their_bound_allows(kind, options, rank):
    model = model_of(kind, **options)
    found, _ = measured(model)
    assert found["rank"] == rank
    assert found["bound"] == (D + 2 if options.get("bias") else rank)
    assert found["rank_over_bound"] == rank / found["bound"]
    assert found["largest"] == 60
    assert (found["beyond_bound"] > 1e-6) if rank == 60 else (found["beyond_bound"] < 1e-3)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_layer_norm_keeps_a_metric_head_one_below_its_bound():
    """Its states lie in a hyperplane, so that (h, 1) has rank D."""
    found, _ = measured(model_of("metric", body="gpt2"))
    assert (found["rank"], found["bound"]) == (D + 1, D + 2)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "gemma2"])
def test_guests_are_linear_unless_they_cap_their_logits(family):
    found, _ = measured(moved(make_model(family, V)))
    assert found["rank"] == found["bound"] == (60 if family == "gemma2" else 17)


def test_values_are_those_of_the_definition_in_float64():
    model = model_of("metric")
    found, x_BT = measured(model)
    with torch.no_grad():
        log_p = model.double()(input_ids=torch.from_numpy(x_BT)).logits.log_softmax(-1).flatten(0, 1)[:60].numpy()
    s = np.linalg.svd(log_p - log_p.mean(1, keepdims=True), compute_uv=False)
    share = s[: D + 1] / s.sum()
    assert found["effective_rank"] == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-9)
    assert found["spectrum"][0] == 1
    assert found["spectrum"][5] == pytest.approx(s[round(0.25 * (D + 1))] / s[0], rel=1e-9)
    assert found["rank"] == np.linalg.matrix_rank(log_p)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_effective_rank_is_the_rank_where_all_singular_values_are_equal(rank):
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    assert _of_spectrum(turn[:, :rank], width=2)["effective_rank"] == pytest.approx(rank)


def test_the_vocabulary_bounds_the_rank_of_a_wide_model():
    model = SimpleNamespace(get_output_embeddings=lambda: torch.nn.Linear(500, 9), config=AutoConfig.for_model("gpt2"))
    assert largest_rank(model, 90) == 502
