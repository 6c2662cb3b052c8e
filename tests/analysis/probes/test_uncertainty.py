"""What a model does not know: the command on runs with and without distances and on a guest, against naive scores in float64."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, GPT2LMHeadModel

from analysis.compare.arms import find_arms, load_member, untrained_arm
from analysis.compare.foreign import known_and_foreign
from analysis.compare.text import open_text
from analysis.probes.__main__ import main
from analysis.probes.evaluate import evaluate, last_points
from analysis.probes.figure import probe_figures
from analysis.probes.over_training import points_of
from analysis.probes.uncertainty import SCORES, Uncertainty, _of_window
from analysis.show import style
from common.errors import InputError
from common.registry import checked_options
from model import SwapHeadConfig, new_model
from tests.analysis.trained import write_training

WINDOWS, FPR = 8, 0.1


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run with distances, one without, and a guest of transformers with their tokenizer."""
    folder = tmp_path_factory.mktemp("uncertainty")
    made = [write_training(corpus, folder, head, seed=0, steps=[10, 20], head=head) for head in ("metric", "linear")]
    text = open_text(find_arms([str(made[0])]))
    guest = folder / "guest"
    shape = {"vocab_size": text.store.vocab_size + 3, "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32}
    torch.manual_seed(0)
    GPT2LMHeadModel(AutoConfig.for_model("gpt2", initializer_range=0.5, **shape)).save_pretrained(guest)
    text.tokenizer.save_pretrained(guest)
    return [*map(str, made), str(guest)]


@pytest.fixture(scope="module")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text("To whom it may concern: 1, 2, 3! " * 40)
    return path


@pytest.fixture(scope="module")
def table(runs: list[str], other_text: Path) -> pd.DataFrame:
    """The values of all runs, and of the first before training."""
    arms = find_arms(runs)
    options = {"windows": WINDOWS, "fpr": FPR, "corpora": [str(other_text), str(other_text)]}
    points = last_points([*arms, untrained_arm(arms[0], arms)])
    return evaluate(Uncertainty(checked_options(Uncertainty, options)), points, open_text(arms), seed=0).table


def naive_scores(model, x_BT):
    """Scores of positions in float64; distances from hidden states and embeddings where the head has some."""
    with torch.no_grad():
        z_NV = model(input_ids=torch.from_numpy(x_BT)).logits.flatten(0, 1).numpy()
        h_ND = model.base_model(input_ids=torch.from_numpy(x_BT)).last_hidden_state.flatten(0, 1).numpy()
    p_NV = np.exp(z_NV - z_NV.max(1, keepdims=True))
    p_NV /= p_NV.sum(1, keepdims=True)
    scores = {"probability": -p_NV.max(1), "entropy": -(p_NV * np.log(p_NV)).sum(1)}
    scores["energy"] = -z_NV.max(1) - np.log(np.exp(z_NV - z_NV.max(1, keepdims=True)).sum(1))
    if getattr(model.lm_head, "bounded", False):
        w_VD = model.lm_head.weight.detach().numpy()
        scores["distance"] = 0.5 * ((h_ND[:, None] - w_VD) ** 2).sum(2).min(1)
    return scores


def test_every_value_is_that_of_naive_scores_in_float64(runs, table):
    arms = find_arms(runs)
    texts = known_and_foreign(open_text(arms), WINDOWS, seed=0)
    for member in (member for arm in arms for member in arm.members):
        model = load_member(member).double()
        own = table[table["run"] == member.label].set_index("measure")["value"]
        scores = {name: naive_scores(model, x_BT) for name, x_BT in texts.measured.items()}
        for score, known_N in scores["text"].items():
            for name in ("shuffled", "random"):
                a_N1, b_1M = known_N[:, None], scores[name][score][None]
                expected = (b_1M > a_N1).mean() + 0.5 * (b_1M == a_N1).mean()
                assert own[f"auroc_{score}_{name}"] == pytest.approx(expected, abs=1e-3)
                a_N1, b_1M = (x.reshape(WINDOWS, -1).mean(1) for x in (known_N, scores[name][score]))
                expected = (b_1M > a_N1[:, None]).mean()
                assert own[f"auroc_sequence_{score}_{name}"] == pytest.approx(expected, abs=0.02)
        if "distance" not in scores["text"]:
            continue
        calibrated_N = naive_scores(model, texts.calibrated_BT)["distance"]
        assert (calibrated_N > own["tau"] * (1 + 1e-6)).mean() == pytest.approx(FPR, abs=1.5 / len(calibrated_N))
        for name, one in scores.items():
            flagged = (one["distance"] > own["tau"]).mean()
            assert own[f"flagged_{name}"] == pytest.approx(flagged, abs=1.5 / len(one["distance"]))
        ranks = [
            pd.Series(np.concatenate([one[key] for one in scores.values()])).rank() for key in ("distance", "entropy")
        ]
        assert own["distance_entropy_rank"] == pytest.approx(ranks[0].corr(ranks[1]), abs=1e-3)


def test_distances_are_those_of_heads_that_have_some_and_the_rest_is_there_for_all(table):
    of_distance = table["measure"].str.contains("distance|tau|flagged")
    for run, own in table[~table["diverged"]].groupby("run"):
        has = run.startswith("metric") or run == "untrained"
        assert own["value"].notna().equals(has | ~of_distance[own.index])
    by_corpus = table[table["measure"] == "auroc_entropy_by_corpus"]
    assert list(by_corpus["index"]) == [0, 1] * 4
    assert by_corpus["value"].between(0, 1).all()
    assert by_corpus.groupby("run")["value"].nunique().eq(1).all(), "the same text twice"
    shares = table[table["measure"].str.match("auroc|aupr|fpr95|flagged") & table["value"].notna()]
    assert shares["value"].between(0, 1).all()


def test_over_training_and_without_other_corpora(runs):
    arms = find_arms(runs[:1])
    table = evaluate(Uncertainty(Uncertainty.Options(windows=2)), points_of(arms), open_text(arms), seed=0).table
    assert list(dict.fromkeys(table["measure"])) == [measure.key for measure in Uncertainty.measures]
    assert list(table[table["measure"] == "tau"]["step"]) == [0, 10, 20]
    assert table[table["measure"].str.endswith("_by_corpus")]["value"].isna().all()
    with style.look():
        (figure,) = probe_figures(table, Uncertainty.measures, "title", lambda along: ()).values()
    assert len(figure.axes) == 11, (
        "four scores, or three texts, share a panel, and without corpora there is none of them"
    )


def test_what_is_unknown_has_the_same_shape_and_shuffled_text_the_same_tokens(runs):
    text = open_text(find_arms(runs[:1]))
    texts = known_and_foreign(text, WINDOWS, seed=3)
    own_BT, shuffled_BT, random_BT = (texts.measured[name] for name in ("text", "shuffled", "random"))
    assert np.array_equal(np.sort(own_BT, axis=1), np.sort(shuffled_BT, axis=1))
    assert not np.array_equal(own_BT, shuffled_BT)
    assert np.array_equal(own_BT[:, 1:], texts.next_BT[:, :-1])
    assert random_BT.shape == own_BT.shape
    assert 0 <= random_BT.min() <= random_BT.max() < text.store.vocab_size
    assert not {tuple(x_T) for x_T in texts.calibrated_BT} & {tuple(x_T) for x_T in own_BT}


@settings(max_examples=10)
@given(seed=st.integers(0, 99), abstain=st.booleans())
def test_a_class_for_abstaining_takes_probability_and_is_no_guess(seed, abstain):
    shape = {"vocab_size": 11, "n_layer": 1, "n_head": 1, "n_embd": 4, "n_positions": 8, "initializer_range": 1.0}
    text_config = AutoConfig.for_model("gpt2", **shape)
    model = new_model(SwapHeadConfig(text_config, head={"kind": "metric", "abstain": abstain}), seed).eval().double()
    x_T = torch.arange(6)
    with torch.no_grad():
        score_ST = _of_window(model, x_T)
        h_TD = model.model(input_ids=x_T[None]).last_hidden_state[0]
    w_CD = torch.cat([model.lm_head.weight, torch.zeros(int(abstain), 4)]).detach()
    d_TC = 0.5 * (h_TD[:, None] - w_CD).square().sum(2)
    p_TC = (-d_TC).softmax(1)
    expected = [-p_TC[:, :11].amax(1), -(p_TC * p_TC.log()).sum(1), -(-d_TC).exp().sum(1).log(), d_TC[:, :11].amin(1)]
    torch.testing.assert_close(score_ST, torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert len(score_ST) == len(SCORES)


def test_what_cannot_be_read_is_told_in_a_line_for_each(runs, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("big")
    with pytest.raises(InputError) as caught:
        main(["uncertainty", runs[0], "--out", str(tmp_path / "out"), "--set", f"corpora=[nowhere.txt,{short}]"])
    absent, few = caught.value.problems
    assert absent.startswith("--set corpora: nowhere.txt matches no .txt, ")
    assert few == f"--set corpora: 3 tokens are too few for one sequence of data.sequence_length=16 ({short})"
    assert not (tmp_path / "out").exists()
