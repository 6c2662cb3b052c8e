"""Replay of a real run: the same to the bit, honest when it is not, and an explanation that finds what was planted."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState

from analysis.replay.__main__ import main
from analysis.replay.rerun import agrees
from common.errors import InputError
from configs.load import load_config
from data.batches import Batches
from data.store import open_store
from record.finished import load_run
from tests.conftest import called, rows_of
from train_lm import train

FAULT = "stress=[{kind: corrupt_sequences, step: 35, sequences: 3, pattern: repeated}]"


@pytest.fixture(scope="module")
def run(workspace, tmp_path_factory):
    """A run of 45 steps with dropout, in which three of eight sequences of step 35 are no language; checkpoints each ten."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("replayed")
    overrides = [
        "name=faulty",
        FAULT,
        "train.steps=45",
        "body.resid_pdrop=0.1",
        "checkpoint.keep=9",
        "optimizer.lr=1e-3",
    ]
    config = load_config(workspace / "tiny.yaml", [f"output_dir={folder}", *overrides])
    assert train(config) == 0
    return folder / "faulty"


@pytest.fixture
def replay(run, tmp_path):
    def call(step, *options, path=run):
        AcceleratorState._reset_state(reset_partial_state=True)
        main([str(path), "--step", str(step), "--out", str(tmp_path / "out"), *options])
        return json.loads((tmp_path / "out" / "explanation.json").read_text())

    return call


def test_every_metric_of_every_replayed_step_is_the_logged_one_to_the_bit(replay, run):
    """On as many threads as the run had."""
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    torch.set_num_threads(2)
    found = replay(35)
    assert torch.get_num_threads() == json.loads((run / "environment.json").read_text())["threads"] == 1
    assert found["reproduced"] is True
    assert (found["checkpoint"], found["steps_compared"], found["tolerance"]) == (30, 5, 0.0)
    logged = load_run(run)
    compared = {name for name in logged.metrics if not name.startswith(("throughput/", "memory/", "validation/"))}
    checks = {name: check for name, check in found["metrics"].items() if check["logged"] is not None and name != "step"}
    assert checks.keys() == {name for name in compared if logged.value(name, 35) is not None}
    assert all(check["logged"] == check["replayed"] == logged.value(name, 35) for name, check in checks.items())
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before, "a replay writes nothing into the run"


def test_the_start_of_a_run_is_a_checkpoint_too(replay):
    found = replay(4)
    assert (found["checkpoint"], found["reproduced"]) == (0, True)


def test_a_log_that_says_otherwise_is_told(replay, run, tmp_path, capsys):
    forged = tmp_path / "forged"
    forged.mkdir()
    for item in run.iterdir():
        if item.is_dir():
            (forged / item.name).symlink_to(item)
        else:
            shutil.copy(item, forged)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[32])
    row["loss/nll"] = float(np.nextafter(row["loss/nll"], 99.0))
    row["zclip/z"] = 1.5  # an older version's name, which a replay cannot measure
    (forged / "metrics.jsonl").unlink()
    (forged / "metrics.jsonl").write_text("\n".join([*lines[:32], json.dumps(row), *lines[33:]]) + "\n")
    found = replay(35, path=forged)
    assert found["disagreements"] == ["step 33: loss/nll"]
    assert found["reproduced"] is False
    assert "step 33: loss/nll" in capsys.readouterr().out


def test_the_planted_sequences_are_found_and_what_they_say_is_right(replay, run):
    found = replay(35, "--sequences", "2")
    worst = [s["row"] for s in found["sequences"][:3]]
    assert sorted(worst) == [0, 1, 2]
    assert found["stress"] == ["3 sequences of batch 35 replaced by repeated tokens"]
    worst_token = max(found["sequences"], key=lambda s: s["worst_nll"])["row"]
    told = {s["row"] for s in found["sequences"] if len(s["tokens"]) == 32}
    assert told == {*worst[:2], worst_token}
    config = load_config(run / "config.yaml")
    store = open_store(config.data, progress=False)
    sound = next(s for s in found["sequences"] if s["row"] == 7)
    assert (
        store.load_tokenizer().decode(store.train.ids[sound["index"] * 32 : sound["index"] * 32 + 33]) == sound["text"]
    )
    assert {s["index"] for s in found["sequences"]} == set(_indices(config, store, 35))


def _indices(config, store, step):
    from common.seeds import stream_seed

    return Batches(store.train.ids, 32, 8, stream_seed(config.seed, "data")).sequences(step).tolist()


@pytest.fixture(scope="module")
def steady(workspace, tmp_path_factory):
    """A short run without dropout: there the sequences' gradients are the step's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("steady")
    config = load_config(
        workspace / "tiny.yaml", [f"output_dir={folder}", "name=steady", "train.steps=14", "head.scale=0.05"]
    )
    assert train(config) == 0
    return folder / "steady"


def test_the_parts_add_up_to_the_step(replay, steady, tmp_path):
    found = replay(13, path=steady)
    tokens = pd.read_parquet(tmp_path / "out" / "tokens.parquet")
    metrics = found["metrics"]
    assert tokens["nll"].mean() == pytest.approx(metrics["loss/nll"]["replayed"], rel=1e-5)
    assert tokens["objective"].mean() == pytest.approx(metrics["loss/objective"]["replayed"], rel=1e-4)
    assert tokens["weight"].mean() == pytest.approx(metrics["tfsd/weight_mean"]["replayed"], rel=1e-5)
    total = metrics["grad_norm/total"]["replayed"]
    projections = sum(s["grad_norm"] * s["alignment"] for s in found["sequences"])
    assert projections == pytest.approx(total, rel=1e-4), "the terms' projections on the gradient add up to its norm"
    for sequence in found["sequences"]:
        assert sequence["grad_norm"] == pytest.approx(math.hypot(*sequence["group_grad_norms"].values()), rel=1e-4)
    assert found["nll_before"] == pytest.approx(metrics["loss/nll"]["replayed"], rel=1e-5)
    assert found["nll_after"] < found["nll_before"]
    (pre_final,) = [layer for layer in found["layers"] if layer["name"] == "pre_final"]
    assert pre_final["mean_before"] == pytest.approx(metrics["hidden_norm/pre_final/mean"]["replayed"], rel=1e-5)
    update = metrics["update_rms/embedding"]["replayed"]
    distances = [e["distance"] for e in found["embeddings"]]
    assert distances == sorted(distances, reverse=True)
    assert 0 < distances[0] < update * math.sqrt(500 * 32 + 32 * 32)


def test_top_predictions_and_losses_belong_together(replay, steady):
    found = replay(13, path=steady)
    for token in found["sequences"][0]["tokens"]:
        probabilities = [p for _, p in token["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert math.exp(-token["nll"]) <= probabilities[0] + 1e-6


def test_counterfactuals(replay, run, tmp_path):
    """Without the bad batch there is no spike; a rate of almost zero freezes the loss; the log stays beside them."""
    replay(35, "--window", "8", *(f"--counterfactual={c}" for c in ("skip", "lr=1e-12", "clip=0.01", "objective=ce")))
    by_change = {c["change"]: c for c in json.loads((tmp_path / "out" / "counterfactuals.json").read_text())}
    logged = load_run(run).metrics["loss/nll"]
    for c in by_change.values():
        place = c["steps"].index(35)
        assert c["steps"][place:] == list(range(35, 43))
        assert c["factual"]["loss/nll"] == [logged[s] for s in c["steps"]]
    place = by_change["skip"]["steps"].index(35)
    skipped = by_change["skip"]["changed"]["loss/nll"]
    assert skipped[place] is None
    assert all(isinstance(v, float) for v in skipped[place + 1 :])
    for name in ("lr=1e-12", "clip=0.01", "objective=ce"):
        changed = by_change[name]["changed"]["loss/nll"]
        assert changed[place] == logged[35], "the first batch is met by the same model"
        assert changed[place + 1] != logged[36] or name == "objective=ce"
    assert (tmp_path / "out" / "counterfactuals.png").stat().st_size > 10_000


def test_a_counterfactual_that_changes_nothing_is_the_run_itself(replay, run, tmp_path):
    replay(35, "--window", "6", "--counterfactual", "lr=1e-3")
    (c,) = json.loads((tmp_path / "out" / "counterfactuals.json").read_text())
    assert c["changed"] == c["factual"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "46"], "has logged steps 1 to 45"),
        (["--step", "35", "--counterfactual", "jump"], "give skip, skip=K"),
        (["--step", "35", "--counterfactual", "objective=nope"], "unknown kind 'nope'"),
        (["--step", "35", "--counterfactual", "clip=-1"], "optimizer.clip_norm"),
        (["--step", "35", "--window", "0"], "--window is 0"),
    ],
)
def test_mistakes_are_one_line(options, message, run, tmp_path):
    with pytest.raises(InputError, match=message):
        main([str(run), *options, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_changed_text_is_refused(run, tmp_path):
    forged = tmp_path / "forged"
    forged.mkdir()
    for item in run.iterdir():
        if item.is_dir():
            (forged / item.name).symlink_to(item)
        else:
            shutil.copy(item, forged)
    facts = json.loads((run / "environment.json").read_text())
    facts["data"]["manifest_sha256"] = "0" * 64
    (forged / "environment.json").unlink()
    (forged / "environment.json").write_text(json.dumps(facts))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(InputError, match="the tokens it was made of are not in"):
        main([str(forged), "--step", "35", "--out", str(tmp_path / "out")])


def test_the_command_line(run, tmp_path):
    """What it prints and writes; in a process of its own it is in tests/training/test_loss_kernel.py."""
    AcceleratorState._reset_state(reset_partial_state=True)
    command = called(main, run, "--step", "35", "--out", tmp_path / "out")
    assert command.returncode == 0, command.stderr
    assert "Reproduced" in command.stdout
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "page.html",
        "figure.png",
        "explanation.json",
        "tokens.parquet",
    }


@pytest.mark.parametrize(
    ("logged", "replayed", "tolerance", "expected"),
    [(1.0, 1.0, 0.0, True), (1.0, 1.0 + 1e-12, 0.0, False), (1.0, 1.0005, 1e-3, True), (1.0, 1.01, 1e-3, False)]
    + [(math.nan, math.nan, 0.0, True), (math.nan, 1.0, 1e-3, False), (math.inf, math.inf, 0.0, True)],
)
def test_what_counts_as_agreement(logged, replayed, tolerance, expected):
    assert agrees(logged, replayed, tolerance) is expected


@pytest.fixture
def trained(workspace, tmp_path):
    def call(*overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        config = load_config(workspace / "tiny.yaml", [f"output_dir={tmp_path}", "train.steps=12", *overrides])
        train(config)
        return tmp_path / config.name

    return call


@pytest.mark.parametrize(
    "options",
    [
        ["telemetry.enabled=false"],
        ["telemetry.families=[norms]"],
        ["train.micro_batch_size=3", "train.gradient_checkpointing=true", "body.resid_pdrop=0.1"],
        ["data.skip_steps=[[4,6]]", "head.kind=linear", "objective.kind=ce"],
        ["train.precision=bf16", "train.batch_size=2"],
    ],
)
def test_runs_of_all_kinds_are_reproduced(options, trained, replay):
    found = replay(12, path=trained(*options))
    assert (found["reproduced"], found["steps_compared"]) == (True, 2)
    assert found["batch"] == (15 if options[0].startswith("data.skip_steps") else 12)


def test_a_diverged_run_is_replayed_to_its_last_step_and_would_have_gone_on(trained, replay, tmp_path):
    """A rate of 1e18 from step 7 on; with the usual rate the run goes on past the end of the log."""
    run = trained("stress=[{kind: scale_lr, step: 7, steps: 99, factor: 1e21}]", "optimizer.clip_norm=null")
    last = int(load_run(run).metrics.index[-1])
    assert last < 12
    found = replay(last, "--counterfactual", "lr=1e-24", "--window", "9", path=run)
    assert found["reproduced"] is True
    (c,) = json.loads((tmp_path / "out" / "counterfactuals.json").read_text())
    assert c["last_step"] == 12
    assert c["factual"]["loss/nll"][-1] is None


def test_c_is_that_of_the_objective_not_of_tfsd(recipe, tmp_path):
    """A run that holds its mean c at 0.3, on a head where TFSD's own would be another."""
    held = ["name=held", "objective={kind: tfsd_held, weight: 0.3}"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(load_config(recipe["path"], [*recipe["overrides"], *held])) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    main([str(tmp_path / "held"), "--step", "25", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "explanation.json").read_text())
    logged = {row["step"]: row for row in rows_of(tmp_path / "held")}[25]
    assert np.mean([s["weight_mean"] for s in found["sequences"]]) == pytest.approx(
        logged["objective/weight"], rel=1e-5
    )
    assert abs(logged["objective/weight"] - logged["tfsd/weight_mean"]) > 0.1
