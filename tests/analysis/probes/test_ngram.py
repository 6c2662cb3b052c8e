"""The probe `ngram`: its distributions and distances against their definitions, and real runs."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.compare.arms import find_arms, load_member
from analysis.compare.text import open_text
from analysis.probes.evaluate import evaluate
from analysis.probes.ngram import LAMBDAS, NGram, continued, distances, injected_nll
from analysis.probes.ngram_counts import NO_TOKEN, NGramModel, contexts_of
from analysis.probes.over_training import points_of

V = 4
texts = st.lists(st.integers(0, V - 1), max_size=25)


def witten_bell(text, context, w, vocabulary=V):
    """q(w | context) by the recursion, from plain counts."""
    below = witten_bell(text, context[1:], w, vocabulary) if context else 1 / vocabulary
    size = len(context) + 1
    after = Counter(
        text[i + size - 1] for i in range(len(text) - size + 1) if list(text[i : i + size - 1]) == list(context)
    )
    seen, kinds = sum(after.values()), len(after)
    return (after[w] + kinds * below) / (seen + kinds) if kinds else below


@given(text=texts, context=st.tuples(st.integers(0, V - 1), st.integers(0, V - 1)))
def test_the_distributions_are_witten_and_bells(text, context):
    found = NGramModel(np.array(text, dtype=np.int64), V).distributions(np.array([context, (NO_TOKEN, context[1])]))
    for n, q_NV in enumerate(found, start=1):
        expected = [witten_bell(text, context[2 - (n - 1) :], w) for w in range(V)]
        np.testing.assert_allclose(q_NV[0], expected, rtol=1e-12)
        np.testing.assert_allclose(q_NV.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(found[1][1], found[2][1], "without a token before it there is no 3-gram")
    np.testing.assert_array_equal(contexts_of(np.array([5, 6, 7])), [[NO_TOKEN, 5], [5, 6], [6, 7]])


def test_a_text_by_hand():
    """Of 0 1 0 2 the token 0 was seen twice, before two tokens: q_2(1 | 0) = (1 + 2 q_1(1)) / 4, q_1(1) = (1 + 3/4) / 7."""
    _, q2_NV, q3_NV = NGramModel(np.array([0, 1, 0, 2]), V).distributions(np.array([[3, 0], [1, 0]]))
    assert q2_NV[0, 1] == pytest.approx((1 + 2 * 0.25) / 4)
    assert q3_NV[0, 1] == q2_NV[0, 1], "3 0 was never seen"
    assert q3_NV[1, 1] == pytest.approx(q2_NV[0, 1] / 2), "1 0 was seen once, before 2"


@given(data=st.lists(st.tuples(st.floats(-9, 9), st.floats(0.01, 1)), min_size=3, max_size=6), factor=st.floats(0, 3))
def test_distances_and_injection_are_those_of_the_definition(data, factor):
    z_V, q_V = (np.array(column) for column in zip(*data, strict=True))
    q_V /= q_V.sum()
    p_V = np.exp(z_V) / np.exp(z_V).sum()
    log_p_NV, q_NV = (torch.from_numpy(one[None]) for one in (np.log(p_V), q_V))
    kl, tv = distances(q_NV, log_p_NV)
    assert float(kl) == pytest.approx(sum(q_V * np.log(q_V / p_V)), rel=1e-9, abs=1e-12)
    assert float(tv) == pytest.approx(np.abs(p_V - q_V).sum() / 2, rel=1e-9, abs=1e-12)
    mixed_V = p_V * q_V**factor
    nll = injected_nll(log_p_NV, q_NV.log(), torch.tensor([[1]]), factor)
    assert float(nll) == pytest.approx(-math.log(mixed_V[1] / mixed_V.sum()), rel=1e-9, abs=1e-12)


def test_continuations_are_greedy_in_the_moved_logits(two_heads):
    arms = find_arms(two_heads)
    text = open_text(arms)
    grams = NGramModel(np.asarray(text.store.train.ids), text.store.vocab_size)
    model = load_member(arms[1].members[0])
    prompt_RP = np.tile(text.windows(1, seed=0)[0][:, :6], (2, 1))
    with torch.no_grad():
        made_RS = continued(model, grams, prompt_RP, np.array([0.0, 1.0]), 3, 5)
        expected = model.generate(torch.from_numpy(prompt_RP[:1]), max_new_tokens=5, do_sample=False, eos_token_id=-1)
        assert made_RS[0].tolist() == expected[0, 6:].tolist()
        ids = prompt_RP[1].tolist()
        for token in made_RS[1]:
            q_V = grams.distributions(np.array([ids[-2:]]))[2][0]
            z_V = model(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy() + np.log(q_V)
            assert token == z_V.argmax()
            ids.append(int(token))


def test_every_measure_is_there_of_both_heads_over_training(two_heads):
    arms = find_arms(two_heads)
    text = open_text(arms)
    table = evaluate(NGram(NGram.Options(windows=4)), points_of(arms), text, seed=0).table
    assert {(m, t) for m, t in zip(table["measure"], table["tokens"], strict=True)} == {
        (measure.key, tokens) for measure in NGram.measures for tokens in (0, 160, 320)
    }
    assert table["value"].notna().all()
    own = table[(table["arm"] == "curved_seed0") & (table["step"] == 20)].set_index("measure")["value"]
    x_BT, y_BT = text.windows(4, seed=0)
    model = load_member(arms[1].members[0])
    with torch.no_grad():
        log_p_BTV = model(input_ids=torch.from_numpy(x_BT)).logits.double().log_softmax(-1)
    nll = -log_p_BTV.gather(2, torch.from_numpy(y_BT)[..., None]).mean()
    injected = own["nll_injected"].to_numpy()
    assert injected[0] == pytest.approx(float(nll), rel=1e-6)
    assert own["gain_injected"] == pytest.approx(injected[0] - injected.min())
    assert own["best_lambda"] == LAMBDAS[injected.argmin()]
    count_V = np.bincount(text.store.train.ids, minlength=text.store.vocab_size)
    kinds = np.count_nonzero(count_V)
    q_1 = (count_V + kinds / len(count_V)) / (count_V.sum() + kinds)
    assert own["nll_1"] == pytest.approx(-np.log(q_1[y_BT]).mean())
    assert own["kl_1"] == pytest.approx(np.sum(q_1 * (np.log(q_1) - log_p_BTV.numpy()), axis=-1).mean(), rel=1e-5)
    assert own["distinct_2"].between(1 / 7, 1).all()
