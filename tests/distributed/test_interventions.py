"""Interventions on real ranks: they decide by global values, so that two ranks, sharded or not, do what one does."""

import pytest
from accelerate.state import AcceleratorState

from configs.load import load_config
from tests.conftest import ROOT, rows_of
from train_lm import train

from .ranks import Ranks

KINDS = ", ".join(
    f"{{kind: {kind}}}"
    for kind in (
        "agc, ratio: 0.3",
        "adagc, factor: 1.5, warmup: 10",
        "spam, threshold: 20.0, pause: 2, every: 8, warmup: 4",
        "zclip, warmup: 5, max_norm: null",
        "skip_step, window: 16, sigmas: 2.0, most_in_a_row: 2",
        "stable_adamw",
        "clip_update_norm, window: 4, sigmas: 0.0, per_rate: false",
        "reset_moments, window: 8, sigmas: 1.5, cooldown: 3",
    )
)
DECISIONS = ("skip_step/skipped", "reset_moments/reset")
MEASURES = (
    "agc/kept",
    "adagc/clipped_share",
    "spam/clipped_share",
    "stable_adamw/update_scale",
    "clip_update_norm/update_scale",
)


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_two_ranks_decide_as_one(sharded, recipe, tmp_path):
    # The plug-in draws noise for what it is given: for a shard other noise than for the whole.
    noise = "" if sharded else "{kind: white_noise, step: 14, steps: 2, std: 0.05}"
    overrides = (
        f"plugins=[{ROOT}/tests/plugins/white_noise.py]",
        "optimizer.clip_norm=null",
        f"interventions=[{KINDS}]",
        f"stress=[{noise}]",
        "train.steps=20",
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(load_config(recipe["path"], [*recipe["overrides"], *overrides, "name=one"])) == 0
    ended = Ranks(recipe, "name=two", *overrides, sharded=sharded).wait()
    assert [status for status, _ in ended] == [0, 0], ended
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    for name in DECISIONS:
        decided = [row[f"intervention/{name}"] for row in one]
        assert 0 < sum(decided) < 15, (name, decided)
        assert [row[f"intervention/{name}"] for row in two] == decided, name
    for name in MEASURES:
        measured = [row[f"intervention/{name}"] for row in one]
        assert len(set(measured)) > 2, (name, measured)
        assert [row[f"intervention/{name}"] for row in two] == pytest.approx(measured, rel=1e-2, abs=1e-3), name


@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
def test_two_ranks_measure_their_steps_as_one(sharded, recipe, tmp_path):
    """A rate that is far too high for a while, in several micro-batches and with clipping."""
    overrides = (
        "optimizer.clip_norm=0.5",
        "interventions=[{kind: safe_step}, {kind: safe_step, by: logits, limit: 0.5}]",
        "stress=[{kind: scale_lr, step: 3, steps: 2, factor: 1000.0}]",
        "train.steps=6",
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(load_config(recipe["path"], [*recipe["overrides"], *overrides, "name=one"])) == 0
    ended = Ranks(recipe, "name=two", *overrides, "train.micro_batch_size=2", sharded=sharded).wait()
    assert [status for status, _ in ended] == [0, 0], ended
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert one[1]["intervention/safe_step/update_scale"] == 1 > one[2]["intervention/safe_step/update_scale"]
    assert one[2]["intervention/safe_step-2/update_scale"] < 1
    names = [name for name in one[0] if name.startswith("intervention/safe_step")]
    assert len(names) == 4
    for x, y in zip(one, two, strict=True):
        for name in (*names, "loss/nll"):
            assert y[name] == pytest.approx(x[name], rel=2e-3, abs=1e-5), (name, x["step"])
