"""The command on a real run, and the parts of its verdict."""

import json
import math
import shutil

import pytest
from accelerate.state import AcceleratorState

from analysis.step import __main__ as command
from analysis.step.__main__ import _told
from analysis.step.measure import Point, safe_multiple
from analysis.step.signals import nearness, predictions
from common.command import exit_status
from configs.load import load_config
from train_lm import train

PULSE = "stress=[{kind: scale_lr, step: 16, factor: 100.0}]"


@pytest.fixture(scope="module")
def run(workspace, tmp_path_factory):
    AcceleratorState._reset_state(reset_partial_state=True)
    out = tmp_path_factory.mktemp("edge")
    overrides = [f"output_dir={out}", "name=pulse", PULSE, "train.micro_batch_size=4", "body.resid_pdrop=0.1"]
    assert train(load_config(workspace / "tiny.yaml", overrides)) == 0
    return out / "pulse"


def measured(run, step, out):
    assert exit_status(lambda: command.main([str(run), "--step", str(step), "--out", str(out)])) == 0
    assert (out / "figure.png").stat().st_size > 10_000
    return json.loads((out / "step.json").read_text())


def test_a_step_that_is_far_too_large_is_seen_and_the_one_before_is_not(run, tmp_path, capsys):
    calm, wild = (measured(run, step, tmp_path / str(step)) for step in (15, 16))
    assert calm["reproduced"] and wild["reproduced"]
    assert calm["safe_multiple"] > 1 > wild["safe_multiple"]
    for name in ("curvature/along_step", "edge/logit_change_p50"):
        assert calm["predicted"][name] > 1 > wild["predicted"][name], name
    assert wild["signals"]["edge/kappa"] == wild["row"]["edge/kappa"] < 0, "it raised the loss of its own batch"
    assert {"gradient/cosine_with_last", "update/cosine_with_last", "gradient/change"} <= calm["signals"].keys()
    assert calm["signals"]["curvature/sharpness_of_nll"] > 0, "TFSD has no Hessian"
    assert "curvature/sharpness" not in calm["signals"]
    rms = [value for name, value in calm["row"].items() if name.startswith("adam_rms/")]
    assert calm["signals"]["adam_rms/max"] == max(rms)
    assert "replayed to the bit" in capsys.readouterr().out
    start, *_ = calm["line"]
    assert start["multiple"] == 0
    whole = next(point for point in calm["line"] if point["multiple"] == 1)
    change = whole["objective"] - start["objective"]
    assert change == pytest.approx(calm["row"]["edge/kappa"] * calm["row"]["edge/promised"], rel=2e-3)


def test_the_first_step_has_no_steps_before_it(run, tmp_path):
    first = measured(run, 1, tmp_path / "first")
    assert "update/cosine_with_last" not in first["signals"]
    assert first["checkpoint"] == 0


def test_the_loss_is_back_between_two_points():
    def line(*values):
        return [Point(multiple, value, 0.0) for multiple, value in zip((0.0, 0.25, 0.5, 1.0, 2.0), values, strict=True)]

    assert safe_multiple(line(1, 0.9, 0.8, 0.9, 1.1)) == pytest.approx(2**0.5)
    assert safe_multiple(line(1, 0.9, 0.8, 0.7, 0.6)) == math.inf
    assert safe_multiple(line(1, 1.1, 0.8, 0.7, 0.6)) == 0
    assert safe_multiple(line(1, 0.9, math.nan, 0.7, 0.6)) == 0.25
    assert safe_multiple(line(1, 0.9, math.inf, 0.7, 0.6)) == 0.25


def test_what_a_signal_predicts():
    said = predictions(
        {"edge/kappa": 0.75, "curvature/sharpness": -1.0, "edge/logit_change_max": None, "adam_rms/max": 3}
    )
    assert said == {"edge/kappa": 4.0, "curvature/sharpness": math.inf, "edge/logit_change_max": None}
    assert predictions({"edge/kappa": 1.5}) == {"edge/kappa": math.inf}
    assert nearness("edge/kappa", -2.0) > nearness("edge/kappa", 1.0)
    assert nearness("adam/sign_like", 0.5) > nearness("adam/sign_like", 0.1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--step", "99"], "--step 99: the run {run} has logged steps 1 to 30"),
        (["--step", "5", "--sequences", "0"], "--sequences is 0; give a whole number from 1"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, capsys, options, told):
    assert exit_status(lambda: command.main([str(run), "--out", str(tmp_path / "o"), *options])) == 2
    assert capsys.readouterr().err == f"error: {told.format(run=run)}\n"
    assert not (tmp_path / "o").exists()


def test_a_run_that_did_not_measure_its_updates_is_refused(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("  - updates\n", ""))
    assert exit_status(lambda: command.main([str(other), "--out", str(tmp_path / "o"), "--step", "5"])) == 2
    told = "telemetry measures no updates there; this needs a run that does"
    assert capsys.readouterr().err == f"error: {other}: {told}\n"


def test_what_lies_below_the_multiples_tried_is_not_called_zero():
    assert _told(0.0, 0.0, 0.25).startswith("already at 0.25 times the step, the least that was tried")
    assert _told(0.32, 0.25, 0.25).endswith(
        "at 0.320 times the step; of the multiples tried, lowest at 0.25 times, or below"
    )
    assert _told(math.inf, 4.0, 0.25).endswith("at no multiple tried; of the multiples tried, lowest at 4 times")
