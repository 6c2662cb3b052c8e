"""A real run with every stress: to the bit when resumed and replayed, and told in its log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from analysis.replay.__main__ import main as replay
from configs.load import load_config
from stability.stress.kinds import STRESSES
from tests.conftest import events_of, rows_of
from train_lm import train

STEPS = 44
EVERY = """stress=[
    {{kind: small_batch, step: 1, steps: 3, sequences: 4}},
    {{kind: short_sequences, step: 3, steps: 4, parts: 4}},
    {{kind: corrupt_sequences, step: 8, sequences: 3, pattern: random}},
    {{kind: corrupt_sequences, step: 9, sequences: 3, pattern: shuffled}},
    {{kind: corrupt_sequences, step: 10, sequences: 3, pattern: repeated_span, repeats: 8}},
    {{kind: corrupt_sequences, step: 11, sequences: 3, pattern: rare}},
    {{kind: corrupt_sequences, step: 12, sequences: 3, pattern: ignored}},
    {{kind: label_noise, step: 13, share: 0.5}},
    {{kind: foreign_text, step: 14, sequences: 4, paths: [{text}]}},
    {{kind: optimizer_settings, step: 15, steps: 2, beta1: 0.5, beta2: 0.8, eps: 1.0e-6}},
    {{kind: scale_weights, step: 17, parameters: embedding, factor: 1.5}},
    {{kind: gradient_noise, step: 19, steps: 2, factor: 1.0}},
    {{kind: flip_bit, step: 21, what: parameter, bit: 24}},
    {{kind: flip_bit, step: 22, what: gradient, bit: 24}},
    {{kind: flip_bit, step: 23, what: moment, moment: exp_avg_sq, bit: 24}},
    {{kind: half_parameters, step: 24, steps: 3}},
    {{kind: stale_moments, step: 27, what: swap}},
    {{kind: stale_moments, step: 29, what: reset, step_count: reset}},
    {{kind: dead_rank, step: 31, steps: 2, ranks: 4, rank: 1}},
    {{kind: scale_lr, step: 34, steps: null, factor: 3.0}}]"""
"""Also two at once, at step 3."""


@pytest.fixture(scope="module")
def start(workspace, tmp_path_factory):
    """Train tiny.yaml with every stress, as a new process would."""
    folder = tmp_path_factory.mktemp("stressed")
    (folder / "other.txt").write_text("A text about something else, in other words. " * 40, encoding="utf-8")
    every = EVERY.format(text=folder / "other.txt").replace("\n", " ")

    def run(name, *overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        own = [f"output_dir={folder}", f"name={name}", f"train.steps={STEPS}", "checkpoint.every=10", every]
        config = load_config(workspace / "tiny.yaml", [*own, "checkpoint.keep=9", *overrides])
        assert train(config) == 0
        return Path(config.output_dir) / config.name

    return run


@pytest.fixture(scope="module")
def whole(start):
    return start("whole")


def test_every_stress_is_in_the_run(whole):
    kinds = {e["kind"] for e in events_of(whole) if e["event"] == "stress_began"}
    ours = {kind for kind, cls in STRESSES.items() if cls.__module__.startswith("stability.")}
    assert kinds == ours


def test_the_log_tells_when_a_stress_acts(whole):
    rows = rows_of(whole)
    acting = [row["stress/acting"] for row in rows]
    assert acting[:8] == [1, 1, 2, 1, 1, 1, 0, 1]
    assert acting[-STEPS + 33 :] == [1] * (STEPS - 33)
    told = [(e["event"], e["step"]) for e in events_of(whole) if e.get("kind") == "stale_moments"]
    assert told == [("stress_began", 27), ("stress_ended", 28), ("stress_began", 29), ("stress_ended", 30)]
    (swapped, _) = [
        e["description"] for e in events_of(whole) if e["event"] == "stress_began" and e["kind"] == "stale_moments"
    ]
    assert swapped == "moments of the first and the last block exchanged"


def test_a_stressed_run_goes_on_to_the_bit(whole, start, tmp_path):
    broken = tmp_path / "whole"
    shutil.copytree(whole, broken)
    for folder in (broken / "checkpoints").iterdir():
        if folder.name > "step_00000010":
            shutil.rmtree(folder)
    (broken / "status.json").unlink()
    start("whole", f"output_dir={tmp_path}")
    assert [e["step"] for e in events_of(broken) if e["event"] == "resume"] == [10]
    assert rows_of(broken) == rows_of(whole)


@pytest.mark.parametrize("step", [5, 12, 17, 29, 32])
def test_a_stressed_run_is_replayed_to_the_bit(step, whole, tmp_path):
    out = tmp_path / "out"
    replay([str(whole), "--step", str(step), "--out", str(out)])
    found = json.loads((out / "explanation.json").read_text())
    assert found["reproduced"], found["disagreements"]
    now = [line for line in found["stress"] if " before: " not in line]
    assert len(now) == rows_of(whole)[step - 1]["stress/acting"]
    if step == 5:
        assert found["stress"] == ["each sequence cut into 4", "2 steps before: only 4 sequences of batch 3 used"]
    assert len(found["sequences"]) == 32 if step == 5 else 8
    # The sequences' gradients are parts of the step's: of the disturbed parameters, of the targets that were not lost.
    parts = sum(s["grad_norm"] * s["alignment"] for s in found["sequences"])
    assert parts == pytest.approx(found["metrics"]["grad_norm/total"]["replayed"], rel=1e-3)
    lost = {s["row"] for s in found["sequences"] if s["grad_norm"] == 0}
    assert lost == {12: {0, 1, 2}, 32: {2, 3}}.get(step, set())
