"""The probe `adaptive`: its numbers against their definitions and those that training logs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from analysis.claims.dark_knowledge import ROUNDING
from analysis.compare.arms import find_arms, load_member
from analysis.compare.ranking import rank_correlation
from analysis.compare.text import open_text
from analysis.probes.adaptive import CONSTANT, Adaptive, _dark_share, token_values
from analysis.probes.evaluate import evaluate
from analysis.probes.over_training import points_of

rows = st.lists(st.floats(-30, 8), min_size=2, max_size=7)


def by_definition(z_V, y):
    """P, Q and what follows from them, for one token."""
    p_V = np.exp(z_V) / np.exp(z_V).sum()
    raised_V = np.where(np.arange(len(z_V)) == y, 0.0, z_V)
    q_V = np.exp(raised_V) / np.exp(raised_V).sum()
    one_hot_V = np.eye(len(z_V))[y]
    c = q_V[y] * (1 - np.exp(z_V[y]))
    length = np.linalg.norm(p_V - one_hot_V)
    gaps = np.abs(p_V - q_V)
    return {
        "nll": -np.log(p_V[y]),
        "weight": c,
        "entropy": -sum(q * np.log(q) for q in q_V if q > 0),
        "gradient": length,
        "kept": c * length,
        "target_gap": gaps[y],
        "negatives_gap": gaps.sum() - gaps[y],
        "ce_gap": 1 - p_V[y],
    }


@given(z=rows, at=st.integers(0, 6))
def test_each_number_is_that_of_its_definition(z, at):
    y = at % len(z)
    found = token_values(torch.tensor([z], dtype=torch.float64), torch.tensor([y]))
    for key, value in by_definition(np.array(z), y).items():
        assert float(found[key]) == pytest.approx(value, rel=1e-7, abs=1e-12), key


@example(z=[366.0, 0.0], at=0)
@given(z=st.lists(st.floats(-2000, 2000), min_size=2, max_size=7), at=st.integers(0, 6))
def test_any_logits_have_values_and_tfsd_no_dark_knowledge(z, at):
    """c alone may be below any number, and the share of dark knowledge may have no direction to be seen in."""
    found = token_values(torch.tensor([z], dtype=torch.float64), torch.tensor([at % len(z)]))
    assert all(value.isfinite() for key, value in found.items() if key not in {"weight", "dark"})
    assert float(found["weight"]) <= 1
    assert not float(found["dark"]) > ROUNDING
    assert float(found["negatives_gap"]) == pytest.approx(float(found["target_gap"]), abs=1e-12)


def test_a_target_that_is_nearly_reached_keeps_its_digits():
    """c = Q_y (1 - exp(z_y)) for z_y = -1e-14 and logits of -800 elsewhere, where Q_y = 1."""
    found = token_values(torch.tensor([[-1e-14, -800.0]], dtype=torch.float64), torch.tensor([0]))
    assert float(found["weight"]) == pytest.approx(1e-14, rel=1e-9)
    assert float(found["kept"]) == 0


def test_another_target_than_tfsds_is_dark_knowledge():
    """The share that the probe reports is not 0 of any two gradients."""
    one, other = torch.tensor([[3.0, 4.0], [1e-9, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert _dark_share(one, other).tolist() == pytest.approx([0.8, np.nan], nan_ok=True)


def test_a_rank_correlation_without_variation_is_undefined():
    assert np.isnan(rank_correlation(np.array([1 - 1e-4, 1 - 1e-9, 1.0]), np.arange(3), CONSTANT))
    assert np.isnan(rank_correlation(np.arange(3) / 3, np.ones(3)))
    assert rank_correlation(np.array([0.1, 0.2, 0.4]), np.array([5, 6, 6])) == pytest.approx(3**0.5 / 2)


@pytest.fixture(scope="module")
def table(two_heads):
    arms = find_arms(two_heads)
    return evaluate(Adaptive(Adaptive.Options(windows=12)), points_of(arms), open_text(arms), seed=0).table


def test_the_weight_is_the_one_that_training_logs(two_heads, table):
    """Of a metric head; and the bins hold all positions in equal parts."""
    own = table[(table["arm"] == "curved_seed0") & (table["step"] == 20)].set_index("measure")["value"]
    arms = find_arms(two_heads)
    text = open_text(arms)
    x_BT, y_BT = (torch.from_numpy(ids) for ids in text.windows(12, seed=0))
    model = load_member(arms[1].members[0])
    with torch.no_grad():
        losses = model(input_ids=x_BT, shift_labels=y_BT, skip_logits=True, statistics=True).losses
    c_N, nll_N = losses.statistics["tfsd/weight"].numpy(), losses.nll_N.numpy()
    assert own["weight"] == pytest.approx(c_N.mean(), rel=1e-5)
    hard_K = np.array_split(np.argsort(nll_N, kind="stable"), 10)
    np.testing.assert_allclose(own["nll_by_difficulty"], [nll_N[at].mean() for at in hard_K], rtol=1e-5)
    np.testing.assert_allclose(own["weight_by_difficulty"], [c_N[at].mean() for at in hard_K], rtol=1e-4)
    count_V = np.bincount(text.store.train.ids, minlength=text.store.vocab_size)
    assert own["weight_frequency_rank"] == pytest.approx(rank_correlation(c_N, count_V[y_BT.ravel()]), abs=1e-3)
    place_N = np.tile(np.arange(16), 12)
    assert own["weight_position_rank"] == pytest.approx(rank_correlation(c_N, place_N), abs=1e-3)


def test_every_measure_is_there_of_both_heads_over_training(table):
    assert {(m, t) for m, t in zip(table["measure"], table["tokens"], strict=True)} == {
        (measure.key, tokens) for measure in Adaptive.measures for tokens in (0, 160, 320)
    }
    assert table["value"].notna().all()
    by_key = table[table["index"] < 0].set_index(["measure", "run", "step"])["value"].unstack("measure")
    np.testing.assert_allclose(by_key["negatives_gap"], by_key["target_gap"], rtol=1e-9)
    assert (by_key["dark_knowledge"] < 1e-8).all()
    assert by_key.loc["curved_seed0", "weight"].between(0, 1).all()
