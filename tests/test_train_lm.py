"""Real runs of train_lm.py: what they write, that they repeat, resume, stop and diverge as the README says."""

import json
import math
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoTokenizer

from analysis.replay.__main__ import main as replay
from common.command import EXIT_DIVERGED, EXIT_PREEMPTED
from common.errors import InputError
from configs.load import load_config
from data.batches import evaluation_batches
from data.store import open_store
from model import load_model
from record.checkpoints import list_checkpoints, read_state
from record.metrics import describe, family_of
from train_lm import train

from .conftest import ROOT, events_of, rows_of


@pytest.fixture
def start(recipe):
    """Run tiny.yaml with these overrides in this process; returns (exit status, run directory)."""

    return lambda *overrides: trained(recipe["path"], *recipe["overrides"], *overrides)


def trained(path, *overrides):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(path, overrides)
    return train(config), Path(config.output_dir) / config.name


@pytest.fixture(scope="module")
def plain(workspace, tmp_path_factory):
    """The run of tiny.yaml as it is, for the tests that read it or compare another run with it."""
    status, run = trained(workspace / "tiny.yaml", f"output_dir={tmp_path_factory.mktemp('plain')}", "name=plain")
    assert status == 0
    return run


@pytest.fixture(scope="module")
def linear(workspace, tmp_path_factory):
    """The same with a linear head and cross-entropy."""
    arm = ("name=linear", "head.kind=linear", "objective.kind=ce")
    status, run = trained(workspace / "tiny.yaml", f"output_dir={tmp_path_factory.mktemp('linear')}", *arm)
    assert status == 0
    return run


def weights(run):
    return load_file(list_checkpoints(run)[-1] / "model.safetensors")


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_directory_is_complete(plain):
    rows = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 31))
    for row in rows:
        assert all(describe(name) for name in row)
        assert all(math.isfinite(value) for value in row.values())
        assert row["tokens"] == row["step"] * 8 * 32
        assert ("validation/nll" in row) == (row["step"] % 10 == 0)
    wanted = {
        *(
            "step",
            "tokens",
            "lr",
            "loss/nll",
            "loss/objective",
            "grad_norm/total",
            "grad_norm/embedding",
            "param_norm/layer_01",
        ),
        *("update_rms/norm", "hidden_norm/layer_00/mean", "hidden_norm/pre_final/max", "hidden_norm/final/mean"),
        *(
            "embedding_norm/mean",
            "embedding_norm/max",
            "logit/max",
            "logit/mean",
            "logit/std",
            "logit/logsumexp",
            "entropy/p",
        ),
        *(
            "metric/true_distance",
            "tfsd/weight_mean",
            "tfsd/weight_p10",
            "tfsd/weight_below_1pct",
            "tfsd/target_entropy",
        ),
        *("throughput/tokens_per_second", "memory/peak_bytes"),
    }
    assert wanted <= rows[0].keys()
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"] - 0.5
    config = load_config(plain / "config.yaml")
    assert config.name == "plain"
    assert json.loads((plain / "status.json").read_text()) == {"status": "finished", "step": 30, "reason": ""}
    environment = json.loads((plain / "environment.json").read_text())
    assert {"packages", "device", "git", "world_size", "data", "parameters"} <= environment.keys()


def test_the_last_checkpoint_is_the_model_whose_validation_was_recorded(plain):
    """NLL, accuracy, and the calibration error as Guo et al. 2017 define it, in 15 bins of the confidence."""
    checkpoint = list_checkpoints(plain)[-1]
    model, config = load_model(checkpoint), load_config(plain / "config.yaml")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    store = open_store(config.data, progress=False)
    logits, targets = [], []
    for x_BT, y_BT in evaluation_batches(store.validation.ids, 32, 16, 4):
        logits.append(model(input_ids=x_BT).logits.flatten(0, 1).double())
        targets.append(y_BT.flatten())
    logits_NV, y_N = torch.cat(logits), torch.cat(targets)
    last = rows_of(plain)[-1]
    assert last["validation/nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits_NV, y_N).item(), rel=1e-5)
    assert read_state(checkpoint)["validation_nll"] == last["validation/nll"]
    confidence_N, guess_N = logits_NV.softmax(1).max(1)
    right_N = (guess_N == y_N).double()
    assert last["validation/accuracy"] == pytest.approx(right_N.mean().item(), rel=1e-6)
    error = 0.0
    for edge in range(15):
        inside_N = (confidence_N >= edge / 15) & (confidence_N < (edge + 1) / 15)
        if inside_N.any():
            gap = right_N[inside_N].mean() - confidence_N[inside_N].mean()
            error += inside_N.double().mean().item() * abs(gap.item())
    assert last["validation/ece"] == pytest.approx(error, abs=1e-5)


def test_the_tokenizer_of_a_checkpoint_pads_once_it_has_a_padding_token(plain):
    """As docs/running.md says: a padded batch continues as its texts do alone."""
    checkpoint = list_checkpoints(plain)[-1]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, padding_side="left")
    assert tokenizer.pad_token is None
    tokenizer.pad_token = tokenizer.eos_token
    assert "set `tokenizer.pad_token = tokenizer.eos_token`" in (ROOT / "docs" / "running.md").read_text()
    model, texts = load_model(checkpoint), ["The sum", "What the function returns"]
    continued = lambda batch: model.generate(**batch, max_new_tokens=6, do_sample=False)[:, -6:].tolist()  # noqa: E731
    together = continued(tokenizer(texts, padding=True, return_tensors="pt"))
    assert together == [continued(tokenizer([text], return_tensors="pt"))[0] for text in texts]


def test_the_same_configuration_gives_the_same_metrics_to_the_bit(start):
    runs = [start(f"name={name}", "body.resid_pdrop=0.1")[1] for name in ("first", "second")]
    assert rows_of(runs[0]) == rows_of(runs[1])
    assert_same_weights(weights(runs[0]), weights(runs[1]))
    other = start("name=other", "body.resid_pdrop=0.1", "seed=1")[1]
    assert rows_of(other)[0]["loss/nll"] != rows_of(runs[0])[0]["loss/nll"]


def test_tfsd_and_its_ablation_train_identically(start):
    """weighted_ce has another value but the same gradient, so the whole run is the same to the bit."""
    tfsd, ablation = (start(f"name={k}", f"objective.kind={k}", "head.scale=0.02")[1] for k in ("tfsd", "weighted_ce"))
    value = "loss/objective"
    assert rows_of(tfsd)[0][value] != rows_of(ablation)[0][value]
    strip = lambda rows: [{k: v for k, v in r.items() if not k.endswith("objective")} for r in rows]  # noqa: E731
    assert strip(rows_of(tfsd)) == strip(rows_of(ablation))
    assert_same_weights(weights(tfsd), weights(ablation))


def test_arms_are_paired_by_the_seed(linear, start):
    """Linear and metric arms of one seed see the same first batch from the same body: the first NLL all but agrees."""
    metric = start("name=m", "objective.kind=ce")[1]
    assert rows_of(linear)[0]["loss/nll"] == pytest.approx(rows_of(metric)[0]["loss/nll"], abs=0.01)
    assert "metric/true_distance" not in rows_of(linear)[0]


def test_gradient_accumulation_changes_nothing_but_rounding(plain, start):
    split = start("name=split", "train.micro_batch_size=3")[1]
    for a, b in zip(rows_of(plain), rows_of(split), strict=True):
        for name in ("loss/nll", "grad_norm/total", "hidden_norm/pre_final/mean", "logit/std", "tfsd/weight_mean"):
            assert a[name] == pytest.approx(b[name], rel=2e-3), (a["step"], name)
    assert rows_of(plain)[0]["grad_norm/total"] == pytest.approx(rows_of(split)[0]["grad_norm/total"], rel=1e-5)


@pytest.mark.parametrize(
    "option",
    [
        *("train.gradient_checkpointing=true", "telemetry.enabled=false", "telemetry.flush_every=1"),
        *(f"telemetry.families=[{family}]" for family in ("norms", "updates", "hidden", "logits")),
    ],
)
def test_options_that_must_not_change_the_run(option, plain, start):
    other = start("name=other", option)[1]
    common = lambda row: {k: row[k] for k in ("step", "loss/nll", "grad_norm/total")}  # noqa: E731
    assert [common(r) for r in rows_of(plain)] == [common(r) for r in rows_of(other)]
    if option.startswith("telemetry.families"):
        families = {family_of(name) for row in rows_of(other) for name in row} - {None}
        assert families == {option.partition("[")[2].strip("]")}
        for whole, part in zip(rows_of(plain), rows_of(other), strict=True):
            assert {k: whole[k] for k in part if family_of(k)} == {k: v for k, v in part.items() if family_of(k)}
    assert_same_weights(weights(plain), weights(other))


def test_a_run_interrupted_by_sigterm_goes_on_as_if_it_had_not_been(start, tmp_path, monkeypatch):
    """A real signal, dropout on; then the same command again: rows and weights equal an unbroken run's."""
    import training.loop

    overrides, usual = ("train.steps=60", "body.resid_pdrop=0.1", "checkpoint.every=30"), training.loop.training_step

    def signalled(run, number):
        if number == 42:
            signal.raise_signal(signal.SIGTERM)
        usual(run, number)

    monkeypatch.setattr(training.loop, "training_step", signalled)
    assert start(*overrides, "name=broken")[0] == EXIT_PREEMPTED
    monkeypatch.undo()
    stopped = json.loads((tmp_path / "broken" / "status.json").read_text())
    assert (stopped["status"], stopped["step"]) == ("preempted", 42)
    assert list_checkpoints(tmp_path / "broken")[-1].name == f"step_{stopped['step']:08d}"
    # What a killed process may leave behind: rows after the checkpoint, the last one torn.
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": stopped["step"] + 1, "loss/nll": 1.0}) + '\n{"step": ')

    assert start(*overrides, "name=broken")[0] == 0
    assert start(*overrides, "name=unbroken")[0] == 0
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    assert rows_of(broken) == rows_of(unbroken)
    assert_same_weights(weights(broken), weights(unbroken))
    found = ("spike", "stall")
    spikes = lambda run: [{**e, "written_at": 0} for e in events_of(run) if e["event"] in found]  # noqa: E731
    # Which checkpoint a replay would begin at may differ: the interrupted run has one more.
    without = lambda events: [{**e, "checkpoint": 0, "replay": ""} for e in events]  # noqa: E731
    assert without(spikes(broken)) == without(spikes(unbroken))
    assert [e["event"] for e in events_of(broken) if e["event"] not in found] == ["preempted", "resume"]


@pytest.mark.parametrize(("stress", "end"), [("", 50), (", {kind: broken_gradient, step: 45}", 45)])
def test_a_spike_that_the_end_of_the_run_closes_is_written_at_its_last_step(start, stress, end):
    """Also where the steps after one that is not finite were taken before anybody knew; and a run that is killed before its
    status was written finds the spike again, once."""
    overrides = (
        "name=cut", f"plugins=[{ROOT}/tests/stability/intervene/broken_gradient.py]", "optimizer.warmup_steps=0",
        f"stress=[{{kind: scale_lr, step: {41 if stress else 45}, steps: null, factor: 100.0}}{stress}]", "train.steps=50",
    )  # fmt: skip
    status, run = start(*overrides)
    assert status == (0 if end == 50 else EXIT_DIVERGED)
    assert json.loads((run / "status.json").read_text())["step"] == end
    found = [e for e in events_of(run) if e["event"] == "spike"]
    closed = {e["signal"]: e["written_at"] for e in found if e.get("closed_by_the_end")}
    assert "grad_norm/total" in closed
    assert set(closed.values()) == {end}
    assert all(e["written_at"] <= end for e in events_of(run))
    (run / "status.json").unlink()
    assert start(*overrides)[0] == status
    assert [e for e in events_of(run) if e["event"] == "spike"] == found


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(start):
    """An absurd learning rate makes the loss overflow; the run stops with an event, no later row and no later checkpoint."""
    status, run = start(
        "name=diverged", "optimizer.lr=1e18", "optimizer.clip_norm=null", "checkpoint.every=1", "checkpoint.keep=99"
    )
    assert status == EXIT_DIVERGED
    (event,) = [e for e in events_of(run) if e["event"] == "non_finite"]
    state = json.loads((run / "status.json").read_text())
    assert (state["status"], state["step"]) == ("diverged", event["step"])
    rows = rows_of(run)
    assert rows[-1]["step"] == event["step"]
    assert all(rows[-1][signal] in ("NaN", "Infinity", "-Infinity") for signal in event["signals"])
    assert all(
        isinstance(row[name], float) for row in rows[:-1] for name in ("loss/nll", "loss/objective", "grad_norm/total")
    )
    checkpoints = list_checkpoints(run)
    assert [int(c.name[5:]) for c in checkpoints] == list(range(1, event["step"]))
    for checkpoint in checkpoints:
        assert all(bool(v.isfinite().all()) for v in load_file(checkpoint / "model.safetensors").values())


def test_probing_attention_does_not_disturb_the_run(start):
    """Dropout on: the probe must not draw from its stream either. Results without the probe are the same to the bit."""
    dropout = "body.attn_pdrop=0.1"
    probed = start("name=probed", dropout, "telemetry.attention_every=1")[1]
    plain = start("name=plain", dropout, "telemetry.attention_every=null")[1]
    found = [
        {k: v for k, v in row.items() if k.startswith(("attention/", "hidden_kurtosis/"))} for row in rows_of(probed)
    ]
    names = {
        f"attention/{place}{kind}" for place in ("", "layer_00/", "layer_01/") for kind in ("logit_max", "entropy")
    } | {"hidden_kurtosis/layer_00", "hidden_kurtosis/layer_01"}
    assert all(values.keys() == names for values in found)
    assert [r["attention/logit_max"] for r in found] == [
        max(r["attention/layer_00/logit_max"], r["attention/layer_01/logit_max"]) for r in found
    ]
    assert [{k: v for k, v in row.items() if k not in names} for row in rows_of(probed)] == rows_of(plain)
    assert_same_weights(weights(probed), weights(plain))
    every_seventh = start("name=seventh", dropout, "telemetry.attention_every=7")[1]
    assert [r["step"] for r in rows_of(every_seventh) if "attention/logit_max" in r] == [7, 14, 21, 28]
    assert [r["step"] for r in rows_of(every_seventh) if "hidden_kurtosis/layer_01" in r] == [7, 14, 21, 28]


PROBED = ("train.steps=30", "telemetry.attention_every=5")


def test_a_run_at_an_absurd_rate_says_that_its_attention_is_saturated(start):
    _, run = start("name=absurd", "optimizer.lr=1.0", *PROBED)
    by_signal = {event["signal"]: event for event in events_of(run) if event["event"] == "saturated"}
    attention = by_signal["attention/logit_max"]
    logits = {row["step"]: row["attention/logit_max"] for row in rows_of(run) if "attention/logit_max" in row}
    assert logits[attention["start_step"]] > attention["limit"]
    assert attention["opened_step"] == attention["start_step"] + 5
    assert attention["height"] == logits[attention["opened_step"]]
    assert "layer_00" in attention["layers"]
    assert by_signal["attention/layer_00/entropy"]["height"] < by_signal["attention/layer_00/entropy"]["limit"]
    assert len(by_signal) == len([event for event in events_of(run) if event["event"] == "saturated"])


def test_a_healthy_run_has_no_event_at_all(start):
    assert events_of(start("name=healthy", *PROBED)[1]) == []


def test_an_error_in_mid_run_is_in_the_status(start, tmp_path, monkeypatch):
    import training.flush as flush_module

    monkeypatch.setattr(flush_module, "evaluate", lambda run: {}["no such key"])
    with pytest.raises(KeyError):
        start("name=broken")
    status = json.loads((tmp_path / "broken" / "status.json").read_text())
    assert status["status"] == "failed"
    assert "no such key" in status["reason"]


def test_checkpoints_keep_the_newest_and_the_best(start):
    _, run = start("name=pruned", "checkpoint.every=2", "checkpoint.keep=3", "train.steps=20", "train.eval_every=2")
    left = list_checkpoints(run)
    scores = {r["step"]: r["validation/nll"] for r in rows_of(run) if "validation/nll" in r}
    best = min(scores, key=lambda step: scores[step])
    assert {int(p.name[5:]) for p in left} == {16, 18, 20, best}
    assert not [p for p in (run / "checkpoints").iterdir() if p not in left]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["resume=never"], "holds a run already"),
        (["optimizer.lr=1.0e-3"], "optimizer.lr: the run in"),
        (["name=new", "resume=must"], "there is no complete checkpoint"),
        (["train.precision=fp16", "name=half"], "train.precision: fp16 needs a GPU"),
        (["trackers=[nothing]", "name=tracked"], "trackers: nothing is unknown to Accelerate"),
    ],
)
def test_refusals(overrides, expected, start, tmp_path):
    start("name=taken", "train.steps=6")
    with pytest.raises(InputError, match=expected):
        start("name=taken", "train.steps=6", *overrides)
    assert {p.name for p in tmp_path.iterdir()} == {"taken"}


def test_a_finished_run_is_left_alone(start, capsys):
    _, run = start("name=done", "train.steps=6")
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    assert start("name=done", "train.steps=6")[0] == 0
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before
    assert "already finished" in capsys.readouterr().out


def test_bf16_trains(start):
    _, run = start("name=bf16", "train.precision=bf16", "train.steps=12", "train.batch_size=4")
    rows = rows_of(run)
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"]
    assert all(v.dtype == torch.float32 for v in weights(run).values())


def test_a_tracker_gets_every_row(start, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    start("name=tracked", "trackers=[tensorboard]", "train.steps=9")
    scalars = accumulator.EventAccumulator(str(tmp_path / "tracked")).Reload().Scalars("loss/nll")
    assert [s.step for s in scalars] == list(range(1, 10))


def test_the_body_of_an_existing_checkpoint_under_another_head(linear, start, tmp_path):
    checkpoint = list_checkpoints(linear)[-1]
    _, second = start(
        "name=second", f"body.checkpoint={checkpoint}", f"data.tokenizer={checkpoint}", "data.vocab_size=null"
    )
    assert rows_of(second)[0]["loss/nll"] < rows_of(linear)[0]["loss/nll"] - 0.5
    assert load_config(second / "config.yaml").head.kind == "metric"
    for overrides, problem in (
        ((f"body.checkpoint={linear}",), f"{linear} is a run; name one of its checkpoints, as {checkpoint}"),
        (
            (f"body.checkpoint={checkpoint}", "data.vocab_size=400"),
            f"{checkpoint} has another tokenizer than the text, so its embeddings are of other tokens; set "
            f"data.vocab_size=null data.tokenizer={checkpoint}",
        ),
    ):
        with pytest.raises(InputError, match=re.escape(f"body.checkpoint: {problem}")):
            start("name=third", *overrides)
    assert not (tmp_path / "third").exists()


PLUGIN = '''
from __future__ import annotations

from dataclasses import dataclass

import torch

from model import Head, Objective, register_head, register_objective


@register_head("own_harmonic")
class OwnHarmonicHead(Head):
    """z_k = -(n/2) log ||h - w_k||^2"""

    @dataclass(frozen=True)
    class Options(Head.Options):
        exponent: float = 4.0

    def logits(self, f_CD, w_VD):
        squares_CV = f_CD.square().sum(1)[:, None] - 2 * f_CD @ w_VD.T + w_VD.square().sum(1)
        return -self.options.exponent / 2 * squares_CV.clamp(min=1e-6).log()


@register_objective("own_focal")
class OwnFocal(Objective):
    def loss(self, t):
        return torch.sigmoid(t.negatives - t.true) ** 2 * torch.nn.functional.softplus(t.negatives - t.true)
'''


def test_a_head_and_an_objective_of_ones_own_without_touching_the_project(start, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    own = [f"plugins=[{tmp_path}/mine.py]", "head.kind=own_harmonic", "head.exponent=8.0", "objective.kind=own_focal"]
    assert start("name=own", *own)[0] == 0
    rows = rows_of(tmp_path / "own")
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"] - 0.1
    assert json.loads((list_checkpoints(tmp_path / "own")[-1] / "config.json").read_text())["head"]["exponent"] == 8.0


def test_a_head_of_ones_own_trains_in_bf16(start, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    own = [f"plugins=[{tmp_path}/mine.py]", "head.kind=own_harmonic", "objective.kind=tfsd"]
    status, run = start("name=own_bf16", "train.precision=bf16", "train.steps=6", "train.batch_size=2", *own)
    assert status == 0
    assert rows_of(run)[-1]["loss/nll"] < rows_of(run)[0]["loss/nll"]


def test_the_readme_example_is_a_working_plugin(start, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text.split("```python")[1].split("```")[0])
    assert start("name=readme", "train.steps=6", f"plugins=[{tmp_path}/mine.py]", "objective.kind=margin")[0] == 0


def test_a_broken_plugin_is_one_line(start, tmp_path):
    (tmp_path / "mine.py").write_text("import nowhere_at_all\n")
    with pytest.raises(InputError, match=r"mine\.py: ModuleNotFoundError: No module named 'nowhere_at_all'"):
        start(f"plugins=[{tmp_path}/mine.py]")


def test_compiled_training_agrees_with_eager(start):
    if os.system("cc --version > /dev/null 2>&1"):  # noqa: S605
        pytest.skip("torch.compile needs a C compiler on the CPU")
    short = [
        "train.steps=6",
        "body.n_layer=1",
        "train.eval_every=99",
        "train.eval_sequences=8",
        "telemetry.attention_every=2",
        "checkpoint.every=5",
    ]
    eager, compiled = start("name=eager", *short)[1], start("name=compiled", *short, "train.compile=true")[1]
    for a, b in zip(rows_of(eager), rows_of(compiled), strict=True):
        assert a.keys() == b.keys()
        assert a["loss/nll"] == pytest.approx(b["loss/nll"], rel=1e-3)
        assert a["hidden_norm/pre_final/mean"] == pytest.approx(b["hidden_norm/pre_final/mean"], rel=1e-3)
    assert "attention/logit_max" in rows_of(compiled)[5]
    AcceleratorState._reset_state(reset_partial_state=True)
    replay([str(compiled), "--step", "6", "--out", str(compiled / "replay")])
    found = json.loads((compiled / "replay" / "explanation.json").read_text())
    assert (found["reproduced"], found["steps_compared"]) == (True, 1)  # though it was looked at before it was compiled
