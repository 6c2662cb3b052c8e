from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from analysis.bootstrap import estimate_mean
from analysis.pairs import Pair
from analysis.probe import Answers, Questions
from analysis.synonyms import METRICS, check_tokenizers, compare, find_sources, pair_means
from analysis.words import Study, plan_study
from configs.errors import InputError
from tests.analysis.corpus import PAIRS, SEQUENCE_LENGTH, open_corpus, write_model
from tests.conftest import python


@pytest.fixture(scope="module")
def baseline(corpus: Path) -> Path:
    return write_model(corpus, "baseline", seed=0)


@pytest.fixture(scope="module")
def other(corpus: Path) -> Path:
    return write_model(corpus, "other", seed=1, head="metric")


@pytest.fixture(scope="module")
def study(corpus: Path) -> Study:
    store = open_corpus(corpus)
    pairs = [Pair(*pair) for pair in PAIRS]
    ids = (store.load_tokenizer(), store.train.ids, store.validation.ids)
    return plan_study(pairs, *ids, sequence_length=SEQUENCE_LENGTH, contexts_per_word=3)


def test_the_command_compares_models_from_end_to_end(corpus: Path, baseline: Path, other: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("".join(f"{a},{b}\n" for a, b in [*PAIRS, ("river", "zymurgy")]))
    copy = tmp_path / "copy"
    shutil.copytree(baseline / "checkpoints" / "step_00000001", copy)  # a checkpoint that belongs to no run
    command = ["-m", "analysis.synonyms", "--baseline", baseline, "--candidate", copy, other, "--pairs", pairs]
    done = python(*command, "--contexts-per-word", "6", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "river/zymurgy" in done.stdout
    assert "4 pairs" in done.stdout and "3 used" in done.stdout

    text = (tmp_path / "out" / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    assert [model["label"] for model in summary["models"]] == ["baseline", "copy", "other"]
    assert [model["step"] for model in summary["models"]] == [1, 1, 1]
    assert summary["counts"] | {"controls_per_synonym": 5} == {
        "pairs_given": 4,
        "pairs_used": 3,
        "pairs_left_out": 1,
        "contexts": 36,
        "distinct_contexts": 36,
        "controls_per_synonym": 5,
    }
    assert [(entry["word_b"], "tokens" in entry["reason"]) for entry in summary["left_out"]] == [("zymurgy", True)]
    for metric in METRICS:
        same, different = (summary["differences"][label][metric.key] for label in ("copy", "other"))
        assert (same["mean"], same["low"], same["high"], same["n"]) == (0.0, 0.0, 0.0, 3)
        means = [summary["overall"][label][metric.key]["mean"] for label in ("baseline", "other")]
        assert different["mean"] == pytest.approx(means[1] - means[0], abs=1e-12)
        assert different["mean"] != 0.0
    with (tmp_path / "out" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3
    assert np.mean([float(row["log_odds"]) for row in rows[:3]]) == pytest.approx(
        summary["overall"]["baseline"]["log_odds"]["mean"]
    )
    assert (tmp_path / "out" / "synonyms.png").read_bytes()[:4] == b"\x89PNG"


def test_pair_means_are_those_worked_out_by_hand(study: Study) -> None:
    questions = Questions.of(study)
    pair_M = np.array([study.units[unit].pair for unit in questions.unit_M])
    # In every context p(word) = 1/2; the synonym has 1/16 or, every other context, 1/32; three controls have 1/64, two 1/8.
    turn_M = np.arange(len(pair_M)) % 2
    p_MK = np.column_stack(
        [
            np.full(len(pair_M), 0.5),
            np.where(turn_M, 1 / 32, 1 / 16),
            np.tile([1 / 64, 1 / 64, 1 / 64, 1 / 8, 1 / 8], (len(pair_M), 1)),
        ]
    )
    share_MK = p_MK / 0.5
    rank_MK = np.tile([1, 10, 100, 100, 100, 10, 1], (len(pair_M), 1))  # the fourth control ties with the synonym
    answers = Answers(np.log(p_MK), np.log(share_MK), rank_MK, np.full(len(pair_M), 3.0))
    means = pair_means(study, questions, answers)
    for pair in range(len(study.pairs)):
        second = turn_M[pair_M == pair].mean()
        synonym = second / 32 + (1 - second) / 16
        row = means.loc[pair]
        log_control = (3 * np.log(1 / 64) + 2 * np.log(1 / 8)) / 5
        assert row["log_odds"] == pytest.approx(second * np.log(1 / 32) + (1 - second) * np.log(1 / 16) - log_control)
        assert row["rank_auc"] == pytest.approx(3.5 / 5)
        assert row["log10_rank_synonym"] == pytest.approx(1.0)
        assert row["log10_rank_control"] == pytest.approx((2 + 2 + 2 + 1 + 0) / 5)
        assert row["p_word"] == pytest.approx(0.5)
        assert row["p_synonym"] == pytest.approx(synonym)
        assert row["share_synonym"] == pytest.approx(2 * synonym)
        assert row["joint"] == pytest.approx(0.5 + synonym)
        assert row["p_control"] == pytest.approx((3 / 64 + 2 / 8) / 5)
        assert row["share_control"] == pytest.approx(2 * (3 / 64 + 2 / 8) / 5)
        assert row["entropy"] == 3.0
        assert row["nll_word"] == pytest.approx(np.log(2))


def test_differences_are_paired(study: Study) -> None:
    rng = np.random.default_rng(0)
    base = pd.DataFrame({metric.key: rng.normal(0, 100, 3) for metric in METRICS})
    shifted = base + pd.DataFrame({metric.key: [0.9, 1.0, 1.1] for metric in METRICS})
    result = compare(study, {"a": base, "b": shifted}, seed=0)
    for metric in METRICS:
        wide, narrow = result.overall["b"][metric.key], result.differences["b"][metric.key]
        assert narrow.mean == pytest.approx(1.0)
        assert narrow.low is not None and narrow.high is not None
        assert 0.89 < narrow.low < 1.0 < narrow.high < 1.11  # the spread between pairs has cancelled
        assert wide.low is not None and wide.high is not None
        assert wide.high - wide.low > 10
    assert compare(study, {"a": base, "b": shifted}, seed=0).differences == result.differences


def test_the_bootstrap_interval_of_a_known_sample() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    found = estimate_mean(values, seed=0)
    half = 1.96 * values.std() / np.sqrt(400)  # what theory says of a normal sample
    assert found.n == 400
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert estimate_mean(np.array([5.0]), seed=0).low is None
    assert estimate_mean(np.full(9, 5.0), seed=0).high == 5.0


def test_another_tokenizer_is_refused(corpus: Path, baseline: Path) -> None:
    stranger = write_model(corpus, "stranger", seed=0, vocab_size=320)
    bare = corpus / "bare"
    GPT2LMHeadModel(GPT2Config(vocab_size=330, n_layer=1, n_head=1, n_embd=8)).save_pretrained(bare)
    sources = find_sources([str(baseline), str(stranger), str(bare)])
    with pytest.raises(InputError) as error:
        check_tokenizers(open_corpus(corpus).load_tokenizer(), sources)
    first, second = error.value.problems
    assert "stranger" in first and "another tokenizer" in first
    assert "bare" in second


def test_models_are_found_or_refused_with_all_reasons(corpus: Path, baseline: Path, tmp_path: Path) -> None:
    checkpoint = baseline / "checkpoints" / "step_00000001"
    assert [source.label for source in find_sources([str(baseline), str(checkpoint)])] == [
        str(baseline),
        str(checkpoint),
    ]
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    with pytest.raises(InputError) as error:
        find_sources([str(copy), str(tmp_path / "none")])
    assert len(error.value.problems) == 2
    assert "--baseline" in error.value.problems[0]


def test_a_bad_command_ends_with_status_2_and_writes_nothing(baseline: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["-m", "analysis.synonyms", "--baseline", baseline, "--candidate", baseline, "--out", out]
    done = python(*command, "--pairs", tmp_path / "none.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --pairs") and done.stderr.count("\n") == 1
    assert not out.exists()
