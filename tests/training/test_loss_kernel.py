"""train.kernel in real runs: through Triton's interpreter, where there is no GPU."""

import json

import pytest

from ..conftest import events_of, python, rows_of

SHORT = ["train.steps=3", "optimizer.warmup_steps=1", "train.eval_every=3", "checkpoint.every=3"]


def train(recipe, *overrides, **environment):
    return python("train_lm.py", "--config", recipe["path"], *recipe["overrides"], *SHORT, *overrides, **environment)


def test_a_run_by_the_kernel_is_the_run_by_torch_and_can_be_replayed_without_it(recipe, tmp_path):
    found = {}
    for kernel in ("torch", "triton"):
        done = train(recipe, f"train.kernel={kernel}", f"name={kernel}")
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.lower()
        recorded = json.loads((tmp_path / kernel / "environment.json").read_text())["loss_kernel"]
        assert recorded == {"name": kernel, "reason": None, "ranks_without_triton": 0}
        assert events_of(tmp_path / kernel) == []
        found[kernel] = rows_of(tmp_path / kernel)
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
    done = python("-m", "analysis.replay", run, "--step", 2, "--out", out, TRITON_INTERPRET="0")
    assert "Traceback" not in done.stderr


def test_the_kernel_without_a_gpu_is_refused_in_a_line(recipe, tmp_path):
    done = train(recipe, "train.kernel=triton", "name=kernel", TRITON_INTERPRET="0")
    assert done.returncode == 2
    expected = "error: train.kernel: triton: it needs a GPU, and the device is cpu; use auto or torch"
    assert done.stderr.splitlines()[-1] == expected
    assert not (tmp_path / "kernel" / "config.yaml").exists()
