"""The command on real, tiny runs: what it writes agrees with itself, and what it cannot compare it refuses."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from analysis.compare.metric import tfsd_weight
from analysis.compare.temperature import MEANINGS_WITH_TRUTH, VIEWS
from analysis.grammar.__main__ import main
from analysis.grammar.compare import SCOPES
from analysis.grammar.figure import draw_training
from analysis.grammar.truth import KINDS, SET_METRICS, TEXT_METRICS, TRUE_KINDS
from analysis.show import style
from common.command import exit_status
from common.errors import InputError
from configs.load import load_config
from model import load_model
from train_lm import train

ARMS = {"linear": ["head.kind=linear", "objective.kind=ce"], "metric": ["head.scale=article"]}
"""The first is the baseline; the second logs the weight c of TFSD."""
STEPS = 4
SEQUENCE_LENGTH = 48
RECIPE = f"""
name: tiny
data: {{kind: grammar, documents: 200, sequence_length: {SEQUENCE_LENGTH}, validation_fraction: 0.2}}
body: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 16, resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0}}
head: {{kind: metric}}
objective: {{kind: tfsd}}
optimizer: {{lr: 1.0e-2, warmup_steps: 1}}
train: {{steps: {STEPS}, batch_size: 4}}
checkpoint: {{every: 2}}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run for each arm and seed."""
    folder = tmp_path_factory.mktemp("grammar")
    (folder / "tiny.yaml").write_text(RECIPE)
    for seed in (0, 1):
        for arm, overrides in ARMS.items():
            names = [f"name={arm}_seed{seed}", f"seed={seed}", f"output_dir={folder}", f"data.cache_dir={folder}/cache"]
            AcceleratorState._reset_state(reset_partial_state=True)
            assert train(load_config(folder / "tiny.yaml", [*names, *overrides])) == 0
    return folder


@pytest.fixture(scope="module")
def out(runs: Path) -> Path:
    """What the command has written about all of them."""
    command = ["--baseline", *paths(runs, "linear"), "--candidate", *paths(runs, "metric"), "--out", str(runs / "out")]
    with (runs / "printed.txt").open("w") as printed, contextlib.redirect_stdout(printed):
        main([*command, "--documents", "12", "--over-training"])
    return runs / "out"


@pytest.fixture(scope="module")
def summary(out: Path) -> dict[str, Any]:
    text = (out / "summary.json").read_text()
    found: dict[str, Any] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    return found


def paths(runs: Path, arm: str) -> list[str]:
    return [str(runs / f"{arm}_seed{seed}") for seed in (0, 1)]


def copy_of(run: Path, folder: Path, **data: Any) -> str:
    """A copy of a run whose configuration says something else of its data."""
    shutil.copytree(run, folder)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= data
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


def test_all_files_are_there_and_say_who_was_compared(out: Path, summary: dict[str, Any]) -> None:
    names = {"summary.json", "sets.csv", "contexts.parquet", "truth.png", "training.csv", "training.png"}
    assert {path.name for path in out.iterdir()} == names
    for name in ("truth.png", "training.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    assert summary["baseline"] == "linear"
    labels = {arm["label"]: [(m["label"], m["seed"]) for m in arm["members"]] for arm in summary["arms"]}
    assert labels == {arm: [(f"{arm}_seed0", 0), (f"{arm}_seed1", 1)] for arm in ARMS}
    assert summary["counts"]["documents"] == 12
    assert summary["counts"]["positions"] <= 12 * SEQUENCE_LENGTH
    assert set(summary["counts"]["kinds"]) == set(KINDS)
    for arm in summary["arms"]:
        for member in arm["members"]:
            assert member["checkpoint"].endswith(f"step_{STEPS:08d}")
            assert (member["tfsd_weight"] is not None) == (arm["label"] == "metric")
            assert member["temperatures"]["raw"] == 1
            assert (member["temperatures"]["matched"] == 1) == (arm["label"] == "linear")


def test_the_scores_agree_with_each_other(summary: dict[str, Any]) -> None:
    for arm in ARMS:
        for view in VIEWS:
            text = {key: effect["mean"] for key, effect in summary["text"][arm][view].items()}
            assert text["kl"] == pytest.approx(text["between"] + text["within_true"] + text["within_control"])
            assert text["excess"] == pytest.approx(text["nll"] - summary["truth"]["nll"])
            assert text["excess"] == pytest.approx(text["kl"], rel=0.1)  # in expectation the same
            assert set(summary["sets"][arm][view]) == set(SCOPES)
            for row in summary["sets"][arm][view].values():
                assert row["split_kl"]["mean"] >= 0
                assert row["joint_kl"]["mean"] > 0
        raw, fitted = (summary["text"][arm][view]["kl"]["mean"] for view in ("raw", "fitted"))
        assert fitted <= raw * 1.001  # fitted on other documents
    entropies = [summary["text"][arm]["matched"]["entropy"]["mean"] for arm in ARMS]
    assert entropies[0] == pytest.approx(entropies[1], rel=0.01)


def test_differences_are_those_of_the_means_with_their_sizes_and_tests(summary: dict[str, Any]) -> None:
    assert set(summary["differences"]) == {"metric"}
    found = summary["differences"]["metric"]
    for view in VIEWS:
        for metric in TEXT_METRICS:
            own, baseline = (summary["text"][arm][view][metric.key]["mean"] for arm in ("metric", "linear"))
            effect = found["text"][view][metric.key]
            assert effect["mean"] == pytest.approx(own - baseline, abs=1e-12)
            assert effect["clusters"] == {"document": 12, "seed": 2}
        for scope in SCOPES:
            for metric in SET_METRICS:
                if (scope, metric.key) in {("equal", "minority"), ("antonym", "minority")}:
                    assert found["sets"][view][scope][metric.key]["n"] == 0
                    continue
                own, baseline = (summary["sets"][arm][view][scope][metric.key]["mean"] for arm in ("metric", "linear"))
                effect = found["sets"][view][scope][metric.key]
                assert effect["mean"] == pytest.approx(own - baseline, abs=1e-12)
                assert effect["clusters"]["seed"] == 2
                assert effect["low"] < effect["high"]
                assert effect["smallest"] > 0
                assert 0 <= found["wilcoxon_p"][view][scope][metric.key] <= 1


def test_tables_of_sets_and_contexts_lead_to_the_same_numbers(out: Path, summary: dict[str, Any]) -> None:
    sets = pd.read_csv(out / "sets.csv")
    per_kind = {kind: n["sets"] for kind, n in summary["counts"]["kinds"].items()}
    assert len(sets) == sum(per_kind.values()) * len(ARMS) * len(VIEWS)
    for (arm, view), rows in sets[sets["kind"].isin(TRUE_KINDS)].groupby(["arm", "view"]):
        for key in ("split_kl", "log_fracture", "fracture", "joint_kl"):
            mean = (rows[key] * rows["expected_occurrences"]).sum() / rows["expected_occurrences"].sum()
            assert mean == pytest.approx(summary["sets"][arm][view]["synonyms"][key]["mean"])
    contexts = pd.read_parquet(out / "contexts.parquet")
    assert contexts["true_mass"].min() >= 0.01
    assert contexts["true_mass"].dtype == contexts["linear_seed0:raw:mass"].dtype == np.float32
    assert dict(contexts["kind"].value_counts()) == {
        kind: n["contexts_kept"] for kind, n in summary["counts"]["kinds"].items()
    }
    assert contexts["document"].nunique() <= 12
    assert not contexts.duplicated(["set", "document", "position"]).any()
    labels = [f"{arm}_seed{seed}:{view}" for arm in ARMS for seed in (0, 1) for view in VIEWS]
    assert set(contexts.columns[6:]) == {f"{one}:{key}" for one in labels for key in ("mass", "share", "split_kl")}


def test_over_training_every_checkpoint_is_measured_and_the_last_as_by_itself(
    out: Path, summary: dict[str, Any]
) -> None:
    training = pd.read_csv(out / "training.csv")
    assert len(training) == len(ARMS) * 2 * (STEPS // 2) * 2  # arms, seeds, checkpoints, views
    assert set(training["tokens"]) == {2 * 4 * SEQUENCE_LENGTH, STEPS * 4 * SEQUENCE_LENGTH}
    assert len(summary["training"]) == len(training)
    last = training[(training["step"] == STEPS)].groupby(["arm", "view"])  # 12 documents: all are measured here too
    for (arm, view), rows in last:
        assert rows["kl"].mean() == pytest.approx(summary["text"][arm][view]["kl"]["mean"])
        for key in ("split_kl", "log_fracture", "joint_kl"):
            assert rows[key].mean() == pytest.approx(summary["sets"][arm][view]["synonyms"][key]["mean"])


def test_the_printed_tables_name_arms_views_and_counts(runs: Path, out: Path) -> None:
    printed = (runs / "printed.txt").read_text()
    assert "12 documents" in printed
    for view, meaning in MEANINGS_WITH_TRUTH.items():
        assert f"metric minus linear, {view}: {meaning} (seeds: 2; 12 documents" in printed
    for metric in (*TEXT_METRICS, *SET_METRICS):
        assert metric.meaning in printed
    assert "smallest" in printed and "Wilcoxon" in printed
    weights = printed.partition("Mean weight c")[2].splitlines()
    assert weights[2].split()[:2] == ["metric", "2"] and weights[4] == ""  # the other arm logs none
    assert weights[3].startswith("linear: without c")
    assert max(len(line) for line in printed.splitlines() if "  " in line and ":" not in line) <= 120
    assert str(out) in printed
    sentence = " ".join(printed.partition("The arms linear, metric differ in: ")[2].split())
    assert (
        "head.kind (linear | metric)" in sentence
        and "objective.kind (ce | tfsd)" in sentence
        and "seed (" not in sentence
    )


def test_the_same_kinds_are_compared_in_every_view(runs: Path, out: Path) -> None:
    del out
    tables = (runs / "printed.txt").read_text().split("metric minus linear, ")[1:]
    assert len(tables) == len(VIEWS)
    for table in tables:
        rows = [line.split()[0] for line in table.partition("\n\n")[0].splitlines()[2:]]
        assert set(rows) == {"all", *SCOPES}


def test_a_checkpoint_that_has_diverged_is_named_and_the_others_are_unchanged(
    runs: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "metric_seed0"
    shutil.copytree(runs / "metric_seed0", broken)
    checkpoint = broken / "checkpoints" / "step_00000002"
    model = load_model(checkpoint)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    model.save_pretrained(checkpoint)
    candidates = [str(broken), paths(runs, "metric")[1]]
    command = ["--baseline", *paths(runs, "linear"), "--candidate", *candidates, "--out", str(tmp_path / "out")]
    main([*command, "--documents", "12", "--over-training"])
    assert "metric_seed0 step 2 (384 tokens) has diverged" in capsys.readouterr().out
    found, before = (pd.read_csv(folder / "training.csv") for folder in (tmp_path / "out", out))
    here = (found["label"] == "metric_seed0") & (found["step"] == 2)
    assert list(found["diverged"]) == list(here)
    assert found[here].drop(columns=list(before.columns[:7])).isna().all(axis=None)
    pd.testing.assert_frame_equal(found[~here], before[~here])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["kl"] == "NaN" for row in summary["training"]] == list(here)
    with style.look():
        figure = draw_training(found, list(ARMS))
    curves = [np.asarray(line.get_ydata()) for line in figure.axes[0].lines[1:]]  # the first: zero
    gaps = sorted(np.isnan(curve).tolist() for curve in curves if len(curve) == STEPS // 2)
    assert gaps == 4 * [[False, False]] + 2 * [[True, False]]  # of the run, and of the mean of its arm


def test_the_weight_of_tfsd_is_that_of_the_end_and_of_the_lowest_steps(tmp_path: Path) -> None:
    rows = [{"step": step, "tfsd/weight_mean": step / 100} for step in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tfsd_weight(tmp_path)
    assert found is not None
    assert found["last_tenth"] == pytest.approx(np.mean([step / 100 for step in range(91, 101)]))
    assert found["lowest_decile"] == pytest.approx(np.quantile([step / 100 for step in range(1, 101)], 0.1))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/nll": 3.0}\n')
    assert tfsd_weight(tmp_path) is None
    assert tfsd_weight(tmp_path / "none") is None


# -------------------------------------------------------------------------------------------------------------- refusals


def refused(runs: Path, baseline: list[str], candidates: list[str]) -> list[str]:
    with pytest.raises(InputError) as error:
        main(["--baseline", *baseline, "--candidate", *candidates, "--out", str(runs / "never")])
    assert not (runs / "never").exists()
    return list(error.value.problems)


def test_runs_of_other_data_are_refused_by_key_and_value(runs: Path, tmp_path: Path) -> None:
    linear, metric = (paths(runs, arm)[0] for arm in ARMS)
    other = copy_of(Path(metric), tmp_path / "other", seed=9, sequence_length=32)
    problems = refused(runs, [linear], [other])
    assert len(problems) == 2
    assert "data.seed is 9" in problems[0] and "data.sequence_length is 32" in problems[1]
    text = copy_of(Path(metric), tmp_path / "text", kind="text", paths=["x.txt"], vocab_size=300)
    config = yaml.safe_load((tmp_path / "text" / "config.yaml").read_text())
    for key in ("documents", "seed"):
        del config["data"][key]
    (tmp_path / "text" / "config.yaml").write_text(yaml.safe_dump(config))
    assert ["data.kind is text" in line for line in refused(runs, [linear], [text])] == [True]


def test_a_run_on_an_older_grammar_is_refused(runs: Path, tmp_path: Path) -> None:
    linear, metric = (paths(runs, arm)[0] for arm in ARMS)
    old = copy_of(Path(metric), tmp_path / "old")
    path = tmp_path / "old" / "environment.json"
    facts = json.loads(path.read_text())
    facts["data"]["store"] = "0123456789abcdef"
    path.write_text(json.dumps(facts))
    assert ["0123456789abcdef" in line for line in refused(runs, [linear], [old])] == [True]
    path.unlink()
    assert ["environment.json" in line for line in refused(runs, [linear], [old])] == [True]


def test_a_baseline_is_one_arm_and_whole(runs: Path, tmp_path: Path) -> None:
    linear, metric = (paths(runs, arm) for arm in ARMS)
    assert "several arms (linear_seed0, metric_seed0)" in refused(runs, [linear[0], metric[0]], [metric[1]])[0]
    assert "give it with --baseline" in refused(runs, [linear[0]], [metric[0], linear[1]])[0]
    guest = tmp_path / "guest"
    shutil.copytree(Path(metric[0]) / "checkpoints" / f"step_{STEPS:08d}", guest)
    assert "belongs to no run" in refused(runs, [linear[0]], [str(guest)])[0]


def test_a_bad_command_ends_with_status_2_and_writes_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear = paths(runs, "linear")[0]
    command = ["--baseline", linear, "--candidate", linear, "--out", str(runs / "never"), "--documents", "1"]
    assert exit_status(lambda: main(command)) == 2
    assert capsys.readouterr() == ("", "error: --documents is 1; give a whole number from 2\n")
    assert not (runs / "never").exists()
