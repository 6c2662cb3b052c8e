"""Objectives that learn a level from the steps before: their loss against naive float64 definitions, the level in real runs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from configs.load import load_config
from model import OBJECTIVES, load_model
from model.chunked import chunked_loss
from record.checkpoints import list_checkpoints
from training.loop import run_training

from ..conftest import rows_of
from . import naive
from .conftest import SHORT
from .test_objectives import SHAPES, assert_same, data, gradients, make, naive_logits

KINDS = {"tfsd_quantile": {"quantile": 0.4, "margin": 0.5}, "tfsd_held": {"weight": 0.2}}


def raised(z_NV, y_N, level):
    """KL(Q || P), where Q's true logit is log Z + level, unless P's is higher; Q detached."""
    true_N = z_NV[torch.arange(len(y_N)), y_N]
    level_N = torch.maximum(z_NV.logsumexp(1) + level, true_N).detach()
    return naive.tfsd(z_NV - level_N[:, None], y_N)


@pytest.mark.parametrize("head_kind", ["linear", "metric"])
@pytest.mark.parametrize("kind", KINDS)
@given(**SHAPES, spread=st.sampled_from([0.01, 0.3, 1.0]), level=st.sampled_from([-3.0, -0.7, 0.4]))
def test_value_and_gradient_are_those_of_the_kl_divergence(kind, head_kind, V, D, N, seed, spread, level):
    head, objective = make(head_kind, kind, D, V, {}, KINDS[kind])
    objective.state.move_to(torch.tensor([level]))
    level = float(objective.relative_level())  # as a float32, plus the margin
    h_ND, y_N = data(V, D, N, seed, head, spread)
    losses = chunked_loss(head, objective, h_ND, y_N)
    expected = raised(naive_logits(head, h_ND), y_N, level).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-8, atol=1e-10)
    assert_same(gradients(losses.objective_sum, h_ND, head.weight), gradients(expected, h_ND, head.weight), 1e-6, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_reported_moves_the_level_and_what_is_not_finite_does_not(kind):
    """Above the target the level falls, below it rises, by the step times the difference."""
    head, objective = make("metric", kind, 8, 50, {}, KINDS[kind])
    h_ND, y_N = data(50, 8, 40, 0, head, 0.3)
    before = float(objective.state.value)
    found = chunked_loss(head, objective, h_ND, y_N, statistics=True).statistics
    means = {name: value_N.mean() for name, value_N in found.items()}
    name, wanted, step = {
        "tfsd_quantile": ("objective/below_quantile", 0.4, 0.3),
        "tfsd_held": ("objective/weight", 0.2, 1.0),
    }[kind]
    assert float(means["objective/level"]) == pytest.approx(before + KINDS[kind].get("margin", 0))
    objective.after_step(means)
    assert float(objective.state.value) == pytest.approx(before + step * (wanted - float(means[name])))
    after = float(objective.state.value)
    objective.after_step({name: torch.tensor(math.nan)})
    assert float(objective.state.value) == after
    log_p_N = naive_logits(head, h_ND).log_softmax(1)[torch.arange(40), y_N]
    if kind == "tfsd_quantile":
        assert float(means[name]) == pytest.approx(float((log_p_N < before).double().mean()))


def train(recipe, *overrides):
    return run_training(load_config(recipe["path"], [*recipe["overrides"], *SHORT, *overrides]))


@pytest.fixture
def runs(recipe):
    def start(name, kind, *overrides):
        options = [f"objective.{key}={value}" for key, value in KINDS[kind].items()]
        assert train(recipe, f"name={name}", f"objective.kind={kind}", *options, *overrides) == 0

    return start


@pytest.mark.parametrize("kind", KINDS)
def test_the_level_is_in_the_checkpoint_and_a_run_goes_on_to_the_bit(kind, runs, tmp_path):
    runs("whole", kind)
    runs("parts", kind, f"branch_from={tmp_path}/whole@8")
    rows = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "parts") == rows[8:]
    levels = [row["objective/level"] for row in rows]
    assert len(set(levels)) == 12
    objective = load_model(list_checkpoints(tmp_path / "whole")[0]).objective
    assert float(objective.relative_level()) == pytest.approx(levels[8], rel=1e-6)


def test_held_means_held(runs, tmp_path):
    runs("held", "tfsd_held", "train.steps=60")
    weights = [row["objective/weight"] for row in rows_of(tmp_path / "held")[-20:]]
    assert sum(weights) / 20 == pytest.approx(0.2, abs=0.01)


def test_another_objective_begins_anew(recipe, runs, tmp_path):
    """A branch of a run with another objective has a level of its own, from its start; one of the other kind leaves it."""
    assert train(recipe, "name=ce", "objective.kind=ce") == 0
    runs("held", "tfsd_held", f"branch_from={tmp_path}/ce@8")
    assert rows_of(tmp_path / "held")[0]["objective/level"] == pytest.approx(math.log(0.2 / 0.8), rel=1e-6)
    assert train(recipe, "name=back", "objective.kind=ce", f"branch_from={tmp_path}/held@12", "train.steps=16") == 0
    assert "objective/level" not in rows_of(tmp_path / "back")[0]
    assert load_model(list_checkpoints(tmp_path / "back")[-1]).objective.state is None


def test_without_telemetry_there_is_nothing_to_learn_from(recipe, tmp_path):
    with pytest.raises(
        InputError, match=r"objective.kind: tfsd_held learns from the statistics of the logits; measure logits"
    ):
        train(recipe, "objective.kind=tfsd_held", "telemetry.enabled=false")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("tfsd_quantile", {"quantile": 1.0}, "quantile must be between 0 and 1, not 1.0"),
        ("tfsd_quantile", {"margin": -1.0}, "margin must be from 0 to 100, not -1.0"),
        ("tfsd_held", {"weight": 0.0}, "weight must be between 0 and 1, not 0.0"),
    ],
)
def test_options_that_make_no_loss_are_refused(kind, options, expected):
    with pytest.raises(ValueError, match=expected):
        OBJECTIVES[kind].Options(**options)
