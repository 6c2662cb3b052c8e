from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from record.logs.base import Rows
from record.logs.columns import find_roles, measures_model, parse_columns, plain, role_of
from record.logs.read import read_logs

NAMES = {
    "loss": "loss train_loss train/loss lm_loss train/CE_loss trainLoss loss/train Loss/train train/CrossEntropyLoss "
    "train_loss_step reduced_train_loss metrics/train/LanguageCrossEntropy loss/nll loss/train/total",
    "grad_norm": "grad_norm gradNorm train/grad_norm optim/total_grad_norm grad/norm/total gnorm l2_norm/grad/global",
    "lr": "lr learning_rate train/learning_rate optim/learning_rate lr-AdamW/pg1 LR learningRate lr-DecoupledAdamW/group0",
    "val_loss": "val_loss eval_loss eval/loss valid/loss validation/nll loss/val Loss/test eval_wikitext_loss val/lm_loss",
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in NAMES.items() for name in names.split()])
def test_known_names(role: str, name: str) -> None:
    found = role_of(name)
    assert found is not None and found.key == role


@pytest.mark.parametrize(
    "name",
    ["aux_loss", "z_loss", "loss_scale", "param_norm", "epoch", "eval_runtime", "grad_norm/head", "loss/objective"],
)
def test_other_names_are_nothing_known(name: str) -> None:
    assert role_of(name) is None


def test_a_name_is_compared_without_its_style() -> None:
    assert {plain(name) for name in ("train/CE loss", "train_CE_loss", "ce-loss", "Training.CE Loss")} == {"ce loss"}
    assert plain("_step") != plain("step")


def test_times_and_counters_are_no_precursors() -> None:
    assert [n for n in ("tokens", "step_time", "trainRuntime", "logit/max", "param_norm") if measures_model(n)] == [
        "logit/max",
        "param_norm",
    ]


def rows(**counts: int) -> Rows:
    return Rows(count=99, columns={name: (np.arange(n), np.zeros(n)) for name, n in counts.items()})


def test_of_two_names_the_more_telling_counts_unless_it_has_far_fewer_values() -> None:
    assert find_roles(rows(step=99, loss=99, train_loss=1), {})["loss"] == "loss"
    assert find_roles(rows(step=99, train_loss=1, loss_step=99), {})["loss"] == "loss_step"
    assert find_roles(rows(_step=99, global_step=99, loss=9), {})["step"] == "global_step"


def test_given_columns_come_before_the_table(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("step,tokens,loss,aux\n1,10,2.5,0.5\n2,20,2.25,0.25\n")
    (log,) = read_logs(tmp_path / "x.csv", parse_columns(["loss=aux", "step=tokens"])).logs
    assert log.roles["loss"] == "aux" and log.table.steps.tolist() == [10, 20]


@pytest.mark.parametrize("argument", ["loss", "loss=", "reward=x", "=x"])
def test_what_is_no_column_option_is_told(argument: str) -> None:
    with pytest.raises(
        InputError, match=r"--columns .*: give ROLE=COLUMN, for example loss=train/lm_loss, with ROLE one of step, loss"
    ):
        parse_columns([argument])
