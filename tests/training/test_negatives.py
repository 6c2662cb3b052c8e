"""Runs with negatives: what they log, that they resume and are replayed to the bit, and thresholds of what a model knows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from analysis.replay.__main__ import main as replay
from analysis.step.__main__ import main as measure_step
from configs.load import load_config
from data.batches import IGNORED, evaluation_batches
from data.store import open_store
from model import load_model
from model.negatives import negative_loss
from record.checkpoints import list_checkpoints
from tests.conftest import rows_of
from train_lm import train
from training.evaluate import evaluate
from training.step import negative_rows, step_batch, training_step

from .built import built
from .test_step import HostReads

HINGE = "negatives={kind: shuffled, share: 0.4, loss: hinge, margin: 20.0, nearest: 20, weight: 0.5}"
UNIFORM = "negatives={kind: random, share: 0.4, loss: uniform}"
OTHERS = "negatives={kind: random, share: 0.4, loss: others, weight: 2.0}"
CASES = {
    "hinge": (HINGE,),
    "uniform, linear": (UNIFORM, "head={kind: linear}", "objective={kind: ce}"),
    "others": (OTHERS, "head.abstain=true"),
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
@pytest.mark.parametrize("micro", [4, 1])
def test_micro_batches_make_no_difference(recipe, overrides, micro):
    """Of one sequence each, some are nothing but a negative."""
    found = []
    for more in ((), (f"train.micro_batch_size={micro}",)):
        run = built(recipe, *overrides, *more, "telemetry.edge_every=2")
        for step in (1, 2, 3):
            training_step(run, step)
        found.append(run.recorder.transfer().rows)
    for one, other in zip(*found, strict=True):
        assert {"negative/loss", *(["negative/active"] if "hinge" in overrides[0] else [])} <= one.keys()
        assert one.keys() == other.keys()
        for name in one.keys() - {"tfsd/weight_p10", "logit/std", "entropy/p", "tfsd/target_entropy"}:
            assert other[name] == pytest.approx(one[name], rel=2e-4, abs=1e-6), name


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_the_loss_is_that_of_the_other_sequences(recipe, overrides):
    run = built(recipe, *overrides)
    x_BT, y_BT = step_batch(run, 1)
    rows_K = torch.from_numpy(negative_rows(run, 1))
    assert len(rows_K) == 3
    assert bool((y_BT[rows_K] == IGNORED).all())
    assert int((y_BT == IGNORED).all(1).sum()) == 3
    kept = [row for row in range(8) if row not in rows_K]
    model = run.bare_model()
    with torch.no_grad():
        own = model(input_ids=x_BT[kept], shift_labels=y_BT[kept], skip_logits=True, use_cache=False)
        of_all = model(input_ids=x_BT, shift_labels=y_BT, skip_logits=True, negative_rows=rows_K)
    training_step(run, 1)
    (row,) = run.recorder.transfer().rows
    count = own.losses.valid_N.sum()
    assert count == 5 * 32
    assert row["loss/nll"] == pytest.approx(float(own.losses.nll_sum / count), rel=1e-5)
    assert row["loss/objective"] == pytest.approx(float(own.loss), rel=1e-5)
    weight = run.config.negatives.weight
    assert row["negative/loss"] == pytest.approx(
        float(of_all.losses.negatives.objective_sum) / weight / (3 * 32), rel=1e-5
    )
    assert float(of_all.loss) == pytest.approx(row["loss/objective"] + weight * row["negative/loss"] * 3 / 5, rel=1e-5)


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_the_gradient_is_that_of_the_whole_loss(recipe, overrides):
    """As the slope along the step, and as the change of the loss that the edge measures."""
    run = built(recipe, *overrides, "telemetry.edge_every=1", "train.micro_batch_size=2", "optimizer.lr=1e-5")
    for step in (1, 2):
        training_step(run, step)
        run.step = step
    (_, row) = run.recorder.transfer().rows
    assert row["edge/promised"] < 0 < row["negative/loss"]
    assert row["edge/kappa"] == pytest.approx(1, abs=0.05)
    assert "noise/variance" not in row, "its micro-batches are not alike"


def test_a_step_with_negatives_reads_nothing_back(recipe, monkeypatch):
    run = built(recipe, HINGE, "train.micro_batch_size=4", "telemetry.edge_every=1")
    training_step(run, 1)
    with HostReads() as reads:
        training_step(run, 2)
        assert reads.found == []


def test_an_evaluation_knows_no_negatives(recipe):
    with_them, without = built(recipe, HINGE), built(recipe)
    assert evaluate(with_them) == evaluate(without)


STRESSED = (
    "stress=[{kind: label_noise, step: 1, steps: 9, share: 0.5}, {kind: small_batch, step: 2, sequences: 4}, "
    "{kind: short_sequences, step: 3, parts: 4}, {kind: dead_rank, step: 4, ranks: 2, rank: 1}]"
)


def test_negatives_stay_so_whatever_stresses_do_to_the_batch(recipe):
    run = built(recipe, HINGE, STRESSED)
    rows = {step: negative_rows(run, step).tolist() for step in (1, 2, 3, 4, 5)}
    assert rows == {
        1: [2, 5, 7],
        2: [1],
        3: [*range(8, 12), *range(20, 24), *range(28, 32)],
        4: [2],
        5: [2, 5, 7],
    }
    for step, found in rows.items():
        y_BT = step_batch(run, step)[1]
        assert [row for row, y_T in enumerate(y_BT) if bool((y_T == IGNORED).all())] == (
            found if step != 4 else [2, 5, 7]
        )
        training_step(run, step)
        run.step = step
    assert run.recorder.transfer().healthy == 5


@pytest.fixture(scope="module")
def start(workspace, tmp_path_factory):
    """Train tiny.yaml with negatives from another text and a threshold, as a new process would."""
    folder = tmp_path_factory.mktemp("negatives")
    (folder / "other.txt").write_text("A text about something else, in other words. " * 40, encoding="utf-8")

    def run(name, *overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        text = f"{{kind: corpus, paths: [{folder / 'other.txt'}], share: 0.25, loss: hinge, margin: 20.0}}"
        own = [f"output_dir={folder}", f"name={name}", "checkpoint.keep=9", "checkpoint.unknown_fpr=0.1"]
        config = load_config(
            workspace / "tiny.yaml", [*own, f"negatives={text}", "train.micro_batch_size=4", *overrides]
        )
        assert train(config) == 0
        return Path(config.output_dir) / config.name

    return run


@pytest.fixture(scope="module")
def whole(start):
    return start("whole")


def broken_off(whole, folder):
    """A copy of the run that ended at step 10."""
    shutil.copytree(whole, folder / "whole")
    for checkpoint in list_checkpoints(folder / "whole")[1:]:
        shutil.rmtree(checkpoint)
    (folder / "whole" / "status.json").unlink()


def test_a_run_with_negatives_goes_on_to_the_bit(whole, start, tmp_path):
    broken_off(whole, tmp_path)
    start("whole", f"output_dir={tmp_path}")
    assert rows_of(tmp_path / "whole") == rows_of(whole)
    for ours, theirs in zip(list_checkpoints(whole), list_checkpoints(tmp_path / "whole"), strict=True):
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        assert load_model(ours).config.unknown_distance == load_model(theirs).config.unknown_distance


def test_a_run_with_negatives_is_replayed_to_the_bit(whole, tmp_path, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    replay([str(whole), "--step", "15", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "explanation.json").read_text())
    assert found["reproduced"], found["disagreements"]
    parts = sum(s["grad_norm"] * s["alignment"] for s in found["sequences"])
    assert parts == pytest.approx(found["metrics"]["grad_norm/total"]["replayed"], rel=1e-3)
    assert all(s["grad_norm"] > 0 for s in found["sequences"]), "those of negatives too"
    losses = {s["row"]: (s["targets"], s["nll"], s["worst_nll"], s["objective"]) for s in found["sequences"]}
    assert sorted(row for row, values in losses.items() if values == (0, 0, 0, 0)) == [3, 7]
    text = [values for values in losses.values() if values[0]]
    assert {values[0] for values in text} == {32}
    assert sum(values[1] for values in text) / 6 == pytest.approx(found["metrics"]["loss/nll"]["replayed"], rel=1e-5)
    printed = capsys.readouterr().out
    assert "of the gradient, no targets" in printed


def test_the_line_search_is_of_the_whole_loss(whole, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    measure_step([str(whole), "--step", "15", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "step.json").read_text())
    assert found["reproduced"], found["disagreements"]
    at = {point["multiple"]: point["objective"] for point in found["line"]}
    row = found["row"]
    assert at[0] == pytest.approx(row["loss/objective"] + row["negative/loss"] * 2 / 6, rel=1e-5)
    assert at[1] - at[0] == pytest.approx(row["edge/kappa"] * row["edge/promised"], rel=2e-3)


def test_each_checkpoint_has_its_threshold(whole, workspace):
    config = load_config(workspace / "tiny.yaml")
    batches = evaluation_batches(open_store(config.data, progress=False).validation.ids, 32, 16, 16)
    x_BT, _ = next(batches)
    thresholds = set()
    for checkpoint in list_checkpoints(whole):
        model = load_model(checkpoint)
        assert model.config.unknown_fpr == 0.1
        assert float(model.unknown(x_BT).float().mean()) == pytest.approx(0.1, abs=2 / x_BT.numel())
        thresholds.add(model.config.unknown_distance)
    assert len(thresholds) == 3


def test_a_threshold_of_an_earlier_checkpoint_is_not_kept(whole, start, tmp_path):
    broken_off(whole, tmp_path)
    start("whole", f"output_dir={tmp_path}", "checkpoint.unknown_fpr=null")
    first, *others = list_checkpoints(tmp_path / "whole")
    assert load_model(first).config.unknown_distance is not None
    assert all("unknown" not in (checkpoint / "config.json").read_text() for checkpoint in others)
    last = load_model(others[-1])
    last.negatives = negative_loss("hinge", 500, weight=1.0, margin=1.0, nearest=1)
    prompt = torch.tensor([[5, 6, 7]])
    assert last.generate(prompt, max_new_tokens=4, do_sample=False).shape[1] > 3
