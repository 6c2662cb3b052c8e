"""The benchmark of heads and objectives: it measures every one there is, and what training does."""

import json

import pytest
import torch

from benchmarks.arms import BASELINE, HEAD_OPTIONS, OBJECTIVE_OPTIONS, Arm, arms, main, model_of
from common.command import exit_status
from model import HEADS, OBJECTIVES
from model.chunked import chunked_loss

ARMS = list(arms())


def test_every_head_and_every_objective_is_an_arm_and_none_twice():
    assert {arm.head for arm in ARMS} == set(HEADS)
    assert {arm.objective for arm in ARMS} == set(OBJECTIVES)
    names = [arm.name for arm in ARMS]
    assert len(set(names)) == len(names)
    assert ARMS[0] == BASELINE
    assert set(HEAD_OPTIONS) <= set(HEADS)
    assert set(OBJECTIVE_OPTIONS) <= set(OBJECTIVES)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_what_is_measured_has_a_gradient_for_everything_but_an_idle_auxiliary(arm):
    h_BTD, y_BT = torch.randn(1, 12, 8), torch.arange(12)[None]
    model = model_of(arm, h_BTD, 20)
    loss = model(input_ids=y_BT, shift_labels=y_BT, skip_logits=True).loss
    assert bool(loss.isfinite())
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    without = {n for n, g in zip(names, found, strict=True) if g is None or not bool(g.any())}
    assert without <= ({"lm_head.auxiliary"} if arm.objective == "ce" else set())


def test_the_baseline_is_the_loss_that_is_said():
    h_BTD, y_BT = torch.randn(1, 12, 8), torch.arange(12)[None]
    model = model_of(BASELINE, h_BTD, 20)
    expected = chunked_loss(model.lm_head, model.objective, h_BTD[0], y_BT[0]).objective_sum / 12
    assert torch.equal(model(input_ids=y_BT, shift_labels=y_BT, skip_logits=True).loss, expected)


def test_options_are_in_the_name():
    assert Arm("cosine", "ce", {"learn_scale": True}, {"label_smoothing": 0.1}).name == (
        "cosine learn_scale + ce label_smoothing=0.1"
    )


def test_all_of_it_is_measured_and_written(tmp_path, monkeypatch, capsys):
    out = tmp_path / "arms.json"
    monkeypatch.setattr("sys.argv", ["arms", "--shapes", "24,4,40", "--rounds", "6", "--out", str(out)])
    assert exit_status(main) == 0
    (found,) = json.loads(out.read_text())["shapes"]
    assert (found["N"], found["D"], found["V"], found["rounds"]) == (24, 4, 40, 6)
    assert [one["name"] for one in found["arms"]] == [arm.name for arm in ARMS]
    said = capsys.readouterr().out
    for one in found["arms"]:
        assert one["name"] in said
        assert 0 < one["time_ratio"]["low"] <= one["time_ratio"]["middle"] <= one["time_ratio"]["high"]
        assert one["extra_bytes"] > 0
    assert found["arms"][0]["memory_ratio"] == 1


@pytest.mark.parametrize(("options", "named"), [(["--shapes", "12,x"], "--shapes"), (["--rounds", "3"], "--rounds")])
def test_wrong_values_are_one_line(options, named, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["arms", *options])
    assert exit_status(main) == 2
    assert capsys.readouterr().err.startswith(f"error: {named}: ")
