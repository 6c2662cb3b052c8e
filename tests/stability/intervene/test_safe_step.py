"""Steps scaled by what they did to their own batch: where they land, in a quadratic and in a real run."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from configs.load import load_config
from stability.intervene.stages import Decisions, on_update
from tests.training.built import built
from training.step import training_step

from .steps import made, seen

FAR = "stress=[{kind: scale_lr, step: 3, factor: 1000.0}]"
MEASURED = "telemetry.edge_every=1"


class Quadratic:
    """The loss p' diag(curvature) p / 2, measured around a step."""

    def __init__(self, curvature, before, now):
        self.curvature, self.before, self.now = curvature, before, now

    def loss(self, point):
        return (self.curvature * point.double().square()).sum() / 2

    def losses(self):
        slope = self.curvature * self.before.double()
        return self.loss(self.before), self.loss(self.now), (slope * (self.now - self.before)).sum()


def stepped(change, *, around, taken=True, **options):
    """The parameter after a change to it, and the scale."""
    parameter = torch.nn.Parameter(around.before + change)
    parameter.grad = torch.zeros_like(change)
    around.now = parameter.detach()
    decisions = Decisions()
    step = seen(1, [parameter])
    on_update(
        {"safe_step": made("safe_step", **options)}, step, [around.before], torch.tensor(taken), decisions, around
    )
    return parameter.detach(), float(decisions.logged["intervention/safe_step/update_scale"])


@given(st.integers(0, 99), st.floats(0.1, 30))
def test_a_step_that_raises_a_quadratic_lands_at_its_lowest_point(seed, multiple):
    generator = torch.Generator().manual_seed(seed)
    before, curvature = torch.randn(6, generator=generator), torch.rand(6, generator=generator).double() + 0.1
    around = Quadratic(curvature, before, None)
    direction = -before * torch.rand(6, generator=generator)  # downhill, but not the steepest way
    lowest = float(-(curvature * before * direction).sum() / (curvature * direction.square()).sum())
    change = (multiple * lowest * direction).float()
    after, scale = stepped(change, around=around)
    if multiple < 1.99:
        assert scale == 1
        assert torch.equal(after, before + change)
    elif multiple > 2.01:
        assert scale == pytest.approx(1 / multiple, rel=1e-3)
        torch.testing.assert_close(after, before + (lowest * direction).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("rose without bound", 0.01), ("not a number", 0.01), ("uphill and rose", 0.01), ("uphill but fell", 1.0)]
    + [("nothing changed", 1.0), ("skipped", 1.0)],
)
def test_what_the_parabola_does_not_decide(kind, scale):
    losses = {
        "rose without bound": (1.0, math.inf, -1.0),
        "not a number": (1.0, math.nan, -1.0),
        "uphill and rose": (1.0, 2.0, 0.5),
        "uphill but fell": (1.0, 0.9, 0.5),
        "nothing changed": (1.0, 1.0, -0.0),
        "skipped": (math.nan, math.nan, math.nan),
    }[kind]
    around = Quadratic(torch.ones(3), torch.ones(3), None)
    around.losses = lambda: tuple(torch.tensor(x, dtype=torch.float64) for x in losses)
    change = torch.zeros(3) if kind in ("nothing changed", "skipped") else torch.tensor([3.0, 0.1, 0.7])
    after, found = stepped(change, around=around, taken=kind != "skipped")
    assert found == pytest.approx(scale)
    assert torch.equal(after, around.before + change) == (scale == 1)


@pytest.mark.parametrize(("spread", "scale"), [(1.0, 1.0), (4.0, 0.25), (math.nan, 0.01), (math.inf, 0.01)])
def test_the_spread_of_the_logits_is_limited(spread, scale):
    around = Quadratic(torch.ones(3), torch.ones(3), None)
    around.logit_changes = lambda: {"p50": torch.tensor(0.1), "p99": torch.tensor(spread), "max": torch.tensor(9.0)}
    _, found = stepped(torch.ones(3), around=around, by="logits", quantile="p99")
    assert found == pytest.approx(scale)


def rows_with(recipe, *overrides):
    run = built(recipe, *overrides)
    for step in (1, 2, 3):
        training_step(run, step)
    return run.recorder.transfer().rows


def test_a_far_too_large_step_does_not_raise_its_own_loss(recipe):
    """The first of three measures what the log of an untreated run has; where the parabola is not enough, the next one is."""
    untreated = rows_with(recipe, MEASURED, FAR)
    rows = rows_with(recipe, MEASURED, FAR, f"interventions=[{', '.join(3 * ['{kind: safe_step}'])}]")
    assert rows[1]["intervention/safe_step/update_scale"] == 1
    assert rows[1]["edge/kappa"] == untreated[1]["edge/kappa"] == rows[1]["intervention/safe_step/kappa"]
    assert rows[2]["intervention/safe_step/kappa"] == pytest.approx(untreated[2]["edge/kappa"], rel=1e-4)
    assert untreated[2]["edge/kappa"] < 0 <= rows[2]["edge/kappa"]
    kappa, scale = (rows[2][f"intervention/safe_step/{name}"] for name in ("kappa", "update_scale"))
    assert scale == pytest.approx(1 / (2 * (1 - kappa)), rel=1e-4)
    assert rows[2]["edge/promised"] > 0.5 * untreated[2]["edge/promised"], "the step that was made is what the log has"


def test_a_far_too_large_step_does_not_move_the_logits_too_far(recipe):
    rows = rows_with(recipe, MEASURED, FAR, "interventions=[{kind: safe_step, by: logits}]")
    spread = rows[2]["intervention/safe_step/spread"]
    assert spread > 10
    assert rows[2]["intervention/safe_step/update_scale"] == pytest.approx(1 / spread, rel=1e-4)
    assert rows[2]["edge/logit_change_max"] < 1


def test_the_slope_is_that_of_the_loss_not_of_what_clipping_leaves(recipe):
    kappas = []
    for limit in ("0.1", "null"):
        (row, *_) = rows_with(recipe, f"optimizer.clip_norm={limit}", "interventions=[{kind: safe_step}]")
        kappas.append(row["intervention/safe_step/kappa"])
    assert kappas[0] == pytest.approx(kappas[1], rel=1e-3)
    assert "edge/kappa" not in row, "measured for the intervention alone"


@pytest.mark.parametrize("options", ["least: -1.0e+30", "by: logits, limit: 1.0e+30"])
@pytest.mark.parametrize(
    "overrides", [("body.resid_pdrop=0.1",), ("telemetry.enabled=false",)], ids=["dropout", "bare"]
)
def test_at_rest_it_changes_no_bit(options, overrides, recipe):
    tensors = []
    for interventions in ("", f"{{kind: safe_step, {options}}}"):
        run = built(recipe, *overrides, f"interventions=[{interventions}]", "train.micro_batch_size=4")
        for step in (1, 2, 3):
            training_step(run, step)
        moments = [slot for state in run.optimizer.optimizer.state.values() for slot in state.values()]
        tensors.append([t.detach().clone() for t in (*run.model.parameters(), *moments)])
        rows = run.recorder.transfer().rows
    assert all(map(torch.equal, *tensors))
    assert all(row["intervention/safe_step/update_scale"] == 1 for row in rows)


def test_options_of_the_other_way_are_refused(recipe):
    with pytest.raises(InputError, match=r"interventions\.0\.least: has no effect with by=logits; leave it out"):
        load_config(recipe["path"], ["interventions=[{kind: safe_step, by: logits, least: 0.1}]"])
