"""Probes: the command on real runs, calibration against its definition, and probes of a user's own."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from analysis.compare.arms import Arm, find_arms, load_member, untrained_arm
from analysis.compare.reliability import calibration_error, error_if_calibrated
from analysis.compare.text import open_text
from analysis.probes.__main__ import main
from analysis.probes.calibration import FITTED, Calibration, _Sample
from analysis.probes.compare import comparisons
from analysis.probes.evaluate import evaluate, last_points
from analysis.probes.kinds import PROBES
from analysis.probes.over_training import Point, points_of
from analysis.show import style
from analysis.show.text import estimate
from common.errors import InputError
from common.registry import checked_options
from tests.analysis.guests import other_bpe
from tests.analysis.trained import write_training
from tests.conftest import ROOT

COPY = ("copying", "--plugins", str(ROOT / "tests" / "plugins" / "copying.py"), "--set", "sequences=3")
"""A probe with few measures."""


@pytest.fixture(autouse=True)
def registry_as_before():
    before = dict(PROBES)
    yield
    PROBES.clear()
    PROBES.update(before)


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two seeds of one arm and three of another, all with two checkpoints; the third has no partner."""
    folder = tmp_path_factory.mktemp("probes")
    made = [write_training(corpus, folder, "plain", seed=seed, steps=[10, 20]) for seed in (0, 1)]
    made += [write_training(corpus, folder, "bent", seed=seed, steps=[10, 20], head="metric") for seed in (0, 1, 2)]
    return [str(run) for run in made]


@pytest.fixture(scope="module")
def table(runs: list[str]) -> pd.DataFrame:
    """The values of all runs at their last checkpoints, and of the first before training."""
    return values(
        runs, lambda arms: last_points([*arms, untrained_arm(arms[0], arms)]), windows=6, bins=4, frequency_bins=3
    )


@pytest.fixture(scope="module")
def copied(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the command writes and prints, of a plug-in."""
    folder = tmp_path_factory.mktemp("copied")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*COPY, *runs, "--out", str(folder)])
    return folder, printed.getvalue()


def values(
    runs: list[str], points: Callable[[Sequence[Arm]], list[Point]] = last_points, **options: int
) -> pd.DataFrame:
    """What the command measures, without its files."""
    arms = find_arms(runs)
    return evaluate(Calibration(checked_options(Calibration, options)), points(arms), open_text(arms), seed=0).table


def test_every_value_is_that_of_the_definition_in_float64(runs, table):
    arms = find_arms(runs)
    x_BT, y_BT = open_text(arms).windows(6, seed=0)
    for member in (member for arm in arms for member in arm.members):
        model = load_member(member).double()
        with torch.no_grad():
            p_NV = model(input_ids=torch.from_numpy(x_BT)).logits.softmax(-1).flatten(0, 1).numpy()
        true_N = y_BT.ravel()
        one_hot_NV = np.eye(p_NV.shape[1])[true_N]
        right_N, top_N = p_NV.argmax(1) == true_N, p_NV.max(1)
        order = np.array_split(np.argsort(top_N, kind="stable"), 4)
        expected = {
            "nll": np.mean(-np.log(p_NV[np.arange(len(true_N)), true_N])),
            "entropy": np.mean(-(p_NV * np.log(p_NV)).sum(1)),
            "accuracy": right_N.mean(),
            "confidence": top_N.mean(),
            "ece": sum(len(b) * abs(right_N[b].mean() - top_N[b].mean()) for b in order) / len(true_N),
            "brier": np.mean(((p_NV - one_hot_NV) ** 2).sum(1)),
        }
        own = table[table["run"] == member.label]
        for key, value in expected.items():
            assert own["value"][own["measure"] == key].item() == pytest.approx(value, rel=1e-5), key
        by_bin = own[own["measure"] == "accuracy_by_bin"]
        assert list(by_bin["index"]) == [0, 1, 2, 3]
        np.testing.assert_allclose(by_bin["value"], [right_N[b].mean() for b in order], rtol=1e-5)


def test_the_temperature_is_the_best_of_one_half_and_measured_on_the_other(runs, table):
    from scipy.optimize import minimize_scalar

    arms = find_arms(runs)
    x_BT, y_BT = open_text(arms).windows(6, seed=0)
    for member in (member for arm in arms for member in arm.members):
        with torch.no_grad():
            z_BTV = load_member(member).double()(input_ids=torch.from_numpy(x_BT)).logits

        def predicted(half, t, z_BTV=z_BTV):
            """NLL, confidence and whether right at temperature ``t``, of the windows of one half."""
            p_NV = (z_BTV[half::2] / t).softmax(-1).flatten(0, 1).numpy()
            y_N = y_BT[half::2].ravel()
            return -np.log(p_NV[np.arange(len(y_N)), y_N]).mean(), p_NV.max(1), p_NV.argmax(1) == y_N

        best = minimize_scalar(lambda t, of=predicted: of(0, t)[0], bounds=(1 / 64, 64), options={"xatol": 1e-9}).x
        own = table[table["run"] == member.label].set_index("measure")["value"]
        assert own["temperature"] == pytest.approx(best, rel=1e-4)
        for name, t in (("held", 1.0), ("tempered", best)):
            nll, top_N, right_N = predicted(1, t)
            assert own[f"nll_{name}"] == pytest.approx(nll, rel=1e-5)
            assert own[f"ece_{name}"] == pytest.approx(calibration_error(top_N, right_N, 4), rel=1e-4, abs=1e-6)
        top_N = (z_BTV.softmax(-1)).amax(-1).flatten().numpy()
        assert own["ece_if_calibrated"] == pytest.approx(error_if_calibrated(top_N, 4, seed=0), rel=1e-4)


def test_bins_by_frequency_hold_what_is_rare_first(runs, table):
    arms = find_arms(runs)
    text = open_text(arms)
    x_BT, y_BT = text.windows(6, seed=0)
    count_V = np.array([(np.asarray(text.store.train.ids) == k).sum() for k in range(text.store.vocab_size)])
    rare_first = np.array_split(np.argsort(count_V[y_BT].ravel(), kind="stable"), 3)
    member = arms[0].members[0]
    with torch.no_grad():
        p_NV = load_member(member).double()(input_ids=torch.from_numpy(x_BT)).logits.softmax(-1).flatten(0, 1).numpy()
    nll_N, top_N, guess_N = -np.log(p_NV[np.arange(len(p_NV)), y_BT.ravel()]), p_NV.max(1), p_NV.argmax(1)
    right_N = guess_N == y_BT.ravel()
    rare_guess_first = np.array_split(np.argsort(count_V[guess_N], kind="stable"), 3)
    expected = {
        "nll_by_frequency": [nll_N[at].mean() for at in rare_first],
        "count_by_frequency": [count_V[y_BT].ravel()[at].mean() for at in rare_first],
        "ece_by_frequency": [calibration_error(top_N[at], right_N[at], 4) for at in rare_first],
        "ece_by_guess_frequency": [calibration_error(top_N[at], right_N[at], 4) for at in rare_guess_first],
        "ece_by_guess_frequency_if_calibrated": [error_if_calibrated(top_N[at], 4, seed=0) for at in rare_guess_first],
    }
    for key, values in expected.items():
        own = table[(table["run"] == member.label) & (table["measure"] == key)]
        np.testing.assert_allclose(own["value"], values, rtol=1e-4, atol=1e-6, err_msg=key)


def test_a_temperature_is_fitted_on_positions_at_equal_distances():
    """Of three windows of 2051 positions, every fourth in all."""
    z_BTV, y_BT = torch.randn(3, 2051, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 2051).long()
    assert -(-y_BT.numel() // FITTED) == 4
    sample = _Sample(y_BT.numel())
    for z_TV, y_T in zip(z_BTV, y_BT, strict=True):
        sample.add(z_TV, y_T[:, None])
    expected = -(2 * z_BTV.double().flatten(0, 1)[::4]).log_softmax(-1)[:, 0].mean()
    assert sample.nll(0.5) == pytest.approx(float(expected), rel=1e-12)


def test_a_single_window_leaves_none_to_measure_the_temperature_on(runs):
    own = values(runs[:1], windows=1).set_index("measure")["value"]
    assert own[["nll_held", "nll_tempered", "ece_held", "ece_tempered"]].isna().all()
    assert np.isfinite(own[["temperature", "nll", "ece", "ece_if_calibrated"]]).all()


def test_means_and_paired_differences_are_those_of_the_seeds(copied):
    from scipy.stats import ttest_rel

    table = pd.read_csv(copied[0] / "values.csv")
    summary = json.loads((copied[0] / "summary.json").read_text())
    gain = {arm: rows.set_index("seed")["value"] for arm, rows in table[table["measure"] == "gain"].groupby("arm")}
    found = {one["arm"]: one for one in summary["arms"] if one["measure"] == "gain"}
    assert found["plain"]["difference"] is None
    assert found["bent"]["mean"]["mean"] == pytest.approx(gain["bent"].mean())
    assert found["bent"]["mean"]["n"] == 3
    difference = found["bent"]["difference"]
    test = ttest_rel(gain["bent"][[0, 1]], gain["plain"][[0, 1]]).confidence_interval()
    assert difference["n"] == 2, "seed 2 has no partner"
    assert (difference["low"], difference["high"]) == pytest.approx((test.low, test.high))
    assert found["untrained"]["mean"]["low"] is None
    assert summary["options"] == {"sequences": 3}
    assert summary["measures"]["gain"]["unit"] == "nats/token"


@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=12, unique=True))
def test_the_interval_over_seeds_is_students(values):
    from scipy.stats import ttest_1samp

    from analysis.compare.statistics import mean_over_seeds

    effect, expected = mean_over_seeds(values), ttest_1samp(values, 0).confidence_interval()
    assert (effect.low, effect.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)


def test_over_training_every_checkpoint_has_its_values(runs):
    table = values(runs[:3], points_of, windows=2)
    points = table[table["measure"] == "nll"]
    assert [list(own["tokens"]) for _, own in points.groupby("run")] == [[0, 160, 320]] * 3
    last = points[(points["arm"] == "plain") & (points["step"] == 20)]["value"].mean()
    assert next(iter(comparisons(table, Calibration.measures)))["mean"].mean == pytest.approx(last)


def test_the_figure_has_a_panel_a_measure_and_a_line_an_arm(table):
    from analysis.probes.figure import probe_figures

    with style.look():
        figures = probe_figures(table, Calibration.measures, "title", lambda along: ())
    panels = {axes.get_title(loc="left"): axes for figure in figures.values() for axes in figure.axes}
    assert list(panels) == [m.key for m in Calibration.measures]
    for figure in figures.values():
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "bent", "untrained"]


def test_a_diverged_model_is_named_and_has_no_values(runs, tmp_path, capsys):
    run = tmp_path / "plain_seed0"
    shutil.copytree(runs[0], run)
    weights = run / "checkpoints" / "step_00000020" / "model.safetensors"
    tensors = load_file(weights)
    save_file({key: torch.full_like(t, torch.nan) for key, t in tensors.items()}, weights, metadata={"format": "pt"})
    main([*COPY, str(run), "--out", str(tmp_path / "out")])
    assert "plain_seed0 step 20 (320 tokens) has diverged" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "values.csv")
    assert table["value"].isna().equals(table["diverged"])


def test_a_plug_in_probe_is_one_short_file(copied, capsys):
    folder, printed = copied
    assert "gain (nats/token)" in printed
    assert (folder / "probe.png").stat().st_size > 0
    table = pd.read_csv(folder / "values.csv").query("arm == 'plain' and seed == 1").set_index("measure")["value"]
    assert table["gain"] == pytest.approx(table["first"] - table["second"])
    assert len(table["by_position"]) == 15
    main(["--list", *COPY[1:3]])
    assert "by_position" in capsys.readouterr().out


def test_one_that_returns_what_it_does_not_declare_is_refused(runs, tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from analysis.probes.base import PROBES, Measure, Probe\n\n\n"
        "@PROBES.register('wrong')\n"
        "class Wrong(Probe):\n"
        "    measures = (Measure('a', '1', 'a'), Measure('b', '1', 'b', along='bin'))\n\n"
        "    def prepare(self, text, *, seed): return None\n\n"
        "    def measure(self, model, prepared, *, seed): return {'a': 1.0, 'b': 2.0}\n"
    )
    with pytest.raises(InputError, match=r"probe wrong: what measure\(\) returned is not .* \(b\): a number for each"):
        main(["wrong", *runs, "--out", str(tmp_path / "out"), "--plugins", str(wrong)])
    assert not (tmp_path / "out").exists()


def test_arms_without_a_common_seed_have_a_difference_and_no_interval(runs, tmp_path, capsys):
    main([*COPY, runs[0], runs[1], runs[4], "--out", str(tmp_path), "--no-untrained"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    plain, bent = (one for one in summary["arms"] if one["measure"] == "gain")
    values = pd.read_csv(tmp_path / "values.csv").query("measure == 'gain'").groupby("arm")["value"].mean()
    assert (plain["paired"], bent["paired"]) == (None, False)
    assert bent["difference"]["mean"] == pytest.approx(values["bent_seed2"] - values["plain"])
    assert (plain["mean"]["n"], bent["difference"]["low"]) == (2, None)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (cells,) = (line for line in lines[lines.index(["gain"]) :][:3] if line[0] == "bent_seed2")
    mean, difference = (estimate(one, None, None) for one in (values["bent_seed2"], bent["difference"]["mean"]))
    assert [cell.lstrip("+") for cell in cells[1:]] == ["1", mean, difference], "no pairs"


def test_rows_that_pad_the_vocabulary_are_no_divergence(corpus, tmp_path):
    """Their logits are -inf, and every value is that of a model without them."""
    run = write_training(corpus, tmp_path, "padded", seed=0, steps=[10])
    checkpoint = run / "checkpoints" / "step_00000010"
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    for key, t in tensors.items():
        if len(t) == config["text_config"]["vocab_size"]:
            tensors[key] = torch.cat([t, torch.ones(7, *t.shape[1:])])
    padded = tmp_path / "other" / "padded_seed0"
    shutil.copytree(run, padded)
    config |= {"n_classes": config["text_config"]["vocab_size"]}
    config["text_config"]["vocab_size"] += 7
    (padded / "checkpoints" / "step_00000010" / "config.json").write_text(json.dumps(config))
    save_file(tensors, padded / "checkpoints" / "step_00000010" / "model.safetensors", metadata={"format": "pt"})
    tables = [values([str(one)], windows=2) for one in (run, padded)]
    assert not tables[1]["diverged"].any()
    np.testing.assert_allclose(tables[0]["value"], tables[1]["value"], rtol=1e-6)


def test_more_windows_than_there_are_is_said(runs, capsys):
    Calibration(Calibration.Options(windows=100_000)).prepare(open_text(find_arms(runs[:1])), seed=0)
    assert "note: 100000 windows were requested; the validation split has" in capsys.readouterr().err


def test_seeds_that_agree_by_chance_leave_no_interval():
    from analysis.compare.statistics import mean_over_seeds

    assert mean_over_seeds([0.25, 0.25]).low is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibratoin"], "; did you mean calibration?"),
        (["calibration", "--set", "window=3"], "--set window: no option of the kind calibration, it has windows"),
        (["calibration", "--set", "bins=1"], "--set bins: input should be greater than or equal to 2, but is 1"),
        (["calibration", "--set", "bins"], "--set bins: an override has the form key.sub=value"),
        (["calibration", "--seed", "-1"], "--seed is -1; give a whole number from 0"),
    ],
)
def test_mistakes_are_told_in_a_line(runs, tmp_path, arguments, message):
    with pytest.raises(InputError) as caught:
        main([arguments[0], *runs, "--out", str(tmp_path / "out"), *arguments[1:]])
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_guest_with_other_tokens_is_refused(runs, tmp_path):
    guest = tmp_path / "guest"
    shutil.copytree(Path(runs[0]) / "checkpoints" / "step_00000010", guest)
    other_bpe().save_pretrained(guest)
    with pytest.raises(InputError, match="its tokenizer is not that of the text"):
        main(["calibration", runs[0], str(guest), "--out", str(tmp_path / "out")])
