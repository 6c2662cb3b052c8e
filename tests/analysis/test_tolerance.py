from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.text import Text

from analysis.compare.arms import find_arms
from analysis.probes.over_training import mean_over_runs, points_of
from analysis.show import style
from analysis.synonyms.build_study import build_study
from analysis.synonyms.encode import encode_study
from analysis.synonyms.measure_models import encode_for, evaluate, open_data
from analysis.synonyms.options import Settings
from analysis.synonyms.study import Study
from analysis.tolerance.__main__ import main, over_training, printed
from analysis.tolerance.figure import draw_tolerance
from analysis.words.pair_lists import MIN_SIMILARITY
from common.errors import InputError
from model import load_model

from .trained import TOKENS_PER_STEP, write_pairs, write_training

CONTEXTS = "6"


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one arm, the second without its checkpoint of step 20, and a run of another arm with one checkpoint."""
    folder = tmp_path_factory.mktemp("tolerance")
    return [
        write_training(corpus, folder, "plain", seed=0, steps=[10, 20, 30]),
        write_training(corpus, folder, "plain", seed=1, steps=[10, 30]),
        write_training(corpus, folder, "bent", seed=0, steps=[30], head="metric", c=True),
    ]


@pytest.fixture(scope="module")
def out(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote of them."""
    folder = tmp_path_factory.mktemp("out")
    pairs = write_pairs(folder)
    main([*map(str, runs), "--out", str(folder), "--pairs", str(pairs), "--contexts-per-word", CONTEXTS])
    return folder


@pytest.fixture(scope="module")
def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "tolerance.csv")


@pytest.fixture(scope="module")
def study(runs: list[Path], out: Path) -> Study:
    """The study of the command, built again."""
    settings = Settings(str(out / "pairs.csv"), MIN_SIMILARITY, None, int(CONTEXTS), min_contexts=5, seed=0)
    return build_study(open_data(find_arms([str(runs[0])])), settings)


def test_there_is_a_row_for_every_checkpoint_and_for_each_run_before_training(table: pd.DataFrame) -> None:
    expected = [
        *(("plain", "plain_seed0", 0, step) for step in (0, 10, 20, 30)),
        *(("plain", "plain_seed1", 1, step) for step in (0, 10, 30)),
        *(("bent_seed0", "bent_seed0", 0, step) for step in (0, 30)),
    ]
    assert list(zip(table["arm"], table["run"], table["seed"], table["step"], strict=True)) == expected
    assert (table["tokens"] == TOKENS_PER_STEP * table["step"]).all()


def test_a_row_is_the_result_of_its_checkpoint(runs: list[Path], table: pd.DataFrame, study: Study) -> None:
    arms = find_arms([str(runs[0])])
    data = open_data(arms)
    encoded = encode_for(arms[0].members[0], data, encode_study(study))
    model = load_model(runs[0] / "checkpoints" / "step_00000020")
    result = evaluate(model, encoded, label="naive", entropy=None, seed=0)
    (row,) = table[(table["run"] == "plain_seed0") & (table["step"] == 20)].to_dict("records")
    for key in ("auc", "log_odds", "share_synonym", "share_control", "nll_word", "entropy"):
        for view, column in ((0, key), (1, f"{key}_fitted")):
            of_items = [
                np.mean(result.metrics[key][view][(study.item_M == item) & ~study.shuffled_M], dtype=float)
                for item in range(len(study.items))
            ]
            assert row[column] == pytest.approx(np.mean(of_items), rel=1e-6)
    assert row["distance_ratio"] == pytest.approx(np.mean(result.distance_P))
    assert row["nll"] == pytest.approx(result.nll["raw"])
    assert row["nll_fitted"] == pytest.approx(result.nll["fitted"])
    assert row["nll_fitted"] < row["nll"]


def test_before_training_a_run_has_the_weights_of_its_own_seed(table: pd.DataFrame) -> None:
    # The first checkpoint of these runs holds the weights that their seed gives.
    for _, rows in table.groupby("run"):
        fresh, first = (rows.iloc[place].drop(["arm", "run", "step", "tokens", "tfsd_weight"]) for place in (0, 1))
        assert fresh.to_dict() == pytest.approx(first.to_dict(), rel=1e-6, nan_ok=True)
    starts = table[table["step"] == 0]
    assert starts["log_odds"].nunique() == 3


def test_the_weight_of_tfsd_is_that_of_the_steps_before_the_checkpoint(table: pd.DataFrame) -> None:
    c = table.set_index(["run", "step"])["tfsd_weight"]
    assert c["bent_seed0", 30] == pytest.approx(np.mean(np.arange(11, 31) / 1000))
    assert c.drop(("bent_seed0", 30)).isna().all()


def test_the_mean_over_runs_is_taken_where_all_of_them_have_a_checkpoint(table: pd.DataFrame) -> None:
    plain = table[table["arm"] == "plain"]
    mean = mean_over_runs(plain, "auc")
    assert mean.index.tolist() == [0, 10 * TOKENS_PER_STEP, 30 * TOKENS_PER_STEP]
    last = plain[plain["step"] == 30]["auc"]
    assert len(last) == 2
    assert mean.iloc[-1] == pytest.approx((last.iloc[0] + last.iloc[1]) / 2)


def test_the_summary_names_the_models_and_the_study(out: Path, runs: list[Path]) -> None:
    text = (out / "summary.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    assert [model["step"] for model in found["models"]] == [0, 10, 20, 30, 0, 10, 30, 0, 30]
    assert found["models"][0]["checkpoint"] is None
    assert found["models"][1]["checkpoint"] == str(runs[0] / "checkpoints" / "step_00000010")
    assert found["counts"]["items"] == 3 and found["counts"]["contexts"] == 6 * int(CONTEXTS)
    assert found["settings"]["contexts_per_word"] == int(CONTEXTS)
    assert found["left_out"][0]["name"] == "river/zymurgy"
    assert set(found["views"]) == {"raw", "fitted"}


def test_the_printed_table_has_first_middle_and_last_and_fits_a_terminal(table: pd.DataFrame, study: Study) -> None:
    lines = printed(table, study).splitlines()
    assert max(len(line) for line in lines if not line.startswith("word pairs (")) <= 120  # a path is as long as it is
    cells = [line.split()[:3] for line in lines if line.startswith(("plain", "bent"))]
    assert cells == [
        ["plain", "2", "0"],
        ["plain", "2", "160"],
        ["plain", "2", "480"],
        ["bent_seed0", "1", "0"],
        ["bent_seed0", "1", "480"],
    ]


def test_curves_are_the_rows_of_the_table(table: pd.DataFrame, study: Study, out: Path) -> None:
    assert (out / "tolerance.png").read_bytes()[:4] == b"\x89PNG"
    with style.look():
        figure = draw_tolerance(table, study)
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("Log-odds, at the best"))
    curves = [list(zip(*line.get_data(), strict=True)) for line in axes.lines]
    for _, rows in table.groupby("run"):
        assert list(zip(rows["tokens"], rows["log_odds_fitted"], strict=True)) in curves
    for _, rows in table.groupby("arm"):
        assert list(mean_over_runs(rows, "log_odds_fitted").items()) in curves
    words = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "plain (2 seeds)" in words and "bent_seed0 (1 seed)" in words
    assert "3 items (36 contexts" in words
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


@pytest.fixture(scope="module")
def with_diverged(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the command writes and prints where the second checkpoint of the first run holds weights that are NaN."""
    folder = tmp_path_factory.mktemp("diverged")
    broken = folder / runs[0].name
    shutil.copytree(runs[0], broken)
    checkpoint = broken / "checkpoints" / "step_00000020"
    model = load_model(checkpoint)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    model.save_pretrained(checkpoint)
    printed_to = io.StringIO()
    command = [str(broken), str(runs[1]), "--out", str(folder), "--pairs", str(write_pairs(folder))]
    with contextlib.redirect_stdout(printed_to):
        main([*command, "--contexts-per-word", CONTEXTS])
    return folder, printed_to.getvalue()


def test_the_last_checkpoints_alone_have_the_same_values(runs, out, table, tmp_path) -> None:
    settings = ["--pairs", str(out / "pairs.csv"), "--contexts-per-word", CONTEXTS]
    main([str(runs[0]), "--last", "--out", str(tmp_path), *settings])
    expected = table[(table["run"] == "plain_seed0") & (table["step"] == 30)].reset_index(drop=True)
    found = pd.read_csv(tmp_path / "tolerance.csv")
    assert list(found["step"]) == [30]
    pd.testing.assert_frame_equal(found.drop(columns="arm"), expected.drop(columns="arm"), check_dtype=False)


def test_a_checkpoint_that_has_diverged_is_named_and_the_others_are_unchanged(
    with_diverged: tuple[Path, str], table: pd.DataFrame
) -> None:
    folder, text = with_diverged
    assert "plain_seed0 step 20 (320 tokens) has diverged" in text
    found = pd.read_csv(folder / "tolerance.csv")
    here = (found["run"] == "plain_seed0") & (found["step"] == 20)
    assert list(found["diverged"]) == list(here)
    assert found[here].drop(columns=["arm", "run", "seed", "step", "tokens", "diverged"]).isna().all(axis=None)
    as_ever = table[(table["arm"] == "plain") & ~((table["run"] == "plain_seed0") & (table["step"] == 20))]
    pd.testing.assert_frame_equal(found[~here].reset_index(drop=True), as_ever.reset_index(drop=True))
    models = json.loads((folder / "summary.json").read_text())["models"]
    assert [(m["run"], m["step"]) for m in models if m["diverged"]] == [("plain_seed0", 20)]


def test_a_curve_has_a_gap_where_a_run_has_diverged(with_diverged: tuple[Path, str], study: Study) -> None:
    found = pd.read_csv(with_diverged[0] / "tolerance.csv")
    with style.look():
        figure = draw_tolerance(found, study)
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("Log-odds, at the best"))
    rows = found[found["run"] == "plain_seed0"]
    curve = next(line for line in axes.lines if len(line.get_xdata()) == 4)
    np.testing.assert_array_equal(curve.get_xdata(), rows["tokens"])
    np.testing.assert_array_equal(np.isnan(np.asarray(curve.get_ydata())), [False, False, True, False])


def test_a_mean_over_runs_has_no_value_where_one_has_diverged(table: pd.DataFrame) -> None:
    plain = table[table["arm"] == "plain"].copy()
    here = (plain["run"] == "plain_seed1") & (plain["step"] == 10)
    plain.loc[here, ["diverged", "auc"]] = True, np.nan
    mean = mean_over_runs(plain, "auc")
    assert mean.isna().tolist() == [False, True, False]


def test_runs_of_which_nothing_is_left_are_refused(with_diverged: tuple[Path, str], study: Study) -> None:
    arms = find_arms([str(with_diverged[0] / "plain_seed0" / "checkpoints" / "step_00000020")])
    last = points_of(arms)[-1:]
    with pytest.raises(InputError, match="all of these models have diverged"):
        over_training(last, open_data(arms), study, seed=0)


def test_a_quantity_that_no_run_has_gets_no_panel(table: pd.DataFrame, study: Study) -> None:
    def titles(rows: pd.DataFrame) -> str:
        with style.look():
            return " ".join(axes.get_title(loc="left") for axes in draw_tolerance(rows, study).figure.axes)

    assert "TFSD weight" in titles(table)
    assert "TFSD weight" not in titles(table[table["arm"] == "plain"])


def test_of_a_run_that_is_named_by_a_checkpoint_what_comes_after_it_is_left_out(runs: list[Path]) -> None:
    points = points_of(find_arms([str(runs[0] / "checkpoints" / "step_00000020")]))
    assert [point.step for point in points] == [0, 10, 20]


def test_a_checkpoint_that_is_half_written_is_passed_over(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "plain_seed0"
    shutil.copytree(runs[0], run)
    (run / "checkpoints" / "step_00000010" / "model.safetensors").unlink()
    assert [point.step for point in points_of(find_arms([str(run)]))] == [0, 20, 30]


def test_a_run_that_began_from_other_weights_has_no_point_before_training(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "plain_seed0"
    shutil.copytree(runs[0], run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["body"]["checkpoint"] = "elsewhere"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert [point.step for point in points_of(find_arms([str(run)]))] == [10, 20, 30]


def test_what_is_no_run_or_does_not_say_its_tokens_is_refused_with_all_reasons(
    runs: list[Path], tmp_path: Path
) -> None:
    run, guest = tmp_path / "plain_seed0", tmp_path / "guest"
    shutil.copytree(runs[0], run)
    shutil.copytree(runs[0] / "checkpoints" / "step_00000010", guest)
    (run / "checkpoints" / "step_00000020" / "trainer_state.json").write_text('{"step": 20}')
    with pytest.raises(InputError) as error:
        points_of(find_arms([str(guest), str(run)]))
    first, second = error.value.problems
    assert str(guest) in first and "belongs to no run" in first
    assert "step_00000020" in second and "tokens" in second
