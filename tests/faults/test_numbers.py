"""Numbers that are not finite, wherever they appear first: no update, no checkpoint, and an event that names the tensor."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import train_lm
import training.loop as loop_module
import training.step as step_module
from common.command import EXIT_DIVERGED, EXIT_FINISHED
from configs.load import load_config
from record.checkpoints import list_checkpoints, step_of
from tests.conftest import events_of, rows_of

BLOCK = "model.h.1.mlp.c_fc.weight"
EMBEDDING = "model.wte.weight"
PLACES = {
    "a gradient": ("gradient", BLOCK, math.nan),
    "the first moment": ("exp_avg", BLOCK, math.nan),
    "the second moment": ("exp_avg_sq", BLOCK, math.inf),
    "a row of the embedding": ("parameter", EMBEDDING, math.inf),
    "a parameter": ("parameter", BLOCK, -math.inf),
}


def plant(run, place, name, value):
    """Put one bad number into the state of a run, as a fault of memory or of a kernel would."""
    parameter = dict(run.bare_model().named_parameters())[name]
    if place == "gradient":
        mask = torch.zeros_like(parameter)
        mask[3, 5] = value
        parameter.register_hook(lambda gradient: gradient + mask)
    else:
        tensor = parameter if place == "parameter" else run.optimizer.optimizer.state[parameter][place]
        with torch.no_grad():
            tensor[3] = value


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("step", [12, 20])
def test_a_bad_number_stops_the_run_before_the_update_and_is_named(place, step, recipe, tmp_path, monkeypatch):
    """Also at a step whose checkpoint is due."""
    kind, name, value = PLACES[place]
    usual, state = loop_module.training_step, {}

    def planting(run, number):
        if number == step:
            plant(run, kind, name, value)
            state["before"] = {n: p.detach().clone() for n, p in run.bare_model().named_parameters()}
        usual(run, number)
        state["after"] = {n: p.detach().clone() for n, p in run.bare_model().named_parameters()}

    monkeypatch.setattr(loop_module, "training_step", planting)
    assert train_lm.train(load_config(recipe["path"], [*recipe["overrides"], "name=run"])) == EXIT_DIVERGED
    assert all(torch.equal(state["before"][n], state["after"][n]) for n in state["before"]), "no update"
    run = tmp_path / "run"
    (event,) = [e for e in events_of(run) if e["event"] == "non_finite"]
    assert event["step"] == step
    assert f"{kind} of {name}" in event["tensors"]
    assert name in json.loads((run / "status.json").read_text())["reason"] or kind == "gradient"
    assert rows_of(run)[-1]["step"] == step
    assert [step_of(c) for c in list_checkpoints(run)] == [s for s in (10, 20, 30) if s < step]
    for checkpoint in list_checkpoints(run):
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert all(bool(v.isfinite().all()) for v in load_file(checkpoint / file).values())


@pytest.mark.parametrize(("step", "found"), [(20, 20), (17, 18)])
def test_a_run_goes_back_before_an_update_that_overflows(step, found, recipe, tmp_path, monkeypatch):
    """Found when its checkpoint is due, before any loss shows it; else at the next step, whose batch is not to blame alone."""
    usual, state = step_module.update, {"faults": 1}

    def overflowing(run, number, edge):
        if run.step == step - 1 and state["faults"]:
            state["faults"] = 0
            for group in run.optimizer.param_groups:
                group["lr"] = 1e38
        return usual(run, number, edge)

    monkeypatch.setattr(step_module, "update", overflowing)
    overrides = ["name=run", "optimizer.weight_decay=100", "interventions=[{kind: rewind, margin: 0}]"]
    assert train_lm.train(load_config(recipe["path"], [*recipe["overrides"], *overrides])) == EXIT_FINISHED
    (back,) = [e for e in events_of(tmp_path / "run") if e["event"] == "rewind"]
    assert (back["from_step"], back["to_step"], back["skipped"]) == (20, 10, [[step, found]])
    assert back["cause"]["signal"] == "non_finite"
    drawn = [*range(1, step), *range(found + 1, found + 32 - step)]
    assert [row["data/batch"] for row in rows_of(tmp_path / "run")] == drawn


def test_an_update_that_overflows_is_not_kept(recipe, tmp_path):
    """The step was sound and what it made was not: no checkpoint of it."""
    overrides = [*recipe["overrides"], "name=run", "optimizer.lr=1e38", "optimizer.warmup_steps=0"]
    config = load_config(
        recipe["path"], [*overrides, "optimizer.weight_decay=100", "checkpoint.every=1", "train.steps=3"]
    )
    assert train_lm.train(config) == EXIT_DIVERGED
    (event,) = [e for e in events_of(tmp_path / "run") if e["event"] == "non_finite"]
    assert event["step"] == 1
    assert any(name.startswith("parameter of ") for name in event["tensors"])
    assert "after its update; no checkpoint was written" in (tmp_path / "run" / "status.json").read_text()
    assert list_checkpoints(tmp_path / "run") == []
