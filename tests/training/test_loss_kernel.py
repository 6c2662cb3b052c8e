"""train.kernel in real runs: through Triton's interpreter, where there is no GPU."""

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from analysis.replay.__main__ import main as replay
from common.command import exit_status
from configs.load import load_config
from train_lm import train

from ..conftest import events_of, python, rows_of

SHORT = ["train.steps=3", "optimizer.warmup_steps=1", "train.eval_every=3", "checkpoint.every=3"]
SMALL = ["train.batch_size=4", "train.eval_sequences=4"]
"""The interpreter takes a program for each row."""


def start(recipe, *overrides):
    """Train in this process, where Triton is interpreted; its exit status and its directory."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(recipe["path"], [*recipe["overrides"], *SHORT, *SMALL, *overrides])
    return exit_status(lambda: train(config)), Path(config.output_dir) / config.name


def test_a_run_by_the_kernel_is_the_run_by_torch_and_can_be_replayed_without_it(recipe, tmp_path, capfd, recwarn):
    found = {}
    for kernel in ("torch", "triton"):
        status, run = start(recipe, f"train.kernel={kernel}", f"name={kernel}")
        told = capfd.readouterr().err
        assert status == 0, told
        assert "warning" not in told.lower()
        assert [w for w in recwarn if not issubclass(w.category, (DeprecationWarning, ResourceWarning))] == []
        recorded = json.loads((run / "environment.json").read_text())["loss_kernel"]
        assert recorded == {"name": kernel, "reason": None, "ranks_without_triton": 0}
        assert events_of(run) == []
        found[kernel] = rows_of(run)
    for by_torch, by_kernel in zip(*found.values(), strict=True):
        assert by_kernel == pytest.approx(by_torch, rel=1e-4, abs=1e-6)  # only sums in another order
    run, out = tmp_path / "triton", tmp_path / "replay"
    done = python("-m", "analysis.replay", run, "--step", 2, "--out", out, TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    replayed = json.loads((out / "explanation.json").read_text())
    assert replayed["tolerance_reason"] == "the loss's kernel was triton and is torch"
    assert replayed["disagreements"] == []
    facts = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(facts | {"loss_kernel": 5}))
    # Whatever the status is: nothing but an InputError comes out of it.
    exit_status(lambda: replay([str(run), "--step", "2", "--out", str(out)]))


def test_the_kernel_without_a_gpu_is_refused_in_a_line(recipe, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    status, run = start(recipe, "train.kernel=triton", "name=kernel")
    assert status == 2
    expected = "error: train.kernel: triton: it needs a GPU, and the device is cpu; use auto or torch"
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert not (run / "config.yaml").exists()
