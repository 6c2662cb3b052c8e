"""The probe `soft_inputs`: its statistics against their definitions, and real models that read mixtures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.compare.arms import find_arms
from analysis.compare.text import open_text
from analysis.probes.evaluate import evaluate
from analysis.probes.over_training import points_of
from analysis.probes.soft_inputs import Places, SoftInputs, log_predictions, nearest_share, of_group, of_place
from common.errors import InputError
from tests.analysis.models import make_model

logits = st.lists(st.tuples(*[st.floats(-6, 6)] * 3), min_size=3, max_size=6)


def softmax(z_V):
    return np.exp(z_V) / np.exp(z_V).sum()


def kl(p_V, q_V):
    return float((p_V * np.log(p_V / q_V)).sum())


def rows(*predictions):
    return torch.from_numpy(np.log(np.stack(predictions)))


@given(data=logits)
def test_each_number_is_that_of_its_definition(data):
    u_V, m_V, v_V = (softmax(np.array(column)) for column in zip(*data, strict=True))
    found = of_place(rows(u_V, m_V, v_V))
    middle_V, geometric_V = (u_V + v_V) / 2, np.sqrt(u_V * v_V) / np.sqrt(u_V * v_V).sum()
    grid = np.array([kl((1 - b) * u_V + b * v_V, m_V) for b in np.linspace(0, 1, 401)])
    expected = {
        "to_mean": kl(middle_V, m_V),
        "to_one": min(kl(u_V, m_V), kl(v_V, m_V)),
        "geometric_to_mean": kl(middle_V, geometric_V),
        "geometric_to_one": min(kl(u_V, geometric_V), kl(v_V, geometric_V)),
        "js": (kl(u_V, middle_V) + kl(v_V, middle_V)) / 2,
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-7, abs=1e-12), key
    assert found["off_path"] <= grid.min() + 1e-9
    assert found["off_path"] == pytest.approx(grid.min(), abs=1e-3)


@given(data=logits, b=st.floats(0, 1))
def test_the_share_of_an_exact_mixture_is_found(data, b):
    u_V, v_V = (softmax(np.array(column)) for column in list(zip(*data, strict=True))[:2])
    if np.abs(u_V - v_V).max() < 1e-3:
        return
    log_p_AV = rows(u_V, (1 - b) * u_V + b * v_V, v_V)
    found = nearest_share(torch.from_numpy(u_V), torch.from_numpy(v_V), log_p_AV)
    np.testing.assert_allclose(found, [0, b, 1], atol=1e-4)


@pytest.mark.parametrize(("b", "single"), [(0.5, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_mixture_is_0_and_one_of_the_two_is_1(b, single):
    """Of two words with disjoint predictions, whose logarithms of 0 count for nothing."""
    u_V, v_V = torch.tensor([0.75, 0.25, 0.0, 0.0]).double(), torch.tensor([0.0, 0.0, 0.5, 0.5]).double()
    found = of_place(torch.stack([u_V, torch.lerp(u_V, v_V, b), v_V]).log())
    assert found["to_mean"] / (found["to_mean"] + found["to_one"]) == pytest.approx(single, abs=1e-12)
    assert found["off_path"] == pytest.approx(0, abs=1e-3)
    assert found["js"] == pytest.approx(np.log(2))


@pytest.mark.parametrize("family", ["linear", "metric", "gpt2", "llama", "gemma2"])
def test_the_ends_of_a_mixture_are_the_words_themselves(family):
    model = make_model(family, 40).double()
    context_S = np.array([3, 1, 4, 1, 5])
    with torch.no_grad():
        log_p_AV = log_predictions(model, context_S, 9, 26)
        for place, token in ((0, 9), (-1, 26)):
            ids = torch.from_numpy(np.append(context_S, token))[None]
            torch.testing.assert_close(log_p_AV[place], model(input_ids=ids).logits[0, -1].double().log_softmax(-1))
    assert log_p_AV.shape == (11, 40)
    assert (log_p_AV[5] - log_p_AV[0]).abs().max() > 1e-3


def test_words_with_one_embedding_do_not_differ_and_no_place_leaves_everything_undefined():
    model = make_model("linear", 40)
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = model.get_input_embeddings().weight[26]
        found = of_group(model, Places(np.array([[3, 1]]), np.array([9]), np.array([26])))
    assert found["js"] == pytest.approx(0, abs=1e-12)
    empty = of_group(model, Places(np.empty((0, 2), int), np.empty(0, int), np.empty(0, int)))
    assert all(np.isnan(value).all() for value in empty.values())
    assert len(empty["taken"]) == 11


def test_a_model_without_inputs_embeds_is_refused_in_a_line():
    class Other(torch.nn.Module):
        def forward(self, input_ids):
            return input_ids

    with pytest.raises(InputError, match="Other takes no inputs_embeds"):
        SoftInputs(SoftInputs.Options()).measure(Other(), {}, seed=0)


def test_both_heads_over_training(two_heads, capsys):
    """The corpus has three pairs of synonyms and no antonyms."""
    arms = find_arms(two_heads)
    probe = SoftInputs(SoftInputs.Options(places=2))
    table = evaluate(probe, points_of(arms), open_text(arms), seed=0).table
    assert "3 pairs of synonyms at 6 places, 0 pairs of antonyms at 0 places" in capsys.readouterr().err
    table = table.set_index("measure")
    for group in ("synonyms", "controls"):
        assert table.loc[f"single_{group}", "value"].between(0, 1).all()
        assert (table.loc[f"js_{group}", "value"] > 0).all()
        taken = table.loc[f"taken_{group}"].groupby(["run", "step"])["value"].apply(list)
        assert all((own[0], own[-1]) == pytest.approx((0, 1), abs=1e-4) and len(own) == 11 for own in taken)
    assert table.loc["single_antonyms", "value"].isna().all()


def test_a_context_is_as_long_as_was_asked(two_heads):
    probe = SoftInputs(SoftInputs.Options(places=1, context=3))
    found = probe.prepare(open_text(find_arms(two_heads)), seed=0)
    assert found["synonyms"].context_GS.shape == (3, 3)
