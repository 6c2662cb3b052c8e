"""Remedies in real small runs: at rest they change no bit, stops and replays change none, and in which order they act."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from analysis.replay.rerun import open_replay, replay_to
from common.errors import InputError
from configs.load import load_config
from record.finished import load_run
from stability.intervene.base import Action, Intervention
from tests.conftest import ROOT, events_of, rows_of
from tests.training.built import built
from train_lm import train
from training.run import attach_interventions
from training.step import training_step

PLUGINS = f"plugins=[{ROOT}/tests/plugins/white_noise.py, {ROOT}/tests/stability/intervene/broken_gradient.py]"
AT_REST = {
    "clip_norm": "max_norm: 1e30",
    "zclip": "threshold: 1e30, warmup: 2, max_norm: null",
    "adagc": "factor: 1e30, warmup: 3, max_norm: 1e30",
    "agc": "ratio: 1e30",
    "skip_step": "sigmas: 1e30, window: 8",
    "spam": "threshold: 1e30, pause: 1, every: null",
    "stable_adamw": "threshold: 1e30",
    "clip_update_norm": "sigmas: 1e30, window: 4",
    "reset_moments": "sigmas: 1e30, window: 8",
    "rewarm": "at: [1000], steps: 5",
    "safe_step": "least: -1e30",
}
NEVER_CLIPPED = "optimizer.clip_norm=null"


def short_run(recipe, *overrides):
    """Rows, parameters and moments after a few steps."""
    run = built(recipe, NEVER_CLIPPED, *overrides)
    for step in range(1, 11):
        training_step(run, step)
    rows = [{k: v for k, v in row.items() if "/" not in k or k.split("/")[0] not in ("intervention", "throughput", "memory")}
            for row in run.recorder.transfer().rows]  # fmt: skip
    moments = [slot for state in run.optimizer.optimizer.state.values() for slot in state.values()]
    return rows, [t.detach().clone() for t in (*run.model.parameters(), *moments)]


@pytest.fixture(scope="module")
def untreated(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untreated")
    return short_run({"path": workspace / "tiny.yaml", "overrides": [f"output_dir={folder}"]})


@pytest.mark.parametrize("kind", AT_REST)
def test_a_remedy_that_never_acts_changes_no_bit(kind, untreated, recipe):
    rows, tensors = short_run(recipe, f"interventions=[{{kind: {kind}, {AT_REST[kind]}}}]")
    assert rows == untreated[0]
    assert all(map(torch.equal, tensors, untreated[1]))


@pytest.fixture
def start(recipe):
    def run(*overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        config = load_config(recipe["path"], [*recipe["overrides"], PLUGINS, NEVER_CLIPPED, *overrides])
        return train(config), Path(config.output_dir) / config.name

    return run


NOISE = "{kind: white_noise, step: 23, steps: 2, std: 0.05}"
ACTING = {
    "norms": (
        "{kind: zclip, warmup: 5, threshold: 1.0, max_norm: null}, {kind: skip_step, window: 16, sigmas: 4.0}",
        NOISE,
        {"zclip/scale": lambda v: v < 0.9, "skip_step/skipped": lambda v: v == 1},
    ),
    "tensors": (
        "{kind: agc, ratio: 0.05}, {kind: adagc, warmup: 10}, {kind: spam, threshold: 5.0, pause: 2, every: 22, warmup: 5}, "
        "{kind: stable_adamw}, {kind: rewarm, at: [24], steps: 4}",
        NOISE,
        {
            "agc/kept": lambda v: v < 0.99,
            "adagc/clipped_share": lambda v: v > 0,
            "spam/clipped_share": lambda v: v > 0,
            "stable_adamw/update_scale": lambda v: v < 0.999,
        },
    ),
    "updates": (
        "{kind: clip_update_norm, window: 16, per_rate: false}, {kind: reset_moments, window: 16, cooldown: 2}",
        f"{NOISE}, {{kind: scale_lr, step: 22, factor: 20.0}}",
        {"clip_update_norm/update_scale": lambda v: v < 0.9, "reset_moments/reset": lambda v: v == 1},
    ),
    "safe steps": (
        "{kind: safe_step}, {kind: safe_step, by: logits, quantile: p50, limit: 0.5}",
        "{kind: scale_lr, step: 22, factor: 1000.0}, {kind: scale_lr, step: 25, factor: 30.0}",
        {"safe_step/update_scale": lambda v: v < 0.9, "safe_step-2/update_scale": lambda v: v < 0.9},
    ),
}
"""Interventions, stresses, and what shows that an intervention has acted, by its logged values."""


@pytest.mark.parametrize("group", ACTING)
def test_a_stopped_run_goes_on_and_replays_to_the_bit(group, start):
    interventions, stresses, acted = ACTING[group]
    overrides = ("name=run", f"interventions=[{interventions}]", f"stress=[{stresses}]", "checkpoint.every=20")
    status, run = start(*overrides)
    assert status == 0
    whole = rows_of(run)
    for name, acts in acted.items():
        assert any(acts(row[f"intervention/{name}"]) for row in whole[20:]), name
    shutil.rmtree(run / "checkpoints" / "step_00000030")
    (run / "status.json").unlink()
    assert start(*overrides)[0] == 0
    assert [event["event"] for event in events_of(run)].count("resume") == 1
    assert rows_of(run) == whole
    AcceleratorState._reset_state(reset_partial_state=True)
    replayed = list(replay_to(open_replay(load_run(str(run)), 27), 27))
    assert [row["step"] for row in replayed] == list(range(21, 28))
    for row in replayed:
        assert row.items() <= {**row, **whole[row["step"] - 1]}.items()
        assert row.keys() >= {name for name in whole[20] if name.startswith("intervention/")}


def test_a_gradient_that_is_not_finite_is_skipped_and_poisons_nothing(start):
    """All remedies together: the run lives, and what they keep stays finite."""
    kinds = (
        "{kind: skip_step, window: 16}, {kind: zclip, warmup: 5}, {kind: adagc, warmup: 10}, {kind: agc}, "
        "{kind: spam, pause: 2}, {kind: stable_adamw}, {kind: clip_update_norm, window: 8}, {kind: reset_moments, window: 8}, "
        "{kind: safe_step}, {kind: safe_step, by: logits}"
    )
    status, run = start("name=lives", f"interventions=[{kinds}]", "stress=[{kind: broken_gradient, step: 1}, "
                        "{kind: broken_gradient, step: 14, steps: 2}]")  # fmt: skip
    assert status == 0
    rows = rows_of(run)
    assert [row["step"] for row in rows if row["intervention/skip_step/skipped"]] == [1, 14, 15]
    for row in rows:
        broken = row["step"] in (1, 14, 15)
        assert (row["update_rms/embedding"] == 0) == broken
        assert broken or all(math.isfinite(v) for name, v in row.items() if name.startswith("intervention/"))
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"] - 0.2
    assert all(row["intervention/adagc/clipped_share"] > 0 for row in rows[-5:]), "it goes on acting"


def test_agc_finds_the_units_of_gpt_2(recipe):
    run = built(recipe, "interventions=[{kind: agc}]")
    names = {id(p): name for name, p in run.bare_model().named_parameters()}
    agc = run.interventions["agc"]
    assert {names[i] for i in agc.excluded} == {"model.wte.weight"}, "the head is tied to the embedding"
    columns = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert {names[i] for i in agc.by_column} == {f"model.h.{n}.{c}.weight" for n in (0, 1) for c in columns}


def test_another_optimizer_s_moments_are_refused_before_the_first_step(start):
    plugins = f"plugins=[{ROOT}/tests/plugins/momentum.py]"
    with pytest.raises(InputError, match="interventions: spam works on Adam's moments, which SGD does not have"):
        start("name=other", plugins, "optimizer.kind=sgd", "interventions=[{kind: spam}]")


# ------------------------------------------------------------------------------------------------------------- the order


class Recorder(Intervention):
    """Writes down when it is called and what it finds in one parameter; halves what it may."""

    kind = "recorder"

    def __init__(self, name, scale, book):
        super().__init__(self.Options())
        self.name, self.scale, self.book = name, scale, book

    def note(self, stage, value):
        self.book.append((stage, self.name, value.detach().clone()))

    def on_tensors(self, seen):
        self.note("tensors", seen.parameters[0].grad)
        seen.parameters[0].grad.mul_(2.0)

    def on_gradient(self, seen):
        self.note("gradient", seen.parameters[0].grad)
        assert torch.allclose(seen.gradient_norm_P[0], seen.parameters[0].grad.norm())
        return Action(scale=torch.tensor(self.scale), skip=torch.tensor(seen.step == 2 and self.name == "a"))

    def on_update(self, seen, update):
        self.note("update", seen.parameters[0] - update.before[0])
        return Action(scale=torch.tensor(0.5))

    def on_weights(self, seen, update):
        self.note("weights", seen.parameters[0])
        seen.parameters[0].data.add_(torch.where(update.taken, 1.0, 0.0))


def test_what_acts_when(recipe):
    """As docs/stress-and-remedies.md says: single gradients, the smallest scale, skip, moments, update, weights."""
    run, book = built(recipe, NEVER_CLIPPED), []
    attach_interventions(run, {"a": Recorder("a", 0.5, book), "b": Recorder("b", 0.25, book)})
    parameter = run.telemetry.parameters[0]
    run.optimizer.optimizer.register_step_pre_hook(lambda *_: book.append(("optimizer", "", parameter.grad.clone())))
    before = parameter.detach().clone()
    training_step(run, 1)
    stages = [(stage, name) for stage, name, _ in book]
    each = ("tensors", "gradient", "optimizer", "update", "weights")
    assert stages == [(s, n) for s in each for n in (("a", "b") if s != "optimizer" else ("",))]
    raw, doubled, fourfold, same, clipped, change, half, scaled, moved = (value for _, _, value in book)
    assert torch.equal(doubled, 2 * raw), "the second sees what the first has left of single gradients"
    assert torch.equal(fourfold, 4 * raw)
    assert torch.equal(same, fourfold), "the whole gradient is scaled once all have been asked"
    assert torch.equal(clipped, 0.25 * fourfold), "by the smallest scale, before the moments take it in"
    torch.testing.assert_close(run.optimizer.optimizer.state[parameter]["exp_avg"], 0.1 * clipped)
    torch.testing.assert_close(half, 0.5 * change, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(scaled, before + 0.25 * change, rtol=1e-6, atol=1e-7)
    assert torch.equal(moved, scaled + 1)
    assert torch.equal(parameter, moved + 1)
    after, moments = parameter.detach().clone(), run.optimizer.optimizer.state[parameter]["exp_avg"].clone()
    training_step(run, 2)
    assert torch.equal(parameter, after), "one that skips is enough"
    assert torch.equal(run.optimizer.optimizer.state[parameter]["exp_avg"], moments)
