"""Two real processes (gloo, CPU): as the launch file starts them that the README names, and what only two can do together."""

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from analysis.replay import __main__ as replay
from configs.load import load_config
from record.checkpoints import list_checkpoints
from tests.conftest import ROOT, events_of, python, rows_of
from tests.distributed.ranks import Ranks
from train_lm import train


def launch(recipe, *overrides, **environment):
    accelerate = Path(sys.executable).with_name("accelerate")
    assert accelerate.exists(), "accelerate's command is not installed beside this Python"
    return python(
        *(accelerate, "launch", "--config_file", ROOT / "configs/launch/cpu_2proc.yaml"),
        *(ROOT / "train_lm.py", "--config", recipe["path"], *recipe["overrides"], *overrides),
        **environment,
    )


def test_two_ranks_follow_one(recipe, tmp_path):
    """The same global batch on one rank and on two with accumulation: the same curves but for rounding, written once."""
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(load_config(recipe["path"], [*recipe["overrides"], "name=one"])) == 0
    two = launch(recipe, "name=two", "train.micro_batch_size=2")
    assert two.returncode == 0, two.stderr
    a, b = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [r["step"] for r in b] == list(range(1, 31))
    micro_batches = {"noise/gradient_square", "noise/variance"}  # which only a step with several of them has
    assert [r.keys() | micro_batches for r in a] == [r.keys() for r in b]
    for name in sorted(a[0].keys() - {"tfsd/weight_p10"}):
        assert a[0][name] == pytest.approx(b[0][name], rel=1e-4, abs=1e-6), name
    for x, y in zip(a, b, strict=True):
        assert x["loss/nll"] == pytest.approx(y["loss/nll"], rel=1e-3)
    assert a[-1]["validation/nll"] == pytest.approx(b[-1]["validation/nll"], rel=1e-3)
    assert events_of(tmp_path / "two") == []
    AcceleratorState._reset_state(reset_partial_state=True)
    replay.main([str(tmp_path / "two"), "--step", "25", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert found["tolerance_reason"].startswith("the number of processes was 2 and is 1")
    assert found["reproduced"] is True, found["disagreements"]
    assert [p.name for p in list_checkpoints(tmp_path / "two")] == [p.name for p in list_checkpoints(tmp_path / "one")]


def test_two_ranks_reparametrise_as_one(recipe, tmp_path):
    """Power iterations are taken once a step, whatever the number of ranks and micro-batches; all have the same vectors."""
    AcceleratorState._reset_state(reset_partial_state=True)
    on = "body.sigma_reparam=true"
    assert train(load_config(recipe["path"], [*recipe["overrides"], "name=one", on])) == 0
    ended = Ranks(recipe, "name=two", "train.micro_batch_size=2", on).wait()
    assert [status for status, _ in ended] == [0, 0], ended
    for x, y in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        for name in ("loss/nll", "sigma_reparam/s_max", "sigma_reparam/s_min"):
            assert x[name] == pytest.approx(y[name], rel=1e-3), (name, x["step"])
    one, two = (
        load_file(list_checkpoints(tmp_path / name)[-1] / "sigma_reparam.safetensors") for name in ("one", "two")
    )
    for name in (name for name in one if name.endswith(("left_PR", "right_PK"))):
        cosines = torch.nn.functional.cosine_similarity(one[name], two[name], dim=1)
        assert float(cosines.min()) > 0.999, name


def test_sharded_ranks_do_not_reparametrise(recipe, tmp_path):
    ended = Ranks(recipe, "name=sharded", "body.sigma_reparam=true", sharded=True).wait()
    assert [status for status, _ in ended] == [2, 2]
    assert any("error: body.sigma_reparam: needs whole matrices on every rank" in told for _, told in ended)
    assert not list(tmp_path.glob("sharded/*.jsonl"))


def test_two_ranks_go_back_together(recipe, tmp_path):
    """A spike that both ranks meet: they go back to one checkpoint, leave out the same batches and go on."""
    fault = "stress=[{kind: corrupt_sequences, step: 65, steps: 3, sequences: 8, pattern: random}]"
    long = ["train.steps=80", "checkpoint.every=20", "interventions=[{kind: rewind}]"]
    ended = Ranks(recipe, "name=rewound", fault, *long).wait()
    assert [status for status, _ in ended] == [0, 0], ended
    (back,) = [e for e in events_of(tmp_path / "rewound") if e["event"] == "rewind"]
    assert (back["to_step"], back["skipped"]) == (60, [[65, 67]])
    rows = rows_of(tmp_path / "rewound")
    assert [r["data/batch"] for r in rows[60:70]] == [61, 62, 63, 64, 68, 69, 70, 71, 72, 73]
    assert max(r["loss/nll"] for r in rows[60:]) < 6


def test_ranks_that_do_not_see_each_other_are_refused(recipe, tmp_path):
    """Without ACCELERATE_USE_CPU Accelerate would start two runs that write the same files."""
    ended = Ranks(recipe, "name=apart", ACCELERATE_USE_CPU="0").wait()
    assert [status for status, _ in ended] == [2, 2]
    assert all("error: launch: 2 processes were started but Accelerate works with 1" in told for _, told in ended)
    assert not (tmp_path / "apart").exists()
