"""Every arm of the landscape, as its suite has it but small: real steps, a checkpoint, the model in it, and texts that go on."""

from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from transformers import AutoTokenizer

from configs.load import load_config
from model import HEADS, OBJECTIVES, load_model
from ranks.launch import start_accelerator
from record.checkpoints import list_checkpoints
from suite.file import load_suite
from training.ends import open_run_directory
from training.loop import loop
from training.resume import ResumePoint
from training.run import build_run

from ..conftest import ROOT, rows_of

SUITE = load_suite(ROOT / "configs" / "suites" / "landscape.yaml")
RECIPE = ROOT / "configs" / "suites" / SUITE.recipe
TEACHER = "objective.teacher="
SMALL = [
    *("train.steps=4", "train.batch_size=8", "train.eval_every=4", "train.eval_sequences=4", "checkpoint.every=4"),
    *("optimizer.warmup_steps=1", "body.hidden_size=32", "body.intermediate_size=48"),
]
TEXTS = ["The sum", "What the function returns"]


@pytest.fixture(scope="module")
def recipe(workspace):
    """The suite's recipe on the tests' text."""
    fields = yaml.safe_load(RECIPE.read_text())
    fields["data"] = yaml.safe_load((workspace / "tiny.yaml").read_text())["data"]
    path = workspace / "landscape.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def trained(recipe, folder, *overrides):
    """A run that has taken its steps, and is still there."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(recipe, [*SUITE.overrides, *SMALL, *overrides, f"output_dir={folder}", "name=run"])
    train = config.train
    accelerator = start_accelerator(train.precision, batch_size=train.batch_size, stall_seconds=train.stall_seconds)
    run = build_run(config, accelerator, Path(config.output_dir) / config.name, None)
    open_run_directory(run, ResumePoint())
    assert loop(run) == 0
    run.bar.close()
    return run


@pytest.fixture(scope="module")
def teacher(recipe, tmp_path_factory):
    """A checkpoint of the suite's baseline with another seed."""
    folder = tmp_path_factory.mktemp("teacher")
    trained(recipe, folder, "seed=900", *SUITE.arms[SUITE.baseline_arm])
    return list_checkpoints(folder / "run")[-1]


def test_the_arms_have_every_head_and_every_objective():
    told = " ".join(override for arm in SUITE.arms.values() for override in arm)
    assert {kind for kind in HEADS if f"head.kind={kind}" not in told} <= {"linear"}
    assert {kind for kind in OBJECTIVES if f"objective.kind={kind}" not in told} <= {"ce", "weighted_ce"}


@pytest.mark.parametrize("arm", SUITE.arms)
def test_an_arm_learns_is_loaded_and_goes_on(arm, recipe, teacher, tmp_path):
    overrides = [TEACHER + str(teacher) if o.startswith(TEACHER) else o for o in SUITE.arms[arm]]
    run = trained(recipe, tmp_path, *overrides)
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["validation/nll"] > 0
    checkpoint = list_checkpoints(tmp_path / "run")[-1]
    model, tokenizer = load_model(checkpoint), AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    tokenizer.pad_token = tokenizer.eos_token
    alone = [tokenizer(text, return_tensors="pt") for text in TEXTS]
    with torch.no_grad():
        logits = [model(**batch).logits[0] for batch in alone]
        of_run = [run.bare_model().eval()(batch["input_ids"]).logits[0] for batch in alone]
        padded = model(**tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")).logits
    for found_TV, expected_TV, beside_TV in zip(logits, of_run, padded, strict=True):
        assert torch.equal(found_TV, expected_TV)
        torch.testing.assert_close(beside_TV[: len(found_TV)], found_TV, rtol=1e-5, atol=1e-5)
    assert continued(model, tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt")) == [
        continued(model, batch)[0] for batch in alone
    ]


def continued(model, batch):
    """The four most probable next tokens, one after the other."""
    return model.generate(**batch, max_new_tokens=4, do_sample=False)[:, -4:].tolist()
